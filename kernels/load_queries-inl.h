// The first step: rows of Q, of the caller's type, to the panel of a query tile.
//
// f32 multiplies Q by the softmax scale, so that scores need no scaling. int8 quantises each row
// and leaves the scale to the scores, where the per-token scale of K has to be applied anyway.
#ifndef SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
#define SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Elements of a query row's panel form, in 32-bit lanes.
template <class Scheme>
HWY_INLINE size_t QueryLanes(size_t head_dim) {
  return RowBufferElements(head_dim) / kDepth<Scheme>;
}

// Where a query row's scale and accumulators begin; see QueryTile. f32 has no use for them.
struct QueryScale {
  float row_scale;
  int32_t acc_init;
};

// Row r of the task in the form that the products read: QueryLanes 32-bit lanes. row: scratch for
// RowBufferElements(head_dim) floats, where the lanes stay until the next call.
template <class Scheme>
HWY_INLINE QueryScale LoadQuery(const AttendTask& task, size_t r, float* HWY_RESTRICT row) {
  const size_t head_dim = task.head.shape.head_dim;
  const size_t elements = RowBufferElements(head_dim);
  LoadRow(RowAt(task.q, r), head_dim, row);
  if constexpr (Scheme::kI8) {
    SanitizeRow(row, elements);
    // In place: vector after vector is read before a quarter as many bytes are written.
    int32_t sum;
    const float scale = QuantizeRow(row, elements, reinterpret_cast<int8_t*>(row), &sum);
    const bool biased = Scheme::kLayout == LayoutId::kI8BiasedK;
    return {scale * task.scale_log2e, biased ? -kBias * sum : 0};
  } else {
    const VF scale = hn::Set(df, task.scale_log2e);
    for (size_t i = 0; i < elements; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(df, row + i), scale), df, row + i);
    }
    return {};
  }
}

// All rows of a tile. chunks: kLanes * RowBufferElements(head_dim) floats; row: one row of them.
template <class Scheme>
HWY_INLINE void LoadQueries(const AttendTask& task, const QueryTile& q,
                            uint8_t* HWY_RESTRICT chunks, float* HWY_RESTRICT row) {
  const size_t lanes = QueryLanes<Scheme>(task.head.shape.head_dim);
  const size_t num_chunks = lanes / kChunkElements;
  const size_t row_stride = q.num_vectors * kLanes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t r = v * kLanes + lane;
      QueryScale scale = {};
      if (r < q.num_rows) {
        scale = LoadQuery<Scheme>(task, q.first_row + r, row);
      } else {
        for (size_t i = 0; i < lanes; i += kLanes) hn::Store(hn::Zero(df), df, row + i);
      }
      q.row_scale[r] = scale.row_scale;
      q.acc_init[r] = scale.acc_init;
      for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
        CopyChunk(row + chunk * kChunkElements, chunks + ChunkOffset(lane, chunk));
      }
    }
    ChunksToPanel(chunks, num_chunks, reinterpret_cast<int32_t*>(q.panel) + v * kLanes, row_stride);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
