#include "kv/prepare.h"

#include <algorithm>

#include "dispatch/parallel.h"

namespace sightline {
namespace internal {
namespace {

// Keys one task packs: a V tile, so that neighbours do not write the same panel.
constexpr size_t kTaskKeys = kVTileKeys;

}  // namespace

ScaleView HeadScales(const ConstTensorView& view, size_t batch, size_t head) {
  if (view.scale.data == nullptr) return {};
  ScaleView scale = view.scale;
  scale.data = ScaleAt(scale.data, static_cast<int64_t>(batch) * scale.batch_stride +
                                       static_cast<int64_t>(head) * scale.head_stride);
  return scale;
}

SourceRows SourceRowsOf(const ConstTensorView& view, size_t batch, size_t kv_head) {
  const ScaleView scale = HeadScales(view, batch, kv_head);
  Row first = {};
  // Inputs are only read: kernels take them and outputs through one type.
  first.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(view.data)) +
               static_cast<int64_t>(batch) * view.batch_stride +
               static_cast<int64_t>(kv_head) * view.head_stride;
  first.dtype = view.dtype;
  first.dim_stride = view.dim_stride;
  first.scale = scale.data;
  first.scale_stride = scale.dim_stride;
  return {first, view.length_stride, scale.length_stride};
}

SourceRows DenseRows(float* data, size_t dim) {
  return {{reinterpret_cast<unsigned char*>(data), DType::kF32, sizeof(float), nullptr, 0},
          static_cast<int64_t>(dim * sizeof(float)),
          0};
}

namespace {

// Keys [begin, begin + count) of one of the heads, counted through the sequences.
PackTask TaskFor(const PackedHeads& heads, size_t head, const SequenceSpans& sequences,
                 const ConstTensorView& k, const ConstTensorView& v, size_t begin, size_t count) {
  const size_t sequence = head / heads.num_kv_heads;
  const size_t kv_head = head % heads.num_kv_heads;
  const TokenSpan span = sequences.at(sequence);
  const LayoutId layout = heads.shape.layout;
  PackTask task = {};
  task.head = heads.at(sequence, kv_head);
  task.k = Skip(SourceRowsOf(k, span.batch, kv_head), span.begin + begin);
  task.v = Skip(SourceRowsOf(v, span.batch, kv_head), span.begin + begin);
  task.key_begin = begin;
  task.num_keys = count;
  task.keeps_k = HasPlainI8K(layout) && k.dtype == DType::kI8 && k.scale.dim_stride == 0;
  task.keeps_v = HasQuantizedV(layout) && v.dtype == DType::kI8 && v.scale.length_stride == 0;
  return task;
}

}  // namespace

void FindCenters(const PrecisionKernels& kernels, const PackedHeads& heads, const HeadRange& range,
                 const ConstTensorView& k, const ConstTensorView& v, const SequenceSpans& sequences,
                 const ParallelFor& parallel) {
  if (kernels.center == nullptr) return;
  ForEachTask(parallel, range.end - range.begin, [&](size_t index, size_t) {
    const size_t head = range.begin + index;
    const size_t num_keys = sequences.at(head / heads.num_kv_heads).count;
    PackScratch scratch;
    if (num_keys == 0) return;
    kernels.center(TaskFor(heads, head, sequences, k, v, 0, num_keys), scratch.bytes);
  });
}

void PackTensors(const PrecisionKernels& kernels, const PackedHeads& heads, const HeadRange& range,
                 const ConstTensorView& k, const ConstTensorView& v, const SequenceSpans& sequences,
                 const ParallelFor& parallel) {
  const size_t tasks_per_head = (sequences.longest() + kTaskKeys - 1) / kTaskKeys;
  ForEachTask(parallel, (range.end - range.begin) * tasks_per_head, [&](size_t index, size_t) {
    const size_t head = range.begin + index / tasks_per_head;
    const size_t num_keys = sequences.at(head / heads.num_kv_heads).count;
    PackScratch scratch;
    const size_t begin = index % tasks_per_head * kTaskKeys;
    const size_t end = std::min(begin + kTaskKeys, num_keys);
    for (size_t key = begin; key < end; key += kKvTile) {
      const size_t count = std::min(kKvTile, end - key);
      kernels.pack(TaskFor(heads, head, sequences, k, v, key, count), scratch.bytes);
    }
  });
}

}  // namespace internal
}  // namespace sightline
