// S = K·Q of the quantised schemes for one pair of tiles, as 16-bit fixed point
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
// Cost per kStep keys: head_dim / depth steps of BlockProduct, and the above.
#ifndef SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_
#define SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/kv_tile-inl.h"
#include "kernels/score_mods-inl.h"
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
    const VF scale = hn::IfThenElseZero(Visible(index, end), hn::LoadU(df, k_scale + key));
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
    const VF scale = hn::IfThenElseZero(Visible(index, end), hn::LoadU(df, k_scale + key));
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

HWY_INLINE hn::Mask<DF> IsSteep(VF factor) {
  return hn::Not(hn::Lt(hn::Abs(factor), hn::Set(df, kSteepFactor)));  // NaN too
}

// Row factors for one tile of keys; true if some row needs a gain or is wide.
template <class Scheme, size_t kQV>
HWY_INLINE bool SetRowFactors(const QueryTile& q, const KeyFactors& keys, size_t head_dim,
                              const FixedScratch& scratch) {
  const float units = static_cast<float>(kFractions << SumShift<Scheme>(head_dim));
  const VF largest = hn::Set(df, keys.largest * (units * (32768.0f / 32767.0f)));
  const VF limit = hn::Set(df, 32767.0f);
  auto steep = hn::MaskFalse(df);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF factor = hn::Mul(hn::Load(df, q.row_scale + v * kLanes), largest);
    steep = hn::Or(steep, IsSteep(factor));
    const VF scaled = hn::Mul(factor, hn::Set(df, 32768.0f));
    const VI32 fraction = hn::NearestInt(hn::Clamp(scaled, hn::Neg(limit), limit));
    hn::Store(WordsOf(fraction), di16, scratch.row_factor + v * kLanes * 2);
  }
  if (HWY_LIKELY(hn::AllFalse(df, steep))) return false;

  for (size_t v = 0; v < kQV; ++v) {
    const VF factor = hn::Mul(hn::Load(df, q.row_scale + v * kLanes), largest);
    const VI32 bits = hn::BitCast(di32, hn::Abs(factor));
    // |factor| < 2^exponent
    const VI32 least = hn::IfThenElseZero(hn::RebindMask(di32, IsSteep(factor)), hn::Set(di32, 1));
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

// Two keys of a lane: their indices in the tile, and the row's limit, as words.
HWY_INLINE VI16 KeyWords(size_t key) {
  const uint32_t low = static_cast<uint32_t>(key);
  return hn::BitCast(di16, hn::Set(di32, static_cast<int32_t>(low | (low + 2) << 16)));
}
HWY_INLINE VI16 LimitWords(VI32 limit, size_t key_begin) {
  const VI32 in_tile = hn::Sub(limit, hn::Set(di32, static_cast<int32_t>(key_begin)));
  return WordsOf(hn::Clamp(in_tile, hn::Zero(di32), hn::Set(di32, int32_t{kKvTile})));
}

// Sums of the products of keys [key, key + kStep) of the tile.
template <class Scheme, size_t kQV>
HWY_INLINE void SumStep(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                        VI32 (&acc)[Scheme::kStep][kQV]) {
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VI32 init = hn::Load(di32, q.acc_init + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < Scheme::kStep; ++n) acc[n][v] = init;
  }
  BlockProduct<typename Scheme::QkProduct, Scheme::kStep, kQV>(
      KeyColumns<Scheme>(kv, key), kKeyBlock * kLaneBytes, q.panel, num_steps, acc);
}

