// Packs K and V rows into the layout of kv/layout.h.
//
// Cost: floats are read, converted if need be, and stored once; quantised forms read up to
// kCenterRows rows more for the means. K is interleaved by 64 keys: whole vectors of them are
// transposed, single rows become head_dim / depth stores kKeyBlock lanes apart. A row of V stays a
// row within each panel; quantised ones are written to a buffer in f32 while their ranges are
// found, read once for the quanta, and stored four together.
#ifndef SIGHTLINE_QUANT_PACK_INL_H_
#define SIGHTLINE_QUANT_PACK_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"
#include "quant/rotate-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// How many rows before they are needed rows are asked for: 16 of them are packed in the time that
// one takes to come from memory.
constexpr size_t kRowsAhead = 16;

// Rows of the task that are to be packed: keys alone up to a multiple of kLanes, whole vectors of
// them, and the rest alone. A packer knows how to pack either.
template <class Packer>
HWY_INLINE void PackKeysBy(const PackTask& task, Packer& packer) {
  size_t i = task.num_keys_done;
  for (; i < task.num_keys && (task.key_begin + i) % kLanes != 0; ++i) packer.PackOne(i);
  const size_t end = i + (task.num_keys - i) / kLanes * kLanes;
  packer.PackVectors(i, end);
  for (i = end; i < task.num_keys; ++i) packer.PackOne(i);
}

// True if rows are neighbouring elements of the type that they are stored as.
template <typename Stored>
HWY_INLINE bool AreStored(const SourceRows& rows) {
  constexpr DType kType = hwy::IsSame<Stored, float>()            ? DType::kF32
                          : hwy::IsSame<Stored, hwy::float16_t>() ? DType::kF16
                                                                  : DType::kBF16;
  return rows.first.dtype == kType && rows.first.dim_stride == int64_t{sizeof(Stored)};
}

// K in f32, f16 or bf16: a row of 64 keys for each of head_dim, or for two neighbours in bf16.
template <typename Stored>
class FloatKeyPacker {
 public:
  FloatKeyPacker(const PackTask& task, unsigned char* scratch)
      : task_(task),
        head_dim_(task.head.shape.head_dim),
        rows_(reinterpret_cast<Stored*>(scratch)) {
    static_assert(kLanes * kMaxHeadDim * sizeof(Stored) <= kPackScratchBytes, "rows of K");
  }

  HWY_NOINLINE void PackOne(size_t i) {
    LoadRows(task_.k, i, 1, head_dim_, rows_);
    Stored* column = Column(i);
    for (size_t j = 0; j < RoundUp(head_dim_, kDepth); ++j) {
      column[j / kDepth * kKeyBlock * kDepth + j % kDepth] = rows_[j];
    }
  }

  HWY_INLINE void PackVectors(size_t begin, size_t end) {
    const bool are_stored = AreStored<Stored>(task_.k);
    const size_t row_bytes = RowBufferElements(head_dim_) * sizeof(Stored);
    for (size_t i = begin; i < end; i += kLanes) {
      PrefetchRows(task_.k, i + kRowsAhead, i + kRowsAhead + kLanes, task_.num_keys, head_dim_);
      if (are_stored && PackRows(RowAt(task_.k, i).data, task_.k.length_stride, i)) continue;
      LoadRows(task_.k, i, kLanes, head_dim_, rows_);
      PackRows(reinterpret_cast<const unsigned char*>(rows_), static_cast<int64_t>(row_bytes), i);
    }
  }

 private:
  static constexpr size_t kDepth = hwy::IsSame<Stored, hwy::bfloat16_t>() ? 2 : 1;

  // kLanes rows from row i on, which lie at `rows`, row_stride bytes apart. False if a NaN may be
  // among 16-bit elements, which conversions make quiet.
  HWY_INLINE bool PackRows(const unsigned char* rows, int64_t row_stride, size_t i) {
    const VI16 largest =
        RowsToPanel<Stored, kDepth>(rows, row_stride, head_dim_, Column(i), kKeyBlock);
    if constexpr (sizeof(Stored) == sizeof(float)) return true;
    const VI16 infinity = hn::Set(di16, kDepth == 2 ? 0x7f80 : 0x7c00);
    return HWY_LIKELY(hn::AllTrue(di16, hn::Lt(largest, infinity)));
  }

