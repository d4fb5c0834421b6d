// File: sightline/tensor.h
// Views of the caller's Q, K, V and O: [batch, length, heads, dim] with a byte stride for each
// axis.
//
//   float* x = ...;  // [2, 77, 8, 64], densely packed
//   ConstTensorView q = ConstTensorView::Dense(x, DType::kF32, 2, 77, 8, 64);
//
// [batch, heads, length, dim] tensors, slices of a fused QKV projection and broadcast inputs are
// the same view with other strides. A view owns nothing; the memory must outlive the call it is
// given to.
#ifndef SIGHTLINE_TENSOR_H_
#define SIGHTLINE_TENSOR_H_

#include <stdint.h>

namespace sightline {

// Element types of the caller's tensors. f16 is IEEE binary16, bf16 the upper half of an f32.
enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2 };

// How K and V are stored while attention reads them, independent of the caller's element type.
enum class Precision : uint8_t {
  kF32 = 0,   // exact to f32 rounding
  kF16 = 1,   // stored as f16, multiplied and accumulated in f32: half the memory
  kI8 = 2,    // int8 with per-token K and per-channel, per-block V scales: a quarter of the memory
  kI8Fine = 3,  // the same, but Q and K in int16: below 1 % of error where kI8 has up to 5 %
  kBF16 = 4,    // reserved: Plan::Create answers kUnsupported
};

// "f32", "f16", "bf16", "i8", "i8_fine"; "?" for a value that is none of the enumerators.
const char* Name(DType dtype);
const char* Name(Precision precision);

// Bytes of one element; 0 for a value that is none of the enumerators.
int64_t SizeBytes(DType dtype);

template <typename Void>  // void or const void
struct BasicTensorView {
  Void* data = nullptr;  // element [0, 0, 0, 0]; aligned to the element size
  DType dtype = DType::kF32;

  // Counts in elements. `batch` or `length` may be 0: then there is nothing to read or write.
  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t dim = 0;

  // Distance in bytes between neighbours along an axis: a multiple of the element size, of any
  // sign. Inputs may repeat elements (stride 0); the elements of an output must not overlap.
  int64_t batch_stride = 0;
  int64_t length_stride = 0;
  int64_t head_stride = 0;
  int64_t dim_stride = 0;

  // Row-major [batch, length, heads, dim] without gaps.
  static BasicTensorView Dense(Void* data, DType dtype, int64_t batch, int64_t length,
                               int64_t heads, int64_t dim) {
    BasicTensorView view;
    view.data = data;
    view.dtype = dtype;
    view.batch = batch;
    view.length = length;
    view.heads = heads;
    view.dim = dim;
    // Unsigned, so that absurd sizes wrap instead of being undefined; validation refuses them
    // later.
    const uint64_t dim_stride = static_cast<uint64_t>(SizeBytes(dtype));
    const uint64_t head_stride = dim_stride * static_cast<uint64_t>(dim);
    const uint64_t length_stride = head_stride * static_cast<uint64_t>(heads);
    view.dim_stride = static_cast<int64_t>(dim_stride);
    view.head_stride = static_cast<int64_t>(head_stride);
    view.length_stride = static_cast<int64_t>(length_stride);
    view.batch_stride = static_cast<int64_t>(length_stride * static_cast<uint64_t>(length));
    return view;
  }
};

using TensorView = BasicTensorView<void>;

struct ConstTensorView : BasicTensorView<const void> {
  ConstTensorView() = default;
  ConstTensorView(const BasicTensorView<const void>& view) : BasicTensorView(view) {}
  // A view to write through is also a view to read through.
  ConstTensorView(const TensorView& view)
      : BasicTensorView{view.data,        view.dtype,     view.batch,        view.length,
                        view.heads,       view.dim,       view.batch_stride, view.length_stride,
                        view.head_stride, view.dim_stride} {}
};

}  // namespace sightline

#endif  // SIGHTLINE_TENSOR_H_
