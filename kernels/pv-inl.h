// O = rescale * O + P·V for one pair of tiles. The tile's product is summed on its own before it
// meets O: rounding errors then grow with the tile's length and the number of tiles, not with the
// keys.
//
// Cost per kStep channels: num_keys / depth steps of BlockProduct, then for each of the kStep * kQV
// vectors a load, a multiply-add and a store of O; quantised ones a conversion and a multiplication
// more.
#ifndef SIGHTLINE_KERNELS_PV_INL_H_
#define SIGHTLINE_KERNELS_PV_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/kv_tile-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// The products of kStep channels with the keys of each vector's own span, from vector kVector on:
// acc[.][v] += V · P.
template <class Values, size_t kStep, size_t kQV, size_t kVector = 0>
HWY_INLINE void ValueStepAlone(const VColumns& columns, const KeySpan (&spans)[kMaxQueryVectors],
                               const uint8_t* p, typename Values::Product::Acc (&acc)[kStep][kQV]) {
  if constexpr (kVector < kQV) {
    const size_t first = spans[kVector].first / kDepthOf<Values>;
    const size_t end = spans[kVector].end / kDepthOf<Values>;
    if (first < end) {
      typename Values::Product::Acc alone[kStep][1];
      HWY_UNROLL(8)
      for (size_t n = 0; n < kStep; ++n) alone[n][0] = acc[n][kVector];
      BlockProduct<typename Values::Product, kStep, 1>(
          columns.data + first * columns.stride_bytes, columns.stride_bytes,
          p + (first * kQV + kVector) * kVectorBytes, kQV * kVectorBytes, end - first, alone);
      HWY_UNROLL(8)
      for (size_t n = 0; n < kStep; ++n) acc[n][kVector] = alone[n][0];
    }
    ValueStepAlone<Values, kStep, kQV, kVector + 1>(columns, spans, p, acc);
  }
}

// How a tile's keys are multiplied by V: those of `common` for all vectors of rows at once, those
// before and after it for each vector alone. All in the order of keys, and in whole lanes; V of
// keys beyond them need not be numbers.
struct ValueSpans {
  KeySpan common;
  bool has_others;
  KeySpan before[kMaxQueryVectors];
  KeySpan after[kMaxQueryVectors];
};
HWY_NOINLINE ValueSpans SpansOfValues(const TileMask& mask, size_t num_vectors, size_t depth) {
  ValueSpans spans = {};
  spans.common = {mask.common.first, RoundUp(mask.common.end, depth)};
  for (size_t v = 0; v < num_vectors; ++v) {
    const KeySpan seen = {mask.seen[v].first, RoundUp(mask.seen[v].end, depth)};
    spans.before[v] = {seen.first, MinOf(seen.end, spans.common.first)};
    spans.after[v] = {MaxOf(seen.first, spans.common.end), seen.end};
    spans.has_others |=
        spans.before[v].first < spans.before[v].end || spans.after[v].first < spans.after[v].end;
  }
  return spans;
}

// The products of kStep channels from `channel` on over the keys that rows see: acc += V · P.
// `p` is the panel of P.
template <class Values, size_t kStep, size_t kQV>
HWY_INLINE void ValueStep(const KvTile& kv, const ValueSpans& spans, size_t padded_channels,
                          size_t channel, const uint8_t* p,
                          typename Values::Product::Acc (&acc)[kStep][kQV]) {
  const VColumns columns = VColumnsAt<Values>(kv, padded_channels, channel);
  if (HWY_UNLIKELY(spans.has_others)) {
    ValueStepAlone<Values, kStep, kQV>(columns, spans.before, p, acc);
  }
  const size_t first = spans.common.first / kDepthOf<Values>;
  const size_t end = spans.common.end / kDepthOf<Values>;
  BlockProduct<typename Values::Product, kStep, kQV>(
      columns.data + first * columns.stride_bytes, columns.stride_bytes,
      p + first * kQV * kVectorBytes, kQV * kVectorBytes, end - first, acc);
  if (HWY_UNLIKELY(spans.has_others)) {
    ValueStepAlone<Values, kStep, kQV>(columns, spans.after, p, acc);
  }
}

template <class Values, size_t kStep, size_t kQV>
HWY_INLINE void AccumulateStep(const QueryTile& q, const KvTile& kv, const ValueSpans& spans,
                               size_t padded_channels, size_t channel, const TileScratch& scratch) {
  float* HWY_RESTRICT o = q.o + channel * kQV * kLanes;
  VF acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) acc[n][v] = hn::Zero(df);
  }
  ValueStep<Values, kStep, kQV>(kv, spans, padded_channels, channel,
                                reinterpret_cast<const uint8_t*>(scratch.s), acc);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF rescale = hn::Load(df, scratch.rescale + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      float* out = o + (n * kQV + v) * kLanes;
      hn::Store(hn::MulAdd(hn::Load(df, out), rescale, acc[n][v]), df, out);
    }
  }
}

// Quantised: O stays relative to the row's reference, and the tile's product is weighed.
template <class Values, size_t kStep, size_t kQV>
HWY_INLINE void AccumulateStepFixed(const QueryTile& q, const KvTile& kv, const ValueSpans& spans,
                                    size_t padded_channels, size_t channel,
                                    const FixedScratch& scratch) {
  float* HWY_RESTRICT o = q.o + channel * kQV * kLanes;
  VI32 acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      acc[n][v] = Values::kBiased ? hn::Load(di32, scratch.p_init + v * kLanes)
                                  : StartOfValues(hn::Zero(di32));
    }
  }
  ValueStep<Values, kStep, kQV>(kv, spans, padded_channels, channel, scratch.p, acc);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF weight = hn::Load(df, scratch.weight + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      float* out = o + (n * kQV + v) * kLanes;
      const VF unit = hn::Mul(weight, hn::Set(df, kv.v_scale[channel + n]));
      hn::Store(hn::MulAdd(SumOfValues(acc[n][v]), unit, hn::Load(df, out)), df, out);
    }
  }
}

