// What happens to scores between Q·K and softmax, in the order of the contract: the softcap, then
// biases. Scores are in octaves, in f32 (16-bit fixed point: scores_fixed-inl.h). One function per
// modification; a task without modifications calls none.
//
// Cost per kLanes scores of prefill: one load, maximum and store for all modifications together;
// softcap 6 multiplications and additions where scores are small beside the cap, otherwise 15,
// beyond it 26 and a division; biases by distance a load and an addition, if rows are queries of
// one head. A tensor of biases, or others by distance: two loads, four shuffles, an addition and a
// store.
#ifndef SIGHTLINE_KERNELS_SCORE_MODS_INL_H_
#define SIGHTLINE_KERNELS_SCORE_MODS_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/scratch-inl.h"
#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// tanh(x), relative error below 3e-7; NaN stays NaN.
HWY_INLINE VF Tanh(VF x) {
  // From here on it is 1 in f32.
  const VF bound = hn::Set(df, 9.02f);
  x = hn::IfThenElse(hn::Gt(hn::Abs(x), bound), hn::CopySign(bound, x), x);
  const VF u = hn::Mul(x, x);
  // Minimax for the relative error (2.1e-8) of x p(x^2) / q(x^2) among degrees 4 and 4.
  VF p = hn::Set(df, 1.33172705e-8f);
  p = hn::MulAdd(p, u, hn::Set(df, 2.0582275e-5f));
  p = hn::MulAdd(p, u, hn::Set(df, 3.49396694e-3f));
  p = hn::MulAdd(p, u, hn::Set(df, 0.133796635f));
  p = hn::MulAdd(p, u, hn::Set(df, 1.0f));
  VF q = hn::Set(df, 7.76130734e-7f);
  q = hn::MulAdd(q, u, hn::Set(df, 3.28297791e-4f));
  q = hn::MulAdd(q, u, hn::Set(df, 2.58708233e-2f));
  q = hn::MulAdd(q, u, hn::Set(df, 0.467129789f));
  q = hn::MulAdd(q, u, hn::Set(df, 1.0f));
  return Div(hn::Mul(x, p), q);
}

// cap * tanh(s / cap). Scores mostly are small parts of the cap, for which a short polynomial will
// do.
class Softcap {
 public:
  explicit Softcap(float softcap_log2e)
      : cap_(hn::Set(df, softcap_log2e)), inverse_(hn::Set(df, 1.0f / softcap_log2e)) {}

  HWY_INLINE VF operator()(VF s) const {
    const VF x = hn::Mul(s, inverse_);
    const VF u = hn::Mul(x, x);
    // tanh(x) / x in x^2, minimax (4.4e-8 with p(0) = 1) up to x = 0.35.
    VF p = hn::Set(df, -4.90565505e-2f);
    p = hn::MulAdd(p, u, hn::Set(df, 0.132985042f));
    p = hn::MulAdd(p, u, hn::Set(df, -0.333326227f));
    p = hn::MulAdd(p, u, hn::Set(df, 1.0f));
    const VF small = hn::Mul(s, p);
    const auto is_small = hn::Le(u, hn::Set(df, kSmall));
    if (HWY_LIKELY(hn::AllTrue(df, is_small))) return small;
    // Lane by lane, so that a row does not depend on those beside it.
    return hn::IfThenElse(is_small, small, OfLarge(s, x, u, cap_));
  }

 private:
  static constexpr float kSmall = 0.125f;

  static HWY_NOINLINE VF OfLarge(VF s, VF x, VF u, VF cap) {
    // The same (1e-7) up to the cap.
    VF p = hn::Set(df, 1.0380251e-3f);
    p = hn::MulAdd(p, u, hn::Set(df, -6.19432483e-3f));
    p = hn::MulAdd(p, u, hn::Set(df, 2.02797083e-2f));
    p = hn::MulAdd(p, u, hn::Set(df, -5.34516464e-2f));
    p = hn::MulAdd(p, u, hn::Set(df, 0.133250761f));
    p = hn::MulAdd(p, u, hn::Set(df, -0.33332828f));
    p = hn::MulAdd(p, u, hn::Set(df, 1.0f));
    const VF below = hn::Mul(s, p);
    const auto is_below = hn::Le(u, hn::Set(df, 1.0f));
    if (HWY_LIKELY(hn::AllTrue(df, is_below))) return below;
    return hn::IfThenElse(is_below, below, hn::Mul(cap, Tanh(x)));
  }

  VF cap_;
  VF inverse_;
};

// The magnitudes of kLanes distances from d on, which may not fit 32 bits.
HWY_INLINE VF DistancesFrom(int64_t d) {
  constexpr int64_t kExact = int64_t{1} << 31;
  if (HWY_LIKELY(-kExact < d && d + static_cast<int64_t>(kLanes) < kExact)) {
    return hn::ConvertTo(df, hn::Abs(hn::Iota(di32, static_cast<int32_t>(d))));
  }
  HWY_ALIGN float distances[kLanes];
  for (size_t i = 0; i < kLanes; ++i) {
    const int64_t at = d + static_cast<int64_t>(i);
    distances[i] = static_cast<float>(at < 0 ? -at : at);
  }
  return hn::Load(df, distances);
}

