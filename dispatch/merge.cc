#include "dispatch/merge.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "quant/elements.h"

namespace sightline {
namespace internal {
namespace {

// Rows of the task, one behind the other from row_begin on, as kernels find them.
Rows DenseRows(const AttendTask& task, float* data, size_t dim) {
  const auto bytes = static_cast<int64_t>(dim * sizeof(float));
  Rows rows = {};
  rows.dtype = DType::kF32;
  rows.beams = task.q.beams;
  rows.group = task.q.group;
  rows.dim_stride = sizeof(float);
  rows.head_stride = bytes;
  rows.beam_stride = static_cast<int64_t>(rows.group) * bytes;
  rows.length_stride = static_cast<int64_t>(rows.beams) * rows.beam_stride;
  rows.data = reinterpret_cast<unsigned char*>(data) - static_cast<int64_t>(task.row_begin) * bytes;
  return rows;
}

}  // namespace

size_t PartialRows::Bytes(size_t v_head_dim) {
  return RoundUp(2 * kTaskRows * (v_head_dim + 1) * sizeof(float), kPackedAlignBytes);
}

PartialRows::PartialRows(unsigned char* memory, size_t v_head_dim) : v_head_dim_(v_head_dim) {
  o_ = reinterpret_cast<float*>(memory);
  new_o_ = o_ + kTaskRows * v_head_dim;
  lse_ = new_o_ + kTaskRows * v_head_dim;
  new_lse_ = lse_ + kTaskRows;
}

void PartialRows::Redirect(AttendTask* task) const {
  task->out = DenseRows(*task, new_o_, v_head_dim_);
  task->lse = DenseRows(*task, new_lse_, 1);
}

void PartialRows::Add(const AttendTask& rows) {
  const size_t num_rows = rows.row_end - rows.row_begin;
  if (!has_rows_) {
    std::swap(o_, new_o_);
    std::swap(lse_, new_lse_);
    has_rows_ = true;
    return;
  }
  for (size_t r = 0; r < num_rows; ++r) {
    const float largest = std::max(lse_[r], new_lse_[r]);
    if (largest == -INFINITY) continue;  // neither has seen a key: O is 0
    const float old_weight = expf(lse_[r] - largest);
    const float new_weight = expf(new_lse_[r] - largest);
    const float sum = old_weight + new_weight;
    float* o = o_ + r * v_head_dim_;
    const float* new_o = new_o_ + r * v_head_dim_;
    for (size_t c = 0; c < v_head_dim_; ++c) {
      o[c] = o[c] * (old_weight / sum) + new_o[c] * (new_weight / sum);
    }
    lse_[r] = largest + logf(sum);
  }
}

void PartialRows::Store(const AttendTask& rows) const {
  for (size_t r = rows.row_begin; r < rows.row_end; ++r) {
    const float* o = o_ + (r - rows.row_begin) * v_head_dim_;
    const Row out = RowAt(rows.out, r);
    for (size_t c = 0; c < v_head_dim_; ++c) StoreElement(o[c], out, c);
    if (rows.lse.data == nullptr) continue;
    memcpy(RowAt(rows.lse, r).data, lse_ + (r - rows.row_begin), sizeof(float));
  }
}

}  // namespace internal
}  // namespace sightline
