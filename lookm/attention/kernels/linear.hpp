// A linear layer for few rows, on a CPU without bfloat16 products of its own (AVX2): the weight is read once
// for all rows, at memory's speed. For many rows it is widened and multiplied by torch (fast/widened.py).
//
// Contract (reference: torch.nn.functional.linear): x [R, I], weight [O, I], bias [O] or none; bfloat16,
// contiguous. out [R, O] bfloat16: products are exact, sums float32, rounded once.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "lanes.hpp"
#include "products.hpp"

namespace linear {

using at::BFloat16;

constexpr int kRows = 4;     // 4 x 2 registers of sums, 2 of weights, 2 of x: 12 of AVX2's 16
constexpr int kOutputs = 2;
constexpr int64_t kPairs = 2 * lanes::kLanes;  // numbers a step takes of a row
// Weights below which another thread costs more than it gives.
constexpr int64_t kGrain = 1 << 15;

// x by steps of kPairs: the even numbers, then the odd ones, as floats; so a word of the weight, which is
// two neighbours, meets its own with one shift or mask. Past the end zero.
inline std::vector<float> split(const BFloat16* x, int64_t rows, int64_t inner, int64_t width) {
  std::vector<float> halves(rows * width, 0.f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t step = i / kPairs * kPairs, within = i % kPairs;
      halves[r * width + step + within % 2 * lanes::kLanes + within / 2] = static_cast<float>(x[r * inner + i]);
    }
  return halves;
}

// Rows of x [Rows, width] (split) times rows of the weight [Outputs, inner].
template <int Rows, int Outputs>
inline void tile(const float* x, int64_t width, const BFloat16* weight, int64_t inner, float (*out)[kOutputs]) {
  lanes::Floats total[Rows][Outputs] = {};
  for (int64_t i = 0; i < width; i += kPairs) {
    lanes::Words pairs[Outputs];
    const int64_t bytes = std::min(kPairs, inner - i) * static_cast<int64_t>(sizeof(BFloat16));
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
      if (bytes == sizeof(pairs[o])) {
        std::memcpy(&pairs[o], weight + o * inner + i, sizeof(pairs[o]));
      } else {
        pairs[o] = lanes::Words{};
        std::memcpy(&pairs[o], weight + o * inner + i, bytes);
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
      const lanes::Floats even = products::first_of(pairs[o]), odd = products::second_of(pairs[o]);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        total[r][o] += lanes::load(x + r * width + i) * even;
        total[r][o] += lanes::load(x + r * width + i + lanes::kLanes) * odd;
      }
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int o = 0; o < Outputs; ++o) out[r][o] = lanes::sum(total[r][o]);
}

template <int Outputs>
inline void outputs(const float* x, int64_t rows, int64_t width, const BFloat16* weight, int64_t inner,
                    const BFloat16* bias, BFloat16* out, int64_t out_stride) {
  float sums[kRows][kOutputs];
  for (int64_t r = 0; r < rows;) {
    const float* from = x + r * width;
    const int64_t taken = rows - r >= kRows ? kRows : rows - r >= 2 ? 2 : 1;
    if (taken == kRows)
      tile<kRows, Outputs>(from, width, weight, inner, sums);
    else if (taken == 2)
      tile<2, Outputs>(from, width, weight, inner, sums);
    else
      tile<1, Outputs>(from, width, weight, inner, sums);
    for (int64_t t = 0; t < taken; ++t)
      for (int o = 0; o < Outputs; ++o)
        out[(r + t) * out_stride + o] =
            BFloat16(sums[t][o] + (bias != nullptr ? static_cast<float>(bias[o]) : 0.f));
    r += taken;
  }
}

// Shapes, strides and types were checked by the launcher (kernels/cpu_rows.py).
inline at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const int64_t rows = x.size(0), inner = x.size(1), num_out = weight.size(0);
  const int64_t width = (inner + kPairs - 1) / kPairs * kPairs;
  at::Tensor out = at::empty({rows, num_out}, x.options());
  const BFloat16* weight_data = weight.const_data_ptr<BFloat16>();
  const BFloat16* bias_data = bias ? bias->const_data_ptr<BFloat16>() : nullptr;
  BFloat16* out_data = out.mutable_data_ptr<BFloat16>();
  const std::vector<float> halves = split(x.const_data_ptr<BFloat16>(), rows, inner, width);
  at::parallel_for(0, num_out, std::max<int64_t>(kOutputs, kGrain / inner), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end;) {
      const BFloat16* from = weight_data + o * inner;
      const BFloat16* add = bias_data != nullptr ? bias_data + o : nullptr;
      if (end - o >= kOutputs) {
        outputs<kOutputs>(halves.data(), rows, width, from, inner, add, out_data + o, num_out);
        o += kOutputs;
      } else {
        outputs<1>(halves.data(), rows, width, from, inner, add, out_data + o, num_out);
        ++o;
      }
    }
  });
  return out;
}

}  // namespace linear
