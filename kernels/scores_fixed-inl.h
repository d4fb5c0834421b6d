// S = K·Q where V is quantised, for one pair of tiles and as 16-bit fixed point
// (fixed_point-inl.h), and the rows' maxima over the tile.
//
// A sum of integer products is worth row_scale * k_scale octaves a unit. On the way to fixed point
//
//   s16 = (sum + half) >> shift            fits 16 bits for any quanta: head_dim says the shift
//   s = s16 * key_factor * row_factor      two rounding multiplications of 15-bit fractions
//
// the key factor is the key's scale as a fraction of the tile's largest, the row factor all the
// rest: row_scale * largest * 2^shift * 64. Per 32 scores that is two shifts, a blend, two
// multiplications and a maximum, where f32 would take four multiply-adds, two conversions and a
// pack.
//
// A row factor of about 1 and more (steep rows: scores spread over more than about ten octaves) is
// split into a fraction and a power of two, the `gain`; the result is clamped. What does not fit
// that way is found afterwards and done again in f32, row by row ("wide" rows): clamped maxima,
// factors beyond kMaxGainBits, and steep rows over keys of very different length, where s16 would
// be too coarse for the short ones. So a row's result does not depend on the rows beside it, but
// for how many keys of a tile its task sees, over which the largest scale is taken.
//
// Modifications are made in fixed point as well, in a pass over the words: a softcap as long as no
// score is beyond the cap, biases by distance if all are less than kMaxBias octaves from their
// middle. Rows, or tiles, of which that is not true are wide; so are all rows of tasks with other
// biases.
//
// Cost per kStep keys: head_dim / depth steps of BlockProduct, and the above.
#ifndef SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_
#define SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/kv_tile-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/scratch-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Gains reach 2^9: then a step of s16 is eight octaves.
constexpr int kMaxGainBits = 9;

// Keys whose scale is below this part of the tile's largest make the tile uneven. Rounding to s16
// adds 0.4 of its steps; with int8 quanta of the usual spread a key of the largest scale has a
// quantisation error of five, one of an eighth of it still more than that.
constexpr float kEvenRatio = 0.125f;

// Octaves that a maximum keeps above the lowest score that 16 bits can hold, and above hidden keys
// therefore: 2^-16 of any P is 0. Rows without a gain keep them by the bound on their factor.
constexpr int kGuardSteps = 16 << kScoreBits;
constexpr float kSteepFactor = 1.0f - kGuardSteps / 32768.0f;

// A modified score is a score of at most kMaxModified octaves, capped or not, and a bias that is at
// most kMaxBias from the middle of the tile's: the sum keeps 16 octaves from the end of 16 bits, as
// scores do.
constexpr int kMaxModified = 352;
constexpr int kMaxBias = 128;
static_assert(kMaxModified + kMaxBias + 16 < 32768 >> kScoreBits, "sums fit 16 bits");
// What a capped score may lack: at most as much as a bias.
constexpr float kSteepModified = kMaxModified / 512.0f;

// Scales of a tile's keys, prepared once for all query tiles.
struct KeyFactors {
  uint32_t* words;  // [kKvTile / 2] in the order of words
  float largest;    // scale
  bool uneven;
};