  HWY_INLINE Stored* Column(size_t i) const {
    const size_t key = task_.key_begin + i;
    Stored* k = reinterpret_cast<Stored*>(task_.head.base + task_.head.offsets.k);
    return k + KBlockOffset(task_.head.shape, key) + key % kKeyBlock * kDepth;
  }

  const PackTask& task_;
  size_t head_dim_;
  Stored* rows_;
};

// How vectors of V's rows become what is stored: copied, where rows are of that type, or converted.
template <typename Stored>
struct Copied {
  template <class Extent>
  HWY_INLINE auto operator()(const DenseRow<Stored>& row, size_t c, Extent extent) const {
    return row.Elements(c, extent);
  }
};
template <typename Stored>
struct Converted {
  template <class RowVectors, class Extent>
  HWY_INLINE auto operator()(const RowVectors& row, size_t c, Extent extent) const {
    return FromF32(hn::Rebind<Stored, DF>(), Opaque<Stored>(row(c, extent)));
  }
};

// V as it is stored: kDepth keys side by side in lanes of 16 or 32 bits, kLanes channels a vector.
template <typename Stored>
struct FloatValueLanes {
  static constexpr size_t kDepth = hwy::IsSame<Stored, hwy::bfloat16_t>() ? 2 : 1;
  using DChannels = hn::Rebind<Stored, DF>;
  using VChannels = hn::VFromD<DChannels>;
  // Of bits.
  using D = hwy::If<kDepth == 2, DI16, hn::RebindToSigned<DChannels>>;
  using V = hn::VFromD<D>;

  static HWY_INLINE V Join(VChannels first, VChannels second) {
    if constexpr (kDepth == 1) {
      return hn::BitCast(D(), first);
    } else {
      return hn::InterleaveWholeLower(D(), hn::ResizeBitCast(D(), first),
                                      hn::ResizeBitCast(D(), second));
    }
  }

  // In whose order infinities and NaN are the largest.
  static HWY_INLINE V Magnitudes(V lanes) {
    return hn::And(lanes, hn::Set(D(), hwy::LimitsMax<hn::TFromD<D>>()));
  }
  static HWY_INLINE bool AllFinite(V magnitudes) {
    const VChannels infinity = FromF32(DChannels(), NegInf());
    return hn::AllTrue(D(), hn::Lt(magnitudes, Magnitudes(Join(infinity, infinity))));
  }
};

// kRows rows of V from row `first` on to a panel of `width` channels, of which those that they do
// not have become 0. Raises `largest`, magnitudes, to what is stored.
template <size_t kRows, typename Stored, class Reader, class ToStored>
HWY_INLINE void PackValueRows(Reader reader, ToStored to_stored, size_t first, size_t width,
                              Stored* HWY_RESTRICT out,
                              typename FloatValueLanes<Stored>::V& largest) {
  using Lanes = FloatValueLanes<Stored>;
  using Bits = hn::TFromD<typename Lanes::D>;
  constexpr size_t kDepth = Lanes::kDepth;
  const typename Lanes::D d;
  const auto at = [=](size_t r, size_t c)
                      HWY_ATTR { return reinterpret_cast<Bits*>(out + r * width + c * kDepth); };
  typename Reader::RowVectors rows[kRows];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) rows[r] = reader[first + r];
  ForEachVector(reader.n, [&](size_t c, auto extent) HWY_ATTR {
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; r += kDepth) {
      const auto lanes =
          Lanes::Join(to_stored(rows[r], c, extent), to_stored(rows[r + kDepth - 1], c, extent));
      hn::StoreU(lanes, d, at(r, c));
      largest = hn::Max(largest, Lanes::Magnitudes(lanes));
    }
  });
  for (size_t c = RoundUp(reader.n, kLanes); c < width; c += kLanes) {
    for (size_t r = 0; r < kRows; r += kDepth) hn::StoreU(hn::Zero(d), d, at(r, c));
  }
}

