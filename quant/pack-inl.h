// Packs K and V rows into the layout of kv/layout.h.
//
// Cost: floats are read, converted and stored once; quantised forms read up to kCenterRows rows
// more for the means. K is interleaved by 64 keys: whole vectors of them are transposed as the rows
// of Q are, single rows become head_dim / depth stores kKeyBlock lanes apart. A row of V stays a
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

// K in f32, f16 or bf16: a row of 64 keys for each of head_dim, or for two neighbours in bf16.
template <typename Stored>
class FloatKeyPacker {
 public:
  FloatKeyPacker(const PackTask& task, unsigned char* scratch)
      : task_(task), head_dim_(task.head.shape.head_dim), rows_(reinterpret_cast<float*>(scratch)) {
    static_assert(kLanes * kMaxHeadDim * sizeof(float) <= kPackScratchBytes, "rows of K");
  }

  HWY_NOINLINE void PackOne(size_t i) {
    LoadRows(task_.k, i, 1, head_dim_, rows_);
    const hn::Rebind<Stored, DF> d_stored;
    HWY_ALIGN Stored stored[kLanes];
    Stored* column = Column(i);
    const size_t elements = RoundUp(head_dim_, kDepth);
    for (size_t begin = 0; begin < elements; begin += kLanes) {
      hn::Store(FromF32(d_stored, hn::Load(df, rows_ + begin)), d_stored, stored);
      const size_t count = MinOf(kLanes, elements - begin);
      for (size_t j = 0; j < count; ++j) {
        const size_t row = (begin + j) / kDepth;
        column[row * kKeyBlock * kDepth + j % kDepth] = stored[j];
      }
    }
  }

  HWY_INLINE void PackVectors(size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += kLanes) {
      PrefetchRows(task_.k, i + kRowsAhead, i + kRowsAhead + kLanes, task_.num_keys, head_dim_);
      LoadRows(task_.k, i, kLanes, head_dim_, rows_);
      const size_t elements = RowBufferElements(head_dim_);
      if constexpr (kDepth == 2) {
        RowsToPairPanel(rows_, elements, RoundUp(head_dim_, 2) / 2,
                        reinterpret_cast<int32_t*>(Column(i)), kKeyBlock);
      } else {
        RowsToPanel(rows_, elements, head_dim_, Column(i), kKeyBlock);
      }
    }
  }

 private:
  static constexpr size_t kDepth = hwy::IsSame<Stored, hwy::bfloat16_t>() ? 2 : 1;

  HWY_INLINE Stored* Column(size_t i) const {
    const size_t key = task_.key_begin + i;
    Stored* k = reinterpret_cast<Stored*>(task_.head.base + task_.head.offsets.k);
    return k + KBlockOffset(task_.head.shape, key) + key % kKeyBlock * kDepth;
  }

  const PackTask& task_;
  size_t head_dim_;
  float* rows_;
};

// One row of V, of n channels, to the panels of `key`; channels past n are 0. Returns the largest
// magnitudes of what was stored: what f16 cannot hold has become an infinity.
template <typename Stored, class RowVectors>
HWY_INLINE VI32 PackValueRow(const RowVectors& row, size_t n, size_t channels,
                             const PackedShape& shape, size_t key, Stored* HWY_RESTRICT v_out) {
  const hn::Rebind<Stored, DF> d_stored;
  VI32 largest = hn::Zero(di32);
  for (size_t begin = 0; begin < channels; begin += kPanelWidth) {
    const VPanel panel = VPanelAt(shape, key, begin);
    Stored* HWY_RESTRICT out = v_out + panel.offset + key % kVTileKeys * panel.width;
    const size_t used = MinOf(panel.width, n - begin);
    ForEachVector(used, [&](size_t c, auto extent) HWY_ATTR {
      const auto stored = FromF32(d_stored, row(begin + c, extent));
      hn::StoreU(stored, d_stored, out + c);
      largest = hn::Max(largest, Magnitude(ToF32(stored)));
    });
    for (size_t c = RoundUp(used, kLanes); c < panel.width; c += kLanes) {
      hn::StoreU(hn::Zero(d_stored), d_stored, out + c);
    }
  }
  return largest;
}

// Whether NaN or an infinity is among V of the key's tile: begins with its first key, and knows of
// those before. largest: what packing the key returned.
HWY_INLINE void NoteSpecial(const PackedHead& head, size_t key, VI32 largest) {
  uint8_t* special = head.base + head.offsets.v_special + key / kKvTile;
  if (key % kKvTile == 0) *special = 0;
  if (HWY_UNLIKELY(!AllBelow(largest, -kNegInf))) *special = 1;
}

template <typename Stored, class Reader>
HWY_INLINE void PackFloatValuesFrom(const PackTask& task, Reader reader) {
  const PackedHead head = task.head;
  Stored* v_out = reinterpret_cast<Stored*>(head.base + head.offsets.v);
  const size_t channels = PaddedVHeadDim(head.shape);
  const size_t num_keys = task.num_keys;
  size_t key = task.key_begin;
  for (size_t i = 0; i < num_keys; ++i, ++key) {
    PrefetchRows(reader.rows, i + kRowsAhead, i + kRowsAhead + 1, num_keys, reader.n);
    NoteSpecial(head, key, PackValueRow(reader[i], reader.n, channels, head.shape, key, v_out));
  }
}

