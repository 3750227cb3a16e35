// Causal attention of many rows on the CPU, with the column sums of their attention matrix.
//
// Contract (reference: lookm.attention.reference, prefill): q [H, T, D], k, v [K, S, D] bfloat16, any strides
// but 1 in the last dimension, D even, scale > 0, S >= T: the queries are the last of the S rows (all of
// them for a whole prompt). They come in P parts, part p up to query ends[p], ascending, the last T. out
// [T, H, D] bfloat16. sums [n, P, K, S] float32, n of the two that are asked for: sum_i A_ij and sum_i
// A_ij^2 over the queries of a part and the query heads of the group, zeros for a part that is not wanted. dense [P, K] float32: how many
// weights are at least 1 % of their row's largest. Logits and sums are float32; only the weights that
// multiply the values are rounded.
//
//              keys     j0 .. + 128
//     queries  i0       x x x                    one task: one query head, every kSpans-th block of rows.
//       .. + 64         x x x x x                A block's logits all exist at once, so that each is
//                       x x x x x x x x          computed once and exponentiated once, for the output
//              i0 + 64  x x x x x x x x          and for the sums.
//
// Few queries behind many rows, a later turn's: one task is one KV head, packed where it is used.
//
// Every matrix product has the same shape, whatever T is: products are compiled at run time, by shape.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "lanes.hpp"
#include "products.hpp"

namespace prefill {

using at::BFloat16;

constexpr int64_t kRows = 64;
constexpr int64_t kKeys = 128;
constexpr int64_t kSpans = 4;
constexpr float kDense = 0.01f;

// One head of a [heads, T, D] tensor.
struct Head {
  const BFloat16* rows;
  int64_t stride;
  Head(const at::Tensor& x, int64_t head)
      : rows(x.const_data_ptr<BFloat16>() + head * x.stride(0)), stride(x.stride(1)) {}
};

// One tile of keys and values in the layouts that products read: keys [D / 2, 128, 2], neighbouring dims
// side by side; values [128 / 2, D, 2], neighbouring rows side by side. Zero past the last of `count` rows.
inline void pack_tile(const Head& k, const Head& v, int64_t first, int64_t count, int64_t dim, BFloat16* keys,
                      BFloat16* values) {
  if (count < kKeys) {
    std::fill(keys, keys + kKeys * dim, BFloat16(0.f));
    std::fill(values, values + kKeys * dim, BFloat16(0.f));
  }
  products::pair_columns(k.rows + first * k.stride, k.stride, count, dim, kKeys, keys);
  products::pair_rows(v.rows + first * v.stride, v.stride, count, dim, values);
}

// Memory of any content: filling a megabyte for a handful of rows would take longer than they do.
template <typename T>
struct Buffer {
  std::unique_ptr<T[]> items;
  explicit Buffer(int64_t count) : items(new T[count]) {}
  T* data() { return items.get(); }
};

// What one thread works in: a block's logits, then weights, tile by tile, [tile][64][128].
struct Scratch {
  std::vector<BFloat16> query;
  Buffer<float> logits;
  std::vector<float> out, inverse;
  Buffer<BFloat16> weights;
  Scratch(int64_t tiles, int64_t dim)
      : query(kRows * dim),
        logits(tiles * kRows * kKeys),
        out(kRows * dim),
        inverse(kRows),
        weights(tiles * kRows * kKeys) {}
};

// Where one task's sums go: `sums` of its first part, `squares` behind all sums; both null where nobody
// asks. `ends` are the parts' ends, `dense` a count for each.
struct Sums {
  float *sums, *squares, *dense;
  int64_t part_stride, dense_stride;
  const std::vector<int64_t>* ends;
  const std::vector<int64_t>* wanted;
};

// Row r of a block: keys 0 .. last. Logits become weights e^(scale (logit - largest)), of which those that
// are dense are counted; returns their sum.
inline float exponentiate(float* logits, BFloat16* weights, int64_t last, float scale, float& dense) {
  const int64_t tiles = last / kKeys + 1, tile = kRows * kKeys;
  float* tail = logits + (tiles - 1) * tile;
  std::fill(tail + last % kKeys + 1, tail + kKeys, -std::numeric_limits<float>::infinity());
  lanes::Floats most = lanes::load(logits);
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t j = 0; j < kKeys; j += lanes::kLanes) {
      const lanes::Floats x = lanes::load(logits + t * tile + j);
      most = most > x ? most : x;
    }
  const float largest = lanes::largest(most);
  lanes::Floats total = {}, dense_lanes = {};
  const lanes::Floats one = lanes::Floats{} + 1.f, least = lanes::Floats{} + kDense;
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t j = 0; j < kKeys; j += lanes::kLanes) {
      float* at = logits + t * tile + j;
      const lanes::Floats weight = lanes::exp_or_zero((lanes::load(at) - largest) * scale);
      dense_lanes += weight >= least ? one : lanes::Floats{};
      lanes::store(at, weight);
      lanes::store(weights + t * tile + j, weight);
      total += weight;
    }
  dense += lanes::sum(dense_lanes);
  return lanes::sum(total);
}

