// Rows of keys and values into their pages and out of them, on the CPU.
//
// Contract of write (reference: lookm.pages, write_rows): pages [P, K, N, D] contiguous; page, slot [R]
// int64 contiguous; k, v [R, K, D] of any strides with D dense; one type for all. Row r goes to (page[r],
// slot[r]) in every head; no two rows share a place.
//
// Contract of read (reference: lookm.pages, read_rows): page [M] int64 contiguous; k, v [K, S, D] with S
// <= M * N, of any strides with dense heads (D, then S). Row s of every head comes from place s % N of
// page s / N.
//
// Pages of int8 have scales [P, K, N] float32 (reference: lookm.kv_format, pack and unpack); k and v are then float32
// or bfloat16, rounded on the way in and multiplied on the way out.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "lanes.hpp"

namespace page_rows {

using Scales = std::optional<at::Tensor>;

constexpr int64_t kGrainBytes = 1 << 16;  // a decode step's rows are not worth a second thread

inline void one_store(at::Tensor& pages, const at::Tensor& page, const at::Tensor& slot,
                      const at::Tensor& rows) {
  const int64_t num_heads = pages.size(1), item = pages.element_size();
  const int64_t row_bytes = pages.size(3) * item, head_bytes = pages.size(2) * row_bytes;
  const int64_t from_row = rows.stride(0) * item, from_head = rows.stride(1) * item;
  char* to = static_cast<char*>(pages.mutable_data_ptr());
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t* slot_of = slot.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (num_heads * row_bytes));
  at::parallel_for(0, rows.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* place = to + page_of[r] * num_heads * head_bytes + slot_of[r] * row_bytes;
      for (int64_t head = 0; head < num_heads; ++head)
        std::memcpy(place + head * head_bytes, from + r * from_row + head * from_head, row_bytes);
    }
  });
}

constexpr float kLargest = 127.f, kSmallest = 1e-30f;

// One row as bytes, by way of `wide`; returns its scale. Not a fused multiply-add anywhere: the same bits as torch.
template <typename T>
inline float pack(const T* row, int8_t* bytes, float* wide, int64_t size) {
  float top = kSmallest;
  for (int64_t d = 0; d < size; ++d) {
    wide[d] = static_cast<float>(row[d]);
    top = std::max(top, std::abs(wide[d]));
  }
  const float inverse = kLargest / top;
  for (int64_t d = 0; d < size; ++d) wide[d] = std::nearbyint(wide[d] * inverse);
  for (int64_t d = 0; d < size; ++d) bytes[d] = static_cast<int8_t>(wide[d]);
  return top / kLargest;
}

template <typename T>
void one_pack(at::Tensor& pages, at::Tensor& scales, const at::Tensor& page, const at::Tensor& slot,
              const at::Tensor& rows) {
  const int64_t num_heads = pages.size(1), size = pages.size(3), page_rows = pages.size(2);
  int8_t* to = pages.mutable_data_ptr<int8_t>();
  float* scale_to = scales.mutable_data_ptr<float>();
  const T* from = rows.const_data_ptr<T>();
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t* slot_of = slot.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (num_heads * size));
  at::parallel_for(0, rows.size(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(size);
    for (int64_t r = begin; r < end; ++r)
      for (int64_t head = 0; head < num_heads; ++head) {
        const int64_t place = (page_of[r] * num_heads + head) * page_rows + slot_of[r];
        scale_to[place] = pack(from + r * rows.stride(0) + head * rows.stride(1), to + place * size,
                               wide.data(), size);
      }
  });
}

// Shapes, strides and types were checked by the launcher; a place outside is an error here.
inline void write(at::Tensor k_pages, at::Tensor v_pages, Scales k_scales, Scales v_scales,
                  const at::Tensor& page, const at::Tensor& slot, const at::Tensor& k,
                  const at::Tensor& v) {
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t* slot_of = slot.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < page.numel(); ++r)
    TORCH_CHECK_INDEX(page_of[r] >= 0 && page_of[r] < k_pages.size(0) && slot_of[r] >= 0 &&
                          slot_of[r] < k_pages.size(2),
                      "row ", r, " has no such place: page ", page_of[r], ", slot ", slot_of[r]);
  if (!k_scales) {
    one_store(k_pages, page, slot, k);
    one_store(v_pages, page, slot, v);
    return;
  }
  auto* one = k.scalar_type() == at::kFloat ? &one_pack<float> : &one_pack<at::BFloat16>;
  one(k_pages, *k_scales, page, slot, k);
  one(v_pages, *v_scales, page, slot, v);
}

inline void one_load(const at::Tensor& pages, const at::Tensor& page, at::Tensor& rows) {
  const int64_t num_heads = pages.size(1), size = pages.size(2), item = pages.element_size();
  const int64_t row_bytes = pages.size(3) * item, head_bytes = size * row_bytes;
  const int64_t num_rows = rows.size(1), to_head = rows.stride(0) * item;
  const char* from = static_cast<const char*>(pages.const_data_ptr());
  char* to = static_cast<char*>(rows.mutable_data_ptr());
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (num_heads * head_bytes));
  at::parallel_for(0, (num_rows + size - 1) / size, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = 0; head < num_heads; ++head)
      for (int64_t m = begin; m < end; ++m)
        std::memcpy(to + head * to_head + m * head_bytes,
                    from + (page_of[m] * num_heads + head) * head_bytes,
                    std::min(size, num_rows - m * size) * row_bytes);
  });
}

template <typename T>
void one_unpack(const at::Tensor& pages, const at::Tensor& scales, const at::Tensor& page,
                at::Tensor& rows) {
  const int64_t num_heads = pages.size(1), page_rows = pages.size(2), size = pages.size(3);
  const int64_t num_rows = rows.size(1), to_head = rows.stride(0);
  const int8_t* from = pages.const_data_ptr<int8_t>();
  const float* scale_from = scales.const_data_ptr<float>();
  T* to = rows.mutable_data_ptr<T>();
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (num_heads * page_rows * size));
  at::parallel_for(0, (num_rows + page_rows - 1) / page_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = 0; head < num_heads; ++head)
      for (int64_t m = begin; m < end; ++m) {
        const int64_t first = (page_of[m] * num_heads + head) * page_rows;
        const int64_t rows_here = std::min(page_rows, num_rows - m * page_rows);
        T* place = to + head * to_head + m * page_rows * size;
        for (int64_t r = 0; r < rows_here; ++r)
          lanes::store_scaled(place + r * size, from + (first + r) * size, scale_from[first + r], size);
      }
  });
}

inline void read(const at::Tensor& k_pages, const at::Tensor& v_pages, const Scales& k_scales,
                 const Scales& v_scales, const at::Tensor& page, at::Tensor k, at::Tensor v) {
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < page.numel(); ++m)
    TORCH_CHECK_INDEX(page_of[m] >= 0 && page_of[m] < k_pages.size(0), "no such page: ", page_of[m]);
  if (!k_scales) {
    one_load(k_pages, page, k);
    one_load(v_pages, page, v);
    return;
  }
  auto* one = k.scalar_type() == at::kFloat ? &one_unpack<float> : &one_unpack<at::BFloat16>;
  one(k_pages, *k_scales, page, k);
  one(v_pages, *v_scales, page, v);
}

}  // namespace page_rows
