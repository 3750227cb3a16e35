// Evicted rows added into the kept rows they were assigned to, on the CPU.
//
// Contract (reference: lookm.policy.merges, combine): kept [K, S, D], evicted [K, E, D] bfloat16; target
// [K, E] int64 in [0, S); weight [K, E], centre [K, S] float32, all contiguous. Result [K, S, D]
// bfloat16: (centre * kept + sum of weight * evicted) / (n + 1) over the n rows assigned to each kept
// one, summed in float32 in the order of the rows; a kept row with n = 0 is passed on as it is. With
// `length` (reference: merges, lengthened) the result has the direction of that mean and the mean, by the
// same weights, of the rows' lengths; a kept row that received no weight is passed on as it is.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.hpp"

namespace combine {

using at::BFloat16;

inline void one_head(const BFloat16* kept, const BFloat16* evicted, const int64_t* target,
                     const float* weight, const float* centre, int64_t num_kept,
                     int64_t num_evicted, int64_t dim, BFloat16* out) {
  std::vector<float> sums(num_kept * dim);
  std::vector<int64_t> counts(num_kept);
  for (int64_t e = 0; e < num_evicted; ++e) {
    lanes::add_scaled(sums.data() + target[e] * dim, weight[e], evicted + e * dim, dim);
    ++counts[target[e]];
  }
  for (int64_t s = 0; s < num_kept; ++s) {
    const BFloat16* row = kept + s * dim;
    if (counts[s] == 0) {
      std::copy(row, row + dim, out + s * dim);
      continue;
    }
    const float* sum = sums.data() + s * dim;
    const float divisor = static_cast<float>(counts[s] + 1);
    for (int64_t d = 0; d < dim; ++d)
      out[s * dim + d] =
          static_cast<BFloat16>((centre[s] * static_cast<float>(row[d]) + sum[d]) / divisor);
  }
}

inline void one_head_lengthened(const BFloat16* kept, const BFloat16* evicted, const int64_t* target,
                                const float* weight, const float* centre, int64_t num_kept,
                                int64_t num_evicted, int64_t dim, BFloat16* out) {
  constexpr float kTiny = 1e-12f;
  std::vector<float> sums(num_kept * dim), lengths(num_kept), received(num_kept);
  std::vector<int64_t> counts(num_kept);
  for (int64_t e = 0; e < num_evicted; ++e) {
    const BFloat16* row = evicted + e * dim;
    const int64_t to = target[e];
    ++counts[to];
    if (weight[e] == 0.f) continue;
    lanes::add_scaled(sums.data() + to * dim, weight[e], row, dim);
    lengths[to] += weight[e] * std::sqrt(lanes::dot(row, row, dim));
    received[to] += weight[e];
  }
  for (int64_t s = 0; s < num_kept; ++s) {
    const BFloat16* row = kept + s * dim;
    if (!(received[s] > 0.f)) {
      std::copy(row, row + dim, out + s * dim);
      continue;
    }
    float* sum = sums.data() + s * dim;
    lanes::add_scaled(sum, centre[s], row, dim);
    const float length = lengths[s] + centre[s] * std::sqrt(lanes::dot(row, row, dim));
    const float divisor = static_cast<float>(counts[s] + 1);
    const float norm = std::max(std::sqrt(lanes::dot(sum, sum, dim)) / divisor, kTiny);
    const float scale = length / divisor / divisor / norm;
    lanes::store_scaled(out + s * dim, sum, scale, dim);
  }
}

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline at::Tensor run(const at::Tensor& kept, const at::Tensor& evicted, const at::Tensor& target,
                      const at::Tensor& weight, const at::Tensor& centre, bool length) {
  const int64_t num_kept = kept.size(1), num_evicted = evicted.size(1), dim = kept.size(2);
  at::Tensor out = at::empty_like(kept);
  const BFloat16* kept_data = kept.const_data_ptr<BFloat16>();
  const BFloat16* evicted_data = evicted.const_data_ptr<BFloat16>();
  const int64_t* target_data = target.const_data_ptr<int64_t>();
  const float* weight_data = weight.const_data_ptr<float>();
  const float* centre_data = centre.const_data_ptr<float>();
  BFloat16* out_data = out.mutable_data_ptr<BFloat16>();
  const auto combined = length ? one_head_lengthened : one_head;
  at::parallel_for(0, kept.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      combined(kept_data + head * num_kept * dim, evicted_data + head * num_evicted * dim,
               target_data + head * num_evicted, weight_data + head * num_evicted,
               centre_data + head * num_kept, num_kept, num_evicted, dim,
               out_data + head * num_kept * dim);
  });
  return out;
}

}  // namespace combine
