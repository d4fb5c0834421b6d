// Symmetric quantisation: x ≈ scale * q with q = round(x * max_quantum / max|x|).
//
// Rows of Q (at each call) and of K (once) share one scale each; V, whose scale is per channel,
// uses the same rules across rows. Integers have no NaN and no infinity: elements are made finite
// first. The format's constants are in kv/layout.h.
//
// Cost: rows become f32 and are compared once, and quanta once; kLanes rows at a time go into a
// panel without leaving the registers: 11 instructions for 16 elements of 512-bit vectors.
#ifndef SIGHTLINE_QUANT_QUANTIZE_INL_H_
#define SIGHTLINE_QUANT_QUANTIZE_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// NaN becomes 0, infinities +-kLargestFinite.
HWY_INLINE VF Sanitize(VF x) {
  x = hn::IfThenZeroElse(hn::IsNaN(x), x);
  return hn::Clamp(x, hn::Set(df, -kLargestFinite), hn::Set(df, kLargestFinite));
}

struct QuantStep {
  VF scale;    // what one quantum is worth
  VF inverse;  // quanta per unit
};

// Elementwise on vectors of ranges (the largest magnitudes), for quanta up to max_quantum.
HWY_INLINE QuantStep StepForRange(VF range, float max_quantum) {
  const auto usable = hn::Ge(range, hn::Set(df, kSmallestRange));
  QuantStep step;
  step.scale = hn::IfThenElseZero(usable, hn::Mul(range, hn::Set(df, 1.0f / max_quantum)));
  step.inverse = hn::IfThenElseZero(usable, Div(hn::Set(df, max_quantum), range));
  return step;
}

// What ranges have to reach at the least, so that quanta of int8 with these scales stay as they
// are; 0 where scales are no use.
HWY_INLINE VF KeptRange(VF scale) {
  const VF range = hn::Mul(hn::Abs(scale), hn::Set(df, kMaxQuantum));
  return hn::IfThenElseZero(hn::Lt(range, hn::Set(df, kLargestFinite)), range);
}
// The same of rows with one scale each.
template <class AnyRows>
HWY_INLINE VF KeptRanges(const AnyRows& rows, size_t begin, size_t count) {
  HWY_ALIGN float scales[kLanes] = {};
  for (size_t r = 0; r < count; ++r) scales[r] = *RowAt(rows, begin + r).scale;
  return KeptRange(hn::Load(df, scales));
}

// Bits of |x|, in whose order infinities and NaN are the largest.
HWY_INLINE VI32 Magnitude(VF x) { return hn::BitCast(di32, hn::Abs(x)); }

// The largest of a row of n elements, by lanes; what is past its end, to a whole vector, is 0.
HWY_INLINE VI32 LargestMagnitudes(const float* HWY_RESTRICT row, size_t n) {
  VI32 largest = hn::Zero(di32);
  for (size_t i = 0; i < n; i += kLanes) {
    largest = hn::Max(largest, Magnitude(hn::Load(df, row + i)));
  }
  return largest;
}

HWY_INLINE bool AllBelow(VI32 magnitudes, float limit) {
  return hn::AllTrue(di32, hn::Lt(magnitudes, hn::BitCast(di32, hn::Set(df, limit))));
}

// Elements nearly always are finite already, so rows are read as they are first. If any magnitude
// of the centre, or of an element minus the centre, reaches this, they are read again and
// sanitised; below it |x| < 2 kModerate < kLargestFinite.
constexpr float kModerate = kLargestFinite / 4;
struct AsTheyAre {
  HWY_INLINE VF operator()(VF x) const { return x; }
};
struct Sanitized {
  HWY_INLINE VF operator()(VF x) const { return Sanitize(x); }
};

// read(reader, convert) reads the rows, passes each element through `convert`, and returns whether
// all was moderate.
template <class AnyRows, class Read>
HWY_INLINE void ReadFinite(const AnyRows& rows, size_t n, const Read& read) {
  bool moderate = false;
  ReadRows(rows, n, [&](auto reader) HWY_ATTR { moderate = read(reader, AsTheyAre()); });
  if (HWY_LIKELY(moderate)) return;
  read(RowReader<StridedRow, AnyRows>{rows, n}, Sanitized());
}