// num_keys > 0. k_scale is readable up to a multiple of kLanes; what is beyond num_keys is not
// used.
HWY_INLINE void SetKeyFactors(const float* HWY_RESTRICT k_scale, size_t num_keys,
                              KeyFactors& factors) {
  VF largest = hn::Zero(df);
  VF smallest = hn::Set(df, kLargestFinite);
  const VI32 end = hn::Set(di32, static_cast<int32_t>(num_keys));
  for (size_t key = 0; key < num_keys; key += kLanes) {
    const VI32 index = hn::Iota(di32, static_cast<int32_t>(key));
    const VF scale =
        hn::IfThenElseZero(hn::RebindMask(df, hn::Lt(index, end)), hn::LoadU(df, k_scale + key));
    largest = hn::Max(largest, scale);
    // Keys that are zero have no scale, and no error.
    const VF counted = hn::IfThenElse(hn::Gt(scale, hn::Zero(df)), scale, smallest);
    smallest = hn::Min(smallest, counted);
  }
  factors.largest = hn::GetLane(hn::MaxOfLanes(df, largest));
  factors.uneven = hn::GetLane(hn::MinOfLanes(df, smallest)) < kEvenRatio * factors.largest;
  const VF inverse = hn::Set(df, factors.largest > 0.0f ? 32767.0f / factors.largest : 0.0f);
  HWY_ALIGN int32_t fractions[kKvTile];
  for (size_t key = 0; key < num_keys; key += kLanes) {
    const VI32 index = hn::Iota(di32, static_cast<int32_t>(key));
    const VF scale =
        hn::IfThenElseZero(hn::RebindMask(df, hn::Lt(index, end)), hn::LoadU(df, k_scale + key));
    hn::Store(hn::NearestInt(hn::Mul(scale, inverse)), di32, fractions + key);
  }
  // Four fractions (0, 1, 2, 3) to the words (0, 2), (1, 3).
  for (size_t key = 0; key < num_keys; key += 4) {
    uint64_t first;
    uint64_t second;
    __builtin_memcpy(&first, fractions + key, sizeof(first));
    __builtin_memcpy(&second, fractions + key + 2, sizeof(second));
    first |= second << 16;
    __builtin_memcpy(factors.words + key / 2, &first, sizeof(first));
  }
}

// The factors from key `key` on, a multiple of 4.
HWY_INLINE KeyFactors KeyFactorsFrom(const KeyFactors& factors, size_t key) {
  return {factors.words + key / 2, factors.largest, factors.uneven};
}

HWY_INLINE hn::Mask<DF> IsSteep(VF factor, float bound) {
  return hn::Not(hn::Lt(hn::Abs(factor), hn::Set(df, bound)));  // NaN too
}

// Units of fixed point in a shifted sum of key factor 1, but for the scales.
HWY_INLINE float SumUnits(int sum_shift) {
  const float units = static_cast<float>(kFractions << sum_shift);
  return units * (32768.0f / 32767.0f);
}

// Row factors for one tile of keys; true if some row needs a gain or is wide.
template <size_t kQV>
HWY_INLINE bool SetRowFactors(const QueryTile& q, const KeyFactors& keys,
                              const FixedScratch& scratch) {
  const VF largest = hn::Set(df, keys.largest * SumUnits(q.sum_shift));
  const VF limit = hn::Set(df, 32767.0f);
  auto steep = hn::MaskFalse(df);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF factor = hn::Mul(hn::Load(df, q.row_scale + v * kLanes), largest);
    steep = hn::Or(steep, IsSteep(factor, kSteepFactor));
    const VF scaled = hn::Mul(factor, hn::Set(df, 32768.0f));
    const VI32 fraction = hn::NearestInt(hn::Clamp(scaled, hn::Neg(limit), limit));
    hn::Store(WordsOf(fraction), di16, scratch.row_factor + v * kLanes * 2);
  }
  if (HWY_LIKELY(hn::AllFalse(df, steep))) return false;

  for (size_t v = 0; v < kQV; ++v) {
    const VF factor = hn::Mul(hn::Load(df, q.row_scale + v * kLanes), largest);
    const VI32 bits = hn::BitCast(di32, hn::Abs(factor));
    // |factor| < 2^exponent
    const VI32 least =
        hn::IfThenElseZero(hn::RebindMask(di32, IsSteep(factor, kSteepFactor)), hn::Set(di32, 1));
    const VI32 exponent = hn::Max(hn::Sub(hn::ShiftRight<23>(bits), hn::Set(di32, 126)), least);
    auto wide = hn::Gt(exponent, hn::Set(di32, kMaxGainBits));
    if (keys.uneven) wide = hn::Or(wide, hn::Gt(exponent, hn::Zero(di32)));
    const VI32 gain_bits = hn::IfThenZeroElse(wide, exponent);
    const VF down = hn::BitCast(df, hn::ShiftLeft<23>(hn::Sub(hn::Set(di32, 127 + 15), gain_bits)));
    const VF scaled = hn::Clamp(hn::Mul(factor, down), hn::Neg(limit), limit);
    const VI32 fraction = hn::IfThenZeroElse(
        wide, hn::NearestInt(hn::IfThenZeroElse(hn::RebindMask(df, wide), scaled)));
    hn::Store(WordsOf(fraction), di16, scratch.row_factor + v * kLanes * 2);
    hn::Store(WordsOf(hn::Shl(hn::Set(di32, 1), gain_bits)), di16, scratch.gain + v * kLanes * 2);
    hn::Store(WordsOf(hn::Shr(hn::Set(di32, 32767), gain_bits)), di16,
              scratch.bound + v * kLanes * 2);
    hn::Store(hn::VecFromMask(di32, wide), di32, scratch.wide + v * kLanes);
  }
  return true;
}