// `count` rows of V, a multiple of kDepth, to a panel, from `out` on. Returns whether all that is
// stored is finite: what f16 cannot hold becomes an infinity.
template <typename Stored, class Reader, class ToStored>
HWY_INLINE bool PackValueRowsFrom(Reader reader, ToStored to_stored, size_t count, size_t width,
                                  Stored* HWY_RESTRICT out) {
  using Lanes = FloatValueLanes<Stored>;
  // Of the types that models have; the code of others is to be small.
  constexpr bool kIsCommon = hwy::IsSame<ToStored, Copied<Stored>>() ||
                             hwy::IsSame<typename Reader::RowVectors, DenseRow<float>>();
  constexpr size_t kRows = kIsCommon ? 4 : Lanes::kDepth;
  auto largest = hn::Zero(typename Lanes::D());
  size_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    PrefetchRows(reader.rows, i + kRowsAhead, i + kRowsAhead + kRows, count, reader.n);
    PackValueRows<kRows>(reader, to_stored, i, width, out + i * width, largest);
  }
  for (; i < count; i += Lanes::kDepth) {
    PackValueRows<Lanes::kDepth>(reader, to_stored, i, width, out + i * width, largest);
  }
  return Lanes::AllFinite(largest);
}

// The same of rows of any type and stride, n elements each.
template <typename Stored>
HWY_INLINE bool PackPanel(const SourceRows& rows, size_t n, size_t count, size_t width,
                          Stored* HWY_RESTRICT out) {
  if (AreStored<Stored>(rows)) {
    const RowReader<DenseRow<Stored>, SourceRows> reader = {rows, n};
    if (HWY_LIKELY(PackValueRowsFrom(reader, Copied<Stored>(), count, width, out))) return true;
  }
  bool finite = false;
  ReadRows(rows, n, [&](auto reader) HWY_ATTR {
    finite = PackValueRowsFrom(reader, Converted<Stored>(), count, width, out);
  });
  return finite;
}

// Whether NaN or an infinity is among V of the key's tile: begins with its first key, and knows of
// those before.
HWY_INLINE void NoteFinite(const PackedHead& head, size_t key, bool finite) {
  uint8_t* special = head.base + head.offsets.v_special + key / kKvTile;
  if (key % kKvTile == 0) *special = 0;
  if (HWY_UNLIKELY(!finite)) *special = 1;
}

// The rows without the channels before `channel`.
HWY_INLINE SourceRows FromChannel(SourceRows rows, size_t channel) {
  const auto count = static_cast<int64_t>(channel);
  rows.first.data += count * rows.first.dim_stride;
  rows.first.scale = ScaleAt(rows.first.scale, count * rows.first.scale_stride);
  return rows;
}

// Rows [i, i + count) of V, all of one tile, and as many as share lanes.
template <typename Stored>
HWY_INLINE void PackTileValues(const PackTask& task, size_t i, size_t count) {
  const PackedHead& head = task.head;
  const size_t key = task.key_begin + i;
  Stored* v_out = reinterpret_cast<Stored*>(head.base + head.offsets.v);
  bool finite = true;
  for (size_t begin = 0; begin < PaddedVHeadDim(head.shape); begin += kPanelWidth) {
    const VPanel panel = VPanelAt(head.shape, key, begin);
    const size_t used = MinOf(panel.width, head.shape.v_head_dim - begin);
    Stored* out = v_out + panel.offset + key % kVTileKeys * panel.width;
    finite &= PackPanel(FromChannel(Skip(task.v, i), begin), used, count, panel.width, out);
  }
  NoteFinite(head, key, finite);
}

