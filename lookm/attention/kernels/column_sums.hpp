// Column sums of causal attention on the CPU, from the log-sum-exp that flash attention returns.
//
// Contract (twin: lookm.attention.reference, statistics): q [H, T, D], k [K, T, D] bfloat16,
// contiguous; lse [H, T] float32, natural log of each row's sum of exponentials. Result [2, K, T]
// float32: sum_i A_ij and sum_i A_ij^2 over the rows i >= j and the query heads of the group, where
// A_ij = exp(scale q_i . k_j - lse_i). Deterministic: one task owns one tile of keys.
//
//            keys  j0 ...... j0 + 256
//     rows i0      x x x
//                  x x x x x            the tile on the diagonal stops at j = i
//                  x x x x x x x x      logits by one small matrix product (AMX or AVX-512),
//     rows i0+64   x x x x x x x x      exponentials and sums while they are in the cache
//
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "lanes.hpp"

namespace column_sums {

using at::BFloat16;
namespace blas = at::native::cpublas;

constexpr int64_t kRows = 64;
constexpr int64_t kKeys = 256;

// Keys j0 .. j0 + keys of one head in the layout the matrix kernel reads, [D / 2, kKeys, 2]: pairs of
// neighbouring dims side by side. Columns past `keys` are zero.
void pack_keys(const BFloat16* k, int64_t keys, int64_t dim, BFloat16* packed) {
  std::fill(packed, packed + dim * kKeys, BFloat16(0.f));
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t d = 0; d < dim; d += 2)
      std::memcpy(packed + d * kKeys + j * 2, k + j * dim + d, 2 * sizeof(BFloat16));
}

void add_row(const float* logits, int64_t count, float scale, float lse, float* sums) {
  for (int64_t j = 0; j < count; ++j) sums[j] += lanes::exp_nonpositive(logits[j] * scale - lse);
}

void add_row_squares(const float* logits, int64_t count, float scale, float lse, float* sums,
                     float* squares) {
  for (int64_t j = 0; j < count; ++j) {
    const float a = lanes::exp_nonpositive(logits[j] * scale - lse);
    sums[j] += a;
    squares[j] += a * a;
  }
}


// Whether this processor multiplies bfloat16 matrices (AMX or AVX-512 BF16); both kernels need it.
inline bool supported() { return blas::could_pack(at::kBFloat16); }

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse,
                       double scale_, bool with_squares) {
  const int64_t kv_heads = k.size(0), tokens = k.size(1), dim = k.size(2);
  const int64_t group = q.size(0) / kv_heads;
  const int64_t tiles = (tokens + kKeys - 1) / kKeys;
  const float scale = static_cast<float>(scale_);
  at::Tensor out = at::zeros({2, kv_heads, tokens}, lse.options());
  const BFloat16* q_data = q.const_data_ptr<BFloat16>();
  const BFloat16* k_data = k.const_data_ptr<BFloat16>();
  const float* lse_data = lse.const_data_ptr<float>();
  float* out_data = out.mutable_data_ptr<float>();
  at::parallel_for(0, kv_heads * tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<BFloat16> packed(dim * kKeys);
    std::vector<float> logits(kRows * kKeys);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / tiles, first = (task % tiles) * kKeys;
      const int64_t keys = std::min(kKeys, tokens - first);
      pack_keys(k_data + (head * tokens + first) * dim, keys, dim, packed.data());
      float* sums = out_data + head * tokens + first;
      float* squares = sums + kv_heads * tokens;
      for (int64_t g = head * group; g < (head + 1) * group; ++g) {
        for (int64_t row = first; row < tokens; row += kRows) {
          const int64_t rows = std::min(kRows, tokens - row);
          blas::brgemm(rows, kKeys, dim, dim, kKeys, kKeys, false,
                       q_data + (g * tokens + row) * dim, packed.data(), logits.data());
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t count = std::min(keys, row + r - first + 1);
            const float row_lse = lse_data[g * tokens + row + r];
            if (with_squares)
              add_row_squares(logits.data() + r * kKeys, count, scale, row_lse, sums, squares);
            else
              add_row(logits.data() + r * kKeys, count, scale, row_lse, sums);
          }
        }
      }
    }
    blas::brgemm_release();
  });
  return out;
}

}  // namespace column_sums
