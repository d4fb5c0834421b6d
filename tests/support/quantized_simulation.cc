#include "support/quantized_simulation.h"

#include <limits.h>
#include <math.h>

#include <algorithm>

#include "support/numeric.h"
#include "support/rotation.h"

namespace sightline {
namespace testing {
namespace {

constexpr float kLargest = 1e27f;
constexpr float kSmallestRange = 1e-30f;  // below it everything is stored as 0
constexpr int kNarrow = 127;
constexpr int kWide = 4095;
// Relative error of a kernel's 2^x in f32: its polynomial, and half a rounding of its argument.
constexpr double kExpError = 4e-7;
// Octaves from where on kernels may take a weight as 0: of a tile, or of all keys beside a sink.
constexpr int kLowestShare = -100;

// ---- Quanta -----------------------------------------------------------------------------------

float Sanitize(float x) { return isnan(x) ? 0.0f : std::clamp(x, -kLargest, kLargest); }

// int16: head_dim products and a rounding constant of up to 2^15 stay below 2^31.
int LargestWideQuantum(size_t head_dim) {
  const double largest =
      floor(sqrt((ldexp(1.0, 31) - ldexp(1.0, 16) - 1.0) / static_cast<double>(head_dim)));
  return std::min(kWide, static_cast<int>(largest));
}

// Quantises x[0], x[stride], ... x[(n - 1) * stride] with one scale, which it returns. kept_scale:
// of int8 numbers that are kept, or 0.
template <typename Quantum>
float QuantizeRun(const float* x, size_t n, size_t stride, int max_quantum, float kept_scale,
                  Quantum* q) {
  const float kept_range = fabsf(kept_scale) * kNarrow;
  float amax = kept_range < kLargest ? kept_range : 0.0f;
  for (size_t i = 0; i < n; ++i) amax = std::max(amax, fabsf(x[i * stride]));
  if (amax < kSmallestRange) {
    for (size_t i = 0; i < n; ++i) q[i * stride] = 0;
    return 0.0f;
  }
  const float largest = static_cast<float>(max_quantum);
  const float inverse = largest / amax;
  for (size_t i = 0; i < n; ++i) {
    q[i * stride] = static_cast<Quantum>(nearbyintf(x[i * stride] * inverse));
  }
  return amax * (1.0f / largest);
}

// Sanitises x [n][dim], subtracts the mean over the first `center_keys` keys and returns it. steps:
// [dim], scales of which the mean has to be a multiple, or empty.
std::vector<float> Center(std::vector<float>* x, size_t n, size_t dim, size_t center_keys,
                          const std::vector<float>& steps) {
  std::vector<float> center(dim, 0.0f);
  for (float& element : *x) element = Sanitize(element);
  if (center_keys == 0) return center;
  const size_t stride = (center_keys + 255) / 256;
  float count = 0.0f;
  for (size_t key = 0; key < center_keys; key += stride, ++count) {
    for (size_t d = 0; d < dim; ++d) center[d] += (*x)[key * dim + d];
  }
  for (float& sum : center) sum /= count;
  for (size_t d = 0; d < steps.size(); ++d) {
    const float step = fabsf(steps[d]);
    const bool usable = step * kNarrow > 0.0f && step * kNarrow < kLargest;
    const float multiple = nearbyintf(center[d] / step);
    center[d] = usable && fabsf(multiple) >= 4.0f ? multiple * step : 0.0f;
  }
  for (size_t key = 0; key < n; ++key) {
    for (size_t d = 0; d < dim; ++d) (*x)[key * dim + d] -= center[d];
  }
  return center;
}

// ---- Softmax of one tile and its product with V -----------------------------------------------

// One row's sums of integer products, and what a unit of them is worth but for K's scale.
struct Row {
  std::vector<bool> sees;  // as dots
  std::vector<int32_t> dots;
  float scale = 0.0f;
  bool key_scale_first = false;

  float Score(const QuantHead& head, size_t key) const {
    const float dot = static_cast<float>(dots[key]);
    const float k_scale = head.k_scale[key];
    return key_scale_first ? (dot * k_scale) * scale : (dot * scale) * k_scale;
  }
};

struct Tile : QuantTile {
  std::vector<int64_t> product;    // [v_head_dim]: P . V
  std::vector<int64_t> magnitude;  // P . |V|
  std::vector<int64_t> undecided;  // sum of |V| over keys whose P may be off by one

