// Softmax of the schemes whose P is bf16, where one instruction multiplies it.
//
// Nearly always there is no tile of scores: P leaves as soon as the products of Q and K are summed.
// A score is an integer in the low bits of a float (kMagic), in parts of an octave, counted from
// the row's reference: floats start their sums at what makes it so, integers add it as they are
// scaled. With seven fraction bits its low word is that of a bf16, 2^n (1 + f) for n + f octaves,
// and a table of 128 bytes makes 2^f of 1 + f. d sums what P was rounded to, so that a row of one
// large weight is exact.
//
// The reference is not the maximum, which is not known yet, but near enough: P stays below 2, and
// some P of the row above 2^-23; a bf16 is as precise in any octave. That is checked afterwards.
// The bits of all sums or'ed together tell of scores above the reference, negative sums, infinities
// and NaN. A tile that fails (often the first, seldom another) is done again in f32, and moves the
// reference.
//
// Cost per 32 scores: two maxima, an or, a blend, a lookup, a selection, one product for d, one
// store; of floats two shifts, of integers a shift, two conversions and four multiplications. That
// is against 2 * (head_dim + v_head_dim) / 2 products.
#ifndef SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_
#define SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A bf16 keeps seven fraction bits of an octave (kDirectBits). Integers are rounded to them once;
// sums of floats are rounded with each of up to 256 additions, so that they have four more, which
// costs 0.2 % of a weight. Octaves above the 127 that bf16 has below 1 are left for what is too
// large.
constexpr int kBF16FractionBits = 7;
template <class Scheme>
constexpr int kDirectShift = kDirectBits<Scheme> - kBF16FractionBits;

// Bits of a sum whose P is 2^-127, which is 0, and those above a sum's whose P is less than 2.
constexpr int32_t kDirectZero = kMagicBits;
template <class Scheme>
constexpr int32_t kBeyondDirect = -(128 << kDirectBits<Scheme>);
// The sum whose P is 1. Half of what the shift loses is added, so that it rounds.
template <class Scheme>
constexpr float kDirectOne =
    kMagic + 127 * kOctave<Scheme> + float{(1 << kDirectShift<Scheme>) / 2};

// The reference is so far above a new maximum; and a row's first sum of P is at least so large, so
// that some P is a hundredth of that.
template <class Scheme>
constexpr float kHeadroom = 8 * kOctave<Scheme>;
constexpr float kSmallestSum = 1.0f / (1 << 16);

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

#if defined(__AVX512BF16__)

// P of two keys, in a lane, from the bits of their sums, none of which is below kDirectZero.
template <int kShift>
struct DirectP {
  VU8 low = hn::Load(du8, kMantissaTable.entry);
  VU8 high = hn::Load(du8, kMantissaTable.entry + 64);

  HWY_INLINE VI32 operator()(VI32 even, VI32 odd) const {
    if constexpr (kShift != 0) even = hn::ShiftRight<kShift>(even);
    odd = hn::ShiftLeft<16 - kShift>(odd);
    const VI16 linear = hn::OddEven(hn::BitCast(di16, odd), hn::BitCast(di16, even));
    // The lookup takes the low seven bits of each byte; of the upper bytes nothing is used.
    const VU8 mantissa = hn::TwoTablesLookupLanes(low, high, hn::Indices512<uint8_t>{linear.raw});
    const VI16 mask = hn::Set(di16, 0x7f);
    return hn::BitCast(di32, hn::BitwiseIfThenElse(mask, hn::BitCast(di16, mantissa), linear));
  }
};

#else

// Only named, never called: prefill has P in f32 where BF16Ops are not native.
template <int kShift>
struct DirectP {
  HWY_INLINE VI32 operator()(VI32 even, VI32) const { return even; }
};

#endif

HWY_INLINE VI32 OnesOfPairs() { return hn::Set(di32, 0x3f803f80); }

// Bits of the sum that P is made of. start: what the sum of floats began at, and that of integers
// did not.
HWY_INLINE VI32 DirectSum(VF sum, VF, VF, VF) { return hn::BitCast(di32, sum); }
HWY_INLINE VI32 DirectSum(VI32 sum, VF row_scale, VF k_scale, VF start) {
  const VF scaled = hn::Mul(hn::ConvertTo(df, sum), k_scale);
  return hn::BitCast(di32, hn::MulAdd(scaled, row_scale, start));
}

