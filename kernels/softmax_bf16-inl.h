// Softmax where P is bf16, where one instruction multiplies it.
//
// Nearly always there is no tile of scores: P leaves as soon as the products of Q and K are summed.
// A row has a reference m, and its score s becomes the integer 128 (s - m) in the low bits of a
// float (kMagic). The low word of that is a bf16, 2^n (1 + f) for n + f octaves, and a table of 128
// bytes makes 2^f of 1 + f. d sums what P was rounded to, so that a row of one large weight is
// exact.
//
// The reference is not the maximum, which is not known yet, but in its neighbourhood: P is less
// than 2, and some P of the row was above 2^-56; a bf16 is as precise in any octave. That is
// checked afterwards. The bits of all sums or'ed together tell of scores an octave above the
// reference or more, of -inf and of NaN. If any row of the tile fails, its reference moves, and the
// tile is done again: by the same arithmetic, so that rows do not depend on the rows beside them.
//
// Cost per 16 scores, in the pipes of multiplications a multiply-add and half a product for d, of
// integers a multiplication more; in others a maximum, of integers a conversion, and half of an or,
// a shift, a blend, a lookup, a selection and a store.
#ifndef SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_
#define SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/store_weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A bf16 has seven fraction bits.
constexpr int kBF16Steps = 128;
// Bits of a distance from the reference whose P is 2^-127, which is 0, and what is common to all
// those up to P = 2.
constexpr int32_t kDirectZero = kMagicBits;
constexpr int32_t kDirectRange = -(128 * kBF16Steps);
// The distance 0, whose P is 1.
constexpr float kDirectOne = kMagic + float{127 * kBF16Steps};

// At first the reference is so many octaves above 0, where most scores are, and later so far above
// a new maximum: 17 in natural units, which the largest score of few rows is beyond. A row's first
// sum of P is at least kSmallestSum, which is as far below; f32 then has 70 octaves left for what V
// is smaller than 1.
constexpr float kHeadroom = 24.0f;
constexpr float kSmallestSum = 0x1p-48f;
// Whole octaves of which this is true are exact, times 128 and beside kMagic.
constexpr float kLargestReference = 0x1p15f;

// 2^(i / 128) - 1 in 1/128.
struct MantissaTable {
  uint8_t entry[128];
};
constexpr MantissaTable MakeMantissaTable() {
  MantissaTable table = {};
  double power = 1.0;
  for (uint8_t& entry : table.entry) {
    entry = static_cast<uint8_t>((power - 1.0) * 128.0 + 0.5);
    power *= 1.0054299011128027;  // 2^(1/128)
  }
  return table;
}
alignas(64) constexpr MantissaTable kMantissaTable = MakeMantissaTable();

// P of two keys, in a lane, from the bits of their distances. Only used where BF16Ops are native.
template <bool kNative>
struct DirectP {
  VI32 operator()(VI32 even, VI32 odd) const;
};
using NativeP = DirectP<BF16Ops::kNative>;

#if defined(__AVX512BF16__)
template <>
struct DirectP<true> {
  VU8 low = hn::Load(du8, kMantissaTable.entry);
  VU8 high = hn::Load(du8, kMantissaTable.entry + 64);

  HWY_INLINE VI32 operator()(VI32 even, VI32 odd) const {
    const VI16 linear =
        hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(odd)), hn::BitCast(di16, even));
    // The lookup takes the low seven bits of each byte; of the upper bytes nothing is used.
    const VU8 mantissa = hn::TwoTablesLookupLanes(low, high, hn::Indices512<uint8_t>{linear.raw});
    const VI16 mask = hn::Set(di16, 0x7f);
    return hn::BitCast(di32, hn::BitwiseIfThenElse(mask, hn::BitCast(di16, mantissa), linear));
  }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// 2^f - 1 is f - f (1 - f) (c0 + c1 f). In units of 2^-15, of i = 128 f and of a product of up to
// 2^14: c0 and c1 are 0.306 and 0.078.
constexpr int16_t kBelow0 = -10012;
constexpr int16_t kBelow1 = -20;
constexpr int kBelowBits = 9;

