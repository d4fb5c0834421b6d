// A register block that does not fit the registers, for the check that has to notice: 40 sums,
// where there are 32 or 16.
#if defined(__aarch64__) || defined(__arm__)
#include <arm_neon.h>

constexpr int kRows = 10;
constexpr int kVectors = 4;

void LargeBlock(const float* a, const float* b, int num_steps, float32x4_t* out) {
  float32x4_t sums[kRows][kVectors] = {};
  for (int step = 0; step < num_steps; ++step, a += 4 * kVectors, b += kRows) {
#pragma GCC unroll 10
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = vfmaq_f32(sums[row][v], vld1q_f32(a + 4 * v), vdupq_n_f32(b[row]));
      }
    }
  }
#pragma GCC unroll 10
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) out[kVectors * row + v] = sums[row][v];
  }
}

#else
#include <immintrin.h>

constexpr int kRows = 20;

void LargeBlock(const float* a, const float* b, int num_steps, __m512* out) {
  __m512 sums[kRows][2] = {};
  for (int step = 0; step < num_steps; ++step, a += 32, b += kRows) {
    const __m512 first = _mm512_loadu_ps(a);
    const __m512 second = _mm512_loadu_ps(a + 16);
#pragma GCC unroll 20
    for (int row = 0; row < kRows; ++row) {
      const __m512 factor = _mm512_set1_ps(b[row]);
      sums[row][0] = _mm512_fmadd_ps(factor, first, sums[row][0]);
      sums[row][1] = _mm512_fmadd_ps(factor, second, sums[row][1]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    out[2 * row] = sums[row][0];
    out[2 * row + 1] = sums[row][1];
  }
}

#endif
