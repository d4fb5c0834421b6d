// The first step: rows of Q, of the caller's type, to the panel of a query tile.
//
// f32 multiplies Q by the softmax scale, so that scores need no scaling. int8 quantises each row and
// leaves the scale to the scores, where the per-token scale of K has to be applied anyway.
#ifndef SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
#define SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// chunks: kLanes * RoundUp(head_dim, 16) floats; row: RoundUp(head_dim, 16) floats.
template <class Scheme>
HWY_INLINE void LoadQueries(const AttendTask& task, const QueryTile& q,
                            uint8_t* HWY_RESTRICT chunks, float* HWY_RESTRICT row) {
  const size_t head_dim = task.head.shape.head_dim;
  const size_t elements = RowBufferElements(head_dim);
  const size_t num_chunks = elements * (Scheme::kI8 ? 1 : sizeof(float)) / kChunkBytes;
  const size_t row_stride = q.num_vectors * kLanes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t r = v * kLanes + lane;
      if (r < q.num_rows) {
        LoadRow(RowAt(task.q, q.first_row + r), task.q.dtype, task.q.dim_stride, head_dim, row);
      } else {
        for (size_t i = 0; i < elements; i += kLanes) hn::Store(hn::Zero(df), df, row + i);
      }
      if constexpr (Scheme::kI8) {
        SanitizeRow(row, elements);
        HWY_ALIGN int8_t quanta[kMaxHeadDim];
        int32_t sum;
        q.row_scale[r] = QuantizeRow(row, elements, quanta, &sum) * task.scale_log2e;
        q.acc_init[r] = Scheme::kLayout == LayoutId::kI8BiasedK ? -kBias * sum : 0;
        for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
          CopyChunk(quanta + chunk * kChunkBytes, chunks + ChunkOffset(lane, chunk));
        }
      } else {
        const VF scale = hn::Set(df, task.scale_log2e);
        for (size_t i = 0; i < elements; i += kLanes) {
          hn::Store(hn::Mul(hn::Load(df, row + i), scale), df, row + i);
        }
        for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
          CopyChunk(row + chunk * kChunkElements, chunks + ChunkOffset(lane, chunk));
        }
      }
    }
    ChunksToPanel(chunks, num_chunks, reinterpret_cast<int32_t*>(q.panel) + v * kLanes, row_stride);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_LOAD_QUERIES_INL_H_
