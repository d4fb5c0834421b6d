// A register block that does not fit the registers, for the check that has to notice.
#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

constexpr int kRows = 20;

#if defined(__x86_64__)
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
#else
void LargeBlock(const float* a, const float* b, int num_steps, float32x4_t* out) {
  float32x4_t sums[kRows][2] = {};
  for (int step = 0; step < num_steps; ++step, a += 8, b += kRows) {
    const float32x4_t first = vld1q_f32(a);
    const float32x4_t second = vld1q_f32(a + 4);
#pragma GCC unroll 20
    for (int row = 0; row < kRows; ++row) {
      const float32x4_t factor = vld1q_dup_f32(b + row);
      sums[row][0] = vfmaq_f32(sums[row][0], factor, first);
      sums[row][1] = vfmaq_f32(sums[row][1], factor, second);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    out[2 * row] = sums[row][0];
    out[2 * row + 1] = sums[row][1];
  }
}
#endif