template <class Scheme, size_t kQV, bool kMasked, bool kSteep>
HWY_INLINE void ScoreWords(const QueryTile& q, const KvTile& kv, const KeyFactors& keys,
                           size_t num_steps, VI32 shift, size_t key, const FixedScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  constexpr size_t kRowWords = kQV * kLanes * 2;
  VI32 acc[kStep][kQV];
  SumStep<Scheme, kQV>(q, kv, num_steps, key, acc);

  const VI32 shift_up = hn::Sub(hn::Set(di32, 16), shift);
  int16_t* HWY_RESTRICT s_out = scratch.s + key / 2 * kRowWords;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes * 2;
    const VI16 row_factor = hn::Load(di16, scratch.row_factor + row);
    VI16 tile_m = hn::Load(di16, scratch.tile_m + row);
    HWY_UNROLL(4)
    for (size_t pair = 0; pair < kStep / 2; ++pair) {
      const size_t n = pair / 2 * 4 + pair % 2;
      // The sum of key n + 2 is shifted to the upper word instead of down and up again.
      const VI16 low = hn::BitCast(di16, hn::Shr(acc[n][v], shift));
      const VI16 high = hn::BitCast(di16, hn::Shl(acc[n + 2][v], shift_up));
      const VI16 key_factor =
          hn::BitCast(di16, hn::Set(di32, static_cast<int32_t>(keys.words[key / 2 + pair])));
      VI16 s = hn::MulFixedPoint15(hn::OddEven(high, low), key_factor);
      s = hn::MulFixedPoint15(s, row_factor);
      if constexpr (kSteep) {
        const VI16 bound = hn::Load(di16, scratch.bound + row);
        s = hn::Clamp(s, hn::Neg(bound), bound);
        s = hn::Mul(s, hn::Load(di16, scratch.gain + row));
      }
      if constexpr (kMasked) {
        const VI16 limit = LimitWords(hn::Load(di32, q.limit + v * kLanes), kv.key_begin);
        s = hn::IfThenElse(hn::Gt(limit, KeyWords(key + n)), s, hn::Set(di16, kHiddenScore));
      }
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, di16, s_out + pair * kRowWords + row);
    }
    hn::Store(tile_m, di16, scratch.tile_m + row);
  }
}

template <class Scheme, size_t kQV, bool kSteep>
HWY_INLINE void ScoreAllWords(const QueryTile& q, const KvTile& kv, const KeyFactors& keys,
                              size_t head_dim, size_t num_keys, const FixedScratch& scratch) {
  const size_t num_steps = RoundUp(head_dim, kQkDepth<Scheme>) / kQkDepth<Scheme>;
  const VI32 shift = hn::Set(di32, SumShift<Scheme>(head_dim));
  for (size_t v = 0; v < kQV; ++v) {
    hn::Store(hn::Set(di16, kHiddenScore), di16, scratch.tile_m + v * kLanes * 2);
  }
  for (size_t key = 0; key < num_keys; key += Scheme::kStep) {
    if (kv.key_begin + key + Scheme::kStep <= q.min_limit) {
      ScoreWords<Scheme, kQV, false, kSteep>(q, kv, keys, num_steps, shift, key, scratch);
    } else {
      ScoreWords<Scheme, kQV, true, kSteep>(q, kv, keys, num_steps, shift, key, scratch);
    }
  }
}

// Maximum of a lane's two words, in both of them.
HWY_INLINE VI16 FoldWords(VI16 m) { return hn::Max(m, hn::Reverse2(di16, m)); }

