#include "layers.h"

#include <algorithm>
#include <cmath>

namespace translate {

namespace {

// Rows that share each load of a weight, and sums of a block, which 8 of the 16 registers of the
// plainest x86-64 hold. A row alone takes as many outputs instead.
constexpr size_t kBlockRows = 4;
constexpr size_t kBlockSums = 32;

// Outputs [begin, begin + kOutputs) of kRows rows. Each is summed in the order of its inputs,
// however many there are of either: a row does not notice which others there are.
template <size_t kRows, size_t kOutputs>
void ApplyBlock(const Linear& linear, const float* x, size_t begin, float* y) {
  float sums[kRows][kOutputs];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t o = 0; o < kOutputs; ++o) sums[r][o] = linear.bias[begin + o];
  }
  const float* w = linear.weight.data() + begin;
  for (size_t i = 0; i < linear.in; ++i, w += linear.out) {
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t o = 0; o < kOutputs; ++o) sums[r][o] += x[r * linear.in + i] * w[o];
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    std::copy(sums[r], sums[r] + kOutputs, y + r * linear.out + begin);
  }
}

template <size_t kRows>
void ApplyRows(const Linear& linear, const float* x, float* y) {
  constexpr size_t kOutputs = kBlockSums / kRows;
  size_t o = 0;
  for (; o + kOutputs <= linear.out; o += kOutputs) ApplyBlock<kRows, kOutputs>(linear, x, o, y);
  for (; o < linear.out; ++o) ApplyBlock<kRows, 1>(linear, x, o, y);
}

}  // namespace

void Linear::Apply(const float* x, size_t rows, float* y) const {
  for (; rows >= kBlockRows; rows -= kBlockRows, x += kBlockRows * in, y += kBlockRows * out) {
    ApplyRows<kBlockRows>(*this, x, y);
  }
  for (; rows > 0; --rows, x += in, y += out) ApplyRows<1>(*this, x, y);
}

std::vector<float> Transposed(const std::vector<float>& matrix, size_t rows, size_t columns) {
  std::vector<float> result(matrix.size());
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      result[column * rows + row] = matrix[row * columns + column];
    }
  }
  return result;
}

void LayerNorm::Apply(const float* x, size_t rows, float* y) const {
  const size_t channels = weight.size();
  for (size_t row = 0; row < rows; ++row, x += channels, y += channels) {
    float mean = 0.0f;
    for (size_t c = 0; c < channels; ++c) mean += x[c];
    mean /= static_cast<float>(channels);
    float variance = 0.0f;
    for (size_t c = 0; c < channels; ++c) variance += (x[c] - mean) * (x[c] - mean);
    variance /= static_cast<float>(channels);
    const float inverse = 1.0f / std::sqrt(variance + epsilon);
    for (size_t c = 0; c < channels; ++c) y[c] = (x[c] - mean) * inverse * weight[c] + bias[c];
  }
}

void FeedForward::Apply(const float* x, size_t rows, float* hidden, float* y) const {
  up.Apply(x, rows, hidden);
  for (size_t i = 0; i < rows * up.out; ++i) hidden[i] = std::max(hidden[i], 0.0f);
  down.Apply(hidden, rows, y);
}

void Add(const float* y, size_t count, float* x) {
  for (size_t i = 0; i < count; ++i) x[i] += y[i];
}

}  // namespace translate
