// The first step: rows of Q, of the caller's type, to the panel of a query tile.
//
// Floats multiply Q by the softmax scale, so that scores need no scaling. Where K is quantised,
// rows of Q are as well, and leave the scale to the scores, where the per-token scale of K has to
// be applied anyway.
#ifndef SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
#define SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/transpose-inl.h"
#include "quant/quantize-inl.h"
#include "quant/rotate-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Elements of a query row's panel form, in 32-bit lanes.
template <class Keys>
HWY_INLINE size_t QueryLanes(size_t head_dim) {
  return RowBufferElements(head_dim) / kDepthOf<Keys>;
}

// A query row's scale and where its accumulators begin; see QueryTile. Floats have no use for them.
struct QueryScale {
  float row_scale;
  int32_t acc_init;
  float lack;
};

// True if rows have to know what their scores lack: their products with the mean that K has lost.
HWY_INLINE bool NeedsLack(const AttendTask& task) {
  return HasQuantizedK(task.head.shape.layout) && task.kv_len != 0 && NeedsScores(task);
}

// A row of Q times K's mean, by lanes.
HWY_INLINE VF TimesCenter(const AttendTask& task, const float* HWY_RESTRICT row) {
  const float* HWY_RESTRICT center =
      reinterpret_cast<const float*>(task.head.base + task.head.offsets.k_center);
  const size_t head_dim = task.head.shape.head_dim;
  VF sum = hn::Zero(df);
  size_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    sum = hn::MulAdd(hn::Load(df, center + d), hn::Load(df, row + d), sum);
  }
  if (d == head_dim) return sum;
  const VF rest = hn::LoadN(df, center + d, head_dim - d);  // a center ends where it ends
  return hn::MulAdd(rest, hn::Load(df, row + d), sum);
}

// What the scores of a row of Q lack, in octaves.
HWY_NOINLINE float ScoreLack(const AttendTask& task, const float* HWY_RESTRICT row) {
  if (!NeedsLack(task)) return 0.0f;
  return hn::ReduceSum(df, TimesCenter(task, row)) * task.scale_log2e;
}

// The same of rows side by side. rows: count <= kLanes of them, RowBufferElements(head_dim) apart;
// lacks of none are not to be used.
HWY_NOINLINE VF ScoreLacks(const AttendTask& task, const float* HWY_RESTRICT rows, size_t count) {
  if (!NeedsLack(task)) return hn::Zero(df);
  if (count == 1) return hn::Set(df, ScoreLack(task, rows));
  const size_t elements = RowBufferElements(task.head.shape.head_dim);
  VI32 sums[kLanes];
  for (size_t r = 0; r < kLanes; ++r) {
    sums[r] = hn::Zero(di32);
    if (r < count) sums[r] = hn::BitCast(di32, TimesCenter(task, rows + r * elements));
  }
  TransposeSquare(sums);
  VF lacks = hn::BitCast(df, sums[0]);
  HWY_UNROLL(16)
  for (size_t i = 1; i < kLanes; ++i) lacks = hn::Add(lacks, hn::BitCast(df, sums[i]));
  return hn::Mul(lacks, hn::Set(df, task.scale_log2e));
}

// Those of rows [r, r + count) of a tile, with the keys of this task and of those that it leads to,
// which need not read Q once more: but for rotations, which each part has of its own.
HWY_INLINE void StoreLacks(const AttendTask& task, const float* HWY_RESTRICT rows, size_t count,
                           const QueryTile& q, size_t r) {
  hn::Store(ScoreLacks(task, rows, count), df, q.lack + r);
  if (HWY_LIKELY(task.next == nullptr) || IsRotated(task.head.shape.layout)) return;
  float* lacks = q.lack + r;
  for (const AttendTask* part = task.next; part != nullptr; part = part->next) {
    lacks += q.num_vectors * kLanes;
    hn::Store(ScoreLacks(*part, rows, count), df, lacks);
  }
}

// True if rows of Q are int8 with one scale each, and quanta that K's can be multiplied by.
HWY_INLINE bool KeepsQueries(const AttendTask& task) {
  constexpr bool kReaches = I8Ops::kMaxQ == static_cast<int>(kMaxQuantum);
  return kReaches && HasPlainI8K(task.head.shape.layout) && task.q.dtype == DType::kI8 &&
         task.q.scale.dim_stride == 0;
}