HWY_INLINE VF InitialDirectSum(VF, VF start) { return start; }
HWY_INLINE VI32 InitialDirectSum(VI32 zero, VF) { return zero; }

// P of keys [key, key + kStep) of the tile, counted from its beginning.
template <class Scheme, size_t kQV, bool kMasked>
HWY_INLINE void DirectStep(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                           const DirectP<kDirectShift<Scheme>>& direct_p,
                           const TileScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  static_assert(kStep % 2 == 0, "P comes in pairs of keys");
  using Product = typename Scheme::QkProduct;
  using Acc = typename Product::Acc;
  const hn::RebindToUnsigned<DF> du32;
  Acc acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF start = hn::Load(df, scratch.start + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      acc[n][v] = InitialDirectSum(hn::Zero(hn::DFromV<Acc>()), start);
    }
  }

  BlockProduct<Product, kStep, kQV>(KeyColumns<Scheme>(kv, key), kKeyBlock * kLaneBytes, q.panel,
                                    num_steps, acc);

  int32_t* HWY_RESTRICT p_out = reinterpret_cast<int32_t*>(scratch.s) + key / 2 * kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF start = hn::Load(df, scratch.start + v * kLanes);
    const VF row_scale =
        Scheme::kQuantizedK ? hn::Load(df, q.row_scale + v * kLanes) : hn::Zero(df);
    VI32 all_bits = hn::Load(di32, scratch.bits + v * kLanes);
    VF sum = hn::Load(df, scratch.sum + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; n += 2) {
      VI32 bits[2];
      HWY_UNROLL(2)
      for (size_t i = 0; i < 2; ++i) {
        const size_t index = key + n + i;
        const VF k_scale = Scheme::kQuantizedK ? hn::Set(df, kv.k_scale[index]) : hn::Zero(df);
        bits[i] = DirectSum(acc[n + i][v], row_scale, k_scale, start);
        if constexpr (kMasked) {
          const VI32 position = hn::Set(di32, static_cast<int32_t>(kv.key_begin + index));
          const auto visible = Visible(position, hn::Load(di32, q.limit + v * kLanes));
          bits[i] = hn::IfThenElseZero(hn::RebindMask(di32, visible), bits[i]);
        }
        // As unsigned, so that negative numbers stay and are found.
        const auto at_least = hn::Set(du32, static_cast<uint32_t>(kDirectZero));
        bits[i] = hn::BitCast(di32, hn::Max(hn::BitCast(du32, bits[i]), at_least));
      }
      all_bits = hn::Or3(all_bits, bits[0], bits[1]);
      const VI32 p = direct_p(bits[0], bits[1]);
      sum = BF16Ops::Dot(sum, p, OnesOfPairs());
      hn::Store(p, di32, p_out + (n / 2 * kQV + v) * kLanes);
    }
    hn::Store(all_bits, di32, scratch.bits + v * kLanes);
    hn::Store(sum, df, scratch.sum + v * kLanes);
  }
}

// True if the references suit the tile: then it is done.
template <class Scheme, size_t kQV>
HWY_INLINE bool AcceptDirect(const QueryTile& q, const TileScratch& scratch) {
  const VI32 beyond = hn::Set(di32, kBeyondDirect<Scheme>);
  const VI32 usual = hn::Set(di32, kDirectZero & kBeyondDirect<Scheme>);
  auto accepted = hn::FirstN(di32, kLanes);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VI32 all_bits = hn::Load(di32, scratch.bits + v * kLanes);
    const auto not_above = hn::Eq(hn::And(all_bits, beyond), usual);
    const VF d = hn::Load(df, q.d + v * kLanes);
    const VF sum = hn::Load(df, scratch.sum + v * kLanes);
    const auto not_below = hn::Or(hn::Gt(d, hn::Zero(df)), hn::Ge(sum, hn::Set(df, kSmallestSum)));
    accepted = hn::And(accepted, hn::And(not_above, hn::RebindMask(di32, not_below)));
  }
  if (HWY_UNLIKELY(!hn::AllTrue(di32, accepted))) return false;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    float* d = q.d + v * kLanes;
    hn::Store(hn::Add(hn::Load(df, d), hn::Load(df, scratch.sum + v * kLanes)), df, d);
    hn::Store(hn::Set(df, 1.0f), df, scratch.rescale + v * kLanes);
  }
  return true;
}

