// The quantised precisions in plain C++, so that kernels can be held to them and not only to a
// loose error budget. Integers (quanta, dot products, scores and P in fixed point, P times V) come
// out exactly as in every kernel; f32 steps that decide about a rounding are done in f32, in the
// kernels' order; all the rest is double.
//
//  - Element: NaN -> 0, then clamped to +-1e27.
//
//  - Center, per channel: f32 sum over keys in ascending order / their number; every n-th key, so
//    that there are at most 256.
//
//  - K, per token: x = k - center, clamped once more, q = round(x * (127 / max|x|)),
//    scale = max|x| / 127; with wide K 4095, or less for many dimensions, instead of 127.
//
//  - V, per channel and 128 keys: the same, always to 127 and not clamped.
//
//  - Q, per row: like K without a center.
//
//  - int8 with one scale for a row of Q or K, or for a channel of V, is kept: the center is rounded
//    to a multiple of that scale, 0 instead of up to three (of K 0 also unless all rows share a
//    scale), and 127 times the scale stands for max|x| where it is larger. Not in caches; K not
//    where it is wide or rotated, and neither is Q there, or where it does not reach 127.
//
//  - In f32 (few rows, the scalar tier): S = (float(q . k) * (q_scale * log2 e)) * k_scale, in
//    octaves; p = 2^(S - max S) over tiles of 128 keys, P = round(255 p).
//
//  - In fixed point: see AttendQuantized.
//
//  - Output: sum over tiles of 2^(m - max m) * v_scale * (P . V) / 255, divided by the same sum of
//    the unrounded p, + v's center. m: the tile's maximum. A sink is one more p in the denominator,
//    and the center's weight is what it leaves.
//
//  - Masks: keys that a row does not see have no part in its maxima, P and sums.
//
// Rounding is to nearest, ties to even unless said otherwise. 127 (of Q) and 255 are what most
// tiers have.
#ifndef SIGHTLINE_TESTS_SUPPORT_QUANTIZED_SIMULATION_H_
#define SIGHTLINE_TESTS_SUPPORT_QUANTIZED_SIMULATION_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace sightline {
namespace testing {

constexpr size_t kScaleTileKeys = 128;  // keys that share a scale of V, and factors of K

// What differs between precisions and tiers.
struct QuantMethod {
  bool wide_k = false;    // K and Q in int16
  bool rotate_k = false;  // both balanced and rotated before they are quantised: see rotation.h
  int max_q = 127;        // of Q in int8
  int max_p = 255;
  bool keeps_kv = true;                 // K and V of int8 with fitting scales
  size_t p_tile_keys = kScaleTileKeys;  // keys whose P is relative to one maximum
  std::vector<uint16_t> exp2;           // one P * max_p * 2^(-i / 64); empty: softmax in f32

  bool operator==(const QuantMethod& other) const;
};

// K and V of one sequence and one head, quantised.
struct QuantHead {
  size_t kv_len = 0;
  size_t head_dim = 0;
  size_t v_head_dim = 0;
  std::vector<int16_t> k;       // [kv_len][head_dim]
  std::vector<int8_t> v;        // [kv_len][v_head_dim]
  std::vector<float> k_scale;   // [kv_len]
  std::vector<float> v_scale;   // [ceil(kv_len / kScaleTileKeys)][v_head_dim]
  std::vector<float> k_center;  // [head_dim]
  std::vector<float> v_center;  // [v_head_dim]
  std::vector<float> q_factor;  // [head_dim] if K is rotated, or empty; see rotation.h
};

// Scales of int8 numbers that are kept; empty where nothing is.
struct KeptScales {
  std::vector<float> k;  // [kv_len]
  bool one_k = false;    // which are the same
  std::vector<float> v;  // [v_head_dim]
};

// k is [kv_len][head_dim], v is [kv_len][v_head_dim]. The centers are means over the first
// `center_keys` keys: all of them, but for a KvCache at most 128.
QuantHead QuantizeHead(const std::vector<float>& k, const std::vector<float>& v, size_t kv_len,
                       size_t head_dim, size_t v_head_dim, const QuantMethod& method,
                       size_t center_keys, const KeptScales& kept = {});

// A query, [head_dim], becomes what its quanta are worth beside those of K: rotated if K is.
// kept_scale: of a row of int8 that is kept, or 0.
void QuantizeQuery(const QuantHead& head, const QuantMethod& method, float kept_scale, double* q);

// What K's center adds to the product of a query, [head_dim], and any key; and the sum of the
// magnitudes.
struct CenterProduct {
  double sum = 0.0;
  double magnitude = 0.0;
};
CenterProduct MultiplyCenter(const QuantHead& head, const double* q);

// Which ways a simulation took through fixed point, in pairs of a row and a tile: a test that is
// there for one of them requires that it was met.
struct FixedPointPaths {
  int64_t plain = 0;         // factors below 31/32
  int64_t gained = 0;        // other factors
  int64_t saturated = 0;     // ... and a score that was clamped, far below the maximum
  int64_t wide_steep = 0;    // in f32, for a factor too large
  int64_t wide_uneven = 0;   // ... for a key much shorter than another, beside such a factor
  int64_t wide_clamped = 0;  // ... for a maximum that was clamped, or low
  // What the kernels do about the reference of a row that has one: the maximum rose by up to eight
  // octaves, which leaves it, or by more, which rescales O.
  int64_t kept = 0;
  int64_t raised = 0;
  // In keys: p half way between two values of P, and a step of fixed point below that.
  int64_t ties = 0;
  int64_t below_ties = 0;

