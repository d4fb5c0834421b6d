// Tensors of the tests: any strides, any element type, in memory that faults right before or right
// after the elements, so that a kernel which reads or writes one byte too many does not get away.
//
//   Tensor q(DType::kF16, {2, 77, 8, 64}, Layout::kFused, Placement::kAtEnd);
//   q.Set(1, 76, 7, 63, 0.5f);
//   args.q = q.view();
//
// Numbers go in and come out as what they are worth: an i8 tensor brings scales, about 1/32 each.
#ifndef SIGHTLINE_TESTS_SUPPORT_TENSOR_H_
#define SIGHTLINE_TESTS_SUPPORT_TENSOR_H_

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "sightline/tensor.h"

namespace sightline {
namespace testing {

enum class Placement {
  kAtEnd,    // the last byte is followed by a page that faults
  kAtFront,  // the first byte is preceded by one
};

// `bytes` bytes between two pages that fault, all set to kFillByte.
class GuardedBuffer {
 public:
  // An f32, f16 or bf16 made of these is finite and far from what the tests compute (-3e-16 as
  // f32).
  static constexpr unsigned char kFillByte = 0xA5;

  GuardedBuffer() = default;
  // `alignment` is a power of two up to a page; kAtEnd leaves up to alignment - 1 bytes before the
  // guard.
  GuardedBuffer(size_t bytes, Placement placement, size_t alignment = 1);
  ~GuardedBuffer();
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;

  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }
  void Fill(unsigned char byte);

 private:
  unsigned char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  unsigned char* data_ = nullptr;
  size_t size_ = 0;
};

struct Dims {
  int64_t batch = 1;
  int64_t length = 1;
  int64_t heads = 1;
  int64_t dim = 1;

  int64_t NumElements() const { return batch * length * heads * dim; }
  // Index of an element in row-major [batch][length][heads][dim], the order of ToDoubles().
  size_t Index(int64_t b, int64_t l, int64_t h, int64_t d) const {
    return static_cast<size_t>(((b * length + l) * heads + h) * dim + d);
  }
};

enum class Layout {
  kDense,        // [batch][length][heads][dim]
  kHeadsFirst,   // [batch][heads][length][dim]
  kFused,        // one of the three parts of [batch][length][3][heads][dim]
  kDimStrided,   // three elements from one channel to the next
  kDimFirst,     // [batch][heads][dim][length]: the longest stride is the channel's
  kReversed,     // dense, every stride negative
  kPadded,       // odd gaps after every row, query and sequence
  kSharedHeads,  // head stride 0: every head is the same; inputs only
};
const char* Name(Layout layout);

// How the scales of an i8 tensor vary: any sum of these.
enum Granularity : unsigned {
  kPerTensor = 0,
  kPerSequence = 1,
  kPerToken = 2,
  kPerHead = 4,
  kPerChannel = 8,
};
constexpr unsigned kNumGranularities = 16;
constexpr unsigned kPerElement = kNumGranularities - 1;
// "/tensor", or "/token/head" and the like.
std::string GranularityName(unsigned granularity);

class Tensor {
 public:
  Tensor() = default;
  // The scales have layout and placement of the elements, in memory of their own.
  Tensor(DType dtype, const Dims& dims, Layout layout = Layout::kDense,
         Placement placement = Placement::kAtEnd, unsigned granularity = kPerTensor);
  // A tensor that varies along the axes of `granularity` only: along the others its stride is 0.
  static Tensor Broadcast(DType dtype, const Dims& dims, unsigned granularity, Layout layout,
                          Placement placement);

  const Dims& dims() const { return dims_; }
  DType dtype() const { return dtype_; }
  TensorView view() const { return view_; }
  MaskView mask_view() const;  // of i8, which is as long as a boolean

  void Set(int64_t b, int64_t l, int64_t h, int64_t d, float x);
  float Get(int64_t b, int64_t l, int64_t h, int64_t d) const;
  // i8 only: any quantum, -128 included, which Set() does not write.
  void SetQuantum(int64_t b, int64_t l, int64_t h, int64_t d, int8_t quantum);
  // i8 only: the scale of this element, and of all that share it.
  float Scale(int64_t b, int64_t l, int64_t h, int64_t d) const;
  void SetScale(int64_t b, int64_t l, int64_t h, int64_t d, float scale);

  // All elements as stored, in the order of Dims::Index.
  std::vector<double> ToDoubles() const;
  // Their scales in the same order; 1 for types that have none.
  std::vector<double> Scales() const;
  // Elements l in [begin, end) of every sequence, as a view of this tensor.
  TensorView Slice(int64_t begin, int64_t end) const;

  // Sets every byte, gaps included, to GuardedBuffer::kFillByte.
  void Wipe();
  // No byte was written since Wipe(): neither element nor gap.
  bool IsWiped() const;
  // No byte between the elements was written since Wipe().
  bool GapsAreWiped() const;

  // "f16 [1, 77, 8, 64] padded"; i8 names its granularity
  std::string ToString() const;

 private:
  unsigned char* At(int64_t b, int64_t l, int64_t h, int64_t d) const;
  unsigned char* ScaleAt(int64_t b, int64_t l, int64_t h, int64_t d) const;

  Dims dims_;
  DType dtype_ = DType::kF32;
  Layout layout_ = Layout::kDense;
  unsigned granularity_ = kPerTensor;
  GuardedBuffer buffer_;
  GuardedBuffer scale_buffer_;
  TensorView view_;
};

// Same shape and type, and every element the same bits (NaN equals the same NaN).
bool SameBits(const Tensor& a, const Tensor& b);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_TENSOR_H_