// What rows see of the 16 keys around `key`, for lanes of two keys: bit i of a lane's lower word is
// that of key i, bit i of the upper one that of key i + 2.
template <size_t kQV>
HWY_INLINE VI16 SeenBits(const TileMask& mask, size_t key, size_t v) {
  const VI32 bits = hn::Load(di32, mask.words + (key / kMaskBits * kQV + v) * kLanes);
  if (key % kMaskBits < 16) {
    return hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<14>(bits)), hn::BitCast(di16, bits));
  }
  return hn::OddEven(hn::BitCast(di16, hn::ShiftRight<2>(bits)),
                     hn::BitCast(di16, hn::ShiftRight<16>(bits)));
}
// Lanes that see `key`, and key + 2.
HWY_INLINE hn::Mask<DI16> SeenWords(VI16 bits, size_t key) {
  return hn::TestBit(bits, hn::Set(di16, static_cast<int16_t>(1u << key % 16)));
}

// Words of kKeys keys and kVectors vectors of rows from vector `first` on, of kQV.
template <class Keys, size_t kQV, bool kMasked, bool kSteep, size_t kKeys, size_t kVectors>
HWY_INLINE void ScoreWords(const QueryTile& q, const KvTile& kv, const KeyFactors& keys,
                           const TileMask& mask, size_t num_steps, VI32 shift, size_t key,
                           size_t first, const FixedScratch& scratch) {
  constexpr size_t kRowWords = kQV * kLanes * 2;
  VI32 acc[kKeys][kVectors];
  SumScores<Keys, kQV, SumsBegin::kRounded>(q, kv, num_steps, key, first, acc);

  int16_t* HWY_RESTRICT s_out = scratch.s + key / 2 * kRowWords;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kVectors; ++v) {
    const size_t row = (first + v) * kLanes * 2;
    const VI16 row_factor = hn::Load(di16, scratch.row_factor + row);
    VI16 tile_m = hn::Load(di16, scratch.tile_m + row);
    const VI16 seen = kMasked ? SeenBits<kQV>(mask, key, first + v) : hn::Zero(di16);
    HWY_UNROLL(4)
    for (size_t pair = 0; pair < kKeys / 2; ++pair) {
      const size_t n = pair / 2 * 4 + pair % 2;
      const VI16 words = WordsOfSums(acc[n][v], acc[n + 2][v], shift);
      const VI16 key_factor =
          hn::BitCast(di16, hn::Set(di32, static_cast<int32_t>(keys.words[key / 2 + pair])));
      VI16 s = hn::MulFixedPoint15(words, key_factor);
      s = hn::MulFixedPoint15(s, row_factor);
      if constexpr (kSteep) {
        const VI16 bound = hn::Load(di16, scratch.bound + row);
        s = hn::Clamp(s, hn::Neg(bound), bound);
        s = hn::Mul(s, hn::Load(di16, scratch.gain + row));
      }
      if constexpr (kMasked) {
        s = hn::IfThenElse(SeenWords(seen, key + n), s, hn::Set(di16, kHiddenScore));
      }
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, di16, s_out + pair * kRowWords + row);
    }
    hn::Store(tile_m, di16, scratch.tile_m + row);
  }
}

