#include "support/i8_simulation.h"

#include <math.h>

#include <algorithm>

#include "support/numeric.h"
#include "support/rotation.h"

namespace sightline {
namespace testing {
namespace {

constexpr float kLargest = 1e27f;
constexpr float kSmallestRange = 1e-30f;  // below it everything is stored as 0
constexpr double kPMax = 255.0;
// Relative error of a kernel's p: its 2^x polynomial, and half a rounding of its argument.
constexpr double kExpError = 4e-7;

// Kernels for many rows take scores and p in 16-bit fixed point (kernels/fixed_point-inl.h), those
// for few rows, and the scalar tier, in f32 as here. What fixed point may add:
//
//  - A step of a score is 1/64 octave, or 2^gain of it in steep rows, whose factor (octaves a unit
//  of
//    q . k, times 2^shift * 64) is 1 and more. Three roundings of half a step, of which two come
//    before the row's factor, and two factors good to 2^-15.
//
//  - 2^-y by table or polynomial: 0.4 %.
//
//  - p has seven fraction bits: it may be a step of them too low, and rounded to the next quantum.
constexpr double kTableError = 4e-3;
constexpr double kScoreSteps = 64.0;

float Sanitize(float x) { return isnan(x) ? 0.0f : std::clamp(x, -kLargest, kLargest); }

// Quantises x[0], x[stride], ... x[(n - 1) * stride] with one scale, which it returns.
float QuantizeRun(const float* x, size_t n, size_t stride, int8_t* q) {
  float amax = 0.0f;
  for (size_t i = 0; i < n; ++i) amax = std::max(amax, fabsf(x[i * stride]));
  if (amax < kSmallestRange) {
    for (size_t i = 0; i < n; ++i) q[i * stride] = 0;
    return 0.0f;
  }
  const float inverse = 127.0f / amax;
  for (size_t i = 0; i < n; ++i) {
    q[i * stride] = static_cast<int8_t>(nearbyintf(x[i * stride] * inverse));
  }
  return amax * (1.0f / 127.0f);
}

// Sanitises x [n][dim], subtracts the mean over the first `center_keys` keys and returns it.
std::vector<float> Center(std::vector<float>* x, size_t n, size_t dim, size_t center_keys) {
  std::vector<float> center(dim, 0.0f);
  for (float& element : *x) element = Sanitize(element);
  if (center_keys == 0) return center;
  const size_t stride = (center_keys + 255) / 256;
  float count = 0.0f;
  for (size_t key = 0; key < center_keys; key += stride, ++count) {
    for (size_t d = 0; d < dim; ++d) center[d] += (*x)[key * dim + d];
  }
  for (float& sum : center) sum /= count;
  for (size_t key = 0; key < n; ++key) {
    for (size_t d = 0; d < dim; ++d) (*x)[key * dim + d] -= center[d];
  }
  return center;
}

// Softmax of one tile and its product with V, relative to the tile's maximum.
struct TileResult {
  float max = 0.0f;
  double sum = 0.0;                // of p
  double sum_blur = 0.0;           // what fixed point may change it by
  std::vector<int64_t> product;    // [v_head_dim]: P . V
  std::vector<int64_t> magnitude;  // P . |V|
  std::vector<int64_t> undecided;  // sum of |V| over keys whose P may be off by one
  std::vector<double> blurred;     // sum of |V| times what fixed point may change P by
};

// score_error: of a score relative to another, in octaves, by fixed point.
TileResult AttendTile(const I8Head& head, const std::vector<float>& scores, double score_error,
                      size_t begin, size_t end) {
  TileResult tile;
  tile.max = *std::max_element(scores.begin() + static_cast<ptrdiff_t>(begin),
                               scores.begin() + static_cast<ptrdiff_t>(end));
  tile.product.assign(head.v_head_dim, 0);
  tile.magnitude.assign(head.v_head_dim, 0);
  tile.undecided.assign(head.v_head_dim, 0);
  tile.blurred.assign(head.v_head_dim, 0.0);
  // Twice: the maximum that p is relative to is blurred as well.
  const double p_error = exp2(2.0 * score_error) * (1.0 + kTableError) - 1.0;
  for (size_t key = begin; key < end; ++key) {
    const double p = exp2(static_cast<double>(scores[key] - tile.max));
    tile.sum += p;
    const double scaled = kPMax * p;
    const int64_t rounded = static_cast<int64_t>(nearbyint(scaled));
    const bool undecided = fabs(scaled - floor(scaled) - 0.5) < 1e-5 + kExpError * scaled;
    const double blur = scaled * p_error + 1.0 / 128.0;
    // Nothing changes where even the blurred p rounds to 0.
    const bool blurred = scaled + blur >= 0.5;
    tile.sum_blur += blur / kPMax;
    if (rounded == 0 && !undecided && !blurred) continue;
    const int8_t* v = head.v.data() + key * head.v_head_dim;
    for (size_t c = 0; c < head.v_head_dim; ++c) {
      const int64_t magnitude = v[c] < 0 ? -v[c] : v[c];
      tile.product[c] += rounded * v[c];
      tile.magnitude[c] += rounded * magnitude;
      if (undecided) tile.undecided[c] += magnitude;
      if (blurred) tile.blurred[c] += (blur + 1.0) * static_cast<double>(magnitude);
    }
  }
  return tile;
}

}  // namespace

I8Head QuantizeI8(const std::vector<float>& k, const std::vector<float>& v, size_t kv_len,
                  size_t head_dim, size_t v_head_dim, size_t center_keys, bool rotate_k) {
  I8Head head;
  head.kv_len = kv_len;
  head.head_dim = head_dim;
  head.v_head_dim = v_head_dim;

  std::vector<float> x = k;
  head.k_center = Center(&x, kv_len, head_dim, center_keys);
  if (rotate_k && kv_len != 0) head.q_factor = RotateK(&x, head_dim, center_keys);
  head.k.resize(x.size());
  for (size_t key = 0; key < kv_len; ++key) {
    head.k_scale.push_back(
        QuantizeRun(x.data() + key * head_dim, head_dim, 1, head.k.data() + key * head_dim));
  }

  x = v;
  head.v_center = Center(&x, kv_len, v_head_dim, center_keys);
  head.v.resize(x.size());
  for (size_t begin = 0; begin < kv_len; begin += kI8TileKeys) {
    const size_t n = std::min(kI8TileKeys, kv_len - begin);
    for (size_t c = 0; c < v_head_dim; ++c) {
      const size_t first = begin * v_head_dim + c;
      head.v_scale.push_back(QuantizeRun(x.data() + first, n, v_head_dim, head.v.data() + first));
    }
  }
  return head;
}

void AttendI8(const I8Head& head, const float* q, size_t visible, float scale_log2e, double* value,
              double* tolerance) {
  std::fill(value, value + head.v_head_dim, 0.0);
  std::fill(tolerance, tolerance + head.v_head_dim, 0.0);
  if (visible == 0) return;

  std::vector<float> row(q, q + head.head_dim);
  for (float& x : row) x = Sanitize(x);
  if (!head.q_factor.empty()) RotateQ(head.q_factor, &row);
  std::vector<int8_t> q8(head.head_dim);
  const float row_scale = QuantizeRun(row.data(), head.head_dim, 1, q8.data()) * scale_log2e;

  std::vector<float> scores(visible);
  for (size_t key = 0; key < visible; ++key) {
    const int8_t* k = head.k.data() + key * head.head_dim;
    int32_t dot = 0;
    for (size_t d = 0; d < head.head_dim; ++d) dot += q8[d] * k[d];
    scores[key] = (static_cast<float>(dot) * row_scale) * head.k_scale[key];
  }
  const double max = *std::max_element(scores.begin(), scores.end());

  double sum = 0.0;
  double sum_blur = 0.0;
  size_t num_tiles = 0;
  std::vector<double> magnitude(head.v_head_dim, 0.0);
  std::vector<double> blurred(head.v_head_dim, 0.0);
  std::vector<double> undecided(head.v_head_dim, 0.0);
  for (size_t begin = 0; begin < visible; begin += kI8TileKeys, ++num_tiles) {
    const size_t end = std::min(begin + kI8TileKeys, visible);
    const float largest = *std::max_element(
        head.k_scale.begin() + static_cast<ptrdiff_t>(begin),
        head.k_scale.begin() + static_cast<ptrdiff_t>(std::min(begin + kI8TileKeys, head.kv_len)));
    // Sums of head_dim products of two bytes are shifted to 16 bits.
    const double s16_unit = exp2(fmax(0.0, ceil(log2(static_cast<double>(head.head_dim)) - 1.0)));
    const double unit_octaves =
        fabs(static_cast<double>(row_scale)) * static_cast<double>(largest) * s16_unit;
    const auto [lowest, highest] =
        std::minmax_element(scores.begin() + static_cast<ptrdiff_t>(begin),
                            scores.begin() + static_cast<ptrdiff_t>(end));
    const double reach =
        std::max(fabs(static_cast<double>(*lowest)), fabs(static_cast<double>(*highest)));
    // Beyond gains of 2^9 scores are taken in f32 as well.
    const bool wide = unit_octaves * kScoreSteps >= 512.0;
    const double score_error =
        wide ? 0.0 : 0.5 / kScoreSteps + 2.5 * unit_octaves + 2.0 * reach / 32768.0;
    const TileResult tile = AttendTile(head, scores, score_error, begin, end);
    const double beta = exp2(tile.max - max);
    const float* v_scale = head.v_scale.data() + num_tiles * head.v_head_dim;
    sum += beta * tile.sum;
    sum_blur += beta * tile.sum_blur;
    for (size_t c = 0; c < head.v_head_dim; ++c) {
      const double unit = beta * v_scale[c] / kPMax;
      value[c] += unit * static_cast<double>(tile.product[c]);
      magnitude[c] += unit * static_cast<double>(tile.magnitude[c]);
      undecided[c] += unit * static_cast<double>(tile.undecided[c]);
      blurred[c] += unit * tile.blurred[c];
    }
  }
  const double growth =
      static_cast<double>(visible + 8 * num_tiles + 16) * kF32Unit + 2.0 * kExpError;
  for (size_t c = 0; c < head.v_head_dim; ++c) {
    value[c] = value[c] / sum + head.v_center[c];
    tolerance[c] = undecided[c] / sum + blurred[c] / sum + sum_blur / sum * magnitude[c] / sum +
                   growth * magnitude[c] / sum +
                   2.0 * kF32Unit * (fabs(value[c]) + fabs(static_cast<double>(head.v_center[c])));
  }
}

}  // namespace testing
}  // namespace sightline