  explicit Tile(size_t channels)
      : product(channels, 0), magnitude(channels, 0), undecided(channels, 0) {}

  void AddKey(const QuantHead& head, size_t key, int64_t p, bool is_undecided, double score) {
    weights.push_back({key, p, is_undecided, score});
    if (p == 0 && !is_undecided) return;
    const int8_t* v = head.v.data() + key * head.v_head_dim;
    for (size_t c = 0; c < head.v_head_dim; ++c) {
      const int64_t v_magnitude = v[c] < 0 ? -v[c] : v[c];
      product[c] += p * v[c];
      magnitude[c] += p * v_magnitude;
      if (is_undecided) undecided[c] += v_magnitude;
    }
  }
};

// The largest score of the keys that the row sees.
float LargestScore(const QuantHead& head, const Row& row, size_t begin, size_t end) {
  float max = -HUGE_VALF;
  for (size_t key = begin; key < end; ++key) {
    if (row.sees[key]) max = std::max(max, row.Score(head, key));
  }
  return max;
}

Tile AttendTileF32(const QuantHead& head, const Row& row, int max_p, size_t begin, size_t end) {
  Tile tile(head.v_head_dim);
  const float max = LargestScore(head, row, begin, end);
  tile.max = static_cast<double>(max);
  if (max == -HUGE_VALF) return tile;
  for (size_t key = begin; key < end; ++key) {
    if (!row.sees[key]) continue;
    const double p = exp2(static_cast<double>(row.Score(head, key) - max));
    tile.sum += p;
    const double scaled = max_p * p;
    const bool is_undecided = fabs(scaled - floor(scaled) - 0.5) < 1e-5 + kExpError * scaled;
    tile.AddKey(head, key, static_cast<int64_t>(nearbyint(scaled)), is_undecided,
                static_cast<double>(row.Score(head, key)));
  }
  return tile;
}

// ---- Fixed point ------------------------------------------------------------------------------

constexpr int kFractions = 64;  // of an octave: steps of a score
constexpr int kMaxGainBits = 9;
constexpr int kGuardOctaves = 16;              // 2^-16 of any p is 0
constexpr float kSteepFactor = 31.0f / 32.0f;  // leaves them above the lowest of 16 bits
constexpr float kEvenRatio = 0.125f;
constexpr double kReferenceSlack = 8.0;  // octaves

int MulQ15(int a, int b) { return (a * b + (1 << 14)) >> 15; }

struct KeyFactors {
  std::vector<int> fractions;
  float largest = 0.0f;
  bool uneven = false;
};

KeyFactors KeyFactorsOf(const float* k_scale, size_t n) {
  KeyFactors factors;
  float smallest = kLargest;
  for (size_t i = 0; i < n; ++i) {
    factors.largest = std::max(factors.largest, k_scale[i]);
    if (k_scale[i] > 0.0f) smallest = std::min(smallest, k_scale[i]);
  }
  factors.uneven = smallest < kEvenRatio * factors.largest;
  const float inverse = factors.largest > 0.0f ? 32767.0f / factors.largest : 0.0f;
  for (size_t i = 0; i < n; ++i) {
    factors.fractions.push_back(static_cast<int>(nearbyintf(k_scale[i] * inverse)));
  }
  return factors;
}

struct RowFactor {
  int fraction = 0;
  int gain_bits = 0;
  bool too_steep = false;  // for fixed point
  bool too_uneven = false;
};

RowFactor RowFactorOf(float row_scale, const KeyFactors& keys, int shift) {
  RowFactor row;
  const float units = static_cast<float>(kFractions << shift) * (32768.0f / 32767.0f);
  const float factor = row_scale * (keys.largest * units);
  if (!isfinite(factor)) {
    row.too_steep = true;
    return row;
  }
  int exponent = 0;
  frexpf(factor, &exponent);
  row.gain_bits = fabsf(factor) < kSteepFactor ? 0 : std::max(exponent, 1);
  row.too_steep = row.gain_bits > kMaxGainBits;
  row.too_uneven = row.gain_bits > 0 && keys.uneven;
  const float scaled = ldexpf(factor, 15 - row.gain_bits);
  row.fraction = static_cast<int>(nearbyintf(std::clamp(scaled, -32767.0f, 32767.0f)));
  return row;
}

// Distances to the tile's maximum, in steps.
struct Distances {
  static constexpr int kHidden = -1;
  double max = 0.0;
  std::vector<int> y;
  std::vector<double> scores;  // in octaves
};

Distances WideDistances(const QuantHead& head, const Row& row, size_t begin, size_t end) {
  Distances result;
  const float max = LargestScore(head, row, begin, end);
  result.max = static_cast<double>(max);
  for (size_t key = begin; key < end; ++key) {
    const float y = (max - row.Score(head, key)) * static_cast<float>(kFractions);
    // !: also where both are -inf. Such a tile has no weight.
    const int steps = !(y < 32767.0f) ? 32767 : static_cast<int>(nearbyintf(y));
    result.y.push_back(row.sees[key] ? steps : Distances::kHidden);
    result.scores.push_back(static_cast<double>(row.Score(head, key)));
  }
  return result;
}

// fractions: of keys from `begin` on.
Distances FixedDistances(const QuantHead& head, const Row& row, const RowFactor& factor,
                         const int* fractions, int shift, size_t begin, size_t end,
                         FixedPointPaths* paths) {
  if (factor.too_steep || factor.too_uneven) {
    (factor.too_steep ? paths->wide_steep : paths->wide_uneven) += 1;
    return WideDistances(head, row, begin, end);
  }
  const int half = shift == 0 ? 0 : 1 << (shift - 1);
  const int bound = 32767 >> factor.gain_bits;
  std::vector<int> scores;
  bool saturated = false;
  int max = INT_MIN;
  for (size_t key = begin; key < end; ++key) {
    int s = MulQ15((row.dots[key] + half) >> shift, fractions[key - begin]);
    s = MulQ15(s, factor.fraction);
    scores.push_back(std::clamp(s, -bound, bound) * (1 << factor.gain_bits));
    if (!row.sees[key]) continue;
    saturated = saturated || s > bound || s < -bound;
    max = std::max(max, scores.back());
  }
  if (factor.gain_bits > 0) {
    const int highest = bound * (1 << factor.gain_bits);
    if (max >= highest || max < kGuardOctaves * kFractions - highest) {
      paths->wide_clamped += 1;
      return WideDistances(head, row, begin, end);
    }
    paths->gained += 1;
    paths->saturated += saturated ? 1 : 0;
  } else {
    paths->plain += 1;
  }
  Distances result;
  result.max = static_cast<double>(max) / kFractions;
  for (size_t i = 0; i < scores.size(); ++i) {
    const int steps = std::min(max - scores[i], 32767);
    result.y.push_back(row.sees[begin + i] ? steps : Distances::kHidden);
    result.scores.push_back(static_cast<double>(scores[i]) / kFractions);
  }
  return result;
}

Tile AttendTileFixed(const QuantHead& head, const QuantMethod& method, const Distances& distances,
                     size_t begin, FixedPointPaths* paths) {
  const int one = method.exp2[0] / method.max_p;  // of P, in steps of p
  Tile tile(head.v_head_dim);
  tile.max = distances.max;
  int64_t sum = 0;
  for (size_t i = 0; i < distances.y.size(); ++i) {
    const int y = distances.y[i];
    if (y == Distances::kHidden) continue;
    const int p = method.exp2[static_cast<size_t>(y % kFractions)] >> std::min(y / kFractions, 16);
    sum += p;
    tile.AddKey(head, begin + i, (p + one / 2) / one, false, distances.scores[i]);
    paths->ties += p % one == one / 2 ? 1 : 0;
    paths->below_ties += p % one == one / 2 - 1 ? 1 : 0;
  }
  tile.sum = static_cast<double>(sum) / method.exp2[0];
  return tile;
}

// ---- Rows -------------------------------------------------------------------------------------

// Returns the scale of the query's quanta.
float QuantizeQueryTo(const QuantHead& head, const QuantMethod& method, const float* q,
                      float kept_scale, int16_t* quanta) {
  std::vector<float> finite(q, q + head.head_dim);
  for (float& x : finite) x = Sanitize(x);
  if (!head.q_factor.empty()) RotateQ(head.q_factor, &finite);
  return QuantizeRun(finite.data(), head.head_dim, 1, LargestQuantaOf(method, head.head_dim).q,
                     kept_scale, quanta);
}

Row RowOf(const QuantHead& head, const QuantMethod& method, const float* q, float kept_q_scale,
          const std::vector<bool>& sees, float scale_log2e) {
  const size_t dim = head.head_dim;
  std::vector<int16_t> quanta(dim);
  Row row;
  row.scale = QuantizeQueryTo(head, method, q, kept_q_scale, quanta.data()) * scale_log2e;
  row.key_scale_first = !method.exp2.empty();
  row.sees = sees;
  row.dots.resize(sees.size());
  for (size_t key = 0; key < sees.size(); ++key) {
    const int16_t* k = head.k.data() + key * dim;
    int32_t dot = 0;
    for (size_t d = 0; d < dim; ++d) dot += quanta[d] * k[d];
    row.dots[key] = dot;
  }
  return row;
}

std::vector<Tile> TilesOf(const QuantHead& head, const QuantMethod& method, const Row& row,
                          const SeenKeys& seen, FixedPointPaths* paths) {
  const size_t num_keys = seen.visible.size();
  std::vector<Tile> tiles;
  if (method.exp2.empty()) {
    for (size_t begin = 0; begin < num_keys; begin += kScaleTileKeys) {
      const size_t end = std::min(begin + kScaleTileKeys, num_keys);
      tiles.push_back(AttendTileF32(head, row, method.max_p, begin, end));
    }
    return tiles;
  }
  const int shift = SumShift(method, head.head_dim);
  KeyFactors keys;
  RowFactor factor;
  for (size_t begin = 0; begin < num_keys; begin += method.p_tile_keys) {
    const size_t first = begin / kScaleTileKeys * kScaleTileKeys;
    if (begin == first) {
      const size_t num_factors = std::min(kScaleTileKeys, seen.task_visible - first);
      keys = KeyFactorsOf(head.k_scale.data() + first, num_factors);
      factor = RowFactorOf(row.scale, keys, shift);
    }
    const size_t end = std::min(begin + method.p_tile_keys, num_keys);
    const auto first_seen = row.sees.begin() + static_cast<ptrdiff_t>(begin);
    if (std::find(first_seen, row.sees.begin() + static_cast<ptrdiff_t>(end), true) ==
        row.sees.begin() + static_cast<ptrdiff_t>(end)) {
      tiles.emplace_back(head.v_head_dim);
      continue;
    }
    const int* fractions = keys.fractions.data() + (begin - first);
    const Distances distances =
        FixedDistances(head, row, factor, fractions, shift, begin, end, paths);
    tiles.push_back(AttendTileFixed(head, method, distances, begin, paths));
  }
  return tiles;
}

// Weights are relative to a reference that follows the maximum of the tiles. Neither result nor
// tolerance depends on it, as long as nothing overflows.
void CountReferences(const std::vector<Tile>& tiles, FixedPointPaths* paths) {
  double max = -HUGE_VAL;
  double reference = -HUGE_VAL;
  for (const Tile& tile : tiles) {
    if (tile.max > reference + kReferenceSlack) {
      paths->raised += reference == -HUGE_VAL ? 0 : 1;
      reference = tile.max;
    } else if (tile.max > max) {
      paths->kept += 1;
    }
    max = std::max(max, tile.max);
  }
}

}  // namespace

bool QuantMethod::operator==(const QuantMethod& other) const {
  return wide_k == other.wide_k && rotate_k == other.rotate_k && keeps_kv == other.keeps_kv &&
         max_q == other.max_q && max_p == other.max_p && p_tile_keys == other.p_tile_keys &&
         exp2 == other.exp2;
}

void FixedPointPaths::Add(const FixedPointPaths& other) {
  plain += other.plain;
  gained += other.gained;
  saturated += other.saturated;
  wide_steep += other.wide_steep;
  wide_uneven += other.wide_uneven;
  wide_clamped += other.wide_clamped;
  kept += other.kept;
  raised += other.raised;
  ties += other.ties;
  below_ties += other.below_ties;
}

LargestQuanta LargestQuantaOf(const QuantMethod& method, size_t head_dim) {
  if (!method.wide_k) return {method.max_q, kNarrow};
  const int wide = LargestWideQuantum(head_dim);
  return {wide, wide};
}

int SumShift(const QuantMethod& method, size_t head_dim) {
  const LargestQuanta quanta = LargestQuantaOf(method, head_dim);
  const int64_t largest = static_cast<int64_t>(head_dim) * quanta.q * quanta.k;
  int shift = 0;
  while (largest >> shift >= 32768) ++shift;
  return shift;
}

QuantHead QuantizeHead(const std::vector<float>& k, const std::vector<float>& v, size_t kv_len,
                       size_t head_dim, size_t v_head_dim, const QuantMethod& method,
                       size_t center_keys, const KeptScales& kept) {
  QuantHead head;
  head.kv_len = kv_len;
  head.head_dim = head_dim;
  head.v_head_dim = v_head_dim;

  std::vector<float> x = k;
  std::vector<float> k_steps;
  if (!kept.k.empty()) k_steps.assign(head_dim, kept.one_k ? kept.k[0] : 0.0f);
  head.k_center = Center(&x, kv_len, head_dim, center_keys, k_steps);
  if (method.rotate_k && kv_len != 0) head.q_factor = RotateK(&x, head_dim, center_keys);
  head.k.resize(x.size());
  for (float& element : x) element = Sanitize(element);
  const int max_k = LargestQuantaOf(method, head_dim).k;
  for (size_t key = 0; key < kv_len; ++key) {
    const size_t first = key * head_dim;
    const float kept_scale = kept.k.empty() ? 0.0f : kept.k[key];
    head.k_scale.push_back(
        QuantizeRun(x.data() + first, head_dim, 1, max_k, kept_scale, head.k.data() + first));
  }

  x = v;
  head.v_center = Center(&x, kv_len, v_head_dim, center_keys, kept.v);
  head.v.resize(x.size());
  for (size_t begin = 0; begin < kv_len; begin += kScaleTileKeys) {
    const size_t n = std::min(kScaleTileKeys, kv_len - begin);
    for (size_t c = 0; c < v_head_dim; ++c) {
      const size_t first = begin * v_head_dim + c;
      const float kept_scale = kept.v.empty() ? 0.0f : kept.v[c];
      head.v_scale.push_back(
          QuantizeRun(x.data() + first, n, v_head_dim, kNarrow, kept_scale, head.v.data() + first));
    }
  }
  return head;
}

void QuantizeQuery(const QuantHead& head, const QuantMethod& method, float kept_scale, double* q) {
  const std::vector<float> query(q, q + head.head_dim);
  std::vector<int16_t> quanta(head.head_dim);
  const float scale = QuantizeQueryTo(head, method, query.data(), kept_scale, quanta.data());
  for (size_t d = 0; d < head.head_dim; ++d) {
    q[d] = static_cast<double>(quanta[d]) * static_cast<double>(scale);
  }
}

CenterProduct MultiplyCenter(const QuantHead& head, const double* q) {
  CenterProduct product;
  for (size_t d = 0; d < head.head_dim; ++d) {
    const double x = static_cast<double>(Sanitize(static_cast<float>(q[d])));
    const double term = x * static_cast<double>(head.k_center[d]);
    product.sum += term;
    product.magnitude += fabs(term);
  }
  return product;
}

QuantResult AttendQuantized(const QuantHead& head, const QuantMethod& method, const float* q,
                            float kept_q_scale, const SeenKeys& seen, float scale_log2e,
                            double sink) {
  constexpr double kLn2 = 0.6931471805599453;
  QuantResult result;
  result.value.assign(head.v_head_dim, 0.0);
  result.tolerance.assign(head.v_head_dim, 0.0);

  const Row row = RowOf(head, method, q, kept_q_scale, seen.visible, scale_log2e);
  for (size_t key = 0; key < seen.visible.size(); ++key) {
    // Beyond the range of f32, relative to which nothing is a number.
    if (!seen.visible[key] || row.Score(head, key) < HUGE_VALF) continue;
    result.value.assign(head.v_head_dim, static_cast<double>(NAN));
    result.lse = static_cast<double>(NAN);
    return result;
  }

  const std::vector<Tile> tiles = TilesOf(head, method, row, seen, &result.paths);
  double max = -HUGE_VAL;
  result.scores.assign(seen.visible.size(), -HUGE_VAL);
  const FixedPointPaths& paths = result.paths;
  const bool is_wide = paths.wide_steep + paths.wide_uneven + paths.wide_clamped != 0;
  for (const Tile& tile : tiles) {
    max = std::max(max, tile.max);
    for (const QuantWeight& weight : tile.weights) {
      const double in_f32 = static_cast<double>(row.Score(head, weight.key));
      result.scores[weight.key] = is_wide ? in_f32 : weight.score;
    }
  }
  result.lse = sink * kLn2;
  result.lse_tolerance = 4.0 * kF32Unit * (isfinite(sink) ? fabs(result.lse) : 0.0);
  if (max == -HUGE_VAL) return result;  // nothing to see
  if (!method.exp2.empty()) CountReferences(tiles, &result.paths);
  max = std::max(max, sink);

  double sum = 0.0;
  std::vector<double> magnitude(head.v_head_dim, 0.0);
  std::vector<double> undecided(head.v_head_dim, 0.0);
  std::vector<double> largest_v_scale(head.v_head_dim, 0.0);
  const size_t tile_keys = method.exp2.empty() ? kScaleTileKeys : method.p_tile_keys;
  for (size_t t = 0; t < tiles.size(); ++t) {
    const Tile& tile = tiles[t];
    const double weight = exp2(tile.max - max);
    const float* v_scale = head.v_scale.data() + t * tile_keys / kScaleTileKeys * head.v_head_dim;
    sum += weight * tile.sum;
    for (size_t c = 0; c < head.v_head_dim; ++c) {
      const double unit = weight * static_cast<double>(v_scale[c]) / method.max_p;
      largest_v_scale[c] = std::max(largest_v_scale[c], static_cast<double>(v_scale[c]));
      result.value[c] += unit * static_cast<double>(tile.product[c]);
      magnitude[c] += unit * static_cast<double>(tile.magnitude[c]);
      undecided[c] += unit * static_cast<double>(tile.undecided[c]);
    }
  }
  const double all = sum + exp2(sink - max);
  const size_t f32_terms = method.exp2.empty() ? seen.visible.size() : 0;
  double growth =
      static_cast<double>(f32_terms + 8 * tiles.size() + 16) * kF32Unit + 2.0 * kExpError;
  const double sink_error = isfinite(sink) ? 4.0 * kF32Unit * (fabs(sink) + fabs(max)) : 0.0;
  growth += expm1(sink_error);
  result.lse = (max + log2(all)) * kLn2;
  result.lse_tolerance = growth + 4.0 * kF32Unit * (fabs(max) + fabs(log2(all)));
  for (size_t c = 0; c < head.v_head_dim; ++c) {
    const double center = static_cast<double>(head.v_center[c]) * (sum / all);
    result.value[c] = result.value[c] / all + center;
    result.tolerance[c] = undecided[c] / all + growth * magnitude[c] / all +
                          2.0 * kF32Unit * (fabs(result.value[c]) + fabs(center));
    const double largest =
        fabs(static_cast<double>(head.v_center[c])) + kNarrow * largest_v_scale[c];
    result.tolerance[c] += ldexp(largest, kLowestShare);
    if (isfinite(sink)) result.tolerance[c] += growth * fabs(center);
  }
  return result;
}

QuantTiles WeighKeys(const QuantHead& head, const QuantMethod& method, const float* q,
                     float kept_q_scale, const SeenKeys& seen, float scale_log2e) {
  QuantTiles result;
  const Row row = RowOf(head, method, q, kept_q_scale, seen.visible, scale_log2e);
  const std::vector<Tile> tiles = TilesOf(head, method, row, seen, &result.paths);
  result.tiles.assign(tiles.begin(), tiles.end());
  return result;
}

}  // namespace testing
}  // namespace sightline