// A key of V in bf16 whose neighbour has come before, or comes later: until then it has a 0 beside
// it.
HWY_MAYBE_UNUSED HWY_NOINLINE void PackSingleValue(const PackTask& task, size_t i,
                                                   unsigned char* scratch) {
  using Lanes = FloatValueLanes<hwy::bfloat16_t>;
  const PackedHead& head = task.head;
  const size_t key = task.key_begin + i;
  auto* row = reinterpret_cast<hwy::bfloat16_t*>(scratch);
  LoadRows(task.v, i, 1, head.shape.v_head_dim, row);
  int16_t* v_out = reinterpret_cast<int16_t*>(head.base + head.offsets.v);
  VI16 largest = hn::Zero(di16);
  for (size_t c = 0; c < PaddedVHeadDim(head.shape); c += kLanes) {
    const VPanel panel = VPanelAt(head.shape, key, c);
    int16_t* out = v_out + panel.offset + (key - key % 2) % kVTileKeys * panel.width +
                   c % kPanelWidth * Lanes::kDepth;
    const auto x = hn::Load(Lanes::DChannels(), row + c);
    const VI16 lanes = key % 2 == 0 ? Lanes::Join(x, hn::Zero(Lanes::DChannels()))
                                    : hn::OddEven(Lanes::Join(x, x), hn::Load(di16, out));
    hn::Store(lanes, di16, out);
    largest = hn::Max(largest, Lanes::Magnitudes(lanes));
  }
  NoteFinite(head, key, Lanes::AllFinite(largest));
}

// V in f32, f16 or bf16, where neighbouring keys share lanes.
template <typename Stored>
HWY_INLINE void PackFloatValues(const PackTask& task, unsigned char* scratch) {
  constexpr size_t kDepth = FloatValueLanes<Stored>::kDepth;
  size_t i = 0;
  while (i < task.num_keys) {
    const size_t key = task.key_begin + i;
    const size_t count = MinOf(task.num_keys - i, kKvTile - key % kKvTile);
    if (key % kDepth != 0 || count < kDepth) {
      PackSingleValue(task, i, scratch);
      i += 1;
    } else {
      PackTileValues<Stored>(task, i, count - count % kDepth);
      i += count - count % kDepth;
    }
  }
}

// f16 is moderate or not finite, and then no sum with it is finite.
template <class RowVectors>
constexpr bool kShowsInSums = hwy::IsSame<RowVectors, DenseRow<hwy::float16_t>>();

// Adds kRows rows to `sums`, first to last, and their magnitudes, unless sums show them, to what is
// known of the largest.
template <size_t kRows, class Reader, class Convert>
HWY_INLINE VI32 AddRows(Reader reader, Convert convert, size_t first, float* HWY_RESTRICT sums,
                        VI32 largest) {
  typename Reader::RowVectors rows[kRows];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) rows[r] = reader[first + r];
  ForEachVector(reader.n, [&](size_t c, auto extent) HWY_ATTR {
    VF sum = hn::Load(df, sums + c);
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; ++r) {
      const VF x = convert(rows[r](c, extent));
      if constexpr (!kShowsInSums<typename Reader::RowVectors>) {
        largest = hn::Max(largest, Magnitude(x));
      }
      sum = hn::Add(sum, x);
    }
    hn::Store(sum, df, sums + c);
  });
  return largest;
}

// Sums of `count` rows, in order of keys, so that they do not depend on the vector length. Returns
// the largest magnitudes, or those of the sums where these show them.
template <class Reader, class Convert>
HWY_INLINE VI32 SumRows(Reader reader, Convert convert, size_t count, float* HWY_RESTRICT sums) {
  constexpr size_t kRows = 4;
  for (size_t c = 0; c < RowBufferElements(reader.n); c += kLanes) {
    hn::Store(hn::Zero(df), df, sums + c);
  }
  VI32 largest = hn::Zero(di32);
  size_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    PrefetchRows(reader.rows, i + kRowsAhead, i + kRowsAhead + kRows, count, reader.n);
    largest = AddRows<kRows>(reader, convert, i, sums, largest);
  }
  for (; i < count; ++i) largest = AddRows<1>(reader, convert, i, sums, largest);
  if constexpr (kShowsInSums<typename Reader::RowVectors>) {
    return LargestMagnitudes(sums, reader.n);
  }
  return largest;
}

// Every CenterStride-th of the task's rows.
struct SampledRows {
  SourceRows rows;
  size_t count;
};
HWY_INLINE SampledRows Sample(const SourceRows& source, size_t num_rows) {
  const size_t stride = CenterStride(num_rows);
  SourceRows rows = source;
  rows.length_stride *= static_cast<int64_t>(stride);
  rows.scale_length_stride *= static_cast<int64_t>(stride);
  return {rows, (num_rows + stride - 1) / stride};
}