// Words of what each vector of rows sees, to its padded end, and their maxima; of steep rows, which
// are rare, of what any vector sees, and nothing is hidden yet. Out of line: plain and modified
// scores share it.
template <class Keys, size_t kQV, bool kSteep>
HWY_NOINLINE void ScoreAllWords(const QueryTile& q, const KvTile& kv, const KeyFactors& keys,
                                const TileMask& mask, size_t head_dim,
                                const FixedScratch& scratch) {
  const size_t num_steps = RoundUp(head_dim, kDepthOf<Keys>) / kDepthOf<Keys>;
  const VI32 shift = hn::Set(di32, q.sum_shift);
  for (size_t v = 0; v < kQV; ++v) {
    hn::Store(hn::Set(di16, kHiddenScore), di16, scratch.tile_m + v * kLanes * 2);
  }
  const auto whole = [&](size_t key) HWY_ATTR {
    ScoreWords<Keys, kQV, false, kSteep, Keys::kStep, kQV>(q, kv, keys, mask, num_steps, shift, key,
                                                           0, scratch);
  };
  if constexpr (kSteep) {
    for (size_t key = mask.any.first; key < mask.any.padded_end(); key += Keys::kStep) whole(key);
  } else {
    ForEachBlock<Keys, kQV>(
        mask, whole,
        [&](size_t key) HWY_ATTR {
          ScoreWords<Keys, kQV, true, false, Keys::kStep, kQV>(q, kv, keys, mask, num_steps, shift,
                                                               key, 0, scratch);
        },
        [&](size_t key, size_t v) HWY_ATTR {
          ScoreWords<Keys, kQV, true, false, kMaskAlign, 1>(q, kv, keys, mask, num_steps, shift,
                                                            key, v, scratch);
        });
  }
}

// Maximum of a lane's two words, in both of them.
HWY_INLINE VI16 FoldWords(VI16 m) { return hn::Max(m, hn::Reverse2(di16, m)); }

// The rows' maxima over the tile of scores in f32, NaN for rows with a score that is NaN or +inf,
// which would be NaN relative to itself.
template <size_t kQV>
HWY_INLINE VF MaximumOrNaN(const TileMask& mask, size_t v, const TileScratch& floats) {
  VF broken_rows = hn::Zero(df);
  for (size_t key = mask.any.first; key < mask.any.padded_end(); ++key) {
    const VF s = hn::Load(df, floats.s + (key * kQV + v) * kLanes);
    broken_rows = hn::Or(broken_rows, hn::VecFromMask(df, hn::Not(hn::Lt(s, hn::Inf(df)))));
  }
  return hn::IfThenElse(hn::MaskFromVec(broken_rows), hn::NaN(df),
                        hn::Load(df, floats.tile_m + v * kLanes));
}

// Scores of the rows that `scratch.wide` marks, in f32: replaces their words by the distance to the
// row's maximum, and the maximum by 0. No words of these can wait for weights.
template <class Keys, size_t kQV>
HWY_NOINLINE void ScoreWideRows(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                                const TileMask& mask, const FixedScratch& scratch,
                                const TileScratch& floats, const BiasScratch& biases) {
  constexpr size_t kRowWords = kQV * kLanes * 2;
  ScoreModifiedTile<Keys, kQV>(task, q, kv, mask, floats, biases);
  for (size_t v = 0; v < kQV; ++v) {
    const VI32 wide = hn::Load(di32, scratch.wide + v * kLanes);
    int32_t* unweighed = q.unweighed + v * kLanes;
    hn::Store(hn::Or(wide, hn::Load(di32, unweighed)), di32, unweighed);
    const VI16 wide_words = hn::BitCast(di16, wide);
    const VF max = MaximumOrNaN<kQV>(mask, v, floats);
    float* tile_max = scratch.tile_max + v * kLanes;
    hn::Store(hn::IfThenElse(hn::MaskFromVec(hn::BitCast(df, wide)), max, hn::Load(df, tile_max)),
              df, tile_max);
    int16_t* tile_m = scratch.tile_m + v * kLanes * 2;
    hn::Store(hn::AndNot(wide_words, hn::Load(di16, tile_m)), di16, tile_m);

    const VF reference = hn::IfThenZeroElse(hn::Eq(max, NegInf()), max);
    const auto distance = [&](size_t key) HWY_ATTR {
      const VF s = hn::Load(df, floats.s + (key * kQV + v) * kLanes);
      const VF y = hn::Mul(hn::Sub(reference, s), hn::Set(df, float{kFractions}));
      // Min and Max return a number where one is NaN, or what the conversion makes of it: the row
      // is NaN already, and any distance will do.
      return hn::Clamp(hn::NearestInt(hn::Min(y, hn::Set(df, 32767.0f))), hn::Zero(di32),
                       hn::Set(di32, 32767));
    };
    for (size_t pair = mask.any.first / 2; pair < mask.any.padded_end() / 2; ++pair) {
      const size_t key = pair / 2 * 4 + pair % 2;
      const VI16 y = hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(distance(key + 2))),
                                 hn::BitCast(di16, distance(key)));
      int16_t* s = scratch.s + pair * kRowWords + v * kLanes * 2;
      const VI16 old = hn::Load(di16, s);
      hn::Store(hn::Or(hn::And(wide_words, hn::Neg(y)), hn::AndNot(wide_words, old)), di16, s);
    }
  }
}

