// As many floats at a time as a register holds, by the compiler's own vector types: 16 with AVX-512, 8 with
// AVX2, else 4 (NEON). A loop over an array of partial sums says the same, but GCC leaves it scalar; a vector
// wider than a register says it too, but GCC keeps it in memory: five times slower.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lanes {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

// A bfloat16 is the upper half of a float.
inline Floats load(const c10::BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats x;
  std::memcpy(&x, &words, sizeof(x));
  return x;
}

// Three times as fast as what GCC 12 makes of the vector types alone.
inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, Integers), Floats);
#endif
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof(x)); }

// The bits of each float rounded to bfloat16, to nearest, ties to even, in the upper half of the word.
// Infinities stay; a NaN may become another NaN or an infinity of its sign.
inline Words rounded_bits(Floats x) {
  Words words;
  std::memcpy(&words, &x, sizeof(words));
  return (words + 0x7FFFu + ((words >> 16) & 1u)) & 0xFFFF0000u;
}

inline Floats rounded(Floats x) {
  const Words words = rounded_bits(x);
  std::memcpy(&x, &words, sizeof(x));
  return x;
}

inline void store(c10::BFloat16* to, Floats x) {
  const Halves halves = __builtin_convertvector(rounded_bits(x) >> 16, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// The lanes of x as one number, halves joined until one is left: a few steps deep.
template <typename Number, typename Vector, typename Join>
inline Number folded(Vector x, Join join) {
  Number part[kLanes];
  std::memcpy(part, &x, sizeof(part));
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) part[lane] = join(part[lane], part[lane + width]);
  return part[0];
}

inline float sum(Floats x) {
  return folded<float>(x, [](float a, float b) { return a + b; });
}

inline float largest(Floats x) {
  return folded<float>(x, [](float a, float b) { return a > b ? a : b; });
}

template <typename A, typename B>
inline float dot(const A* a, const B* b, int64_t dim) {
  Floats part = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) part += load(a + d) * load(b + d);
  float total = sum(part);
  for (; d < dim; ++d) total += static_cast<float>(a[d]) * static_cast<float>(b[d]);
  return total;
}

// out = row * scale
template <typename T, typename A>
inline void store_scaled(T* out, const A* row, float scale, int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, load(row + d) * scale);
  for (; d < dim; ++d) out[d] = static_cast<T>(row[d] * scale);
}

// out += weight * row
template <typename T>
inline void add_scaled(float* out, float weight, const T* row, int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, load(out + d) + weight * load(row + d));
  for (; d < dim; ++d) out[d] += weight * static_cast<float>(row[d]);
}

// out += sum over r of weight[r] * rows[r], rows of `dim` one after the other: each lane of `out` stays
// in a register while all rows pass.
template <typename T>
inline void add_weighted_rows(float* out, const float* weight, const T* rows, int64_t count,
                              int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    Floats total = load(out + d);
    for (int64_t r = 0; r < count; ++r) total += weight[r] * load(rows + r * dim + d);
    store(out + d, total);
  }
  for (; d < dim; ++d)
    for (int64_t r = 0; r < count; ++r) out[d] += weight[r] * static_cast<float>(rows[r * dim + d]);
}

// 2^t for -126 < t <= 0, relative error below 2e-7: 2^(n + f) with n rounded to an integer, f in
// [-1/2, 1/2] by polynomial, n added to the exponent. For one float, branch-free so that a loop of it
// vectorises, and for a vector.
template <typename Float, typename Int>
inline Float exp2_of(Float t) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23
  const Float shifted = t + kRound;
  const Float f = t - (shifted - kRound);
  Int n;
  std::memcpy(&n, &shifted, sizeof(n));
  n -= 0x4B400000;  // the bits of kRound
  Float p = f * 1.5403530e-4f + 1.3333558e-3f;  // Taylor coefficients of 2^f: ln(2)^m / m!
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  Int bits;
  std::memcpy(&bits, &p, sizeof(bits));
  bits += n << 23;
  Float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kSmallest = -87.f;  // e^-87 is close to the smallest normal float

// e^x for x <= 0; e^-87 for what is smaller.
inline float exp_nonpositive(float x) {
  return exp2_of<float, int32_t>((x < kSmallest ? kSmallest : x) * kLog2e);
}

// e^x for x <= 0; 0 for x < -87.
inline Floats exp_or_zero(Floats x) {
  const Floats least = Floats{} + kSmallest;
  const Floats result = exp2_of<Floats, Integers>((x < least ? least : x) * kLog2e);
  return x < least ? Floats{} : result;
}

}  // namespace lanes