HWY_NOINLINE void MeanOfRows(const SourceRows& source, size_t num_rows, size_t n,
                             float* HWY_RESTRICT mean) {
  const SampledRows sample = Sample(source, num_rows);
  ReadFinite(sample.rows, n, [=](auto reader, auto convert) HWY_ATTR {
    return AllBelow(SumRows(reader, convert, sample.count, mean), kModerate);
  });
  const VF divisor = hn::Set(df, static_cast<float>(sample.count));
  for (size_t c = 0; c < RowBufferElements(n); c += kLanes) {
    hn::Store(Div(hn::Load(df, mean + c), divisor), df, mean + c);
  }
}

// Sums of the rows' distances from the mean. rows: scratch for 16 of them.
HWY_INLINE void SumDistances(const SourceRows& source, size_t num_rows, size_t n, const float* mean,
                             float* HWY_RESTRICT rows, float* HWY_RESTRICT sums) {
  const SampledRows sample = Sample(source, num_rows);
  const size_t elements = RowBufferElements(n);
  for (size_t c = 0; c < elements; c += kLanes) hn::Store(hn::Zero(df), df, sums + c);
  for (size_t i = 0; i < sample.count; i += kLanes) {
    const size_t count = MinOf(kLanes, sample.count - i);
    VI32 maxima[kLanes];
    LoadFinite(sample.rows, i, count, n, Center{mean}, rows, maxima);
    for (size_t c = 0; c < elements; c += kLanes) {
      VF sum = hn::Load(df, sums + c);
      for (size_t r = 0; r < count; ++r) {
        sum = hn::Add(sum, hn::Abs(hn::Load(df, rows + r * elements + c)));
      }
      hn::Store(sum, df, sums + c);
    }
  }
}

// What is taken away from numbers of whole steps, |scale| each, whose mean is given; 0 where scales
// are no use, or it is few steps.
HWY_INLINE VF WholeSteps(VF mean, VF scale) {
  const VF step = hn::Abs(scale);
  const VF steps = hn::Round(Div(mean, step));
  const auto many = hn::Ge(hn::Abs(steps), hn::Set(df, kFewSteps));
  const auto usable = hn::Gt(KeptRange(scale), hn::Zero(df));
  return hn::IfThenElseZero(hn::And(many, usable), hn::Mul(steps, step));
}

// Writes k_center and, where K is rotated, q_factor, from the task's rows, of which there is at
// least one.
HWY_NOINLINE void CenterKeys(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  float* mean = reinterpret_cast<float*>(scratch);
  float* size = mean + kMaxHeadDim;
  float* k_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.k_center);

  MeanOfRows(task.k, task.num_keys, shape.head_dim, mean);
  if (task.keeps_k) {
    const bool one_scale = task.k.scale_length_stride == 0;
    const VF scale = hn::Set(df, one_scale ? *task.k.first.scale : 0.0f);
    for (size_t d = 0; d < shape.head_dim; d += kLanes) {
      hn::Store(WholeSteps(hn::Load(df, mean + d), scale), df, mean + d);
    }
  }
  for (size_t d = 0; d < shape.head_dim; ++d) k_center[d] = mean[d];
  if (IsRotated(shape.layout)) {
    SumDistances(task.k, task.num_keys, shape.head_dim, mean, size + kMaxHeadDim, size);
    BalanceChannels(task.head, size);
  }
}

// The same of v_center.
HWY_NOINLINE void CenterValues(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  float* mean = reinterpret_cast<float*>(scratch);
  float* v_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.v_center);
  MeanOfRows(task.v, task.num_keys, shape.v_head_dim, mean);
  for (size_t c = 0; task.keeps_v && c < shape.v_head_dim; c += kLanes) {
    const VF scale = LoadScales(task.v.first, c, shape.v_head_dim);
    hn::Store(WholeSteps(hn::Load(df, mean + c), scale), df, mean + c);
  }
  for (size_t c = 0; c < PaddedVHeadDim(shape); ++c) v_center[c] = mean[c];
}

