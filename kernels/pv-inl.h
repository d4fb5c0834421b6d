// O = rescale * O + P·V for one pair of tiles. The tile's product is summed on its own before it
// meets O: rounding errors then grow with the tile's length and the number of tiles, not with the
// keys.
//
// Cost per kStep channels: num_keys / depth steps of BlockProduct, then for each of the kStep * kQV
// vectors a load, a multiply-add and a store of O; quantised ones a conversion and a multiplication
// more.
#ifndef SIGHTLINE_KERNELS_PV_INL_H_
#define SIGHTLINE_KERNELS_PV_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// The products of kStep channels from `channel` on: acc += V · P. `p` is the panel of P.
template <class Scheme, size_t kQV>
HWY_INLINE void ValueStep(const KvTile& kv, size_t padded_channels, size_t channel, size_t num_keys,
                          const uint8_t* p,
                          typename Scheme::PvProduct::Acc (&acc)[Scheme::kStep][kQV]) {
  const VColumns columns = VColumnsAt<Scheme>(kv, padded_channels, channel);
  const size_t num_steps = RoundUp(num_keys, kPvDepth<Scheme>) / kPvDepth<Scheme>;
  BlockProduct<typename Scheme::PvProduct, Scheme::kStep, kQV>(columns.data, columns.stride_bytes,
                                                               p, num_steps, acc);
}

template <class Scheme, size_t kQV>
HWY_INLINE void AccumulateStep(const QueryTile& q, const KvTile& kv, size_t padded_channels,
                               size_t channel, size_t num_keys, const TileScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  float* HWY_RESTRICT o = q.o + channel * kQV * kLanes;
  VF acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) acc[n][v] = hn::Zero(df);
  }
  ValueStep<Scheme, kQV>(kv, padded_channels, channel, num_keys,
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
template <class Scheme, size_t kQV>
HWY_INLINE void AccumulateStepFixed(const QueryTile& q, const KvTile& kv, size_t padded_channels,
                                    size_t channel, size_t num_keys, const FixedScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  float* HWY_RESTRICT o = q.o + channel * kQV * kLanes;
  VI32 acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      acc[n][v] = I8Ops::kBiasedV ? hn::Load(di32, scratch.p_init + v * kLanes) : hn::Zero(di32);
    }
  }
  ValueStep<Scheme, kQV>(kv, padded_channels, channel, num_keys, scratch.p, acc);
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const VF weight = hn::Load(df, scratch.weight + v * kLanes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      float* out = o + (n * kQV + v) * kLanes;
      const VF unit = hn::Mul(weight, hn::Set(df, kv.v_scale[channel + n]));
      hn::Store(hn::MulAdd(hn::ConvertTo(df, acc[n][v]), unit, hn::Load(df, out)), df, out);
    }
  }
}

// The parts of a broadcast lane of V that rows see, whose keys begin with `key`; 0 for the others.
template <size_t kDepth>
HWY_INLINE VI32 VisibleParts(VI32 lane, size_t key, VI32 limit) {
  VI32 seen = hn::Zero(di32);
  for (size_t i = 0; i < kDepth; ++i) {
    const int32_t part = kDepth == 1 ? -1 : i == 0 ? ~kUpperHalf : kUpperHalf;
    const VI32 index = hn::Set(di32, static_cast<int32_t>(key + i));
    const auto visible = hn::RebindMask(di32, Visible(index, limit));
    seen = hn::Or(seen, hn::IfThenElseZero(visible, hn::Set(di32, part)));
  }
  return hn::And(lane, seen);
}

// 0 * NaN is NaN, so a row must not even multiply by the value of a key that it does not see.
// Floats only, for the rare tile that holds a NaN or an infinity and that some row sees in part.
template <class Scheme, size_t kQV>
HWY_NOINLINE void AccumulateVisible(const QueryTile& q, const KvTile& kv, size_t padded_channels,
                                    size_t num_keys, const TileScratch& scratch) {
  constexpr size_t kDepth = kPvDepth<Scheme>;
  for (size_t channel = 0; channel < padded_channels; ++channel) {
    const VColumns columns = VColumnsAt<Scheme>(kv, padded_channels, channel);
    for (size_t v = 0; v < kQV; ++v) {
      float* out = q.o + (channel * kQV + v) * kLanes;
      const VI32 limit = hn::Load(di32, q.limit + v * kLanes);
      VF acc = hn::Zero(df);
      for (size_t step = 0; step < RoundUp(num_keys, kDepth) / kDepth; ++step) {
        const VU8 p = hn::BitCast(du8, hn::Load(df, scratch.s + (step * kQV + v) * kLanes));
        const VI32 lane = Broadcast32(columns.data + step * columns.stride_bytes);
        const size_t key = kv.key_begin + step * kDepth;
        acc = Scheme::PvProduct::MulAcc(acc, VisibleParts<kDepth>(lane, key, limit), p);
      }
      const VF rescale = hn::Load(df, scratch.rescale + v * kLanes);
      hn::Store(hn::MulAdd(hn::Load(df, out), rescale, acc), df, out);
    }
  }
}

template <class Scheme, size_t kQV>
HWY_INLINE void AccumulateTile(const QueryTile& q, const KvTile& kv, size_t padded_channels,
                               size_t num_keys, const TileScratch& scratch) {
  const size_t touched = RoundUp(num_keys, kPvDepth<Scheme>);
  if (HWY_UNLIKELY(kv.v_special && kv.key_begin + touched > q.min_limit)) {
    return AccumulateVisible<Scheme, kQV>(q, kv, padded_channels, num_keys, scratch);
  }
  for (size_t channel = 0; channel < padded_channels; channel += Scheme::kStep) {
    AccumulateStep<Scheme, kQV>(q, kv, padded_channels, channel, num_keys, scratch);
  }
}

template <class Scheme, size_t kQV>
HWY_INLINE void AccumulateTileFixed(const QueryTile& q, const KvTile& kv, size_t padded_channels,
                                    size_t num_keys, const FixedScratch& scratch) {
  for (size_t channel = 0; channel < padded_channels; channel += Scheme::kStep) {
    AccumulateStepFixed<Scheme, kQV>(q, kv, padded_channels, channel, num_keys, scratch);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PV_INL_H_
