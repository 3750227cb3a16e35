// Paged decode attention on the CPU: one query per sequence and head over that sequence's pages.
//
// Contract (reference: lookm.attention.reference, decode): q [B, H, D]; k, v [P, K, N, D]; table [B, M]
// int32 page ids; lengths [B] int64 rows. out [B, H, D]; a row of length 0 gives zeros. float32 or
// bfloat16, sums in float32. k and v may be int8, with scales [P, K, N] float32 of their rows: a score is multiplied by
// its key's, a weight by its value's. H is a multiple of K; query head h reads KV head h / (H / K).
//
// A sequence is cut into chunks of pages, by its own length alone, so that its answer does not depend on
// who else is in the batch. One task is one chunk: it reads each of its pages once, all heads of a page
// one after the other as they lie in memory, and keeps a running softmax per query head:
//
//     rows of a page: s = q . k * scale;  m' = max(m, max s);  o = o * e^(m - m') + sum e^(s - m') v
//
// Then the chunks of a sequence are added up, in order, each scaled to the largest maximum.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "lanes.hpp"

namespace paged_decode {

using at::BFloat16;

constexpr int64_t kChunkPages = 16;
constexpr int64_t kLineBytes = 64;

struct Shape {
  int64_t heads, kv_heads, dim, page_rows;
  int64_t group() const { return heads / kv_heads; }
  int64_t chunk_rows() const { return kChunkPages * page_rows; }
  int64_t partial_size() const { return heads * (dim + 2); }
};

// What a chunk knows of each query head: weighted values [H, D], maximum [H] and sum [H] of weights.
struct Partial {
  float *values, *maximum, *sum;
  Partial(float* at, const Shape& shape)
      : values(at), maximum(at + shape.heads * shape.dim), sum(maximum + shape.heads) {}
};

template <typename T>
inline void prefetch(const T* rows, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(rows);
  for (int64_t at = 0; at < count * static_cast<int64_t>(sizeof(T)); at += kLineBytes)
    __builtin_prefetch(bytes + at);
}

// Keys or values of all pages, one KV head of a page after the other.
template <typename S>
struct Pool {
  static constexpr bool kScaled = std::is_same_v<S, int8_t>;
  const S* numbers;
  const float* scales;  // of each row, where they are bytes

  // A head's rows, `tiles` heads of `rows` rows on.
  Pool at(int64_t tiles, int64_t rows, int64_t dim) const {
    return {numbers + tiles * rows * dim, kScaled ? scales + tiles * rows : nullptr};
  }
  void fetch(int64_t rows, int64_t dim) const {
    prefetch(numbers, rows * dim);
    if constexpr (kScaled) prefetch(scales, rows);
  }
};

// `rows` rows of one KV head's page, for one query head.
template <typename S>
inline void attend(const float* query, Pool<S> k, Pool<S> v, int64_t rows, int64_t dim, float* scores,
                   float* values, float& maximum, float& sum) {
  float page_maximum = maximum;
  for (int64_t r = 0; r < rows; ++r) {
    scores[r] = lanes::dot(query, k.numbers + r * dim, dim);
    if constexpr (Pool<S>::kScaled) scores[r] *= k.scales[r];
    page_maximum = std::max(page_maximum, scores[r]);
  }
  const float shrink = lanes::exp_nonpositive(maximum - page_maximum);
  if (shrink != 1.f) {
    sum *= shrink;
    for (int64_t d = 0; d < dim; ++d) values[d] *= shrink;
  }
  maximum = page_maximum;
  for (int64_t r = 0; r < rows; ++r) scores[r] = lanes::exp_nonpositive(scores[r] - page_maximum);
  for (int64_t r = 0; r < rows; ++r) sum += scores[r];
  if constexpr (Pool<S>::kScaled)
    for (int64_t r = 0; r < rows; ++r) scores[r] *= v.scales[r];
  lanes::add_weighted_rows(values, scores, v.numbers, rows, dim);
}

// The first `rows` rows of a chunk's pages. `query` [H, D] is scaled.
template <typename S>
void attend_chunk(const Shape& shape, const float* query, Pool<S> k_pool, Pool<S> v_pool,
                  const int32_t* pages, int64_t rows, float* scores, Partial partial) {
  const int64_t dim = shape.dim, group = shape.group(), page_rows = shape.page_rows;
  std::fill(partial.values, partial.maximum, 0.f);
  std::fill(partial.maximum, partial.sum, -std::numeric_limits<float>::infinity());
  std::fill(partial.sum, partial.sum + shape.heads, 0.f);
  for (int64_t first = 0; first < rows; first += shape.page_rows) {
    const int64_t tile = *pages++ * shape.kv_heads;
    const int64_t rows_here = std::min(shape.page_rows, rows - first);
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const Pool<S> k = k_pool.at(tile + head, page_rows, dim);
      const Pool<S> v = v_pool.at(tile + head, page_rows, dim);
      const bool last = head + 1 == shape.kv_heads;
      if (!last || first + page_rows < rows) {
        const int64_t next = last ? *pages * shape.kv_heads : tile + head + 1;
        k_pool.at(next, page_rows, dim).fetch(page_rows, dim);
        v_pool.at(next, page_rows, dim).fetch(page_rows, dim);
      }
      for (int64_t h = head * group; h < (head + 1) * group; ++h)
        attend(query + h * dim, k, v, rows_here, dim, scores, partial.values + h * dim,
               partial.maximum[h], partial.sum[h]);
    }
  }
}