// K in quanta, per token: kLanes keys become whole vectors of the layout.
template <class Keys>
class QuantizedKeyPacker {
 public:
  QuantizedKeyPacker(const PackTask& task, unsigned char* HWY_RESTRICT scratch)
      : task_(task),
        head_dim_(task.head.shape.head_dim),
        elements_(RowBufferElements(head_dim_)),
        lanes_(PaddedHeadDim(task.head.shape) / kDepthOf<Keys>),
        rotated_(IsRotated(task.head.shape.layout)) {
    static_assert((kLanes + 2) * kMaxHeadDim * sizeof(float) <= kPackScratchBytes,
                  "rows of one large block or two, centre and factors");
    center_ = reinterpret_cast<float*>(scratch);
    factor_ = center_ + kMaxHeadDim;
    loads_ahead_ = 2 * elements_ <= kMaxHeadDim;
    blocks_[0].rows = factor_ + kMaxHeadDim;
    blocks_[1].rows = blocks_[0].rows + (loads_ahead_ ? kLanes * elements_ : 0);
    if (rotated_) LoadKeyFactors(task.head, factor_);
    // Copied to where whole vectors of it can be read.
    const float* k_center = reinterpret_cast<const float*>(At(task.head.offsets.k_center));
    for (size_t d = 0; d < elements_; ++d) center_[d] = d < head_dim_ ? k_center[d] : 0.0f;
  }

  // Row i of the task.
  HWY_NOINLINE void PackOne(size_t i) {
    Block& block = blocks_[0];
    Load(i, 1, block);
    auto* quanta = reinterpret_cast<Quantum*>(block.rows);
    *Scale(i) = QuantizeRow(block.rows, elements_, MaxK(), Kept(i, 1), Keys::kAdded, quanta);
    int32_t* column = Column(i);
    for (size_t lane = 0; lane < lanes_; ++lane) {
      __builtin_memcpy(column + lane * kKeyBlock, quanta + lane * kDepthOf<Keys>, kLaneBytes);
    }
  }

  // Rows [begin, end), from and to a multiple of kLanes. Where scratch has room for them, the next
  // rows are loaded before the quanta of these, which wait for a chain of some 80 cycles: their
  // maximum and a division.
  HWY_INLINE void PackVectors(size_t begin, size_t end) {
    if (begin == end) return;
    Load(begin, kLanes, blocks_[0]);
    for (size_t i = begin, turn = 0; i < end; i += kLanes, turn ^= 1) {
      Block& block = blocks_[turn];
      const VF ranges = hn::Max(FiniteRanges(block.maxima, block.rows, elements_), Kept(i, kLanes));
      const QuantStep step = StepForRange(ranges, static_cast<float>(MaxK()));
      hn::StoreU(step.scale, df, Scale(i));
      HWY_ALIGN float inverses[kLanes];
      hn::Store(step.inverse, df, inverses);
      const bool has_next = i + kLanes < end;
      if (has_next && loads_ahead_) Load(i + kLanes, kLanes, blocks_[turn ^ 1]);
      QuantaToPanel<Quantum>(block.rows, elements_, inverses, Keys::kAdded, lanes_, Column(i),
                             kKeyBlock);
      if (has_next && !loads_ahead_) Load(i + kLanes, kLanes, blocks_[turn ^ 1]);
    }
  }

 private:
  using Quantum = typename Keys::Stored;
  struct Block {
    float* rows;
    VI32 maxima[kLanes];
  };

  // Out of line: one copy for all types of rows is large enough.
  HWY_NOINLINE void Load(size_t i, size_t count, Block& block) {
    const size_t ahead = i + kRowsAhead;
    if (count > 1) PrefetchRows(task_.k, ahead, ahead + count, task_.num_keys, head_dim_);
    LoadFinite(task_.k, i, count, head_dim_, Center{center_}, block.rows, block.maxima);
    if (!rotated_) return;
    RotateRows(factor_, head_dim_, block.rows, count);
    if (count == kLanes) MaximaOfRows(block.rows, elements_, block.maxima);
  }