// Marks rows whose maximum was clamped, or is so low that other scores may have been.
template <size_t kQV>
HWY_INLINE bool FindWideRows(const FixedScratch& scratch) {
  auto any = hn::MaskFalse(di32);
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes * 2;
    const VI32 gain = hn::ShiftRight<16>(hn::BitCast(di32, hn::Load(di16, scratch.gain + row)));
    const VI32 bound = hn::ShiftRight<16>(hn::BitCast(di32, hn::Load(di16, scratch.bound + row)));
    const VI32 m = hn::ShiftRight<16>(hn::BitCast(di32, hn::Load(di16, scratch.tile_m + row)));
    const VI32 highest = hn::Mul(bound, gain);
    const VI32 lowest = hn::Sub(hn::Set(di32, kGuardSteps), highest);
    const auto is_steep = hn::Gt(gain, hn::Set(di32, 1));
    const auto is_visible = hn::Gt(m, hn::Set(di32, int32_t{kHiddenScore}));
    const auto clamped =
        hn::And(hn::And(is_steep, is_visible), hn::Or(hn::Ge(m, highest), hn::Lt(m, lowest)));
    const auto wide = hn::Or(clamped, hn::MaskFromVec(hn::Load(di32, scratch.wide + v * kLanes)));
    hn::Store(hn::VecFromMask(di32, wide), di32, scratch.wide + v * kLanes);
    any = hn::Or(any, wide);
  }
  return !hn::AllFalse(di32, any);
}

// Maxima of words as scores in octaves, plus `offset`: -inf where nothing was seen.
template <size_t kQV>
HWY_INLINE void SetTileMaxima(float offset, const FixedScratch& scratch) {
  for (size_t v = 0; v < kQV; ++v) {
    int16_t* tile_m = scratch.tile_m + v * kLanes * 2;
    const VI16 m = FoldWords(hn::Load(di16, tile_m));
    hn::Store(m, di16, tile_m);
    const VI32 m32 = hn::ShiftRight<16>(hn::BitCast(di32, m));
    const VF max = hn::MulAdd(hn::ConvertTo(df, m32), hn::Set(df, 1.0f / float{kFractions}),
                              hn::Set(df, offset));
    const auto empty = hn::RebindMask(df, hn::Eq(m32, hn::Set(di32, int32_t{kHiddenScore})));
    hn::Store(hn::IfThenElse(empty, NegInf(), max), df, scratch.tile_max + v * kLanes);
  }
}

// cap * tanh(s / cap) of words, for scores up to the cap: the others are beyond `limit`. Error at
// the cap: one and a half units if that is at most 90 octaves, and four and a half of the largest.
class SoftcapWords {
 public:
  // `cap` is at most kMaxModified octaves.
  explicit SoftcapWords(float cap) {
    const float units = cap * float{kFractions};
    limit_ = hn::Set(di16, static_cast<int16_t>(units));
    // As a fraction of 2^15 s / cap is a whole multiple of s but for a ratio of less than two,
    // which the coefficients make good.
    const int multiple = static_cast<int>(32767.0f / (units < 1.0f ? 1.0f : units));
    const float ratio = 32768.0f / (units * static_cast<float>(multiple));
    const float square = ratio * ratio;
    fits_ = units >= 1.0f && ratio < kLargestRatio;
    if (!fits_) return;
    multiple_ = hn::Set(di16, static_cast<int16_t>(multiple));
    c1_ = Q15(kC1 * square);
    c2_ = Q15(kC2 * square * square);
    c3_ = Q15(kC3 * square * square * square);
  }

  // False for caps below a unit, and for some above 2^14 of them, whose ratio is close to two.
  HWY_INLINE bool fits() const { return fits_; }
  HWY_INLINE VI16 limit() const { return limit_; }