// The tile's first num_keys keys, rounded up to kStep. Returns false, and has changed nothing but
// scratch, if it has to be done by way of scores.
template <class Scheme, size_t kQV>
HWY_INLINE bool DirectTile(const QueryTile& q, const KvTile& kv, size_t head_dim, size_t num_keys,
                           const TileScratch& scratch) {
  const size_t num_steps = RoundUp(head_dim, kQkDepth<Scheme>) / kQkDepth<Scheme>;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF start = hn::Sub(hn::Set(df, kDirectOne<Scheme>), hn::Load(df, q.m + v * kLanes));
    hn::Store(start, df, scratch.start + v * kLanes);
    hn::Store(hn::Zero(di32), di32, scratch.bits + v * kLanes);
    hn::Store(hn::Zero(df), df, scratch.sum + v * kLanes);
  }
  const DirectP<kDirectShift<Scheme>> direct_p;
  for (size_t key = 0; key < num_keys; key += Scheme::kStep) {
    if (kv.key_begin + key + Scheme::kStep <= q.min_limit) {
      DirectStep<Scheme, kQV, false>(q, kv, num_steps, key, direct_p, scratch);
    } else {
      DirectStep<Scheme, kQV, true>(q, kv, num_steps, key, direct_p, scratch);
    }
  }
  return AcceptDirect<Scheme, kQV>(q, scratch);
}

// From scores to pairs of P in their place, with references that suit them. num_keys is a multiple
// of kStep; hidden scores are -inf and become exactly 0.
template <class Scheme, size_t kQV>
HWY_NOINLINE void SoftmaxTileBF16(const QueryTile& q, size_t num_keys, const TileScratch& scratch) {
  constexpr size_t kRowStride = kQV * kLanes;
  const VF octaves = hn::Set(df, 1.0f / kOctave<Scheme>);
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    const VF tile_m = hn::Load(df, scratch.tile_m + row);
    const VF old_m = hn::Load(df, q.m + row);
    const VF old_d = hn::Load(df, q.d + row);
    const auto first = hn::Eq(old_d, hn::Zero(df));  // nothing to rescale: the reference may fall
    const auto moves = hn::Or(hn::Gt(tile_m, old_m), hn::And(first, hn::Gt(tile_m, NegInf())));
    const VF new_m = hn::IfThenElse(moves, hn::Add(tile_m, hn::Set(df, kHeadroom<Scheme>)), old_m);
    const VF moved = Exp2(hn::Mul(hn::Sub(old_m, new_m), octaves));
    const VF rescale = hn::IfThenElse(hn::And(moves, hn::Not(first)), moved, hn::Set(df, 1.0f));
    hn::Store(new_m, df, q.m + row);
    hn::Store(rescale, df, scratch.rescale + row);

    VF sum = hn::Mul(old_d, rescale);
    float* HWY_RESTRICT s = scratch.s + row;
    const auto p_of = [&](size_t key) HWY_ATTR {
      return Exp2(hn::Mul(hn::Sub(hn::Load(df, s + key * kRowStride), new_m), octaves));
    };
    for (size_t key = 0; key < num_keys; key += 2) {
      const VI32 p = PairsOf(p_of(key), p_of(key + 1));
      sum = BF16Ops::Dot(sum, p, OnesOfPairs());
      hn::Store(hn::BitCast(df, p), df, s + key / 2 * kRowStride);
    }
    hn::Store(sum, df, q.d + row);
  }
}

// S, softmax and P of a pair of tiles.
template <class Scheme, size_t kQV>
HWY_INLINE void ScoreToBF16(const QueryTile& q, const KvTile& kv, size_t head_dim, size_t num_keys,
                            const TileScratch& scratch) {
  if (HWY_LIKELY((DirectTile<Scheme, kQV>(q, kv, head_dim, num_keys, scratch)))) return;
  ScoreTile<Scheme, kQV>(q, kv, head_dim, num_keys, scratch);
  SoftmaxTileBF16<Scheme, kQV>(q, RoundUp(num_keys, Scheme::kStep), scratch);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SOFTMAX_BF16_INL_H_
