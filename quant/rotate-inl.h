// Rotated K: the channels of K are balanced against those of Q, and both are mixed, before either
// is quantised. q · k stays the same, but a few large channels no longer set the step of the
// others.
//
//   balance   K / s, Q * s, with s a power of two per channel, from the sizes of K's channels
//   signs     pseudo-random, so that channels that go together do not add up in a few outputs
//   mix       a Walsh-Hadamard transform of every `block` channels, block the largest power of two
//             that divides head_dim; if there are several blocks, a reflection across them
//
// Cost of a row: log2(block) additions per element, those inside a vector with a shuffle each; the
// reflection takes two more. 56 instructions for 64 channels in 512-bit vectors, against some 40
// for every 16 scores of the row. Finding the balance reads the rows of the means once more.
//
// Every tier adds in the same order, so that quanta do not depend on the tier: strides upwards in
// the transform; in the reflection blocks upwards, and the halves of 16 channels on each other
// where a block is smaller.
#ifndef SIGHTLINE_QUANT_ROTATE_INL_H_
#define SIGHTLINE_QUANT_ROTATE_INL_H_

#include "kernels/rows-inl.h"
#include "quant/quantize-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Lane i of the result is lane i ^ kStride.
template <size_t kStride>
HWY_INLINE VF SwapLanes(VF x) {
  if constexpr (kStride == 1) {
    return hn::Shuffle2301(x);
  } else if constexpr (kStride == 2) {
    return hn::Shuffle1032(x);
  } else if constexpr (kStride == 4) {
    return hn::SwapAdjacentBlocks(x);
  } else {
    static_assert(kStride == 8 && kLanes == 16, "vectors have up to 16 lanes");
    return hn::ConcatLowerUpper(df, x, x);
  }
}

// Butterflies of strides kStride, 2 kStride ... inside a vector and a block: a + b in the lower
// lane of a pair, a - b in the upper one.
template <size_t kStride = 1>
HWY_INLINE VF MixLanes(VF x, size_t block) {
  if constexpr (kStride < kLanes) {
    if (kStride < block) {
      const VI32 upper = hn::And(hn::Iota(di32, 0), hn::Set(di32, int{kStride}));
      const VF sign = hn::IfThenElse(hn::RebindMask(df, hn::Eq(upper, hn::Zero(di32))),
                                     hn::Set(df, 1.0f), hn::Set(df, -1.0f));
      return MixLanes<2 * kStride>(hn::MulAdd(x, sign, SwapLanes<kStride>(x)), block);
    }
  }
  return x;
}

// Every lane becomes the sum of those that are a multiple of `block` away.
template <size_t kStride = kLanes / 2>
HWY_INLINE VF FoldLanes(VF x, size_t block) {
  if constexpr (kStride != 0) {
    if (kStride >= block) {
      return FoldLanes<kStride / 2>(hn::Add(x, SwapLanes<kStride>(x)), block);
    }
  }
  return x;
}

// Reflects the vectors that are made of the same element of every block on the plane through their
// ends' mean: x -= 2 mean(x). Every output then depends on every channel.
HWY_INLINE void MixBlocks(float* HWY_RESTRICT row, size_t head_dim, size_t block) {
  HWY_ALIGN float sums[kMaxHeadDim / 4];  // there are at least three blocks of a power of two
  const size_t elements = RowBufferElements(head_dim);
  const size_t width = MaxOf(block, kChannelAlign);
  for (size_t j = 0; j < width; j += kLanes) {
    VF sum = hn::Load(df, row + j);
    for (size_t i = j + width; i < elements; i += width) sum = hn::Add(sum, hn::Load(df, row + i));
    hn::Store(sum, df, sums + j);
  }
  const size_t folded = MaxOf(block, kLanes);  // what lanes alone can still fold
  for (size_t half = width / 2; half >= folded; half /= 2) {
    for (size_t j = 0; j < half; j += kLanes) {
      hn::Store(hn::Add(hn::Load(df, sums + j), hn::Load(df, sums + j + half)), df, sums + j);
    }
  }
  const size_t num_blocks = head_dim / block;
  const VF twice = hn::Set(df, 2.0f / static_cast<float>(num_blocks));
  for (size_t j = 0; j < width; j += kLanes) {
    const VF shift = hn::Mul(FoldLanes(hn::Load(df, sums + j % folded), block), twice);
    for (size_t i = j; i < elements; i += width) {
      const VF x = hn::Sub(hn::Load(df, row + i), shift);
      // What is no channel stays 0.
      const auto channels = hn::FirstN(df, head_dim - MinOf(i, head_dim));
      hn::Store(hn::IfThenElseZero(channels, x), df, row + i);
    }
  }
}

