// RMSNorm on the CPU in one pass over memory; torch takes five.
//
// Contract (twin: transformers' LlamaRMSNorm, bit for bit but for the order of the sum): x [R, E], weight
// [E] bfloat16, contiguous. y = weight * bf16(x / sqrt(mean(x^2) + epsilon)), sums in float32.
//
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>

#include "lanes.hpp"

namespace rms_norm {

using at::BFloat16;

// Elements below which another thread costs more than it gives.
constexpr int64_t kGrain = 1 << 15;

inline void norm_row(const BFloat16* x, const BFloat16* weight, float epsilon, int64_t size,
                     BFloat16* y) {
  const float mean = lanes::dot(x, x, size) / static_cast<float>(size);
  const float scale = 1.f / std::sqrt(mean + epsilon);
  int64_t i = 0;
  for (; i + lanes::kLanes <= size; i += lanes::kLanes) {
    const lanes::Floats unit = lanes::rounded(lanes::load(x + i) * scale);
    lanes::store(y + i, unit * lanes::load(weight + i));
  }
  for (; i < size; ++i) {
    const BFloat16 unit(static_cast<float>(x[i]) * scale);
    y[i] = BFloat16(static_cast<float>(unit) * static_cast<float>(weight[i]));
  }
}

// Shapes and types were checked by the caller (lookm/models/packed.py).
inline at::Tensor run(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const int64_t size = weight.size(0), rows = x.numel() / size;
  at::Tensor y = at::empty_like(x);
  const BFloat16* x_data = x.const_data_ptr<BFloat16>();
  const BFloat16* weight_data = weight.const_data_ptr<BFloat16>();
  BFloat16* y_data = y.mutable_data_ptr<BFloat16>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      norm_row(x_data + r * size, weight_data, static_cast<float>(epsilon), size,
               y_data + r * size);
  });
  return y;
}

}  // namespace rms_norm
