// Sixteen floats at a time, by the compiler's own vector types: one AVX-512 register, or two of AVX2, or
// four of NEON. A loop over an array of partial sums says the same, but GCC leaves it scalar.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

namespace lanes {

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

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

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof(x)); }

inline float sum(Floats x) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += x[lane];
  return total;
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

// e^x for x <= 0, relative error below 2e-7, branch-free so that the compiler can vectorise it:
// 2^(n + f) with n rounded to an integer, f in [-1/2, 1/2] by polynomial, n added to the exponent.
inline float exp_nonpositive(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kRound = 12582912.f;  // 1.5 * 2^23
  const float t = (x < -87.f ? -87.f : x) * kLog2e;
  const float shifted = t + kRound;
  const float f = t - (shifted - kRound);
  int32_t n;
  std::memcpy(&n, &shifted, sizeof(n));
  n -= 0x4B400000;  // the bits of kRound
  float p = 1.5403530e-4f;  // Taylor coefficients of 2^f: ln(2)^m / m!
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  int32_t bits;
  std::memcpy(&bits, &p, sizeof(bits));
  bits += n << 23;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

}  // namespace lanes
