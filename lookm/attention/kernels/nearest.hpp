// For each evicted key, the kept key of highest cosine similarity, on the CPU.
//
// Contract (reference: lookm.policy.merges, nearest): kept [K, S, D], evicted [K, E, D] bfloat16,
// contiguous, D even. target [K, E] int64 in [0, S), the first of equals; cosine [K, E] float32. A key
// of length zero has cosine 0 to everything. Dot products are exact products summed in float32.
//
// One task is one KV head: evicted keys are packed once, as columns, and 64 kept keys at a time are
// multiplied with 256 of them. Each lane looks for the best of its own evicted key while the products are
// in the cache, so that nothing has to be compared across lanes.
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
constexpr int64_t kTogether = 4;  // vectors of lanes: one waits for its comparison while others are made

inline float inverse_length(const BFloat16* key, int64_t dim) {
  return 1.f / std::max(std::sqrt(lanes::dot(key, key, dim)), FLT_MIN);
}

// What was found so far for each of the columns.
struct Best {
  float value[kColumns];
  int32_t at[kColumns];
  Best() {
    std::fill(value, value + kColumns, -std::numeric_limits<float>::infinity());
    std::fill(at, at + kColumns, 0);
  }
};

// Column by column the first largest of products[r][column] * scale[r], if it beats what earlier rows gave.
// Rows `first` .. are numbers `rows` of `products` [rows, kColumns].
inline void take_best(const float* products, const float* scale, int64_t rows, int32_t first, Best& best) {
  for (int64_t j = 0; j < kColumns; j += kTogether * lanes::kLanes) {
    lanes::Floats value[kTogether];
    lanes::Integers at[kTogether];
    for (int64_t v = 0; v < kTogether; ++v) {
      value[v] = lanes::load(best.value + j + v * lanes::kLanes);
      std::memcpy(&at[v], best.at + j + v * lanes::kLanes, sizeof(at[v]));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const lanes::Integers row = lanes::Integers{} + (first + static_cast<int32_t>(r));
      for (int64_t v = 0; v < kTogether; ++v) {
        const lanes::Floats scaled = lanes::load(products + r * kColumns + j + v * lanes::kLanes) * scale[r];
        const auto better = scaled > value[v];
        value[v] = better ? scaled : value[v];
        at[v] = better ? row : at[v];
      }
    }
    for (int64_t v = 0; v < kTogether; ++v) {
      lanes::store(best.value + j + v * lanes::kLanes, value[v]);
      std::memcpy(best.at + j + v * lanes::kLanes, &at[v], sizeof(at[v]));
    }
  }
}

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline std::tuple<at::Tensor, at::Tensor> run(const at::Tensor& kept, const at::Tensor& evicted) {
  const int64_t heads = kept.size(0), num_kept = kept.size(1), dim = kept.size(2);
  const int64_t num_evicted = evicted.size(1);
  const int64_t width = (num_evicted + kColumns - 1) / kColumns * kColumns;
  at::Tensor target = at::empty({heads, num_evicted}, kept.options().dtype(at::kLong));
  at::Tensor cosine = at::empty({heads, num_evicted}, kept.options().dtype(at::kFloat));
  const BFloat16* kept_data = kept.const_data_ptr<BFloat16>();
  const BFloat16* evicted_data = evicted.const_data_ptr<BFloat16>();
  int64_t* target_data = target.mutable_data_ptr<int64_t>();
  float* cosine_data = cosine.mutable_data_ptr<float>();
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<BFloat16> packed(dim * width);
    std::vector<float> inverse(num_kept), products(kRows * kColumns);
    for (int64_t head = begin; head < end; ++head) {
      const BFloat16* keys = kept_data + head * num_kept * dim;
      const BFloat16* others = evicted_data + head * num_evicted * dim;
      products::pair_columns(others, dim, num_evicted, dim, width, packed.data());
      for (int64_t s = 0; s < num_kept; ++s) inverse[s] = inverse_length(keys + s * dim, dim);
      for (int64_t first = 0; first < num_evicted; first += kColumns) {
        Best best;
        for (int64_t s = 0; s < num_kept; s += kRows) {
          const int64_t rows = std::min(kRows, num_kept - s);
          products::multiply(rows, kColumns, dim, dim, width, kColumns, false, keys + s * dim,
                             packed.data() + first * 2, products.data());
          take_best(products.data(), inverse.data() + s, rows, static_cast<int32_t>(s), best);
        }
        const int64_t count = std::min(kColumns, num_evicted - first);
        for (int64_t e = 0; e < count; ++e) {
          const int64_t at = head * num_evicted + first + e;
          target_data[at] = best.at[e];
          cosine_data[at] = best.value[e] * inverse_length(others + (first + e) * dim, dim);
        }
      }
    }
    products::release();
  });
  return {target, cosine};
}

}  // namespace nearest