// The chunks of one query head together. With none, zeros.
template <typename T>
void add_up(const Shape& shape, float* partials, int64_t chunks, int64_t head, float* total, T* out) {
  float maximum = -std::numeric_limits<float>::infinity(), sum = 0.f;
  std::fill(total, total + shape.dim, 0.f);
  for (int64_t c = 0; c < chunks; ++c)
    maximum = std::max(maximum, Partial(partials + c * shape.partial_size(), shape).maximum[head]);
  for (int64_t c = 0; c < chunks; ++c) {
    const Partial partial(partials + c * shape.partial_size(), shape);
    const float weight = lanes::exp_nonpositive(partial.maximum[head] - maximum);
    sum += weight * partial.sum[head];
    lanes::add_scaled(total, weight, partial.values + head * shape.dim, shape.dim);
  }
  const float scale = chunks > 0 ? 1.f / sum : 0.f;
  for (int64_t d = 0; d < shape.dim; ++d) out[d] = static_cast<T>(total[d] * scale);
}

using Scales = std::optional<at::Tensor>;

template <typename S>
Pool<S> pool_of(const at::Tensor& numbers, const Scales& scales) {
  return {numbers.const_data_ptr<S>(), scales ? scales->const_data_ptr<float>() : nullptr};
}

// Queries and output of type T, pages of type S.
template <typename T, typename S>
void run_as(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Scales& k_scale,
            const Scales& v_scale, const at::Tensor& table, const at::Tensor& lengths, float scale,
            at::Tensor& out) {
  const int64_t batch = q.size(0);
  const Shape shape{q.size(1), k.size(1), q.size(2), k.size(2)};
  const T* q_data = q.const_data_ptr<T>();
  const Pool<S> k_pool = pool_of<S>(k, k_scale), v_pool = pool_of<S>(v, v_scale);
  const int32_t* table_data = table.const_data_ptr<int32_t>();
  const int64_t* length_data = lengths.const_data_ptr<int64_t>();
  T* out_data = out.mutable_data_ptr<T>();

  struct Chunk {
    int64_t sequence, first_row;
  };
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_chunk(batch + 1, 0);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t row = 0; row < length_data[b]; row += shape.chunk_rows()) chunks.push_back({b, row});
    first_chunk[b + 1] = chunks.size();
  }
  std::vector<float> partials(chunks.size() * shape.partial_size());

  at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    const int64_t numbers = shape.heads * shape.dim;
    std::vector<float> query(numbers), scores(shape.page_rows);
    for (int64_t c = begin; c < end; ++c) {
      const auto [b, first_row] = chunks[c];
      for (int64_t i = 0; i < numbers; ++i)
        query[i] = static_cast<float>(q_data[b * numbers + i]) * scale;
      const int32_t* pages = table_data + b * table.size(1) + first_row / shape.page_rows;
      const int64_t rows = std::min(shape.chunk_rows(), length_data[b] - first_row);
      attend_chunk<S>(shape, query.data(), k_pool, v_pool, pages, rows, scores.data(),
                      Partial(partials.data() + c * shape.partial_size(), shape));
    }
  });
  at::parallel_for(0, batch * shape.heads, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> total(shape.dim);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / shape.heads;
      add_up<T>(shape, partials.data() + first_chunk[b] * shape.partial_size(),
                first_chunk[b + 1] - first_chunk[b], task % shape.heads, total.data(),
                out_data + task * shape.dim);
    }
  });
}

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Scales& k_scale,
                      const Scales& v_scale, const at::Tensor& table, const at::Tensor& lengths,
                      double scale) {
  at::Tensor out = at::empty_like(q);
  const bool wide = q.scalar_type() == at::kFloat;
  auto* run_typed = k_scale ? (wide ? &run_as<float, int8_t> : &run_as<BFloat16, int8_t>)
                            : (wide ? &run_as<float, float> : &run_as<BFloat16, BFloat16>);
  run_typed(q, k, v, k_scale, v_scale, table, lengths, static_cast<float>(scale), out);
  return out;
}

}  // namespace paged_decode
