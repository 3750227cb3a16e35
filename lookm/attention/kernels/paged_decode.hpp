// Paged decode attention on the CPU: one query per sequence and head over that sequence's pages.
//
// Contract (twin: lookm.attention.reference, decode): q [B, H, D]; k, v [P, K, N, D]; table [B, M]
// int32 page ids; lengths [B] int64 rows. out [B, H, D]; a row of length 0 gives zeros. float32 or
// bfloat16, sums in float32. H is a multiple of K; query head h reads KV head h / (H / K).
//
// One task is one (sequence, KV head): it reads each of its keys and values once, for all query heads
// of the group, and keeps a running softmax (maximum, sum, weighted values) per query head:
//
//     page of N rows: s = q . k * scale;  m' = max(m, max s);  o = o * e^(m - m') + sum e^(s - m') v
//
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "lanes.hpp"

namespace paged_decode {

using at::BFloat16;

struct Shape {
  int64_t group, dim, page_rows, page_stride, head_stride;
};

// All query heads of one (sequence, KV head). `scores` has room for group * page_rows floats.
template <typename T>
void attend(const Shape& shape, const T* q, const T* k_pool, const T* v_pool, const int32_t* pages,
            int64_t length, float scale, T* out, std::vector<float>& scratch) {
  const int64_t group = shape.group, dim = shape.dim, rows_per_page = shape.page_rows;
  scratch.assign(group * (2 * dim + rows_per_page + 2), 0.f);
  float* query = scratch.data();
  float* values = query + group * dim;
  float* scores = values + group * dim;
  float* maximum = scores + group * rows_per_page;
  float* sum = maximum + group;
  for (int64_t i = 0; i < group * dim; ++i) query[i] = static_cast<float>(q[i]) * scale;
  std::fill(maximum, maximum + group, -std::numeric_limits<float>::infinity());

  for (int64_t first = 0; first < length; first += rows_per_page) {
    const int64_t rows = std::min(rows_per_page, length - first);
    const int64_t offset = pages[first / rows_per_page] * shape.page_stride;
    const T* k = k_pool + offset;
    const T* v = v_pool + offset;
    for (int64_t g = 0; g < group; ++g) {
      float* s = scores + g * rows_per_page;
      float page_maximum = maximum[g];
      for (int64_t r = 0; r < rows; ++r) {
        s[r] = lanes::dot(query + g * dim, k + r * dim, dim);
        page_maximum = std::max(page_maximum, s[r]);
      }
      const float shrink = lanes::exp_nonpositive(maximum[g] - page_maximum);
      if (shrink != 1.f) {
        sum[g] *= shrink;
        for (int64_t d = 0; d < dim; ++d) values[g * dim + d] *= shrink;
      }
      maximum[g] = page_maximum;
      for (int64_t r = 0; r < rows; ++r) s[r] = lanes::exp_nonpositive(s[r] - page_maximum);
      for (int64_t r = 0; r < rows; ++r) sum[g] += s[r];
      lanes::add_weighted_rows(values + g * dim, s, v, rows, dim);
    }
  }
  for (int64_t g = 0; g < group; ++g) {
    const float scale_out = length > 0 ? 1.f / sum[g] : 0.f;
    for (int64_t d = 0; d < dim; ++d)
      out[g * dim + d] = static_cast<T>(values[g * dim + d] * scale_out);
  }
}

template <typename T>
void run_as(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& table,
         const at::Tensor& lengths, float scale, at::Tensor& out) {
  const int64_t batch = q.size(0), kv_heads = k.size(1), dim = q.size(2);
  const Shape shape{q.size(1) / kv_heads, dim, k.size(2), k.stride(0), k.stride(1)};
  const T* q_data = q.const_data_ptr<T>();
  const T* k_data = k.const_data_ptr<T>();
  const T* v_data = v.const_data_ptr<T>();
  const int32_t* table_data = table.const_data_ptr<int32_t>();
  const int64_t* length_data = lengths.const_data_ptr<int64_t>();
  T* out_data = out.mutable_data_ptr<T>();
  at::parallel_for(0, batch * kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / kv_heads, head = task % kv_heads;
      const int64_t at_head = (b * q.size(1) + head * shape.group) * dim;
      attend<T>(shape, q_data + at_head, k_data + head * shape.head_stride,
                v_data + head * shape.head_stride, table_data + b * table.size(1), length_data[b],
                scale, out_data + at_head, scratch);
    }
  });
}


// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& table, const at::Tensor& lengths, double scale) {
  at::Tensor out = at::empty_like(q);
  if (q.scalar_type() == at::kFloat) {
    run_as<float>(q, k, v, table, lengths, static_cast<float>(scale), out);
  } else {
    run_as<BFloat16>(q, k, v, table, lengths, static_cast<float>(scale), out);
  }
  return out;
}

}  // namespace paged_decode