// Scores of the rows that `scratch.wide` marks, in f32: replaces their words by the distance to the
// row's maximum, and the maximum by 0.
template <class Scheme, size_t kQV>
HWY_NOINLINE void ScoreWideRows(const QueryTile& q, const KvTile& kv, size_t head_dim,
                                size_t num_keys, const FixedScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  constexpr size_t kRowWords = kQV * kLanes * 2;
  const size_t num_steps = RoundUp(head_dim, kQkDepth<Scheme>) / kQkDepth<Scheme>;
  const VI32 half = hn::Set(di32, SumRounding<Scheme>(head_dim));
  VF max[kQV];
  VF broken_rows[kQV];
  for (size_t v = 0; v < kQV; ++v) {
    max[v] = NegInf();
    broken_rows[v] = hn::Zero(df);
  }
  for (size_t key = 0; key < num_keys; key += kStep) {
    VI32 acc[kStep][kQV];
    SumStep<Scheme, kQV>(q, kv, num_steps, key, acc);
    for (size_t v = 0; v < kQV; ++v) {
      const VF row_scale = hn::Load(df, q.row_scale + v * kLanes);
      const VI32 limit = hn::Load(di32, q.limit + v * kLanes);
      for (size_t n = 0; n < kStep; ++n) {
        const VI32 index = hn::Set(di32, static_cast<int32_t>(kv.key_begin + key + n));
        const VF sum = hn::ConvertTo(df, hn::Sub(acc[n][v], half));
        const VF product = hn::Mul(hn::Mul(sum, row_scale), hn::Set(df, kv.k_scale[key + n]));
        const VF s = Hide(product, index, limit);
        // NaN, or +inf, which would be NaN relative to itself.
        const auto broken = hn::Not(hn::Lt(s, hn::Inf(df)));
        broken_rows[v] = hn::Or(broken_rows[v], hn::VecFromMask(df, broken));
        max[v] = hn::Max(max[v], s);
        hn::Store(s, df, scratch.s_wide + ((key + n) * kQV + v) * kLanes);
      }
    }
  }
  for (size_t v = 0; v < kQV; ++v) {
    const VI32 wide = hn::Load(di32, scratch.wide + v * kLanes);
    const VI16 wide_words = hn::BitCast(di16, wide);
    const auto wide_rows = hn::MaskFromVec(hn::BitCast(df, wide));
    const auto is_broken = hn::MaskFromVec(broken_rows[v]);
    const VF tile_max = hn::IfThenElse(is_broken, hn::NaN(df), max[v]);
    hn::Store(hn::IfThenElse(wide_rows, tile_max, hn::Load(df, scratch.tile_max + v * kLanes)), df,
              scratch.tile_max + v * kLanes);
    int16_t* tile_m = scratch.tile_m + v * kLanes * 2;
    hn::Store(hn::AndNot(wide_words, hn::Load(di16, tile_m)), di16, tile_m);

    const VF reference = hn::IfThenZeroElse(hn::Eq(max[v], NegInf()), max[v]);
    const auto distance = [&](size_t key) HWY_ATTR {
      const VF s = hn::Load(df, scratch.s_wide + (key * kQV + v) * kLanes);
      const VF y = hn::Mul(hn::Sub(reference, s), hn::Set(df, float{kFractions}));
      // Min and Max return a number where one is NaN, or what the conversion makes of it: the row
      // is NaN already, and any distance will do.
      return hn::Clamp(hn::NearestInt(hn::Min(y, hn::Set(df, 32767.0f))), hn::Zero(di32),
                       hn::Set(di32, 32767));
    };
    for (size_t pair = 0; pair < RoundUp(num_keys, kStep) / 2; ++pair) {
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

// The tile's first num_keys keys, rounded up to kStep: what is beyond is hidden.
template <class Scheme, size_t kQV>
HWY_INLINE void ScoreTileFixed(const QueryTile& q, const KvTile& kv, const KeyFactors& keys,
                               size_t head_dim, size_t num_keys, const FixedScratch& scratch) {
  const bool steep = SetRowFactors<Scheme, kQV>(q, keys, head_dim, scratch);
  if (HWY_UNLIKELY(steep)) {
    ScoreAllWords<Scheme, kQV, true>(q, kv, keys, head_dim, num_keys, scratch);
  } else {
    ScoreAllWords<Scheme, kQV, false>(q, kv, keys, head_dim, num_keys, scratch);
  }
  for (size_t v = 0; v < kQV; ++v) {
    int16_t* tile_m = scratch.tile_m + v * kLanes * 2;
    const VI16 m = FoldWords(hn::Load(di16, tile_m));
    hn::Store(m, di16, tile_m);
    const VI32 m32 = hn::ShiftRight<16>(hn::BitCast(di32, m));
    const VF max = hn::Mul(hn::ConvertTo(df, m32), hn::Set(df, 1.0f / float{kFractions}));
    const auto empty = hn::RebindMask(df, hn::Eq(m32, hn::Set(di32, int32_t{kHiddenScore})));
    hn::Store(hn::IfThenElse(empty, NegInf(), max), df, scratch.tile_max + v * kLanes);
  }
  if (HWY_UNLIKELY(steep) && FindWideRows<kQV>(scratch)) {
    ScoreWideRows<Scheme, kQV>(q, kv, head_dim, num_keys, scratch);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCORES_FIXED_INL_H_