// What is taken away from rows: nothing, or a vector of RowBufferElements floats.
struct NoCenter {
  HWY_INLINE VF operator()(VF x, size_t) const { return x; }
  HWY_INLINE bool IsModerate(size_t) const { return true; }
};
struct Center {
  const float* HWY_RESTRICT center;

  HWY_INLINE VF operator()(VF x, size_t i) const { return hn::Sub(x, hn::Load(df, center + i)); }
  HWY_INLINE bool IsModerate(size_t n) const {
    return AllBelow(LargestMagnitudes(center, n), kModerate);
  }
};

template <class Reader, class Convert, class AnyCenter>
HWY_INLINE VI32 LoadFiniteFrom(Reader reader, Convert convert, size_t begin, size_t count,
                               AnyCenter minus_center, float* HWY_RESTRICT rows,
                               VI32* HWY_RESTRICT maxima) {
  const size_t n = reader.n;
  VI32 largest = hn::Zero(di32);
  for (size_t r = 0; r < count; ++r, rows += RowBufferElements(n)) {
    const auto row = reader[begin + r];
    VI32 row_largest = hn::Zero(di32);
    ForEachVector(n, [&](size_t i, auto extent) HWY_ATTR {
      const VF x = minus_center(convert(row(i, extent)), i);
      hn::Store(x, df, rows + i);
      row_largest = hn::Max(row_largest, Magnitude(x));
    });
    ZeroPadding(n, rows);
    maxima[r] = row_largest;
    largest = hn::Max(largest, row_largest);
  }
  return largest;
}

// `count` rows of n elements from row `begin` on, finite, minus centre, RowBufferElements(n) apart;
// the elements past n become 0. maxima: for each row the largest magnitudes by lanes.
template <class AnyRows, class AnyCenter>
HWY_NOINLINE void LoadFinite(const AnyRows& source, size_t begin, size_t count, size_t n,
                             AnyCenter minus_center, float* HWY_RESTRICT rows,
                             VI32* HWY_RESTRICT maxima) {
  const bool moderate = minus_center.IsModerate(n);
  ReadFinite(source, n, [=](auto reader, auto convert) HWY_ATTR {
    const VI32 largest = LoadFiniteFrom(reader, convert, begin, count, minus_center, rows, maxima);
    return moderate && AllBelow(largest, kModerate);
  });
}

// Largest magnitude of a row of n elements, a multiple of kChannelAlign. Makes the row finite,
// which it nearly always is already.
HWY_INLINE float FiniteRange(float* HWY_RESTRICT row, size_t n) {
  const VI32 range = LargestMagnitudes(row, n);
  if (HWY_LIKELY(AllBelow(range, kLargestFinite))) {
    return hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(di32, range)));
  }
  VF finite = hn::Zero(df);
  for (size_t i = 0; i < n; i += kLanes) {
    const VF x = Sanitize(hn::Load(df, row + i));
    finite = hn::Max(finite, hn::Abs(x));
    hn::Store(x, df, row + i);
  }
  return hn::GetLane(hn::MaxOfLanes(df, finite));
}

// The largest magnitudes of kLanes rows by lanes, as LoadFinite leaves them.
HWY_INLINE void MaximaOfRows(const float* HWY_RESTRICT rows, size_t n, VI32* HWY_RESTRICT maxima) {
  for (size_t r = 0; r < kLanes; ++r) maxima[r] = LargestMagnitudes(rows + r * n, n);
}

