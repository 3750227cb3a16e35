// For each evicted key, the kept key of highest cosine similarity, on the CPU.
//
// Contract (reference: lookm.policy.merges, nearest): kept [K, S, D], evicted [K, E, D] bfloat16,
// contiguous, D even. target [K, E] int64 in [0, S), the first of equals; cosine [K, E] float32. A key
// of length zero has cosine 0 to everything. Dot products are exact products summed in float32.
//
// One task is one KV head: kept keys are packed once, then 64 evicted keys at a time are multiplied
// with 256 kept ones, and the best of each row is taken while the products are in the cache.
//
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "lanes.hpp"
#include "products.hpp"

namespace nearest {

using at::BFloat16;

constexpr int64_t kRows = 64;
constexpr int64_t kColumns = 256;

inline float inverse_length(const BFloat16* key, int64_t dim) {
  return 1.f / std::max(std::sqrt(lanes::dot(key, key, dim)), FLT_MIN);
}

struct Best {
  float value = -std::numeric_limits<float>::infinity();
  int64_t at = 0;
};

// The first largest of products[j] * scale[j], if it beats what was found in earlier columns. Each lane
// keeps the first largest of its own columns; of equal lanes the one with the lowest column wins. Columns
// from `count` to the next multiple of 16 have scale 0 and are left out at the end.
inline void take_best(const float* products, const float* scale, int32_t count, int64_t first,
                      Best& best) {
  lanes::Floats value = lanes::Floats{} - std::numeric_limits<float>::infinity();
  lanes::Integers at = {}, column = lanes::lane_numbers();
  const lanes::Floats lowest = value;
  for (int32_t j = 0; j < count; j += lanes::kLanes) {
    lanes::Floats scaled = lanes::load(products + j) * lanes::load(scale + j);
    if (j + lanes::kLanes > count) scaled = column < count ? scaled : lowest;
    const auto better = scaled > value;
    value = better ? scaled : value;
    at = better ? column : at;
    column += static_cast<int32_t>(lanes::kLanes);
  }
  const float largest = lanes::largest(value);
  if (!(largest > best.value)) return;
  const auto others = lanes::Integers{} + std::numeric_limits<int32_t>::max();
  best = {largest, first + lanes::smallest(value == largest ? at : others)};
}

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline std::tuple<at::Tensor, at::Tensor> run(const at::Tensor& kept, const at::Tensor& evicted) {
  const int64_t heads = kept.size(0), num_kept = kept.size(1), dim = kept.size(2);
  const int64_t num_evicted = evicted.size(1);
  const int64_t width = (num_kept + kColumns - 1) / kColumns * kColumns;
  at::Tensor target = at::empty({heads, num_evicted}, kept.options().dtype(at::kLong));
  at::Tensor cosine = at::empty({heads, num_evicted}, kept.options().dtype(at::kFloat));
  const BFloat16* kept_data = kept.const_data_ptr<BFloat16>();
  const BFloat16* evicted_data = evicted.const_data_ptr<BFloat16>();
  int64_t* target_data = target.mutable_data_ptr<int64_t>();
  float* cosine_data = cosine.mutable_data_ptr<float>();
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<BFloat16> packed(dim * width);
    std::vector<float> inverse(width), products(kRows * kColumns);
    for (int64_t head = begin; head < end; ++head) {
      const BFloat16* keys = kept_data + head * num_kept * dim;
      products::pair_columns(keys, dim, num_kept, dim, width, packed.data());
      for (int64_t s = 0; s < num_kept; ++s) inverse[s] = inverse_length(keys + s * dim, dim);
      for (int64_t row = 0; row < num_evicted; row += kRows) {
        const int64_t rows = std::min(kRows, num_evicted - row);
        const int64_t at_row = head * num_evicted + row;
        Best best[kRows];
        for (int64_t s = 0; s < num_kept; s += kColumns) {
          products::multiply(rows, kColumns, dim, dim, width, kColumns, false,
                       evicted_data + at_row * dim, packed.data() + s * 2, products.data());
          const int64_t count = std::min(kColumns, num_kept - s);
          for (int64_t r = 0; r < rows; ++r)
            take_best(products.data() + r * kColumns, inverse.data() + s,
                      static_cast<int32_t>(count), s, best[r]);
        }
        for (int64_t r = 0; r < rows; ++r) {
          target_data[at_row + r] = best[r].at;
          cosine_data[at_row + r] =
              best[r].value * inverse_length(evicted_data + (at_row + r) * dim, dim);
        }
      }
    }
    products::release();
  });
  return {target, cosine};
}

}  // namespace nearest