// Adds the biases by distance of head `head` of the group for n <= kKvTile keys, of which the first
// is at distance `first`; see BiasAt, whose bits they are. `out` has room for whole vectors.
HWY_INLINE void AddDistanceBias(const DistanceBias& bias, size_t head, int64_t first, size_t n,
                                float* HWY_RESTRICT out) {
  HWY_ALIGN float table[kKvTile] = {};
  if (bias.table != nullptr) {
    // Beyond max_distance all have the bucket that is there.
    const int64_t max = bias.max_distance;
    const auto place = [&](size_t i) HWY_ATTR {
      const int64_t d = first + static_cast<int64_t>(i);
      return static_cast<size_t>(d < -max ? 0 : d > max ? 2 * max : d + max);
    };
    for (size_t i = 0; i < n; i += kLanes) {
      const size_t begin = place(i);
      const size_t last = place(i + kLanes - 1);
      if (HWY_LIKELY(begin == last)) {
        const float at_end = bias.table[bias.bucket[begin] * bias.table_stride + head];
        hn::Store(hn::Set(df, at_end * kLog2E), df, table + i);
        continue;
      }
      for (size_t j = i; j < i + kLanes; ++j) {
        table[j] = bias.table[bias.bucket[place(j)] * bias.table_stride + head] * kLog2E;
      }
    }
  }
  const VF slope = hn::Set(df, bias.slopes != nullptr ? bias.slopes[head] * kLog2E : 0.0f);
  for (size_t i = 0; i < n; i += kLanes) {
    VF sum = hn::Load(df, table + i);
    if (bias.slopes != nullptr) {
      sum = hn::Sub(sum, hn::Mul(slope, DistancesFrom(first + static_cast<int64_t>(i))));
    }
    hn::Store(hn::Add(hn::Load(df, out + i), sum), df, out + i);
  }
}

// Biases of row r for keys [key, key + n), n <= kKvTile, in octaves: those of the caller's tensor
// and, if asked for, those by distance. `out` has room for RoundUp(n, 16).
HWY_NOINLINE void BiasesOfRow(const AttendTask& task, size_t r, size_t key, size_t n,
                              bool by_distance, float* HWY_RESTRICT out) {
  if (task.bias.data != nullptr) {
    Row row = RowAt(task.bias, r);
    row.data += static_cast<int64_t>(key) * row.dim_stride;
    LoadRow(row, n, out);
    for (size_t i = 0; i < n; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(df, out + i), hn::Set(df, kLog2E)), df, out + i);
    }
  } else {
    for (size_t i = 0; i < n; i += kLanes) hn::Store(hn::Zero(df), df, out + i);
  }
  if (!by_distance) return;
  const RowIndex index = IndexOf(r, task.q.beams, task.q.group);
  const int64_t distance =
      static_cast<int64_t>(key) - task.q_start - static_cast<int64_t>(index.query);
  AddDistanceBias(task.distance_bias, index.head, distance, n, out);
}

// Scratch of the biases of one pair of tiles.
struct BiasScratch {
  float* rows;       // [kLanes][kKvTile]
  float* distances;  // [kKvTile + rows]
};
HWY_INLINE BiasScratch TakeBiasScratch(size_t rows, ScratchArena& arena) {
  BiasScratch scratch;
  scratch.rows = arena.Take<float>(kLanes * kKvTile);
  scratch.distances = arena.Take<float>(rows + kKvTile);
  return scratch;
}

// Biases by distance of a pair of tiles whose rows are queries of one head, one after the other:
// all read the same array, each row one place behind the row before it.
struct TileBias {
  const float* by_place;  // null: there are none; else in octaves

  // Of a vector of rows from `row` on, for key `key` of the tile.
  HWY_INLINE const float* At(size_t key, size_t row) const {
    return by_place + (kKvTile - 1 - key) + row;
  }
};

// True if biases by distance have this form.
HWY_INLINE bool HasTileBias(const AttendTask& task) {
  return HasDistanceBias(task) && task.q.beams * task.q.group == 1;
}

// Places of the table by distance.
HWY_INLINE size_t NumPlaces(const DistanceBias& bias) {
  return 2 * (static_cast<size_t>(bias.max_distance) + kBiasPadding) + 1;
}