// FiniteRange of kLanes rows side by side, row r's in lane r, from their maxima by lanes.
HWY_NOINLINE VF FiniteRanges(const VI32* HWY_RESTRICT maxima, float* HWY_RESTRICT rows, size_t n) {
  VI32 x[kLanes];
  HWY_UNROLL(16)
  for (size_t r = 0; r < kLanes; ++r) x[r] = maxima[r];
  const VI32 ranges = MaxOfEach(x);
  if (HWY_LIKELY(AllBelow(ranges, kLargestFinite))) return hn::BitCast(df, ranges);
  HWY_ALIGN float finite[kLanes];
  for (size_t r = 0; r < kLanes; ++r) finite[r] = FiniteRange(rows + r * n, n);
  return hn::Load(df, finite);
}

// The quanta of a vector, plus `bias`, in the low bits of its lanes: rounded by an addition that
// leaves them there, which is cheaper than a conversion that has to mind overflow.
HWY_INLINE VI32 QuantaBits(VF x, VF inverse, int bias = 0) {
  const VF magic = hn::Set(df, kMagic + static_cast<float>(bias));
  return hn::BitCast(di32, hn::Add(hn::Mul(x, inverse), magic));
}

// Quanta of a finite row, plus `bias`; `out` may be `row` itself.
template <typename Quantum>
HWY_INLINE void QuantaOfRow(const float* row, size_t n, float inverse, Quantum* out, int bias = 0) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<hwy::MakeUnsigned<Quantum>, DF> d_out;
  for (size_t i = 0; i < n; i += kLanes) {
    const VI32 bits = QuantaBits(hn::Load(df, row + i), hn::Set(df, inverse), bias);
    hn::StoreU(hn::TruncateTo(d_out, hn::BitCast(du32, bits)), d_out,
               reinterpret_cast<hwy::MakeUnsigned<Quantum>*>(out + i));
  }
}

// Whether to join quanta by truncations, which leave elements in order and take one instruction for
// two vectors. Where they take more, saturation does better; see JoinQuanta.
constexpr bool kJoinsInOrder = !HWY_ARCH_X86 || HWY_TARGET <= HWY_AVX3;

// Bytes or words of as many vectors of QuantaBits as fit a lane, which have the bias already. If
// not in order, elements are so within each of the vectors' blocks of 128 bits; see JoinedLane.
HWY_INLINE VI32 JoinQuanta(const VI32 (&bits)[4], int bias) {
  if constexpr (kJoinsInOrder) {
    const VU16 ab = hn::OrderedTruncate2To(du16, AsUnsigned(bits[0]), AsUnsigned(bits[1]));
    const VU16 cd = hn::OrderedTruncate2To(du16, AsUnsigned(bits[2]), AsUnsigned(bits[3]));
    return hn::BitCast(di32, hn::OrderedTruncate2To(du8, ab, cd));
  } else {
    const VI32 magic = hn::Set(di32, kMagicBits);
    const VI16 ab = hn::ReorderDemote2To(di16, hn::Sub(bits[0], magic), hn::Sub(bits[1], magic));
    const VI16 cd = hn::ReorderDemote2To(di16, hn::Sub(bits[2], magic), hn::Sub(bits[3], magic));
    return bias != 0 ? hn::BitCast(di32, hn::ReorderDemote2To(du8, ab, cd))
                     : hn::BitCast(di32, hn::ReorderDemote2To(di8, ab, cd));
  }
}
HWY_INLINE VI32 JoinQuanta(const VI32 (&bits)[2], int) {
  if constexpr (kJoinsInOrder) {
    return hn::BitCast(di32,
                       hn::OrderedTruncate2To(du16, AsUnsigned(bits[0]), AsUnsigned(bits[1])));
  } else {
    const VI32 magic = hn::Set(di32, kMagicBits);
    return hn::BitCast(
        di32, hn::ReorderDemote2To(di16, hn::Sub(bits[0], magic), hn::Sub(bits[1], magic)));
  }
}

// The lane of kLanes that joining kDepth vectors of quanta leaves in lane i. If not in order, it
// makes of blocks and vectors what would be vectors and blocks: lane 4 b + j is of vector j / kRun,
// of which a block has kRun lanes.
template <size_t kDepth>
constexpr size_t JoinedLane(size_t i) {
  constexpr size_t kRun = 4 / kDepth;
  return kJoinsInOrder ? i : i % 4 / kRun * (kLanes / kDepth) + i / 4 * kRun + i % kRun;
}

