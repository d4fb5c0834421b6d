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
//
// int8 tensors come with their scales, here one for each token:
//
//   ConstTensorView k = ConstTensorView::Dense(quanta, DType::kI8, 2, 77, 8, 64,
//                                              ScaleView::PerToken(scales, 77));
#ifndef SIGHTLINE_TENSOR_H_
#define SIGHTLINE_TENSOR_H_

#include <stdint.h>

namespace sightline {

// Element types of the caller's tensors. f16 is IEEE binary16, bf16 the upper half of an f32. i8 is
// symmetric: an element is worth its scale (ScaleView) times its quantum, -128 to 127.
enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3 };

// How K and V are stored while attention reads them, independent of the caller's element type.
enum class Precision : uint8_t {
  kF32 = 0,  // exact to f32 rounding
  kF16 = 1,  // stored as f16, multiplied and accumulated in f32: half the memory, 0.03 % of error
  kI8 = 2,   // int8 with per-token K and per-channel, per-block V scales: a quarter of the memory
  kI8Fine = 3,   // the same, but Q and K in int16: about 1 % of error where kI8 has up to 6 %, or
                 // 2 % with rotate_k (sightline/kv.h); on every tier: docs/precision.md
  kBF16 = 4,     // stored as bf16: the memory of kF16, and twice its speed where CPUs have dot
                 // products of bf16; 0.4 % of error, 1.1 % with outliers in K
  kMixed16 = 5,  // K (and Q) in int16 with per-token scales, V in bf16: the same memory and speed;
                 // 0.3 % of error, with outliers too
};

// Lower-case names, "f32", "i8_fine"; "?" for a value that is none of the enumerators.
const char* Name(DType dtype);
const char* Name(Precision precision);

// Bytes of one element; 0 for a value that is none of the enumerators.
int64_t SizeBytes(DType dtype);

// The scales of an i8 tensor, which every axis may or may not vary: element [b, l, h, d] is worth
//
//   quantum[b, l, h, d] * *(data + b * batch_stride + l * length_stride + h * head_stride
//                                + d * dim_stride)       (strides in bytes)
//
// so that a stride of 0 means one scale for all along that axis, and all strides 0 one for the
// whole tensor. Read by the call, never written, also for an output; owned by the caller.
//
// Inputs: any finite scales, multiplied in f32. The call does not look for others: a product that
// is NaN or infinite counts as such an element (a NaN scale makes NaN even of a quantum 0). Output:
// positive finite scales; docs/contract.md says how results become quanta, whatever the scale.
struct ScaleView {
  const float* data = nullptr;  // scale of element [0, 0, 0, 0]; aligned to 4 bytes

  // Multiples of 4 of any sign.
  int64_t batch_stride = 0;
  int64_t length_stride = 0;
  int64_t head_stride = 0;
  int64_t dim_stride = 0;

  // Dense arrays of the usual shapes; others are set stride by stride.
  static ScaleView PerTensor(const float* scale) { return {scale, 0, 0, 0, 0}; }
  static ScaleView PerHead(const float* scales) {  // [heads]
    return {scales, 0, 0, Bytes(1), 0};
  }
  static ScaleView PerToken(const float* scales, int64_t length) {  // [batch, length]
    return {scales, Bytes(length), Bytes(1), 0, 0};
  }
  static ScaleView PerChannel(const float* scales, int64_t dim) {  // [heads, dim]
    return {scales, 0, 0, Bytes(dim), Bytes(1)};
  }

 private:
  // Unsigned, so that absurd sizes wrap; validation refuses them later.
  static int64_t Bytes(int64_t count) {
    return static_cast<int64_t>(sizeof(float) * static_cast<uint64_t>(count));
  }
};

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

  // Given for i8, absent (null) for the other types.
  ScaleView scale;

  // Row-major [batch, length, heads, dim] without gaps.
  static BasicTensorView Dense(Void* data, DType dtype, int64_t batch, int64_t length,
                               int64_t heads, int64_t dim, const ScaleView& scale = {}) {
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
    view.scale = scale;
    return view;
  }
};

using TensorView = BasicTensorView<void>;

struct ConstTensorView : BasicTensorView<const void> {
  ConstTensorView() = default;
  ConstTensorView(const BasicTensorView<const void>& view) : BasicTensorView(view) {}
  // A view to write through is also a view to read through.
  ConstTensorView(const TensorView& view)
      : BasicTensorView{view.data,        view.dtype,      view.batch,        view.length,
                        view.heads,       view.dim,        view.batch_stride, view.length_stride,
                        view.head_stride, view.dim_stride, view.scale} {}
};

// A mask of booleans: a byte each, of which 0 is false. Shape and strides as of a tensor; a stride
// of 0 broadcasts along its axis.
struct MaskView {
  const void* data = nullptr;  // element [0, 0, 0, 0]

  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t dim = 0;

  int64_t batch_stride = 0;
  int64_t length_stride = 0;
  int64_t head_stride = 0;
  int64_t dim_stride = 0;

  // Row-major [batch, length, heads, dim] without gaps.
  static MaskView Dense(const void* data, int64_t batch, int64_t length, int64_t heads,
                        int64_t dim) {
    const auto bytes =
        BasicTensorView<const void>::Dense(data, DType::kI8, batch, length, heads, dim);
    return {data,
            batch,
            length,
            heads,
            dim,
            bytes.batch_stride,
            bytes.length_stride,
            bytes.head_stride,
            bytes.dim_stride};
  }
};

}  // namespace sightline

#endif  // SIGHTLINE_TENSOR_H_