  HWY_INLINE VI16 operator()(VI16 s) const {
    const VI16 x = hn::Mul(s, multiple_);
    const VI16 u = hn::MulFixedPoint15(x, x);
    VI16 p = hn::Sub(c2_, hn::MulFixedPoint15(u, c3_));
    p = hn::Sub(c1_, hn::MulFixedPoint15(u, p));
    return hn::Sub(s, hn::MulFixedPoint15(s, hn::MulFixedPoint15(u, p)));
  }

 private:
  // All coefficients stay below 1.
  static constexpr float kLargestRatio = 1.7f;
  // 1 - tanh(x) / x in x^2, minimax (8e-5 with p(0) = 0) below the cap.
  static constexpr float kC1 = 0.330609576f;
  static constexpr float kC2 = 0.118781004f;
  static constexpr float kC3 = 0.0265530315f;

  static HWY_INLINE VI16 Q15(float x) {
    return hn::Set(di16, static_cast<int16_t>(x * 32768.0f + 0.5f));
  }

  bool fits_;
  VI16 limit_;
  VI16 multiple_ = hn::Zero(di16);
  VI16 c1_ = hn::Zero(di16);
  VI16 c2_ = hn::Zero(di16);
  VI16 c3_ = hn::Zero(di16);
};

// Biases by distance as words: of two keys in a lane, relative to a middle.
struct WordBias {
  const int32_t* by_place;  // as TileBias; null: all are the middle
  float middle;             // in octaves
  bool fits;                // all are at most kMaxBias from it
};

// From those of `places` places in octaves, a multiple of kLanes, for which `words` has room.
// Places from 2 on are used as the first key of a lane, and those two before as its second.
HWY_NOINLINE WordBias WordsOfBias(const float* HWY_RESTRICT octaves, size_t places,
                                  int32_t* HWY_RESTRICT words) {
  VF largest = NegInf();
  VF smallest = hn::Neg(NegInf());
  VF special = hn::Zero(df);  // x - x is 0 but for NaN and infinities
  for (size_t i = 0; i < places; i += kLanes) {
    const VF x = hn::LoadU(df, octaves + i);
    special = hn::Add(special, hn::Sub(x, x));
    largest = hn::Max(largest, x);
    smallest = hn::Min(smallest, x);
  }
  if (!hn::AllTrue(df, hn::Eq(special, hn::Zero(df)))) return {nullptr, 0.0f, false};
  const float high = hn::ReduceMax(df, largest);
  const float low = hn::ReduceMin(df, smallest);
  if (high == low) return {nullptr, high, true};
  // A whole number of octaves, so that it moves no rounding.
  const float middle = hn::GetLane(hn::Round(hn::Set(df, 0.5f * (high + low))));
  if (high - middle >= kMaxBias || low - middle <= -kMaxBias) return {nullptr, 0.0f, false};
  const VF units = hn::Set(df, float{kFractions});
  const auto fixed = [&](size_t i) HWY_ATTR {
    return hn::NearestInt(hn::Mul(hn::Sub(hn::LoadU(df, octaves + i), hn::Set(df, middle)), units));
  };
  for (size_t i = 0; i < places; i += kLanes) {
    const VI32 first = fixed(i);
    const VI32 second = i == 0 ? first : fixed(i - 2);
    hn::Store(hn::BitCast(di32, hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(second)),
                                            hn::BitCast(di16, first))),
              di32, words + i);
  }
  // The first vector's second keys: places -2 and -1 are never used, 0 and on are.
  for (size_t i = 2; i < kLanes; ++i) {
    const int32_t second = words[i - 2];
    words[i] = static_cast<int32_t>(static_cast<uint32_t>(second) << 16 |
                                    (static_cast<uint32_t>(words[i]) & 0xffff));
  }
  return {words, middle, true};
}

// Makes words of the task's table of biases by distance once, if that is all there is to it, and
// its biases are not too many and not too far from each other.
HWY_INLINE void SetWordTable(const AttendTask& task, FixedScratch& scratch) {
  const DistanceBias& bias = task.distance_bias;
  const size_t used = NumPlaces(bias);
  scratch.has_table = false;
  if (!HasTileBias(task) || bias.slopes != nullptr || used > kMaxTablePlaces) return;
  // Padded to whole vectors with the last place.
  HWY_ALIGN float octaves[kMaxTablePlaces];
  const size_t places = RoundUp(used, kLanes);
  for (size_t i = 0; i < places; ++i) octaves[i] = bias.octaves[MinOf(i, used - 1)];
  const WordBias words = WordsOfBias(octaves, places, scratch.table);
  scratch.has_table = words.fits && words.by_place != nullptr;
  scratch.table_middle = words.middle;
}

