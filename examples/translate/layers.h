// What a transformer computes besides attention: projections and layer normalisation, as plain
// loops over f32 rows.
//
// A projection of one row reads its whole matrix once: 96 x 96 floats are 36 KiB, which stay in the
// second-level cache from step to step. The matrices are stored [in, out], the transpose of what
// the file holds, because the inner loop then runs along contiguous outputs that do not depend on
// each other, which every compiler vectorises without being allowed to reorder a sum.
#ifndef EXAMPLES_TRANSLATE_LAYERS_H_
#define EXAMPLES_TRANSLATE_LAYERS_H_

#include <stddef.h>

#include <vector>

namespace translate {

// y = x W^T + b.
struct Linear {
  size_t in = 0;
  size_t out = 0;
  std::vector<float> weight;  // [in, out]
  std::vector<float> bias;    // [out]

  // x [rows, in], y [rows, out], which must not overlap.
  void Apply(const float* x, size_t rows, float* y) const;
};

// [rows, columns] to [columns, rows].
std::vector<float> Transposed(const std::vector<float>& matrix, size_t rows, size_t columns);

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, over the channels of each row.
struct LayerNorm {
  float epsilon = 0.0f;
  std::vector<float> weight;  // [channels]
  std::vector<float> bias;    // [channels]

  // x and y [rows, channels]; they may be the same.
  void Apply(const float* x, size_t rows, float* y) const;
};

// down(relu(up(x)))
struct FeedForward {
  Linear up;
  Linear down;

  // x and y [rows, up.in], hidden [rows, up.out].
  void Apply(const float* x, size_t rows, float* hidden, float* y) const;
};

// x += y.
void Add(const float* y, size_t count, float* x);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_LAYERS_H_