inline void add_row(const float* weights, int64_t last, float inverse, float* sums, float* squares) {
  for (int64_t t = 0; t <= last / kKeys; ++t)
    for (int64_t j = 0; j < kKeys; j += lanes::kLanes) {
      const lanes::Floats a = lanes::load(weights + t * kRows * kKeys + j) * inverse;
      float* at = sums + t * kKeys + j;
      lanes::store(at, lanes::load(at) + a);
      if (squares != nullptr) {
        float* square_at = squares + t * kKeys + j;
        lanes::store(square_at, lanes::load(square_at) + a * a);
      }
    }
}

// Queries first .. first + rows of one query head, behind `before` earlier rows. `out` [T, H, D] points at
// this head.
inline void attend_block(const Head& q, int64_t first, int64_t before, int64_t rows, int64_t dim, float scale,
                         const BFloat16* keys, const BFloat16* values, Scratch& scratch, BFloat16* out,
                         int64_t out_stride, const Sums& found) {
  const int64_t tiles = (before + first + rows + kKeys - 1) / kKeys, tile = kRows * kKeys;
  const BFloat16* query = q.rows + first * q.stride;
  int64_t query_stride = q.stride;
  if (rows < kRows) {
    for (int64_t r = 0; r < rows; ++r)
      std::copy(query + r * q.stride, query + r * q.stride + dim, scratch.query.data() + r * dim);
    query = scratch.query.data();
    query_stride = dim;
  }
  for (int64_t t = 0; t < tiles; ++t)
    products::multiply(kRows, kKeys, dim, query_stride, kKeys, kKeys, false, query, keys + t * kKeys * dim,
                 scratch.logits.data() + t * tile);
  int64_t part = 0;
  for (int64_t r = 0; r < rows; ++r) {
    while (first + r >= (*found.ends)[part]) ++part;
    float* logits = scratch.logits.data() + r * kKeys;
    BFloat16* weights = scratch.weights.data() + r * kKeys;
    const int64_t last = before + first + r, seen_tiles = last / kKeys + 1;
    float& dense = found.dense[part * found.dense_stride];
    scratch.inverse[r] = 1.f / exponentiate(logits, weights, last, scale, dense);
    for (int64_t t = seen_tiles; t < tiles; ++t)
      std::fill(weights + t * tile, weights + t * tile + kKeys, BFloat16(0.f));
    const int64_t at = part * found.part_stride;
    if (found.sums != nullptr && (*found.wanted)[part])
      add_row(logits, last, scratch.inverse[r], found.sums + at,
              found.squares != nullptr ? found.squares + at : nullptr);
  }
  for (int64_t t = 0; t < tiles; ++t)
    products::multiply(kRows, dim, kKeys, kKeys, dim, dim, t > 0, scratch.weights.data() + t * tile,
                 values + t * kKeys * dim, scratch.out.data());
  for (int64_t r = 0; r < rows; ++r)
    lanes::store_scaled(out + (first + r) * out_stride, scratch.out.data() + r * dim, scratch.inverse[r],
                        dim);
}

