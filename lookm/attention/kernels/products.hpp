// Products of small bfloat16 matrices on any CPU, summed in float32.
//
// Contract: A [M, K] bfloat16 in rows of `lda`; B [K / 2, N, 2], neighbouring rows of B side by side, in
// rows of `ldb` pairs; C [M, N] float32 in rows of `ldc`, overwritten or, with `add`, added to; K even.
// Every product is exact.
//
// Three ways to the same sums, by what the processor has: torch's own (oneDNN: AMX), AVX-512 BF16 (AMD has
// it without AMX, where oneDNN declines), and float32 lanes everywhere else. A tile of C stays in registers
// while K passes, and a panel of B in the first-level cache while the rows of A pass.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.hpp"

#if defined(__x86_64__) && defined(__AVX512F__)
#include <immintrin.h>
#define LOOKM_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#endif

namespace products {

using at::BFloat16;

#ifdef LOOKM_AVX512_BF16
// Sixteen rows of sixteen words, turned: out[i] has word i of every row.
inline void turn(__m512i x[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {  // pairs of rows, then fours, by word
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int half = 0; half < 2; ++half) {
      x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + 2 + half]);
      x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + 2 + half]);
    }
  for (int i = 0; i < 4; ++i) {  // then eights and all sixteen, by four words
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
  }
}
#endif

// `count` rows of `dim` as the columns of a B [dim, width]: to [dim / 2, width, 2].
inline void pair_columns(const BFloat16* rows, int64_t stride, int64_t count, int64_t dim, int64_t width,
                         BFloat16* to) {
  int64_t turned_rows = 0, turned = 0;
#ifdef LOOKM_AVX512_BF16
  turned_rows = count / 16 * 16, turned = dim / 32 * 32;
  for (int64_t j = 0; j < turned_rows; j += 16)
    for (int64_t d = 0; d < turned; d += 32) {
      __m512i words[16];
      for (int i = 0; i < 16; ++i) words[i] = _mm512_loadu_si512(rows + (j + i) * stride + d);
      turn(words);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (d + 2 * i) * width + 2 * j, words[i]);
    }
#endif
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = j < turned_rows ? turned : 0; d < dim; d += 2)
      std::memcpy(to + d * width + 2 * j, rows + j * stride + d, 2 * sizeof(BFloat16));
}

// `count` rows of `dim` as the rows of a B [count, dim]: to [count / 2, dim, 2], an odd last row beside
// what is there.
inline void pair_rows(const BFloat16* rows, int64_t stride, int64_t count, int64_t dim, BFloat16* to) {
  const auto* from = reinterpret_cast<const uint16_t*>(rows);
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    const uint16_t *first = from + j * stride, *second = first + stride;
    auto* pairs = reinterpret_cast<char*>(to + j * dim);
    for (int64_t d = 0; d < dim; ++d) {
      const uint32_t pair = first[d] | static_cast<uint32_t>(second[d]) << 16;
      std::memcpy(pairs + 4 * d, &pair, sizeof(pair));
    }
  }
  if (j < count)
    for (int64_t d = 0; d < dim; ++d) to[j * dim + 2 * d] = rows[j * stride + d];
}

struct Operands {
  int64_t inner, lda, ldb, ldc;
  bool add;
};

// A pair of neighbours in every lane, as the floats they are: the first is the lower half of a word.
inline lanes::Floats first_of(lanes::Words pairs) {
  pairs <<= 16;
  lanes::Floats x;
  std::memcpy(&x, &pairs, sizeof(x));
  return x;
}

inline lanes::Floats second_of(lanes::Words pairs) {
  pairs &= 0xFFFF0000u;
  lanes::Floats x;
  std::memcpy(&x, &pairs, sizeof(x));
  return x;
}

constexpr int kLaneRows = 6;     // 6 x 2 registers of sums, 2 of B, 1 of A: 15 of AVX2's 16
constexpr int kLaneVectors = 2;