// It gives what the table has, for all of it.
constexpr bool BelowMatchesTable() {
  for (int i = 0; i < kBF16Steps; ++i) {
    const int below = MulQ15(i * 4 * (kBF16Steps - i), kBelow1 * i + kBelow0);
    const int mantissa = i + ((below + (1 << (kBelowBits - 1))) >> kBelowBits);
    if (mantissa != kMantissaTable.entry[i]) return false;
  }
  return true;
}
static_assert(BelowMatchesTable(), "P of bf16 is the same on every CPU");

template <>
struct DirectP<true> {
  HWY_INLINE VI32 operator()(VI32 even, VI32 odd) const {
    const VI16 linear =
        hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(odd)), hn::BitCast(di16, even));
    const VI16 i = hn::And(linear, hn::Set(di16, kBF16Steps - 1));
    const VI16 product = hn::Mul(i, hn::Sub(hn::Set(di16, 4 * kBF16Steps), hn::ShiftLeft<2>(i)));
    const VI16 slope = hn::MulAdd(i, hn::Set(di16, kBelow1), hn::Set(di16, kBelow0));
    const VI16 below = hn::MulFixedPoint15(product, slope);
    return hn::BitCast(di32, hn::Add(linear, hn::RoundingShiftRight<kBelowBits>(below)));
  }
};
#endif

// Steps of P that are multiplied together.
constexpr size_t kBF16PSteps = SchemeOf<BF16Form>::Values::Product::kSteps;

// P of 2 * kBF16PSteps keys to the panel, row_lanes to a row of it.
HWY_INLINE void StoreP(VI32 (&p)[kBF16PSteps], size_t row_lanes, int32_t* HWY_RESTRICT out) {
  if constexpr (kBF16PSteps == 2) InterleaveSteps(p[0], p[kBF16PSteps - 1]);
  HWY_UNROLL(2)
  for (size_t i = 0; i < kBF16PSteps; ++i) hn::Store(p[i], di32, out + i * row_lanes);
}

// What makes 128 (s - m) + kDirectOne of 128 s: exact, as references are whole octaves; NaN for
// those of which that is not true.
HWY_INLINE VF StartOf(VF m) {
  const auto is_exact = hn::Le(hn::Abs(m), hn::Set(df, kLargestReference));
  const VF steps = hn::Set(df, float{kBF16Steps});
  return hn::IfThenElse(is_exact, hn::NegMulAdd(m, steps, hn::Set(df, kDirectOne)), hn::NaN(df));
}

// Scores times 128, plus `start`.
HWY_INLINE VF DistanceFrom(VF start, VF sum, VF row_steps, VF) {
  return hn::MulAdd(sum, row_steps, start);
}
HWY_INLINE VF DistanceFrom(VF start, VI32 sum, VF row_steps, VF k_scale) {
  return hn::MulAdd(hn::Mul(hn::ConvertTo(df, sum), k_scale), row_steps, start);
}
// The same for any reference.
HWY_INLINE VF DistanceFromAny(VF m, VF s) {
  return hn::MulAdd(hn::Sub(s, m), hn::Set(df, float{kBF16Steps}), hn::Set(df, kDirectOne));
}

// Bits of distances whose P is 0 become kDirectZero; as unsigned, so that negative numbers stay and
// are found.
HWY_INLINE VI32 FlooredOrFound(VI32 bits) {
  const hn::RebindToUnsigned<DF> du32;
  const auto zero = hn::Set(du32, static_cast<uint32_t>(kDirectZero));
  return hn::BitCast(di32, hn::Max(hn::BitCast(du32, bits), zero));
}