// Biases of a pair of tiles as words: from the task's table, or made here.
HWY_INLINE WordBias TileWords(const AttendTask& task, const TileBias& bias, size_t num_rows,
                              const FixedScratch& scratch, int32_t* HWY_RESTRICT words) {
  if (bias.by_place == nullptr) return {nullptr, 0.0f, true};
  const size_t places = kKvTile + num_rows;
  if (!scratch.has_table) return WordsOfBias(bias.by_place, places, words);
  const DistanceBias& table = task.distance_bias;
  const size_t place = static_cast<size_t>(bias.by_place - table.octaves);
  const size_t varied = 2 * static_cast<size_t>(table.max_distance);  // places between the paddings
  if (place + places <= kBiasPadding || place >= kBiasPadding + varied) {
    return {nullptr, bias.by_place[0], true};
  }
  return {scratch.table + place, scratch.table_middle, true};
}

// Modifies words of scores, hides again what is hidden, and takes the maxima anew. `wide` is set
// for rows with a score beyond the cap.
template <size_t kQV, bool kCapped, bool kBiased>
HWY_NOINLINE void ModifyWords(const QueryTile& q, SoftcapWords softcap, WordBias bias,
                              const TileMask& mask, const FixedScratch& scratch) {
  constexpr size_t kRowWords = kQV * kLanes * 2;
  const bool all_see_all = AllSeeAll(mask, kMaskAlign);
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes * 2;
    VI16 tile_m = hn::Set(di16, kHiddenScore);
    VI16 largest = hn::Zero(di16);
    const VF units = hn::Mul(hn::Load(df, q.lack + v * kLanes), hn::Set(df, float{kFractions}));
    const VI16 lack = kCapped ? WordsOf(hn::NearestInt(units)) : hn::Zero(di16);
    const size_t end = mask.any.padded_end() / 2;
    int16_t* HWY_RESTRICT words_of_row = scratch.s + row;
    for (size_t pair = mask.any.first / 2; pair < end; ++pair) {
      const size_t key = pair / 2 * 4 + pair % 2;
      int16_t* at = words_of_row + pair * kRowWords;
      VI16 s = hn::Load(di16, at);
      const bool all_see = all_see_all || (AllSee(mask, key, 1) && AllSee(mask, key + 2, 1));
      const auto seen = [&]() HWY_ATTR { return SeenWords(SeenBits<kQV>(mask, key, v), key); };
      if constexpr (kCapped) {
        s = hn::SaturatedAdd(s, lack);
        VI16 magnitude = hn::Abs(s);
        if (HWY_UNLIKELY(!all_see)) magnitude = hn::IfThenElseZero(seen(), magnitude);
        largest = hn::Max(largest, magnitude);
        s = softcap(s);
      }
      if constexpr (kBiased) {
        const int32_t* words = bias.by_place + (kKvTile - 1 - key) + v * kLanes;
        s = hn::SaturatedAdd(s, hn::BitCast(di16, hn::LoadU(di32, words)));
      }
      if (HWY_UNLIKELY(!all_see)) {
        s = hn::IfThenElse(seen(), s, hn::Set(di16, kHiddenScore));
      }
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, di16, at);
    }
    hn::Store(tile_m, di16, scratch.tile_m + row);
    if constexpr (kCapped) {
      const auto beyond = hn::Gt(FoldWords(largest), softcap.limit());
      const VI32 wide = hn::BitCast(di32, hn::VecFromMask(di16, beyond));
      hn::Store(hn::Or(wide, hn::Load(di32, scratch.wide + v * kLanes)), di32,
                scratch.wide + v * kLanes);
    }
  }
}

// Hides what is hidden of words that have no modifications, and takes the maxima anew.
template <size_t kQV>
HWY_INLINE void HideWords(const QueryTile& q, const TileMask& mask, const FixedScratch& scratch) {
  if (AllSeeAll(mask, kMaskAlign)) return;
  ModifyWords<kQV, false, false>(q, SoftcapWords(1.0f), WordBias{}, mask, scratch);
}