// The first steps of kVectors vectors, in registers: factors, then every stride within them and the
// block, which holds them all if there are several.
template <size_t kVectors>
HWY_INLINE void MixVectors(const float* HWY_RESTRICT factor, size_t block,
                           float* HWY_RESTRICT row) {
  VF x[kVectors];
  HWY_UNROLL(4)
  for (size_t v = 0; v < kVectors; ++v) {
    x[v] = hn::Mul(hn::Load(df, row + v * kLanes), hn::Load(df, factor + v * kLanes));
    x[v] = MixLanes(x[v], block);
  }
  HWY_UNROLL(2)
  for (size_t stride = 1; stride < kVectors; stride *= 2) {
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      if ((v & stride) != 0) continue;
      const VF a = x[v];
      const VF b = x[v + stride];
      x[v] = hn::Add(a, b);
      x[v + stride] = hn::Sub(a, b);
    }
  }
  HWY_UNROLL(4)
  for (size_t v = 0; v < kVectors; ++v) hn::Store(x[v], df, row + v * kLanes);
}

// Rows of RowBufferElements(head_dim) finite elements, one after the other and in place. factor: of
// each channel, for as many elements. Out of line: K and Q, in vectors and one by one, share it.
HWY_NOINLINE void RotateRows(const float* HWY_RESTRICT factor, size_t head_dim,
                             float* HWY_RESTRICT rows, size_t num_rows) {
  constexpr size_t kGroup = 4;
  const size_t elements = RowBufferElements(head_dim);
  const size_t block = RotationBlock(head_dim);
  const bool grouped = block >= kGroup * kLanes;
  for (float* row = rows; row != rows + num_rows * elements; row += elements) {
    for (size_t i = 0; grouped && i < elements; i += kGroup * kLanes) {
      MixVectors<kGroup>(factor + i, kLanes, row + i);
    }
    for (size_t i = 0; !grouped && i < elements; i += kLanes) {
      MixVectors<1>(factor + i, block, row + i);
    }
    for (size_t stride = (grouped ? kGroup : 1) * kLanes; stride < block; stride *= 2) {
      for (size_t begin = 0; begin < head_dim; begin += 2 * stride) {
        for (size_t i = begin; i < begin + stride; i += kLanes) {
          const VF a = hn::Load(df, row + i);
          const VF b = hn::Load(df, row + i + stride);
          hn::Store(hn::Add(a, b), df, row + i);
          hn::Store(hn::Sub(a, b), df, row + i + stride);
        }
      }
    }
    if (block != head_dim) MixBlocks(row, head_dim, block);
  }
}

// Finite rows of Q where K is rotated, which takes a key.
HWY_INLINE void RotateQueries(const AttendTask& task, float* HWY_RESTRICT rows, size_t num_rows) {
  const PackedHead& head = task.head;
  if (!IsRotated(head.shape.layout) || task.kv_len == 0) return;
  RotateRows(reinterpret_cast<const float*>(head.base + head.offsets.q_factor), head.shape.head_dim,
             rows, num_rows);
}

// What channels of K are multiplied by: it also holds what the two transforms scale q · k by.
HWY_INLINE void LoadKeyFactors(const PackedHead& head, float* HWY_RESTRICT k_factor) {
  const float* q_factor = reinterpret_cast<const float*>(head.base + head.offsets.q_factor);
  const size_t head_dim = head.shape.head_dim;
  const VF scale = hn::Set(df, 1.0f / static_cast<float>(RotationBlock(head_dim)));
  for (size_t i = 0; i < RowBufferElements(head_dim); i += kLanes) {
    hn::Store(Div(scale, hn::Load(df, q_factor + i)), df, k_factor + i);
  }
}

// The k-th smallest of n floats, none of them negative: bit by bit, the largest number that no more
// than k are below. 31 passes over at most 512 numbers, once per head.
HWY_INLINE float NthSmallest(const float* HWY_RESTRICT x, size_t n, size_t k) {
  uint32_t found = 0;
  for (uint32_t bit = 1u << 30; bit != 0; bit >>= 1) {
    const VF bound = hn::BitCast(df, hn::Set(di32, static_cast<int32_t>(found | bit)));
    size_t below = 0;
    for (size_t i = 0; i < n; i += kLanes) {
      const auto counted = hn::And(hn::FirstN(df, n - i), hn::Lt(hn::Load(df, x + i), bound));
      below += hn::CountTrue(df, counted);
    }
    if (below <= k) found |= bit;
  }
  return hn::GetLane(hn::BitCast(df, hn::Set(di32, static_cast<int32_t>(found))));
}

// Writes q_factor: signs times the balance of K's channels, whose sizes are the mean distances from
// the centre, or multiples of them, over the rows of the means.
HWY_INLINE void BalanceChannels(const PackedHead& head, const float* HWY_RESTRICT size) {
  const size_t head_dim = head.shape.head_dim;
  const size_t elements = RowBufferElements(head_dim);
  const float largest = NthSmallest(size, head_dim, head_dim - 1);
  const float median = NthSmallest(size, head_dim, head_dim / 2);
  const float floor = largest * kSmallestMedian;
  const float ordinary = median > floor ? median : floor;
  const bool balanced = ordinary >= kSmallestRange;
  float* q_factor = reinterpret_cast<float*>(head.base + head.offsets.q_factor);
  for (size_t i = 0; i < elements; ++i) {
    q_factor[i] = RotationSign(i);
    for (const float threshold : kBalanceThresholds) {
      if (balanced && size[i] >= threshold * ordinary) q_factor[i] *= 2.0f;
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_ROTATE_INL_H_