// P of kKeys keys from `key` on and kVectors vectors of rows from vector `first` on, of kQV.
// kChecked: what has no P with these references shall be found. Otherwise that is -inf, or part of
// a row that is lost anyway.
template <class Keys, size_t kQV, bool kMasked, bool kChecked, size_t kKeys, size_t kVectors>
HWY_INLINE void DirectStep(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                           size_t num_steps, size_t key, size_t first, const NativeP& direct_p,
                           const TileScratch& scratch) {
  static_assert(kKeys % (2 * kBF16PSteps) == 0, "P comes in pairs of keys");
  typename Keys::Product::Acc acc[kKeys][kVectors];
  if constexpr (!kChecked && Keys::Product::kSteps != 1) Keys::Product::Matrix::FreeRegisters();
  SumScores<Keys, kQV, SumsBegin::kAtZero>(q, kv, num_steps, key, first, acc);

  const VF steps = hn::Set(df, float{kBF16Steps});
  int32_t* HWY_RESTRICT p_out = reinterpret_cast<int32_t*>(scratch.s) + key / 2 * kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kVectors; ++v) {
    const size_t row = (first + v) * kLanes;
    const VF m = hn::Load(df, q.m + row);
    const VF start = hn::Load(df, scratch.start + row);
    const VF row_scale = RowScale<Keys>(q, row);
    const VF row_steps = Keys::kQuantized ? hn::Mul(row_scale, steps) : steps;
    VI32 all_bits = hn::Load(di32, scratch.bits + row);
    VF sum = hn::Load(df, scratch.sum + row);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kKeys; n += 2 * kBF16PSteps) {
      VI32 p[kBF16PSteps];
      HWY_UNROLL(2)
      for (size_t step = 0; step < kBF16PSteps; ++step) {
        VI32 bits[2];
        HWY_UNROLL(2)
        for (size_t i = 0; i < 2; ++i) {
          const size_t of_block = n + 2 * step + i;
          const size_t index = key + of_block;
          const VF k_scale = KeyScale<Keys>(kv, index);
          VF distance = DistanceFrom(start, acc[of_block][v], row_steps, k_scale);
          if constexpr (!kChecked) {
            const VF any = DistanceFromAny(m, ScoreOf(acc[of_block][v], row_scale, k_scale));
            distance = hn::IfThenElse(hn::IsNaN(start), any, distance);
          }
          bits[i] = hn::BitCast(di32, distance);
          if constexpr (kMasked) {
            bits[i] = hn::IfThenElseZero(SeenBy<kQV>(mask, index, first + v), bits[i]);
          }
          bits[i] =
              kChecked ? FlooredOrFound(bits[i]) : hn::Max(bits[i], hn::Set(di32, kDirectZero));
        }
        if constexpr (kChecked) all_bits = hn::Or3(all_bits, bits[0], bits[1]);
        p[step] = direct_p(bits[0], bits[1]);
        sum = BF16Ops::Dot(sum, p[step], OnesOfPairs());
      }
      StoreP(p, kQV * kLanes, p_out + n / 2 * kQV * kLanes + row);
    }
    hn::Store(all_bits, di32, scratch.bits + row);
    hn::Store(sum, df, scratch.sum + row);
  }
}

// P of what each vector of rows sees, to its padded end, and its sums.
template <class Keys, size_t kQV, bool kChecked>
HWY_INLINE void DirectTile(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                           size_t head_dim, const TileScratch& scratch) {
  const size_t num_steps = RoundUp(head_dim, kDepthOf<Keys>) / kDepthOf<Keys>;
  for (size_t row = 0; row < kQV * kLanes; row += kLanes) {
    hn::Store(StartOf(hn::Load(df, q.m + row)), df, scratch.start + row);
    hn::Store(hn::Zero(di32), di32, scratch.bits + row);
    hn::Store(hn::Zero(df), df, scratch.sum + row);
  }
  const NativeP direct_p;
  ForEachBlock<Keys, kQV>(
      mask,
      [&](size_t key) HWY_ATTR {
        DirectStep<Keys, kQV, false, kChecked, Keys::kStep, kQV>(q, kv, mask, num_steps, key, 0,
                                                                 direct_p, scratch);
      },
      [&](size_t key) HWY_ATTR {
        DirectStep<Keys, kQV, true, kChecked, Keys::kStep, kQV>(q, kv, mask, num_steps, key, 0,
                                                                direct_p, scratch);
      },
      [&](size_t key, size_t v) HWY_ATTR {
        DirectStep<Keys, kQV, true, kChecked, kMaskAlign, 1>(q, kv, mask, num_steps, key, v,
                                                             direct_p, scratch);
      });
}

// Of scores that have all their modifications.
HWY_INLINE ScoreMods<false, false> NoMods(const AttendTask& task, const QueryTile& q) {
  return {task, q, {nullptr}};
}

