// What a layer does to its rows between the matrix products, in one pass over memory each.
//
// Contracts (references: transformers' own modules, see lookm.models.fast.fuse); bfloat16, the last dimension dense:
//
//     rms_norm   x [R, E], weight [E] -> weight * bf16(x / sqrt(mean(x^2) + epsilon)), as Llama does
//     rotate     the first `heads` heads of x [T, heads + more, D], in place, by cos and sin [T, D]:
//                (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of a head
//
// Sums and products are float32; rms_norm rounds the quotient, rotate rounds once.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>

#include "lanes.hpp"

namespace rows {

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

// Shapes and types were checked by the launcher (kernels/cpu_rows.py).
inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const int64_t size = weight.size(0), num_rows = x.numel() / size;
  at::Tensor y = at::empty_like(x);
  const BFloat16* x_data = x.const_data_ptr<BFloat16>();
  const BFloat16* weight_data = weight.const_data_ptr<BFloat16>();
  BFloat16* y_data = y.mutable_data_ptr<BFloat16>();
  at::parallel_for(0, num_rows, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      norm_row(x_data + r * size, weight_data, static_cast<float>(epsilon), size,
               y_data + r * size);
  });
  return y;
}

inline void rotate_head(BFloat16* x, const BFloat16* cos, const BFloat16* sin, int64_t half) {
  int64_t d = 0;
  for (; d + lanes::kLanes <= half; d += lanes::kLanes) {
    const lanes::Floats a = lanes::load(x + d), b = lanes::load(x + half + d);
    lanes::store(x + d, a * lanes::load(cos + d) - b * lanes::load(sin + d));
    lanes::store(x + half + d, b * lanes::load(cos + half + d) + a * lanes::load(sin + half + d));
  }
  for (; d < half; ++d) {
    const float a = x[d], b = x[half + d];
    x[d] = BFloat16(a * static_cast<float>(cos[d]) - b * static_cast<float>(sin[d]));
    x[half + d] =
        BFloat16(b * static_cast<float>(cos[half + d]) + a * static_cast<float>(sin[half + d]));
  }
}

// Shapes and types were checked by the launcher (kernels/cpu_rows.py).
inline void rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, int64_t heads) {
  const int64_t tokens = cos.size(0), size = cos.size(1), stride = x.stride(0);
  BFloat16* x_data = x.mutable_data_ptr<BFloat16>();
  const BFloat16* cos_data = cos.const_data_ptr<BFloat16>();
  const BFloat16* sin_data = sin.const_data_ptr<BFloat16>();
  const int64_t grain = std::max<int64_t>(1, kGrain / (heads * size));
  at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < heads; ++h)
        rotate_head(x_data + t * stride + h * size, cos_data + t * size, sin_data + t * size, size / 2);
  });
}

}  // namespace rows