// Modified scores in fixed point, but for wide rows: true if there are any.
template <class Keys, size_t kQV>
HWY_NOINLINE bool ScoreModifiedWords(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                                     const KeyFactors& keys, const TileMask& mask,
                                     const FixedScratch& scratch, const TileScratch& floats,
                                     const BiasScratch& biases) {
  const auto all_wide = [&]() HWY_ATTR {
    for (size_t v = 0; v < kQV; ++v) {
      hn::Store(hn::Set(di32, -1), di32, scratch.wide + v * kLanes);
    }
    return true;
  };
  const size_t head_dim = task.head.shape.head_dim;
  const float cap = task.softcap_log2e;
  if (HasBiasByRow(task) || cap > kMaxModified) return all_wide();
  const SoftcapWords softcap(cap != 0.0f ? cap : 1.0f);
  if (!softcap.fits()) return all_wide();
  const WordBias bias =
      TileWords(task, BiasOfTile(task, q, kv.key_begin, biases), kQV * kLanes, scratch,
                reinterpret_cast<int32_t*>(floats.s));  // scores in f32 come later, if at all
  if (!bias.fits) return all_wide();
  SetRowFactors<kQV>(q, keys, scratch);
  const VF largest = hn::Set(df, keys.largest * SumUnits(q.sum_shift));
  for (size_t v = 0; v < kQV; ++v) {
    const VF factor = hn::Mul(hn::Load(df, q.row_scale + v * kLanes), largest);
    const VF lack = cap == 0.0f ? hn::Zero(df) : hn::Abs(hn::Load(df, q.lack + v * kLanes));
    const auto lacks = hn::Not(hn::Lt(lack, hn::Set(df, float{kMaxBias})));
    const auto wide = hn::Or(IsSteep(factor, kSteepModified), lacks);
    hn::Store(hn::VecFromMask(di32, hn::RebindMask(di32, wide)), di32, scratch.wide + v * kLanes);
  }
  ScoreAllWords<Keys, kQV, false>(q, kv, keys, mask, head_dim, scratch);
  if (bias.by_place == nullptr && cap != 0.0f) {
    ModifyWords<kQV, true, false>(q, softcap, bias, mask, scratch);
  } else if (bias.by_place == nullptr) {
    // Maxima, and what is hidden, are as ScoreAllWords has left them.
  } else if (cap != 0.0f) {
    ModifyWords<kQV, true, true>(q, softcap, bias, mask, scratch);
  } else {
    ModifyWords<kQV, false, true>(q, softcap, bias, mask, scratch);
  }
  SetTileMaxima<kQV>(bias.middle, scratch);
  auto any_wide = hn::MaskFalse(di32);
  for (size_t v = 0; v < kQV; ++v) {
    any_wide = hn::Or(any_wide, hn::MaskFromVec(hn::Load(di32, scratch.wide + v * kLanes)));
  }
  return !hn::AllFalse(di32, any_wide);
}

// Scores of what each vector of rows sees, to its padded end: what is beyond is hidden.
template <class Keys, size_t kQV>
HWY_INLINE void ScoreTileFixed(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                               const KeyFactors& keys, const TileMask& mask,
                               const FixedScratch& scratch, const TileScratch& floats,
                               const BiasScratch& biases) {
  const size_t head_dim = task.head.shape.head_dim;
  bool wide;
  if (HWY_UNLIKELY(ModifiesScores(task))) {
    wide = ScoreModifiedWords<Keys, kQV>(task, q, kv, keys, mask, scratch, floats, biases);
  } else {
    const bool steep = SetRowFactors<kQV>(q, keys, scratch);
    if (HWY_UNLIKELY(steep)) {
      ScoreAllWords<Keys, kQV, true>(q, kv, keys, mask, head_dim, scratch);
      HideWords<kQV>(q, mask, scratch);
    } else {
      ScoreAllWords<Keys, kQV, false>(q, kv, keys, mask, head_dim, scratch);
    }
    SetTileMaxima<kQV>(0.0f, scratch);
    wide = HWY_UNLIKELY(steep) && FindWideRows<kQV>(scratch);
  }
  if (HWY_UNLIKELY(wide)) {
    ScoreWideRows<Keys, kQV>(task, q, kv, mask, scratch, floats, biases);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_