// Row r of the task as floats and in the form that the products read. row:
// RowBufferElements(head_dim) floats, of rotated K rotated; lanes: QueryLanes 32-bit lanes.
template <class Keys>
HWY_INLINE QueryScale LoadQuery(const AttendTask& task, size_t r, float* HWY_RESTRICT row,
                                uint8_t* HWY_RESTRICT lanes) {
  const size_t head_dim = task.head.shape.head_dim;
  const size_t elements = RowBufferElements(head_dim);
  if constexpr (Keys::kQuantized) {
    VI32 maxima;
    LoadFinite(task.q, r, 1, head_dim, NoCenter(), row, &maxima);
    const float lack = ScoreLack(task, row);
    RotateQueries(task, row, 1);
    auto* quanta = reinterpret_cast<typename Keys::Stored*>(lanes);
    const VF kept = KeepsQueries(task) ? KeptRanges(task.q, r, 1) : hn::Zero(df);
    const float scale = QuantizeRow(row, elements, Keys::MaxQ(head_dim), kept, 0, quanta);
    const int32_t sum = Keys::kAdded != 0 ? SumOfQuanta(quanta, elements) : 0;
    return {scale * task.scale_log2e, -Keys::kAdded * sum, lack};
  } else {
    using Lane = hwy::If<kDepthOf<Keys> == 2, hwy::bfloat16_t, float>;
    const hn::Rebind<Lane, DF> d_lane;
    LoadRow(RowAt(task.q, r), head_dim, row);
    const VF scale = hn::Set(df, task.scale_log2e);
    for (size_t i = 0; i < elements; i += kLanes) {
      hn::StoreU(FromF32(d_lane, hn::Mul(hn::Load(df, row + i), scale)), d_lane,
                 reinterpret_cast<Lane*>(lanes) + i);
    }
    return {};
  }
}

// Arranges the steps of kLanes rows of a panel for matrix products.
template <size_t kSteps>
HWY_INLINE void ArrangePanel(int32_t* HWY_RESTRICT panel, size_t lanes, size_t row_stride) {
  for (size_t lane = 0; lane < lanes; lane += kSteps, panel += kSteps * row_stride) {
    VI32 x[kSteps];
    HWY_UNROLL(4)
    for (size_t i = 0; i < kSteps; ++i) x[i] = hn::Load(di32, panel + i * row_stride);
    ArrangeSteps(x);
    HWY_UNROLL(4)
    for (size_t i = 0; i < kSteps; ++i) hn::Store(x[i], di32, panel + i * row_stride);
  }
}

// Rows [r, r + kLanes) of the tile, as LoadQuery would leave them, side by side in the panel's
// vector of lanes. Rows that the tile does not have are 0.
template <class Keys>
HWY_INLINE void LoadQueryRows(const AttendTask& task, const QueryTile& q, size_t r,
                              float* HWY_RESTRICT rows) {
  const size_t head_dim = task.head.shape.head_dim;
  const size_t elements = RowBufferElements(head_dim);
  const size_t lanes = QueryLanes<Keys>(head_dim);
  const size_t row_stride = q.num_vectors * kLanes;
  const size_t count = MinOf(kLanes, q.num_rows - r);
  const size_t first = q.first_row + r;
  int32_t* panel = reinterpret_cast<int32_t*>(q.panel) + r;
  // While these are quantised and transposed, the next ones come from memory.
  PrefetchRows(task.q, first + kLanes, first + 2 * kLanes, NumRows(task), head_dim);
  for (size_t i = count * elements; i < kLanes * elements; i += kLanes) {
    hn::Store(hn::Zero(df), df, rows + i);
  }
  const VF scale = hn::Set(df, task.scale_log2e);
  if constexpr (Keys::kQuantized) {
    using Quantum = typename Keys::Stored;
    VI32 maxima[kLanes];
    for (size_t i = count; i < kLanes; ++i) maxima[i] = hn::Zero(di32);
    LoadFinite(task.q, first, count, head_dim, NoCenter(), rows, maxima);
    StoreLacks(task, rows, count, q, r);
    if (IsRotated(task.head.shape.layout)) {
      RotateQueries(task, rows, count);
      MaximaOfRows(rows, elements, maxima);
    }
    VF ranges = FiniteRanges(maxima, rows, elements);
    if (KeepsQueries(task)) ranges = hn::Max(ranges, KeptRanges(task.q, first, count));
    const QuantStep step = StepForRange(ranges, static_cast<float>(Keys::MaxQ(head_dim)));
    hn::Store(hn::Mul(step.scale, scale), df, q.row_scale + r);
    HWY_ALIGN float inverses[kLanes];
    hn::Store(step.inverse, df, inverses);
    QuantaToPanel<Quantum>(rows, elements, inverses, 0, lanes, panel, row_stride);
  } else {
    LoadRows(task.q, first, count, head_dim, rows);
    for (size_t i = 0; i < count * elements; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(df, rows + i), scale), df, rows + i);
    }
    if constexpr (kDepthOf<Keys> == 2) {
      RowsToPairPanel(rows, elements, lanes, panel, row_stride);
    } else {
      RowsToPanel<float, 1>(reinterpret_cast<const unsigned char*>(rows),
                            static_cast<int64_t>(elements * sizeof(float)), lanes,
                            reinterpret_cast<float*>(panel), row_stride);
    }
  }
  if constexpr (Keys::Product::kSteps != 1) {
    static_assert(kChannelAlign % kFullDepthOf<Keys> == 0, "a panel has whole groups of steps");
    ArrangePanel<Keys::Product::kSteps>(panel, lanes, row_stride);
  }
}