  HWY_INLINE uint8_t* At(size_t offset) const { return task_.head.base + offset; }
  HWY_INLINE int MaxK() const { return Keys::MaxK(head_dim_); }
  HWY_INLINE VF Kept(size_t i, size_t count) const {
    return task_.keeps_k ? KeptRanges(task_.k, i, count) : hn::Zero(df);
  }
  HWY_INLINE float* Scale(size_t i) const {
    return reinterpret_cast<float*>(At(task_.head.offsets.k_scale)) + task_.key_begin + i;
  }
  // Where the lanes of row i begin, kKeyBlock apart.
  HWY_INLINE int32_t* Column(size_t i) const {
    const size_t key = task_.key_begin + i;
    Quantum* k = reinterpret_cast<Quantum*>(At(task_.head.offsets.k));
    return reinterpret_cast<int32_t*>(k + KBlockOffset(task_.head.shape, key)) + key % kKeyBlock;
  }

  const PackTask& task_;
  size_t head_dim_;
  size_t elements_;
  size_t lanes_;
  bool rotated_;
  bool loads_ahead_;
  float* center_;
  float* factor_;
  Block blocks_[2];
};

// The low bytes of four vectors, interleaved.
HWY_INLINE VU8 InterleaveBytes(VI32 a, VI32 b, VI32 c, VI32 d) {
  const VI16 ac = hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(c)), hn::BitCast(di16, a));
  const VI16 bd = hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(d)), hn::BitCast(di16, b));
  return hn::OddEven(hn::BitCast(du8, hn::ShiftLeft<8>(bd)), hn::BitCast(du8, ac));
}

// Loads kRows rows of V, minus centre and RowBufferElements apart; see LoadFinite. maxima: by
// channels, raised to what these rows have.
template <size_t kRows, class Reader, class Convert>
HWY_INLINE void LoadValueRows(Reader reader, Convert convert, size_t first, Center minus_center,
                              float* HWY_RESTRICT out, int32_t* HWY_RESTRICT maxima) {
  const size_t width = RowBufferElements(reader.n);
  typename Reader::RowVectors rows[kRows];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) {
    rows[r] = reader[first + r];
    ZeroPadding(reader.n, out + r * width);
  }
  ForEachVector(reader.n, [&](size_t c, auto extent) HWY_ATTR {
    VI32 largest = hn::Load(di32, maxima + c);
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; ++r) {
      const VF x = minus_center(convert(rows[r](c, extent)), c);
      hn::Store(x, df, out + r * width + c);
      largest = hn::Max(largest, Magnitude(x));
    }
    hn::Store(largest, di32, maxima + c);
  });
}

// Keys of V that share a lane.
constexpr size_t kVRows = 4;

template <class Reader, class Convert>
HWY_INLINE VI32 LoadValuesFrom(Reader reader, Convert convert, size_t num_rows, Center minus_center,
                               float* HWY_RESTRICT rows, int32_t* HWY_RESTRICT maxima) {
  const size_t width = RowBufferElements(reader.n);
  for (size_t c = 0; c < width; c += kLanes) hn::Store(hn::Zero(di32), di32, maxima + c);
  size_t i = 0;
  for (; i + kVRows <= num_rows; i += kVRows) {
    PrefetchRows(reader.rows, i + kRowsAhead, i + kRowsAhead + kVRows, num_rows, reader.n);
    LoadValueRows<kVRows>(reader, convert, i, minus_center, rows + i * width, maxima);
  }
  for (; i < num_rows; ++i) {
    LoadValueRows<1>(reader, convert, i, minus_center, rows + i * width, maxima);
  }
  VI32 largest = hn::Zero(di32);
  for (size_t c = 0; c < width; c += kLanes) {
    largest = hn::Max(largest, hn::Load(di32, maxima + c));
  }
  return largest;
}