// Lanes [begin, lanes) of kLanes rows, kLanes of them at most; num_vectors: of each row that they
// are made of. Out of line, lest compilers keep what is the same for all lanes in memory.
template <typename Quantum>
HWY_NOINLINE void QuantaToPanelLanes(const float* HWY_RESTRICT rows, size_t elements,
                                     const float* HWY_RESTRICT inverses, int bias,
                                     size_t num_vectors, size_t begin, size_t lanes,
                                     int32_t* HWY_RESTRICT panel, size_t panel_stride) {
  constexpr size_t kDepth = kLaneBytes / sizeof(Quantum);
  VI32 x[kLanes];
  HWY_UNROLL(16)
  for (size_t r = 0; r < kLanes; ++r) {
    const float* row = rows + r * elements + begin * kDepth;
    const VF inverse = hn::Set(df, inverses[r]);
    VI32 bits[kDepth];
    HWY_UNROLL(4)
    for (size_t v = 0; v < kDepth; ++v) {
      // What stands for vectors that are missing becomes lanes that are not stored.
      const size_t vector = MinOf(v, num_vectors - 1);
      bits[v] = QuantaBits(hn::Load(df, row + vector * kLanes), inverse, bias);
    }
    x[r] = JoinQuanta(bits, bias);
  }
  TransposeSquare(x);
  HWY_UNROLL(16)
  for (size_t i = 0; i < kLanes; ++i) {
    const size_t lane = begin + JoinedLane<kDepth>(i);
    if (lane < lanes) hn::Store(x[i], di32, panel + lane * panel_stride);
  }
}

// Quanta of kLanes finite rows, `elements` apart, plus `bias`, to a panel of `lanes` rows of kLanes
// lanes each, panel_stride apart. inverses: of the rows' steps, in memory, where broadcasts are
// loads.
template <typename Quantum>
HWY_NOINLINE void QuantaToPanel(const float* HWY_RESTRICT rows, size_t elements,
                                const float* HWY_RESTRICT inverses, int bias, size_t lanes,
                                int32_t* HWY_RESTRICT panel, size_t panel_stride) {
  constexpr size_t kDepth = kLaneBytes / sizeof(Quantum);
  for (size_t begin = 0; begin * kDepth < elements; begin += kLanes) {
    const size_t num_vectors = MinOf(kDepth, (elements - begin * kDepth) / kLanes);
    QuantaToPanelLanes<Quantum>(rows, elements, inverses, bias, num_vectors, begin, lanes, panel,
                                panel_stride);
  }
}

// Quantises n elements, a multiple of kChannelAlign, zero-padded, and adds `bias`; `out` may be
// `row` itself. kept_range: see KeptRange; 0 if nothing is to be kept. Returns the scale.
template <typename Quantum>
HWY_NOINLINE float QuantizeRow(float* row, size_t n, int max_quantum, VF kept_range, int bias,
                               Quantum* out) {
  const VF range = hn::Max(hn::Set(df, FiniteRange(row, n)), kept_range);
  const QuantStep step = StepForRange(range, static_cast<float>(max_quantum));
  QuantaOfRow(row, n, hn::GetLane(step.inverse), out, bias);
  return hn::GetLane(step.scale);
}

// What products with a biased operand have to take back.
template <typename Quantum>
HWY_INLINE int32_t SumOfQuanta(const Quantum* quanta, size_t n) {
  const hn::Rebind<Quantum, DF> d;
  VI32 sum = hn::Zero(di32);
  for (size_t i = 0; i < n; i += kLanes) {
    sum = hn::Add(sum, hn::PromoteTo(di32, hn::LoadU(d, quanta + i)));
  }
  return hn::ReduceSum(di32, sum);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_QUANTIZE_INL_H_