HWY_INLINE TileBias BiasOfTile(const AttendTask& task, const QueryTile& q, size_t key_begin,
                               const BiasScratch& scratch) {
  if (HWY_LIKELY(!HasTileBias(task))) return {nullptr};
  const DistanceBias& bias = task.distance_bias;
  // Of the tile's last key from its first row; places then count down.
  const int64_t farthest = static_cast<int64_t>(key_begin + kKvTile) - 1 - task.q_start -
                           static_cast<int64_t>(q.first_row);
  const size_t places = kKvTile + q.num_vectors * kLanes;
  const float* table = nullptr;
  if (bias.table != nullptr) {
    // Beyond its ends the table goes on as it ends: any place there will do.
    const int64_t place = bias.max_distance + static_cast<int64_t>(kBiasPadding) - farthest;
    const int64_t last = static_cast<int64_t>(NumPlaces(bias)) - static_cast<int64_t>(places);
    table = bias.octaves + (place < 0 ? 0 : place < last ? place : last);
    if (bias.slopes == nullptr) return {table};
  }
  const VF slope = hn::Set(df, -bias.slopes[0] * kLog2E);
  for (size_t i = 0; i < places; i += kLanes) {
    // Places count down, and so do distances: their negatives count up.
    VF sum = hn::Mul(slope, DistancesFrom(static_cast<int64_t>(i) - farthest));
    if (table != nullptr) sum = hn::Add(hn::LoadU(df, table + i), sum);
    hn::Store(sum, df, scratch.distances + i);
  }
  return {scratch.distances};
}

// Softcap and biases by distance, whichever there are. Scores need what they lack for the former.
template <bool kCapped, bool kBiased>
class ScoreMods {
 public:
  ScoreMods(const AttendTask& task, const QueryTile& q, const TileBias& bias)
      : softcap_(kCapped ? task.softcap_log2e : 1.0f), lack_(q.lack), bias_(bias) {}

  // A score of key `key` of the tile and a vector of rows from `row` on.
  HWY_INLINE VF operator()(VF s, size_t key, size_t row) const {
    if constexpr (kCapped) s = softcap_(hn::Add(s, hn::Load(df, lack_ + row)));
    if constexpr (kBiased) s = hn::Add(s, hn::LoadU(df, bias_.At(key, row)));
    return s;
  }

 private:
  Softcap softcap_;
  const float* lack_;
  TileBias bias_;
};

// Calls body(mods) with the modifications that there are.
template <class Body>
HWY_INLINE void WithScoreMods(const AttendTask& task, const QueryTile& q, bool capped,
                              const TileBias& bias, const Body& body) {
  if (bias.by_place == nullptr) {
    if (capped) return body(ScoreMods<true, false>(task, q, bias));
    return body(ScoreMods<false, false>(task, q, bias));
  }
  if (capped) return body(ScoreMods<true, true>(task, q, bias));
  body(ScoreMods<false, true>(task, q, bias));
}

// True if some biases are not of the form of a TileBias: they are added row by row.
HWY_INLINE bool HasBiasByRow(const AttendTask& task) {
  return task.bias.data != nullptr || (HasDistanceBias(task) && !HasTileBias(task));
}

// Adds [kLanes][kKvTile] biases, of which n are used, to [n][stride] scores.
HWY_INLINE void AddTransposed(const float* HWY_RESTRICT rows, size_t n, size_t stride,
                              float* HWY_RESTRICT s) {
  for (size_t begin = 0; begin < n; begin += kLanes) {
    VI32 x[kLanes];
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r) {
      x[r] = hn::BitCast(di32, hn::Load(df, rows + r * kKvTile + begin));
    }
    TransposeSquare(x);
    const size_t count = MinOf(kLanes, n - begin);
    HWY_UNROLL(16)
    for (size_t i = 0; i < kLanes; ++i) {
      if (i < count) {
        float* out = s + (begin + i) * stride;
        hn::Store(hn::Add(hn::Load(df, out), hn::BitCast(df, x[i])), df, out);
      }
    }
  }
}

// To scores [kKvTile][stride] of keys [first, end) of the tile.
HWY_NOINLINE void AddBiasByRow(const AttendTask& task, const QueryTile& q, size_t key_begin,
                               size_t first, size_t end, size_t stride, float* HWY_RESTRICT s,
                               const BiasScratch& scratch) {
  const size_t n = end - first;
  const bool by_distance = HasDistanceBias(task) && !HasTileBias(task);
  for (size_t row = 0; row < stride; row += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      const size_t r = q.first_row + MinOf(row + i, q.num_rows - 1);
      BiasesOfRow(task, r, key_begin + first, n, by_distance, scratch.rows + i * kKvTile);
    }
    AddTransposed(scratch.rows, n, stride, s + first * stride + row);
  }
}

// All modifications of n scores of row r, which lack `lack`, from key `key` on, n <= kKvTile. Both
// arrays have room for a whole number of vectors.
HWY_NOINLINE void ModifyRow(const AttendTask& task, size_t r, float lack, size_t key, size_t n,
                            float* HWY_RESTRICT s, float* HWY_RESTRICT biases) {
  if (task.softcap_log2e != 0.0f) {
    const Softcap softcap(task.softcap_log2e);
    for (size_t i = 0; i < n; i += kLanes) {
      hn::Store(softcap(hn::Add(hn::Load(df, s + i), hn::Set(df, lack))), df, s + i);
    }
  }
  const bool by_distance = HasDistanceBias(task);
  if (task.bias.data == nullptr && !by_distance) return;
  BiasesOfRow(task, r, key, n, by_distance, biases);
  for (size_t i = 0; i < n; i += kLanes) {
    hn::Store(hn::Add(hn::Load(df, s + i), hn::Load(df, biases + i)), df, s + i);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCORE_MODS_INL_H_