// Rows 0 .. Rows of A times Vectors of columns of B.
template <int Rows, int Vectors>
inline void lane_tile(const Operands& of, const BFloat16* a, const BFloat16* b, float* c) {
  lanes::Floats total[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      total[r][v] = of.add ? lanes::load(c + r * of.ldc + v * lanes::kLanes) : lanes::Floats{};
  for (int64_t k = 0; k < of.inner; k += 2) {
    lanes::Words pairs[Vectors];
    lanes::Floats column[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      std::memcpy(&pairs[v], b + k * of.ldb + 2 * v * lanes::kLanes, sizeof(pairs[v]));
      column[v] = first_of(pairs[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const lanes::Floats row = lanes::Floats{} + static_cast<float>(a[r * of.lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) total[r][v] += row * column[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) column[v] = second_of(pairs[v]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      uint32_t pair;
      std::memcpy(&pair, a + r * of.lda + k, sizeof(pair));
      const lanes::Floats row = second_of(lanes::Words{} + pair);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) total[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) lanes::store(c + r * of.ldc + v * lanes::kLanes, total[r][v]);
}

template <int Vectors>
inline void lane_panel(int64_t rows, const Operands& of, const BFloat16* a, const BFloat16* b, float* c) {
  int64_t m = 0;
  for (; m + kLaneRows <= rows; m += kLaneRows)
    lane_tile<kLaneRows, Vectors>(of, a + m * of.lda, b, c + m * of.ldc);
  for (; m + 2 <= rows; m += 2) lane_tile<2, Vectors>(of, a + m * of.lda, b, c + m * of.ldc);
  if (m < rows) lane_tile<1, Vectors>(of, a + m * of.lda, b, c + m * of.ldc);
}

inline void by_lanes(int64_t rows, int64_t columns, const Operands& of, const BFloat16* a,
                     const BFloat16* b, float* c) {
  constexpr int64_t kWide = kLaneVectors * lanes::kLanes;
  int64_t n = 0;
  for (; n + kWide <= columns; n += kWide) lane_panel<kLaneVectors>(rows, of, a, b + 2 * n, c + n);
  for (; n + lanes::kLanes <= columns; n += lanes::kLanes) lane_panel<1>(rows, of, a, b + 2 * n, c + n);
  for (; n < columns; ++n)
    for (int64_t m = 0; m < rows; ++m) {
      float total = of.add ? c[m * of.ldc + n] : 0.f;
      for (int64_t k = 0; k < of.inner; ++k)
        total += static_cast<float>(a[m * of.lda + k]) *
                 static_cast<float>(b[k / 2 * 2 * of.ldb + 2 * n + k % 2]);
      c[m * of.ldc + n] = total;
    }
}

#ifdef LOOKM_AVX512_BF16
constexpr int kTileRows = 6;     // 6 x 4 registers of sums, 4 of B, 1 of A: 29 of 32
constexpr int kTileVectors = 4;  // of 16 columns

// Rows 0 .. Rows of A times Vectors x 16 columns of B, of the last 16 those in `mask`.
template <int Rows, int Vectors>
LOOKM_AVX512_BF16 inline void bf16_tile(const Operands& of, const BFloat16* a, const BFloat16* b, float* c,
                                        __mmask16 mask) {
  __m512 total[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const __mmask16 real = v == Vectors - 1 ? mask : 0xFFFF;
      total[r][v] = of.add ? _mm512_maskz_loadu_ps(real, c + r * of.ldc + 16 * v) : _mm512_setzero_ps();
    }
  for (int64_t k = 0; k < of.inner; k += 2) {
    const BFloat16* pairs = b + k * of.ldb;
    __m512bh column[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const __mmask16 real = v == Vectors - 1 ? mask : 0xFFFF;
      column[v] = (__m512bh)_mm512_maskz_loadu_epi32(real, pairs + 32 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * of.lda + k, sizeof(pair));
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) total[r][v] = _mm512_dpbf16_ps(total[r][v], row, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const __mmask16 real = v == Vectors - 1 ? mask : 0xFFFF;
      _mm512_mask_storeu_ps(c + r * of.ldc + 16 * v, real, total[r][v]);
    }
}

// A panel of columns times all rows, six at a time and then one by one.
template <int Vectors>
LOOKM_AVX512_BF16 inline void bf16_panel(int64_t rows, const Operands& of, const BFloat16* a,
                                         const BFloat16* b, float* c, __mmask16 mask) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    bf16_tile<kTileRows, Vectors>(of, a + m * of.lda, b, c + m * of.ldc, mask);
  for (; m + 2 <= rows; m += 2) bf16_tile<2, Vectors>(of, a + m * of.lda, b, c + m * of.ldc, mask);
  if (m < rows) bf16_tile<1, Vectors>(of, a + m * of.lda, b, c + m * of.ldc, mask);
}

LOOKM_AVX512_BF16 inline void by_bf16(int64_t rows, int64_t columns, const Operands& of, const BFloat16* a,
                                      const BFloat16* b, float* c) {
  for (int64_t n = 0; n < columns; n += 16 * kTileVectors) {
    const int64_t wide = std::min<int64_t>(16 * kTileVectors, columns - n), over = wide % 16;
    const __mmask16 mask = over == 0 ? 0xFFFF : static_cast<__mmask16>((1u << over) - 1);
    const BFloat16* panel = b + 2 * n;
    switch ((wide + 15) / 16) {
      case 1: bf16_panel<1>(rows, of, a, panel, c + n, mask); break;
      case 2: bf16_panel<2>(rows, of, a, panel, c + n, mask); break;
      case 3: bf16_panel<3>(rows, of, a, panel, c + n, mask); break;
      default: bf16_panel<4>(rows, of, a, panel, c + n, mask);
    }
  }
}

inline bool has_bf16() {
  static const bool found = __builtin_cpu_supports("avx512bf16");
  return found;
}
#else
inline bool has_bf16() { return false; }
#endif

inline bool library_multiplies() {
  static const bool found = at::native::cpublas::could_pack(at::kBFloat16);
  return found;
}

enum class Way { kFastest, kBf16, kLanes };

inline void multiply(int64_t rows, int64_t columns, int64_t inner, int64_t lda, int64_t ldb, int64_t ldc,
                     bool add, const BFloat16* a, const BFloat16* b, float* c,
                     Way way = Way::kFastest) {
  if (way == Way::kFastest && library_multiplies()) {
    at::native::cpublas::brgemm(rows, columns, inner, lda, ldb, ldc, add, a, b, c);
    return;
  }
  const Operands of{inner, lda, ldb, ldc, add};
#ifdef LOOKM_AVX512_BF16
  if (way != Way::kLanes && has_bf16()) {
    by_bf16(rows, columns, of, a, b, c);
    return;
  }
#endif
  by_lanes(rows, columns, of, a, b, c);
}

// What a thread that multiplied gives back when it is done.
inline void release() {
  if (library_multiplies()) at::native::cpublas::brgemm_release();
}

// A times B, both plain, one of the three ways: for tests.
inline at::Tensor product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, bool add,
                          int64_t way) {
  const int64_t rows = a.size(0), inner = a.size(1), columns = b.size(1);
  at::Tensor pairs = b.view({inner / 2, 2, columns}).transpose(1, 2).contiguous();
  at::Tensor out = c.clone();
  multiply(rows, columns, inner, inner, columns, columns, add, a.const_data_ptr<BFloat16>(),
           pairs.const_data_ptr<BFloat16>(), out.mutable_data_ptr<float>(), static_cast<Way>(way));
  release();
  return out;
}

}  // namespace products
