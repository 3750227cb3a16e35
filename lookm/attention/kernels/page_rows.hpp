// Rows of keys and values into their pages and out of them, on the CPU.
//
// Contract of write (reference: lookm.pages, write_rows): pages [P, K, N, D] contiguous; page, slot [R]
// int64 contiguous; k, v [R, K, D] of any strides with D dense; one type for all. Row r goes to (page[r],
// slot[r]) in every head; no two rows share a place.
//
// Contract of read (reference: lookm.pages, read_rows): page [M] int64 contiguous; k, v [K, S, D] with S
// <= M * N, of any strides with dense heads (D, then S). Row s of every head comes from place s % N of
// page s / N.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

namespace page_rows {

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

// Shapes, strides and types were checked by the launcher; a place outside is an error here.
inline void write(at::Tensor k_pages, at::Tensor v_pages, const at::Tensor& page,
                const at::Tensor& slot, const at::Tensor& k, const at::Tensor& v) {
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  const int64_t* slot_of = slot.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < page.numel(); ++r)
    TORCH_CHECK_INDEX(page_of[r] >= 0 && page_of[r] < k_pages.size(0) && slot_of[r] >= 0 &&
                          slot_of[r] < k_pages.size(2),
                      "row ", r, " has no such place: page ", page_of[r], ", slot ", slot_of[r]);
  one_store(k_pages, page, slot, k);
  one_store(v_pages, page, slot, v);
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

inline void read(const at::Tensor& k_pages, const at::Tensor& v_pages, const at::Tensor& page,
                 at::Tensor k, at::Tensor v) {
  const int64_t* page_of = page.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < page.numel(); ++m)
    TORCH_CHECK_INDEX(page_of[m] >= 0 && page_of[m] < k_pages.size(0), "no such page: ", page_of[m]);
  one_load(k_pages, page, k);
  one_load(v_pages, page, v);
}

}  // namespace page_rows
