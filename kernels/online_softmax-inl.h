// One step of the online softmax (Milakov & Gimelshein 2018): fold a tile of scores into the
// running maximum m and denominator d, and turn the scores into P.
//
//   m' = max(m, max S)    d' = 2^(m - m') d + Σ P    O' = 2^(m - m') O + P·V
//
// P in f32 is relative to m'; of bf16 see softmax_bf16-inl.h. Bytes are relative to the tile's own
// maximum, so that all steps of a byte are used even when an earlier tile held a larger score, and
// the tile's product is weighed by 2^(tile m - m). There m need not be the maximum: it is a
// reference that stays while no tile's maximum is more than kReferenceSlack octaves above it, so
// that O is rescaled a few times in the life of a row and not with every tile.
//
// Cost per score: floats 10 instructions for 2^x, a subtraction, an addition; quantised: see
// fixed_point-inl.h.
#ifndef SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_
#define SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Octaves: weights reach 2^8, which f32 holds beside the largest values (kLargestFinite).
constexpr float kReferenceSlack = 8.0f;

// A row that has seen no key yet has maximum -inf; any finite reference will do for it, and 0 keeps
// -inf - (-inf) away.
HWY_INLINE VF FiniteReference(VF m) { return hn::IfThenZeroElse(hn::Eq(m, NegInf()), m); }

// Keys whose weights are computed side by side, for ARM's cores that work in order.
constexpr size_t kSoftmaxStep = HWY_ARCH_ARM_A64 ? 4 : 1;
static_assert(kMaskAlign % kSoftmaxStep == 0, "what rows see ends with a whole step");

// Of what each vector of rows sees of the tile; hidden scores are -inf and become exactly 0.
template <size_t kQV>
HWY_INLINE void SoftmaxTile(const QueryTile& q, const TileMask& mask, const TileScratch& scratch) {
  constexpr size_t kRowStride = kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    const VF tile_m = hn::Load(df, scratch.tile_m + row);
    const VF old_m = hn::Load(df, q.m + row);
    const VF new_m = hn::Max(old_m, tile_m);
    const VF reference = FiniteReference(new_m);
    const VF rescale = Exp2(hn::Sub(old_m, reference));
    const VF old_d = hn::Mul(hn::Load(df, q.d + row), rescale);
    hn::Store(new_m, df, q.m + row);
    hn::Store(rescale, df, scratch.rescale + row);

    VF sum = hn::Zero(df);
    float* HWY_RESTRICT s = scratch.s + row;
    const size_t end = mask.seen[v].padded_end();
    for (size_t key = mask.seen[v].first; key < end; key += kSoftmaxStep) {
      VF p[kSoftmaxStep];
      HWY_UNROLL(4)
      for (size_t i = 0; i < kSoftmaxStep; ++i) {
        p[i] = hn::Sub(hn::Load(df, s + (key + i) * kRowStride), reference);
      }
      Exp2Each(p);
      HWY_UNROLL(4)
      for (size_t i = 0; i < kSoftmaxStep; ++i) {
        sum = hn::Add(sum, p[i]);
        hn::Store(p[i], df, s + (key + i) * kRowStride);
      }
    }
    hn::Store(hn::Add(old_d, sum), df, q.d + row);
  }
}

// Moves rows whose tile maximum is far above their reference, or that have none yet.
template <size_t kQV>
HWY_INLINE void RaiseReferences(const QueryTile& q, size_t padded_channels,
                                const FixedScratch& scratch) {
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    const VF old_m = hn::Load(df, q.m + row);
    const VF tile_max = hn::Load(df, scratch.tile_max + row);
    const auto raised = hn::Gt(tile_max, hn::Add(old_m, hn::Set(df, kReferenceSlack)));
    if (HWY_LIKELY(hn::AllFalse(df, raised))) continue;
    const VF new_m = hn::IfThenElse(raised, tile_max, old_m);
    hn::Store(new_m, df, q.m + row);
    if (hn::AllTrue(df, hn::Eq(SumSoFar(q, row), hn::Zero(df)))) continue;  // O is 0 as well
    const VF d = hn::Load(df, q.d + row);
    const VF rescale = Exp2(hn::Sub(old_m, FiniteReference(new_m)));
    hn::Store(hn::Mul(d, rescale), df, q.d + row);
    for (size_t c = 0; c < padded_channels; ++c) {
      float* o = q.o + (c * kQV + v) * kLanes;
      hn::Store(hn::Mul(hn::Load(df, o), rescale), df, o);
    }
  }
}