// Shapes, strides and types were checked by the launcher (kernels/cpu.py).
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> run(const at::Tensor& q, const at::Tensor& k,
                                                          const at::Tensor& v, double scale,
                                                          int64_t num_sums,
                                                          const std::vector<int64_t>& ends,
                                                          const std::vector<int64_t>& wanted) {
  const int64_t heads = q.size(0), queries = q.size(1), kv_heads = k.size(0), tokens = k.size(1),
                dim = k.size(2), before = tokens - queries, parts = ends.size();
  const int64_t group = heads / kv_heads, tiles = (tokens + kKeys - 1) / kKeys, width = tiles * kKeys;
  // A task is a KV head with all its queries, or one query head's every kSpans-th block.
  const bool few = queries <= kSpans * kRows && queries < tokens && kv_heads >= at::get_num_threads();
  const int64_t splits = few ? 1 : group * kSpans;
  at::Tensor out = at::empty({queries, heads, dim}, q.options());
  // Each task has sums of its own, [n, P, tasks, width]; they are added up in order.
  const at::TensorOptions numbers = q.options().dtype(at::kFloat);
  const int64_t tasks = kv_heads * splits;
  at::Tensor found = at::zeros({num_sums, parts, tasks, width}, numbers);
  at::Tensor dense = at::zeros({parts, tasks}, numbers);
  float *found_data = found.mutable_data_ptr<float>(), *dense_data = dense.mutable_data_ptr<float>();
  BFloat16* out_data = out.mutable_data_ptr<BFloat16>();

  const auto sums_of = [&](int64_t task) {
    float* sums = num_sums > 0 ? found_data + task * width : nullptr;
    float* squares = num_sums > 1 ? sums + parts * tasks * width : nullptr;
    return Sums{sums, squares, dense_data + task, tasks * width, tasks, &ends, &wanted};
  };
  const auto attend = [&](int64_t head, int64_t first, const BFloat16* keys, const BFloat16* values,
                          Scratch& scratch, const Sums& sums) {
    attend_block(Head(q, head), first, before, std::min(kRows, queries - first), dim,
                 static_cast<float>(scale), keys, values, scratch, out_data + head * dim, heads * dim, sums);
  };
  const auto pack = [&](int64_t head, int64_t tile, BFloat16* keys, BFloat16* values) {
    const int64_t first = tile * kKeys;
    pack_tile(Head(k, head), Head(v, head), first, std::min(kKeys, tokens - first), dim,
              keys + first * dim, values + first * dim);
  };
  if (few) {
    at::parallel_for(0, kv_heads, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(tiles, dim);
      Buffer<BFloat16> keys(width * dim), values(width * dim);
      for (int64_t kv = begin; kv < end; ++kv) {
        for (int64_t tile = 0; tile < tiles; ++tile) pack(kv, tile, keys.data(), values.data());
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
          for (int64_t first = 0; first < queries; first += kRows)
            attend(head, first, keys.data(), values.data(), scratch, sums_of(kv));
      }
      products::release();
    });
  } else {
    at::Tensor keys = at::empty({kv_heads, width, dim}, q.options());
    at::Tensor values = at::empty({kv_heads, width, dim}, q.options());
    BFloat16* key_data = keys.mutable_data_ptr<BFloat16>();
    BFloat16* value_data = values.mutable_data_ptr<BFloat16>();
    at::parallel_for(0, kv_heads * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t kv = at / tiles * width * dim;
        pack(at / tiles, at % tiles, key_data + kv, value_data + kv);
      }
    });
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(tiles, dim);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / kSpans, kv = head / group * width * dim;
        for (int64_t first = task % kSpans * kRows; first < queries; first += kSpans * kRows)
          attend(head, first, key_data + kv, value_data + kv, scratch, sums_of(task));
      }
      products::release();
    });
  }
  at::Tensor sums = found.view({num_sums, parts, kv_heads, splits, width}).sum(3);
  return {out, sums.slice(3, 0, tokens), dense.view({parts, kv_heads, splits}).sum(2)};
}

}  // namespace prefill
