#include "support/rotation.h"

#include <math.h>
#include <stdint.h>

#include <algorithm>

namespace sightline {
namespace testing {
namespace {

constexpr float kLargest = 1e27f;
constexpr float kSmallestRange = 1e-30f;

size_t BlockOf(size_t head_dim) {
  size_t block = 1;
  while (head_dim % (2 * block) == 0) block *= 2;
  return block;
}

float SignOf(size_t channel) {
  uint32_t x = static_cast<uint32_t>(channel + 1) * 2654435761u;
  x ^= x / 32768;
  return x * 2246822519u < 2147483648u ? 1.0f : -1.0f;
}

// Both halves first, then their sum and difference.
void Hadamard(float* x, size_t n) {
  if (n == 1) return;
  const size_t half = n / 2;
  Hadamard(x, half);
  Hadamard(x + half, half);
  for (size_t i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[half + i];
    x[i] = a + b;
    x[half + i] = a - b;
  }
}

// Sum of x[j], x[j + stride] ...: blocks of at least 16 one after the other, smaller ones as halves
// of 16 partial sums.
float SumOf(const float* x, size_t n, size_t j, size_t stride) {
  if (stride < 16) return SumOf(x, n, j, 2 * stride) + SumOf(x, n, j + stride, 2 * stride);
  float sum = 0.0f;
  for (size_t i = j; i < n; i += stride) sum += x[i];
  return sum;
}

void Mix(float* x, size_t head_dim) {
  const size_t block = BlockOf(head_dim);
  for (size_t begin = 0; begin < head_dim; begin += block) Hadamard(x + begin, block);
  if (block != head_dim) {
    const size_t num_blocks = head_dim / block;
    std::vector<float> shift(block);
    for (size_t j = 0; j < block; ++j) {
      shift[j] = SumOf(x, head_dim, j, block) * (2.0f / static_cast<float>(num_blocks));
    }
    for (size_t i = 0; i < head_dim; ++i) x[i] -= shift[i % block];
  }
  for (size_t i = 0; i < head_dim; ++i) x[i] = std::clamp(x[i], -kLargest, kLargest);
}

}  // namespace

std::vector<float> RotateK(std::vector<float>* k, size_t head_dim, size_t center_keys) {
  std::vector<float> size(head_dim, 0.0f);
  const size_t stride = (center_keys + 255) / 256;
  for (size_t key = 0; key < center_keys; key += stride) {
    for (size_t d = 0; d < head_dim; ++d) size[d] += fabsf((*k)[key * head_dim + d]);
  }
  std::vector<float> sorted = size;
  std::sort(sorted.begin(), sorted.end());
  const float median = std::max(sorted[head_dim / 2], sorted.back() / 1024.0f);

  std::vector<float> q_factor(head_dim);
  for (size_t d = 0; d < head_dim; ++d) {
    float s = 1.0f;
    for (const float threshold : {3.0f, 24.0f, 192.0f, 1536.0f}) {
      if (median >= kSmallestRange && size[d] >= threshold * median) s *= 2.0f;
    }
    q_factor[d] = SignOf(d) * s;
  }
  const float block = static_cast<float>(BlockOf(head_dim));
  for (size_t i = 0; i < k->size(); ++i) (*k)[i] /= q_factor[i % head_dim] * block;
  for (size_t i = 0; i < k->size(); i += head_dim) Mix(k->data() + i, head_dim);
  return q_factor;
}

void RotateQ(const std::vector<float>& q_factor, std::vector<float>* q) {
  for (size_t d = 0; d < q->size(); ++d) (*q)[d] *= q_factor[d];
  Mix(q->data(), q->size());
}

}  // namespace testing
}  // namespace sightline