// Of what each vector of rows sees of the tile; hidden scores are kHiddenScore.
template <class Values, size_t kQV>
HWY_INLINE void SoftmaxTileFixed(const QueryTile& q, const TileMask& mask, size_t padded_channels,
                                 const FixedScratch& scratch) {
  constexpr size_t kRowWords = kQV * kLanes * 2;
  constexpr int kMaxP = Values::kMaxP;
  constexpr size_t kQuads = kSoftmaxStep == 1 ? 1 : 2;
  constexpr size_t kSteps = Values::Product::kSteps;
  static_assert(kQuads % kSteps == 0 && kMaskAlign % (4 * kQuads) == 0,
                "whole steps of products, of what rows see");
  RaiseReferences<kQV>(q, padded_channels, scratch);
  const Exp2Fixed<kMaxP> exp2;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    const VI16 tile_m = hn::Load(di16, scratch.tile_m + row * 2);
    const int16_t* HWY_RESTRICT s = scratch.s + row * 2;
    uint8_t* HWY_RESTRICT p = scratch.p + row * 4;
    VI32 sum02 = hn::Zero(di32);
    VI32 sum13 = hn::Zero(di32);
    VI32 sum_of_bytes = hn::Zero(di32);
    const size_t end = mask.seen[v].padded_end() / 4;
    for (size_t quad = mask.seen[v].first / 4; quad < end; quad += kQuads) {
      VI16 words[2 * kQuads];  // of quad i: its first and third key, its second and fourth
      HWY_UNROLL(4)
      for (size_t i = 0; i < 2 * kQuads; ++i) {
        words[i] = hn::Load(di16, s + (quad * 2 + i) * kRowWords);
      }
      exp2(tile_m, words);
      VU8 bytes[kQuads];
      HWY_UNROLL(2)
      for (size_t i = 0; i < kQuads; ++i) {
        AddP(words[2 * i], words[2 * i + 1], sum02, sum13);
        bytes[i] = BytesOfP<kMaxP>(words[2 * i], words[2 * i + 1]);
        if constexpr (Values::kBiased) {
          sum_of_bytes = I8Ops::DotPV(sum_of_bytes, bytes[i], hn::Set(di8, 1));
        }
      }
      if constexpr (kSteps == 2) InterleaveSteps(bytes[0], bytes[kQuads - 1]);
      HWY_UNROLL(2)
      for (size_t i = 0; i < kQuads; ++i) {
        hn::Store(bytes[i], du8, p + (quad + i) * kRowWords * 2);
      }
    }
    // A row that has seen nothing in this tile has maximum -inf and thus no weight, whatever P is.
    const VF reference = FiniteReference(hn::Load(df, q.m + row));
    const VF tile_max = hn::Load(df, scratch.tile_max + row);
    const VF weight = hn::Mul(Exp2(hn::Sub(tile_max, reference)), hn::Set(df, 1.0f / kMaxP));
    const VF sum =
        hn::Mul(hn::ConvertTo(df, hn::Add(sum02, sum13)), hn::Set(df, 1.0f / (1 << kPBits<kMaxP>)));
    const VF d = hn::Load(df, q.d + row);
    hn::Store(hn::MulAdd(weight, sum, d), df, q.d + row);
    hn::Store(weight, df, scratch.weight + row);
    if constexpr (Values::kBiased) {
      const VI32 bias = hn::Mul(sum_of_bytes, hn::Set(di32, -kBias));
      hn::Store(StartOfValues(bias), di32, scratch.p_init + row);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_
