// What AVX-512 does not give by itself.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>

namespace aimass {

constexpr size_t kLanes = 16;

inline __mmask16 first_lanes(size_t count) { return static_cast<__mmask16>((1u << std::min(count, kLanes)) - 1); }

// exp(x), to about 2e-7 of it. x = n ln 2 + r, and exp(r) by its Taylor series, |r| < 0.35.
inline __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 power = _mm512_set1_ps(1.0f / 5040);
  for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(power, n);
}

// Turns 16 vectors into their columns: afterwards lane j of vector i is what lane i of vector j was.
inline void transpose(__m512 (&rows)[16]) {
  __m512 pairs[16];
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; i += 4) {
#pragma GCC unroll 16
    for (size_t j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(pairs[i + j]), high = _mm512_castps_pd(pairs[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xDD);
    pairs[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    pairs[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
    pairs[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    pairs[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) rows[i] = pairs[i];
}

}  // namespace aimass