// The same of scores that are there, in place, by way of `mods`; row_scale: as StoreScores has it.
// Here -inf has a P, which is 0, and so has what is some 98,000 octaves below the reference.
template <size_t kQV, bool kChecked, class Mods>
HWY_NOINLINE void DirectFromScores(const QueryTile& q, const TileMask& mask, Mods mods,
                                   const float* HWY_RESTRICT row_scale,
                                   const TileScratch& scratch) {
  constexpr size_t kRowLanes = kQV * kLanes;
  const NativeP direct_p;
  const bool all_see_all = AllSeeAll(mask, kMaskAlign);
  const VF zero = hn::BitCast(df, hn::Set(di32, kDirectZero));
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    VF steps = hn::Set(df, float{kBF16Steps});
    if (row_scale != nullptr) steps = hn::Mul(hn::Load(df, row_scale + row), steps);
    const VF m = hn::Load(df, q.m + row);
    const VF start = StartOf(m);
    VI32 all_bits = hn::Zero(di32);
    VF sum = hn::Zero(df);
    const size_t end = mask.seen[v].padded_end();
    // Pairs take the place of scores before them.
    float* HWY_RESTRICT s_in = scratch.s + row;
    for (size_t key = mask.seen[v].first; key < end; key += 2 * kBF16PSteps) {
      VI32 p[kBF16PSteps];
      HWY_UNROLL(2)
      for (size_t step = 0; step < kBF16PSteps; ++step) {
        VI32 bits[2];
        HWY_UNROLL(2)
        for (size_t i = 0; i < 2; ++i) {
          const size_t index = key + 2 * step + i;
          const VF s = mods(hn::Load(df, s_in + index * kRowLanes), index, row);
          VF distance = hn::MulAdd(s, steps, start);
          if constexpr (!kChecked) {
            distance = hn::IfThenElse(hn::IsNaN(start), DistanceFromAny(m, s), distance);
          }
          bits[i] = hn::BitCast(di32, LargerOrNaN(distance, zero));
          if (HWY_UNLIKELY(!all_see_all && !AllSee(mask, index, 1))) {
            bits[i] = hn::IfThenElse(SeenBy<kQV>(mask, index, v), bits[i], hn::BitCast(di32, zero));
          }
        }
        if constexpr (kChecked) all_bits = hn::Or3(all_bits, bits[0], bits[1]);
        p[step] = direct_p(bits[0], bits[1]);
        sum = BF16Ops::Dot(sum, p[step], OnesOfPairs());
      }
      StoreP(p, kRowLanes, reinterpret_cast<int32_t*>(s_in + key / 2 * kRowLanes));
    }
    hn::Store(all_bits, di32, scratch.bits + row);
    hn::Store(sum, df, scratch.sum + row);
  }
}

// Rows whose references suit the tile, as DirectTile has left it.
HWY_INLINE hn::Mask<DF> SuitsTile(const QueryTile& q, size_t row, const TileScratch& scratch) {
  const VI32 range = hn::Set(di32, kDirectRange);
  const VI32 all_bits = hn::Load(di32, scratch.bits + row);
  const auto not_above =
      hn::Eq(hn::And(all_bits, range), hn::And(hn::Set(di32, kDirectZero), range));
  const VF d = SumSoFar(q, row);
  const VF sum = hn::Load(df, scratch.sum + row);
  const auto not_below = hn::Or(hn::Gt(d, hn::Zero(df)), hn::Ge(sum, hn::Set(df, kSmallestSum)));
  return hn::And(hn::RebindMask(df, not_above), not_below);
}