// The parts of a broadcast lane of V that vector v of the rows sees, whose keys begin with `key`; 0
// for the others.
template <size_t kDepth, size_t kQV>
HWY_INLINE VI32 VisibleParts(VI32 lane, const TileMask& mask, size_t key, size_t v) {
  VI32 seen = hn::Zero(di32);
  for (size_t i = 0; i < kDepth; ++i) {
    const int32_t part = kDepth == 1 ? -1 : i == 0 ? ~kUpperHalf : kUpperHalf;
    seen = hn::Or(seen, hn::IfThenElseZero(SeenBy<kQV>(mask, key + i, v), hn::Set(di32, part)));
  }
  return hn::And(lane, seen);
}

// What a step has of a panel of P for vector v of the rows, and of V for one channel, from either's
// beginning.
template <class Product>
HWY_INLINE VU8 PanelVector(const uint8_t* HWY_RESTRICT panel, size_t stride_bytes, size_t step) {
  if constexpr (Product::kSteps == 1) {
    return hn::Load(du8, panel + step * stride_bytes);
  } else {
    VU8 even = hn::Load(du8, panel + step / 2 * 2 * stride_bytes);
    VU8 odd = hn::Load(du8, panel + (step / 2 * 2 + 1) * stride_bytes);
    SeparateSteps(even, odd);
    return step % 2 == 0 ? even : odd;
  }
}
template <class Product>
HWY_INLINE VI32 ValueLane(const VColumns& columns, size_t channel, size_t step) {
  if constexpr (Product::kSteps == 1) {
    return Broadcast32(columns.data + step * columns.stride_bytes);
  } else {
    const size_t i = channel % kLanes;
    const uint8_t* vector = columns.data - i * kLaneBytes;
    const size_t row = step / 2 * 2 + i / 2;
    return Broadcast32(vector + row * columns.stride_bytes + (i % 2 * 2 + step % 2) * kLaneBytes);
  }
}

// acc + lane · p of one step.
template <class Product>
HWY_INLINE VF MulAccLane(VF acc, VI32 lane, VU8 p) {
  if constexpr (Product::kSteps == 1) {
    return Product::MulAcc(acc, lane, p);
  } else {
    return BF16Product::MulAcc(acc, lane, p);
  }
}

// 0 * NaN is NaN, so a row must not even multiply by the value of a key that it does not see.
// Floats only, for the rare tile that holds a NaN or an infinity and that some row sees in part.
template <class Values, size_t kQV>
HWY_NOINLINE void AccumulateVisible(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                                    size_t padded_channels, const TileScratch& scratch) {
  constexpr size_t kDepth = kDepthOf<Values>;
  for (size_t channel = 0; channel < padded_channels; ++channel) {
    const VColumns columns = VColumnsAt<Values>(kv, padded_channels, channel);
    for (size_t v = 0; v < kQV; ++v) {
      float* out = q.o + (channel * kQV + v) * kLanes;
      VF acc = hn::Zero(df);
      const KeySpan& span = mask.seen[v];
      const uint8_t* panel = reinterpret_cast<const uint8_t*>(scratch.s) + v * kVectorBytes;
      for (size_t step = span.first / kDepth; step < RoundUp(span.end, kDepth) / kDepth; ++step) {
        const VU8 p = PanelVector<typename Values::Product>(panel, kQV * kVectorBytes, step);
        const VI32 lane = ValueLane<typename Values::Product>(columns, channel, step);
        const VI32 seen = VisibleParts<kDepth, kQV>(lane, mask, step * kDepth, v);
        acc = MulAccLane<typename Values::Product>(acc, seen, p);
      }
      const VF rescale = hn::Load(df, scratch.rescale + v * kLanes);
      hn::Store(hn::MulAdd(hn::Load(df, out), rescale, acc), df, out);
    }
  }
}

template <class Values, size_t kStep, size_t kQV>
HWY_INLINE void AccumulateTile(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                               size_t padded_channels, const TileScratch& scratch) {
  if (HWY_UNLIKELY(kv.v_special && !AllSeeAll(mask, kFullDepthOf<Values>))) {
    return AccumulateVisible<Values, kQV>(q, kv, mask, padded_channels, scratch);
  }
  const ValueSpans spans = SpansOfValues(mask, kQV, kFullDepthOf<Values>);
  for (size_t channel = 0; channel < padded_channels; channel += kStep) {
    AccumulateStep<Values, kStep, kQV>(q, kv, spans, padded_channels, channel, scratch);
  }
}

template <class Values, size_t kStep, size_t kQV>
HWY_INLINE void AccumulateTileFixed(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                                    size_t padded_channels, const FixedScratch& scratch) {
  const ValueSpans spans = SpansOfValues(mask, kQV, kFullDepthOf<Values>);
  for (size_t channel = 0; channel < padded_channels; channel += kStep) {
    AccumulateStepFixed<Values, kStep, kQV>(q, kv, spans, padded_channels, channel, scratch);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PV_INL_H_