// Where the accumulators of kLanes rows begin: what K's bias adds to their products is taken back.
template <class Keys>
HWY_INLINE VI32 QueryAccInit(const uint8_t* HWY_RESTRICT panel, size_t lanes, size_t stride_bytes,
                             int32_t rounding) {
  VI32 sum = hn::Zero(di32);
  if constexpr (Keys::kAdded != 0) {
    for (size_t i = 0; i < lanes; ++i) {
      sum = I8Ops::DotPV(sum, hn::Set(du8, 1), hn::BitCast(di8, hn::Load(du8, panel)));
      panel += stride_bytes;
    }
  }
  return hn::Sub(hn::Set(di32, rounding), hn::Mul(sum, hn::Set(di32, Keys::kAdded)));
}

template <class Keys>
HWY_INLINE void SetSumShift(size_t head_dim, QueryTile& q) {
  q.sum_shift = SumShift<Keys>(head_dim);
  q.rounding = q.sum_shift == 0 ? 0 : 1 << (q.sum_shift - 1);
}

// All rows of a tile; rows: scratch for kLanes * RowBufferElements(head_dim) floats.
template <class Keys>
HWY_NOINLINE void LoadQueries(const AttendTask& task, float* HWY_RESTRICT rows, QueryTile& q) {
  const size_t head_dim = task.head.shape.head_dim;
  if constexpr (Keys::kQuantized) SetSumShift<Keys>(head_dim, q);
  const size_t stride_bytes = q.num_vectors * kVectorBytes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    LoadQueryRows<Keys>(task, q, v * kLanes, rows);
    if constexpr (Keys::kQuantized) {
      const VI32 init = QueryAccInit<Keys>(q.panel + v * kVectorBytes, QueryLanes<Keys>(head_dim),
                                           stride_bytes, q.rounding);
      hn::Store(init, di32, q.acc_init + v * kLanes);
    }
  }
}

// Of the rows of a part, whose Q is there already, what depends on its keys.
template <class Keys>
HWY_NOINLINE void ReloadQueries(const AttendTask& task, float* HWY_RESTRICT rows, QueryTile& q) {
  if constexpr (Keys::kQuantized) {
    if (IsRotated(task.head.shape.layout)) return LoadQueries<Keys>(task, rows, q);
    const size_t head_dim = task.head.shape.head_dim;
    SetSumShift<Keys>(head_dim, q);
    if (task.part != 0) return;  // a task before has left them
    for (size_t r = 0; r < q.num_rows; r += kLanes) {
      const size_t count = MinOf(kLanes, q.num_rows - r);
      VI32 maxima[kLanes];
      LoadFinite(task.q, q.first_row + r, count, head_dim, NoCenter(), rows, maxima);
      StoreLacks(task, rows, count, q, r);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