// Moves the references of rows whose maximum is above them, or that have seen nothing before, by
// way of the tile's scores. Moves of whole octaves change no bit of what is divided by d in the
// end. A row that sees NaN or +inf is NaN for good.
template <class Keys, size_t kQV>
HWY_NOINLINE void MoveReferences(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                                 const TileMask& mask, const TileScratch& scratch,
                                 const BiasScratch& biases) {
  ScoreModifiedTile<Keys, kQV>(task, q, kv, mask, scratch, biases);
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    auto lost = hn::MaskFalse(df);
    for (size_t key = mask.any.first; key < mask.any.end; ++key) {
      const VF s = hn::Load(df, scratch.s + key * kQV * kLanes + row);
      lost = hn::Or(lost, hn::Not(hn::Lt(s, hn::Inf(df))));
    }
    const VF tile_m = hn::Load(df, scratch.tile_m + row);
    const VF old_m = hn::Load(df, q.m + row);
    const VF old_d = hn::Load(df, q.d + row);
    // Where nothing was seen there is nothing to rescale, and the reference may fall.
    const auto first = hn::Eq(SumSoFar(q, row), hn::Zero(df));
    const auto rises = hn::Or(hn::Gt(tile_m, old_m), first);
    const auto moved = hn::AndNot(lost, hn::And(rises, hn::Gt(tile_m, NegInf())));
    const VF new_m =
        hn::IfThenElse(moved, hn::Add(hn::Round(tile_m), hn::Set(df, kHeadroom)), old_m);
    const VF rescale =
        hn::IfThenElse(hn::AndNot(first, moved), Exp2(hn::Sub(old_m, new_m)), hn::Set(df, 1.0f));
    hn::Store(new_m, df, q.m + row);
    hn::Store(rescale, df, scratch.rescale + row);
    hn::Store(hn::IfThenElse(lost, hn::NaN(df), hn::Mul(old_d, rescale)), df, q.d + row);
  }
}

// Of a tile whose scores wait for weights, which shall change no bit of P: without modifications,
// sums of integers are scaled as DirectTile scales them.
template <class Keys, size_t kQV>
HWY_NOINLINE void ScoreToBF16AndStore(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                                      const TileMask& mask, bool from_scores,
                                      const TileScratch& scratch, const BiasScratch& biases) {
  const size_t head_dim = task.head.shape.head_dim;
  if constexpr (Keys::kQuantized) {
    if (!from_scores && AllSeeAll(mask, kMaskAlign)) {
      ScoreAll<Keys, kQV, ScoresAre::kUnscaled>(q, kv, mask, head_dim, scratch);
      StoreScores(task, q, mask, kv.key_begin, scratch.s, q.row_scale);
      DirectFromScores<kQV, true>(q, mask, NoMods(task, q), q.row_scale, scratch);
      return;
    }
  }
  ScoreToStore<Keys, kQV>(task, q, kv, mask, scratch, biases);
  StoreScores(task, q, mask, kv.key_begin, scratch.s, nullptr);
  if (from_scores) {
    DirectFromScores<kQV, true>(q, mask, NoMods(task, q), nullptr, scratch);
  } else {
    DirectTile<Keys, kQV, true>(q, kv, mask, head_dim, scratch);
  }
}

// S, softmax and P of a pair of tiles.
template <class Keys, size_t kQV>
HWY_INLINE void ScoreToBF16(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                            const TileMask& mask, const TileScratch& scratch,
                            const BiasScratch& biases) {
  const size_t head_dim = task.head.shape.head_dim;
  bool from_scores = ModifiesScores(task);
  if (HWY_UNLIKELY(WeighsOnTheWay(task))) {
    from_scores |= !Keys::kQuantized;
    ScoreToBF16AndStore<Keys, kQV>(task, q, kv, mask, from_scores, scratch, biases);
  } else if (HWY_UNLIKELY(from_scores)) {
    WithScores<Keys, kQV>(task, q, kv, mask, scratch, biases, [&](const auto& mods) HWY_ATTR {
      DirectFromScores<kQV, true>(q, mask, mods, nullptr, scratch);
    });
  } else {
    DirectTile<Keys, kQV, true>(q, kv, mask, head_dim, scratch);
  }
  auto suits = hn::FirstN(df, kLanes);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    if (mask.seen[v].end != 0) suits = hn::And(suits, SuitsTile(q, row, scratch));
    hn::Store(hn::Set(df, 1.0f), df, scratch.rescale + row);
  }
  if (HWY_UNLIKELY(!hn::AllTrue(df, suits))) {
    MoveReferences<Keys, kQV>(task, q, kv, mask, scratch, biases);
    if (from_scores) {
      DirectFromScores<kQV, false>(q, mask, NoMods(task, q), nullptr, scratch);
    } else {
      DirectTile<Keys, kQV, false>(q, kv, mask, head_dim, scratch);
    }
  }
  HWY_UNROLL(8)
  for (size_t row = 0; row < kQV * kLanes; row += kLanes) {
    const VF sum = hn::Load(df, scratch.sum + row);
    hn::Store(hn::Add(hn::Load(df, q.d + row), sum), df, q.d + row);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_