// Up to kKvTile rows of V, as many channels as a panel has; see LoadFinite. What rows are missing
// to a multiple of kVRows is zeroed. maxima: largest magnitudes of each channel.
HWY_INLINE void LoadValues(const SourceRows& source, size_t num_rows, size_t n, Center minus_center,
                           float* HWY_RESTRICT rows, int32_t* HWY_RESTRICT maxima) {
  const size_t width = RowBufferElements(n);
  const bool moderate = minus_center.IsModerate(n);
  ReadFinite(source, n, [=](auto reader, auto convert) HWY_ATTR {
    const VI32 largest = LoadValuesFrom(reader, convert, num_rows, minus_center, rows, maxima);
    return moderate && AllBelow(largest, kModerate);
  });
  for (size_t i = num_rows * width; i < RoundUp(num_rows, kVRows) * width; i += kLanes) {
    hn::Store(hn::Zero(df), df, rows + i);
  }
}

// V of one tile, per channel: the range over the tile, then the quanta, four keys to a 32-bit lane.
// A panel at a time, whose rows fit a buffer.
HWY_NOINLINE void PackQuantizedValues(const PackTask& task, unsigned char* HWY_RESTRICT scratch) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  const size_t channels = PaddedVHeadDim(shape);
  uint8_t* v_out = task.head.base + offsets.v;
  float* v_scale = reinterpret_cast<float*>(task.head.base + offsets.v_scale) +
                   task.key_begin / kKvTile * channels;
  const float* v_center = reinterpret_cast<const float*>(task.head.base + offsets.v_center);
  constexpr int kVBias = I8Ops::kBiasedV ? kBias : 0;
  static_assert(kKvTile * kPanelWidth * sizeof(float) <= kPackScratchBytes, "a panel in f32");
  float* rows = reinterpret_cast<float*>(scratch);
  HWY_ALIGN int32_t maxima[kPanelWidth];

  for (size_t begin = 0; begin < channels; begin += kPanelWidth) {
    const VPanel panel = VPanelAt(shape, task.key_begin, begin);
    const size_t width = panel.width;
    const size_t used = MinOf(width, shape.v_head_dim - begin);  // RowBufferElements(used) == width
    const SourceRows source = FromChannel(task.v, begin);
    LoadValues(source, task.num_keys, used, Center{v_center + begin}, rows, maxima);
    uint8_t* out = v_out + panel.offset + task.key_begin % kVTileKeys * width;
    for (size_t c = 0; c < width; c += kLanes) {
      VF range = hn::BitCast(df, hn::Load(di32, maxima + c));
      if (task.keeps_v && c < used) {
        range = hn::Max(range, KeptRange(LoadScales(source.first, c, used)));
      }
      const QuantStep step = StepForRange(range, kMaxQuantum);
      hn::Store(step.scale, df, v_scale + begin + c);
      for (size_t i = 0; i < task.num_keys; i += kVRows) {
        VI32 quanta[kVRows];
        HWY_UNROLL(4)
        for (size_t j = 0; j < kVRows; ++j) {
          const VF x = hn::Load(df, rows + (i + j) * width + c);
          quanta[j] = QuantaBits(x, step.inverse, kVBias);
        }
        const VU8 bytes = InterleaveBytes(quanta[0], quanta[1], quanta[2], quanta[3]);
        hn::Store(bytes, du8, out + i * width + c * kVRows);
      }
    }
  }
}

// What rows of k and v have in common, to be found before any is packed.
template <class AnyForm>
void FindCenters(const PackTask& task, unsigned char* scratch) {
  CenterKeys(task, scratch);
  if constexpr (AnyForm::Values::kQuantized) CenterValues(task, scratch);
}

template <class Keys>
HWY_INLINE void PackKeys(const PackTask& task, unsigned char* scratch) {
  using Packer =
      hwy::If<Keys::kQuantized, QuantizedKeyPacker<Keys>, FloatKeyPacker<typename Keys::Stored>>;
  Packer packer(task, scratch);
  PackKeysBy(task, packer);
}

// Any range of keys; where V is quantised, one tile of up to kKvTile keys, from its first.
template <class AnyForm>
void Pack(const PackTask& task, unsigned char* scratch) {
  using Values = typename AnyForm::Values;
  PackKeys<typename AnyForm::Keys>(task, scratch);
  if constexpr (Values::kQuantized) {
    PackQuantizedValues(task, scratch);
  } else {
    PackFloatValues<typename Values::Stored>(task, scratch);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_PACK_INL_H_
