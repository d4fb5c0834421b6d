#include "layers.h"

#include <algorithm>
#include <cmath>

namespace translate {

void Linear::Apply(const float* x, size_t rows, float* y) const {
  for (size_t row = 0; row < rows; ++row, x += in, y += out) {
    std::copy(bias.begin(), bias.end(), y);
    const float* w = weight.data();
    for (size_t i = 0; i < in; ++i, w += out) {
      const float x_i = x[i];
      for (size_t o = 0; o < out; ++o) y[o] += x_i * w[o];
    }
  }
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