  void Add(const FixedPointPaths& other);
};

// Sums of head_dim products are shifted by this to fit 16 bits.
int SumShift(const QuantMethod& method, size_t head_dim);
// Largest quanta of Q and of K.
struct LargestQuanta {
  int q, k;
};
LargestQuanta LargestQuantaOf(const QuantMethod& method, size_t head_dim);

struct QuantResult {
  std::vector<double> value;      // [v_head_dim]
  std::vector<double> tolerance;  // the same: bounds |kernel - value| before the output is stored
  // Log of the denominator, without what K's center adds to every score.
  double lse = 0.0;
  double lse_tolerance = 0.0;
  // In octaves, -inf where hidden: as softmax had them, or, of a row that is in f32 for some tile,
  // all in f32.
  std::vector<double> scores;
  FixedPointPaths paths;
};

// What a row sees, and how far the rows see that a kernel computes in one task with it: the keys
// below task_visible, by position alone.
struct SeenKeys {
  std::vector<bool> visible;  // no longer than task_visible; all others are hidden
  size_t task_visible;
};

// One query; q is [head_dim]. kept_q_scale: of a row of int8 that is kept, or 0. sink: a logit, in
// octaves and without what K's center adds to the scores; -inf = none.
//
// In fixed point scores are integers in 1/64 octave. For each tile of 128 keys, as far as the task
// sees it:
//
//  - shift: the smallest for which any sum of products fits 16 bits. s16 = (q . k + half) >> shift.
//
//  - Key factors: f = round(k_scale * (32767 / largest)).
//    Row factor: F = q_scale * log2 e * largest * 2^shift * 64 * (32768 / 32767) in f32.
//
//  - |F| < 31/32: s = mul(mul(s16, f), round(F * 2^15)), where mul(a, b) = (a b + 2^14) >> 15 and
//    factors are at most 32767.
//
//  - |F| < 2^e for the smallest e > 0, at most 9: the same with F * 2^-e, clamped to what is left
//    of 16 bits, +-(32767 >> e), then times 2^e.
//
//  - e > 9, or e > 0 where the smallest k_scale (zeros aside) is below 1/8 of the largest, or a
//    maximum that was clamped or is less than 16 octaves above what is: in f32,
//    S = (float(q . k) * k_scale) * (q_scale * log2 e), and y = round((max - S) * 64), at most
//    32767. For all others y = max - s.
//
//  - p = exp2[y % 64] >> (y / 64), P = (p + 64) >> 7, or (p + 128) >> 8 where 2^8 * max_p fits 16
//    bits. The maximum is that of p_tile_keys keys.
//
// tolerance:
//
//  - In f32, 2^x of the kernels is good to about 2e-7. Where 255 p is so close to a half that this
//    decides the rounding, P may differ by one; each such key may move the output by its
//    |V| * v_scale / 255.
//
//  - Sums of p run over up to `visible` f32 terms of one sign, in fixed point only over tiles,
//  whose
//    sums are exact. Products run over one term per tile, and every rescaling rounds once.
//    Together: (visible + 8 tiles + 16) u on the sum of magnitudes, in fixed point (8 tiles + 16)
//    u.
//
//  - A sink enters the denominator with such an error, and with that the center.
//
//  - What underflows: a weight below 2^-100, of a tile or of all keys beside a sink, may count as
//  0.
//
//  - lse: the error of the sums, and roundings of the maximum and of the change of base.
QuantResult AttendQuantized(const QuantHead& head, const QuantMethod& method, const float* q,
                            float kept_q_scale, const SeenKeys& seen, float scale_log2e,
                            double sink);

// On the way there: what a row makes of a tile of p_tile_keys keys.
struct QuantWeight {
  size_t key = 0;
  int64_t quanta = 0;         // P
  bool is_undecided = false;  // in f32: so close to a half that P may be off by one
  double score = -HUGE_VAL;   // in octaves
};
struct QuantTile {
  double max = -HUGE_VAL;            // in octaves; -inf: sees nothing
  double sum = 0.0;                  // of p, as shares of the largest there can be
  std::vector<QuantWeight> weights;  // of the keys that the row sees
};
struct QuantTiles {
  std::vector<QuantTile> tiles;
  FixedPointPaths paths;  // but for references, which no weight depends on
};
QuantTiles WeighKeys(const QuantHead& head, const QuantMethod& method, const float* q,
                     float kept_q_scale, const SeenKeys& seen, float scale_log2e);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_QUANTIZED_SIMULATION_H_