// One key of V in bf16, or two, of n channels, to the lanes of their panels: lanes(channel, extent,
// there), which knows what is there. Returns the largest magnitudes of what was stored.
template <class Lanes>
HWY_INLINE VI32 PackValueLanes(Lanes lanes, size_t n, const PackedShape& shape, size_t key,
                               uint8_t* HWY_RESTRICT v_out) {
  const size_t channels = PaddedVHeadDim(shape);
  VI32 largest = hn::Zero(di32);
  int32_t* HWY_RESTRICT lanes_out = reinterpret_cast<int32_t*>(v_out);
  for (size_t begin = 0; begin < channels; begin += kPanelWidth) {
    const VPanel panel = VPanelAt(shape, key, begin);
    const size_t row = key % kVTileKeys / 2;
    int32_t* HWY_RESTRICT out = lanes_out + panel.offset / 2 + row * panel.width;
    const size_t used = MinOf(panel.width, n - begin);
    ForEachVector(used, [&](size_t c, auto extent) HWY_ATTR {
      const VI32 pairs = lanes(begin + c, extent, hn::Load(di32, out + c));
      hn::Store(pairs, di32, out + c);
      largest =
          hn::Max(largest, hn::Max(Magnitude(LowerOfPairs(pairs)), Magnitude(UpperOfPairs(pairs))));
    });
    for (size_t c = RoundUp(used, kLanes); c < panel.width; c += kLanes) {
      hn::Store(hn::Zero(di32), di32, out + c);
    }
  }
  return largest;
}

// A key whose neighbour has come before, or comes later: until then it has a 0 beside it. row: in
// f32, with padding.
HWY_NOINLINE void PackSingleValue(const PackedHead& head, size_t key,
                                  const float* HWY_RESTRICT row) {
  const VI32 largest = PackValueLanes(
      [=](size_t c, auto, VI32 there) HWY_ATTR {
        const VF x = hn::Load(df, row + c);
        if (key % 2 == 0) return PairsOf(x, hn::Zero(df));
        return hn::Or(hn::AndNot(hn::Set(di32, kUpperHalf), there), PairsOf(hn::Zero(df), x));
      },
      head.shape.v_head_dim, head.shape, key, head.base + head.offsets.v);
  NoteSpecial(head, key, largest);
}

template <class Reader>
HWY_INLINE void PackValuePairs(const PackTask& task, Reader reader, size_t begin, size_t end) {
  const PackedHead head = task.head;
  uint8_t* v_out = head.base + head.offsets.v;
  const size_t num_keys = task.num_keys;
  size_t key = task.key_begin + begin;
  for (size_t i = begin; i < end; i += 2, key += 2) {
    PrefetchRows(reader.rows, i + kRowsAhead, i + kRowsAhead + 2, num_keys, reader.n);
    const auto first = reader[i];
    const auto second = reader[i + 1];
    const auto both = [=](size_t c, auto extent, VI32)
                          HWY_ATTR { return PairsOf(first(c, extent), second(c, extent)); };
    NoteSpecial(head, key, PackValueLanes(both, reader.n, head.shape, key, v_out));
  }
}

// V in bf16, where neighbouring keys share lanes.
[[maybe_unused]] HWY_NOINLINE void PackBF16Values(const PackTask& task, unsigned char* scratch) {
  const size_t n = task.head.shape.v_head_dim;
  float* row = reinterpret_cast<float*>(scratch);
  const auto pack_single = [&](size_t i) HWY_ATTR {
    LoadRows(task.v, i, 1, n, row);
    PackSingleValue(task.head, task.key_begin + i, row);
  };
  const size_t begin = MinOf(task.key_begin % 2, task.num_keys);
  const size_t end = task.num_keys - (task.num_keys - begin) % 2;
  if (begin != 0) pack_single(0);
  ReadRows(task.v, n, [&](auto reader) HWY_ATTR { PackValuePairs(task, reader, begin, end); });
  if (end != task.num_keys) pack_single(end);
}

template <typename Stored>
HWY_INLINE void PackFloatValues(const PackTask& task) {
  ReadRows(task.v, task.head.shape.v_head_dim,
           [&](auto reader) HWY_ATTR { PackFloatValuesFrom<Stored>(task, reader); });
}

// Adds kRows rows to `sums`, first to last, and their magnitudes to what is known of the largest.
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
      largest = hn::Max(largest, Magnitude(x));
      sum = hn::Add(sum, x);
    }
    hn::Store(sum, df, sums + c);
  });
  return largest;
}

// Sums of `count` rows, in order of keys, so that they do not depend on the vector length. Returns
// the largest magnitudes.
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
      const bool has_next = i + kLanes < end;
      if (has_next && loads_ahead_) Load(i + kLanes, kLanes, blocks_[turn ^ 1]);
      QuantaToPanel<Quantum>(block.rows, elements_, step.inverse, Keys::kAdded, lanes_, Column(i),
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

// The rows without the channels before `channel`.
HWY_INLINE SourceRows FromChannel(SourceRows rows, size_t channel) {
  const auto count = static_cast<int64_t>(channel);
  rows.first.data += count * rows.first.dim_stride;
  rows.first.scale = ScaleAt(rows.first.scale, count * rows.first.scale_stride);
  return rows;
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
  } else if constexpr (hwy::IsSame<typename Values::Stored, hwy::bfloat16_t>()) {
    PackBF16Values(task, scratch);
  } else {
    PackFloatValues<typename Values::Stored>(task);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_PACK_INL_H_
