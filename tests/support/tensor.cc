#include "support/tensor.h"

#include <string.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "support/numeric.h"

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#include <sys/mman.h>
#include <unistd.h>
#define SIGHTLINE_TESTS_HAVE_MMAP 1
#else
#include <new>
#define SIGHTLINE_TESTS_HAVE_MMAP 0
#endif

namespace sightline {
namespace testing {
namespace {

size_t RoundUpTo(size_t x, size_t multiple) { return (x + multiple - 1) / multiple * multiple; }

#if SIGHTLINE_TESTS_HAVE_MMAP

size_t PageBytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

unsigned char* MapGuarded(size_t inner_bytes) {
  const size_t page = PageBytes();
  void* mapping =
      mmap(nullptr, inner_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::runtime_error("mmap failed");
  unsigned char* inner = static_cast<unsigned char*>(mapping) + page;
  if (inner_bytes != 0 && mprotect(inner, inner_bytes, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("mprotect failed");
  }
  return static_cast<unsigned char*>(mapping);
}

void Unmap(unsigned char* mapping, size_t bytes) { munmap(mapping, bytes); }

#else  // Without guard pages the tests still compare values; only overruns stay unseen.

size_t PageBytes() { return 4096; }
unsigned char* MapGuarded(size_t inner_bytes) {
  return static_cast<unsigned char*>(
      ::operator new(inner_bytes + 2 * PageBytes(), std::align_val_t(PageBytes())));
}
void Unmap(unsigned char* mapping, size_t) {
  ::operator delete(mapping, std::align_val_t(PageBytes()));
}

#endif

// Strides in elements.
struct Strides {
  int64_t batch, length, heads, dim;
};

Strides StridesOf(const Dims& n, Layout layout) {
  Strides s = {};
  switch (layout) {
    case Layout::kHeadsFirst:
      return {n.heads * n.length * n.dim, n.dim, n.length * n.dim, 1};
    case Layout::kFused:
      s = {0, 3 * n.heads * n.dim, n.dim, 1};
      break;
    case Layout::kDimStrided:
      s = {0, n.heads * n.dim * 3, n.dim * 3, 3};
      break;
    case Layout::kDimFirst:
      return {n.heads * n.length * n.dim, 1, n.dim * n.length, n.length};
    case Layout::kReversed:
      return {-n.length * n.heads * n.dim, -n.heads * n.dim, -n.dim, -1};
    case Layout::kPadded:
      s = {0, n.heads * (n.dim + 1) + 5, n.dim + 1, 1};
      s.batch = n.length * s.length + 7;
      return s;
    case Layout::kSharedHeads:
      s = {0, n.dim, 0, 1};
      break;
    case Layout::kDense:
      s = {0, n.heads * n.dim, n.dim, 1};
      break;
  }
  s.batch = n.length * s.length;
  return s;
}

// Memory for elements of `size` bytes, element [0, 0, 0, 0], and the strides in bytes.
struct Room {
  GuardedBuffer buffer;
  unsigned char* first;
  Strides strides;
};

Room RoomFor(const Dims& dims, Layout layout, Placement placement, int64_t size) {
  const Strides strides = StridesOf(dims, layout);
  const int64_t counts[] = {dims.batch, dims.length, dims.heads, dims.dim};
  const int64_t steps[] = {strides.batch, strides.length, strides.heads, strides.dim};
  // Elements before and after element [0, 0, 0, 0].
  int64_t before = 0;
  int64_t after = 0;
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t reach = (std::max<int64_t>(counts[axis], 1) - 1) * steps[axis];
    (reach < 0 ? before : after) += reach < 0 ? -reach : reach;
  }
  const int64_t elements = dims.NumElements() == 0 ? 0 : before + 1 + after;
  Room room;
  room.buffer = GuardedBuffer(static_cast<size_t>(elements * size), placement);
  room.first = room.buffer.data() + (elements == 0 ? 0 : before * size);
  room.strides = {strides.batch * size, strides.length * size, strides.heads * size,
                  strides.dim * size};
  return room;
}

// The axes of `granularity` as they are, of the others one element at most.
Dims Varying(const Dims& dims, unsigned granularity) {
  const auto count = [granularity](int64_t n, Granularity axis) {
    return (granularity & axis) != 0 || n == 0 ? n : 1;
  };
  return {count(dims.batch, kPerSequence), count(dims.length, kPerToken),
          count(dims.heads, kPerHead), count(dims.dim, kPerChannel)};
}

// Strides in bytes; 0 along the axes that are not in `granularity`.
Strides VaryingStrides(const Strides& strides, unsigned granularity) {
  const auto stride = [granularity](int64_t bytes, Granularity axis) {
    return (granularity & axis) != 0 ? bytes : 0;
  };
  return {stride(strides.batch, kPerSequence), stride(strides.length, kPerToken),
          stride(strides.heads, kPerHead), stride(strides.dim, kPerChannel)};
}

void SetStrides(const Strides& strides, TensorView* view) {
  view->batch_stride = strides.batch;
  view->length_stride = strides.length;
  view->head_stride = strides.heads;
  view->dim_stride = strides.dim;
}

// f(b, l, h, d) in the order of Dims::Index.
template <typename F>
void ForEach(const Dims& dims, const F& f) {
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t l = 0; l < dims.length; ++l) {
      for (int64_t h = 0; h < dims.heads; ++h) {
        for (int64_t d = 0; d < dims.dim; ++d) f(b, l, h, d);
      }
    }
  }
}

}  // namespace

GuardedBuffer::GuardedBuffer(size_t bytes, Placement placement, size_t alignment) : size_(bytes) {
  const size_t page = PageBytes();
  const size_t inner_bytes = RoundUpTo(bytes, page);
  mapping_bytes_ = inner_bytes + 2 * page;
  mapping_ = MapGuarded(inner_bytes);
  data_ = mapping_ + page;
  if (placement == Placement::kAtEnd) data_ += inner_bytes - RoundUpTo(bytes, alignment);
  Fill(kFillByte);
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_ != nullptr) Unmap(mapping_, mapping_bytes_);
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept { *this = std::move(other); }

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void GuardedBuffer::Fill(unsigned char byte) {
  if (size_ != 0) memset(data_, byte, size_);
}

const char* Name(Layout layout) {
  switch (layout) {
    case Layout::kDense:
      return "dense";
    case Layout::kHeadsFirst:
      return "heads-first";
    case Layout::kFused:
      return "fused";
    case Layout::kDimStrided:
      return "dim-strided";
    case Layout::kDimFirst:
      return "dim-first";
    case Layout::kReversed:
      return "reversed";
    case Layout::kPadded:
      return "padded";
    case Layout::kSharedHeads:
      return "shared-heads";
  }
  return "?";
}

std::string GranularityName(unsigned granularity) {
  if (granularity == kPerTensor) return "/tensor";
  return std::string((granularity & kPerSequence) != 0 ? "/sequence" : "") +
         ((granularity & kPerToken) != 0 ? "/token" : "") +
         ((granularity & kPerHead) != 0 ? "/head" : "") +
         ((granularity & kPerChannel) != 0 ? "/channel" : "");
}

Tensor::Tensor(DType dtype, const Dims& dims, Layout layout, Placement placement,
               unsigned granularity)
    : dims_(dims), dtype_(dtype), layout_(layout), granularity_(granularity) {
  Room room = RoomFor(dims, layout, placement, SizeBytes(dtype));
  buffer_ = std::move(room.buffer);
  view_ = TensorView::Dense(room.first, dtype, dims.batch, dims.length, dims.heads, dims.dim);
  SetStrides(room.strides, &view_);
  if (dtype != DType::kI8) return;

  const Dims scale_dims = Varying(dims, granularity);
  room = RoomFor(scale_dims, layout, placement, sizeof(float));
  scale_buffer_ = std::move(room.buffer);
  const Strides strides = VaryingStrides(room.strides, granularity);
  view_.scale = {reinterpret_cast<const float*>(room.first), strides.batch, strides.length,
                 strides.heads, strides.dim};
  // Normal numbers reach about 4: no power of two, so that products and quotients are rounded.
  Rng rng(granularity);
  ForEach(scale_dims, [&](int64_t b, int64_t l, int64_t h, int64_t d) {
    SetScale(b, l, h, d, static_cast<float>((0.5 + rng.Uniform()) * 4.0 / 127.0));
  });
}

Tensor Tensor::Broadcast(DType dtype, const Dims& dims, unsigned granularity, Layout layout,
                         Placement placement) {
  Tensor t(dtype, Varying(dims, granularity), layout, placement);
  const TensorView& view = t.view_;
  const Strides strides = VaryingStrides(
      {view.batch_stride, view.length_stride, view.head_stride, view.dim_stride}, granularity);
  t.dims_ = dims;
  t.view_.batch = dims.batch;
  t.view_.length = dims.length;
  t.view_.heads = dims.heads;
  t.view_.dim = dims.dim;
  SetStrides(strides, &t.view_);
  return t;
}

MaskView Tensor::mask_view() const {
  MaskView mask = MaskView::Dense(view_.data, view_.batch, view_.length, view_.heads, view_.dim);
  mask.batch_stride = view_.batch_stride;
  mask.length_stride = view_.length_stride;
  mask.head_stride = view_.head_stride;
  mask.dim_stride = view_.dim_stride;
  return mask;
}

unsigned char* Tensor::At(int64_t b, int64_t l, int64_t h, int64_t d) const {
  return static_cast<unsigned char*>(view_.data) + b * view_.batch_stride +
         l * view_.length_stride + h * view_.head_stride + d * view_.dim_stride;
}

unsigned char* Tensor::ScaleAt(int64_t b, int64_t l, int64_t h, int64_t d) const {
  const ScaleView& scale = view_.scale;
  // Through the buffer, which may be written; the view's scales may not.
  const auto* first = reinterpret_cast<const unsigned char*>(scale.data);
  return scale_buffer_.data() + (first - scale_buffer_.data()) + b * scale.batch_stride +
         l * scale.length_stride + h * scale.head_stride + d * scale.dim_stride;
}

void Tensor::SetQuantum(int64_t b, int64_t l, int64_t h, int64_t d, int8_t quantum) {
  memcpy(At(b, l, h, d), &quantum, sizeof(quantum));
}

float Tensor::Scale(int64_t b, int64_t l, int64_t h, int64_t d) const {
  return dtype_ == DType::kI8 ? LoadElement(DType::kF32, ScaleAt(b, l, h, d)) : 1.0f;
}

void Tensor::SetScale(int64_t b, int64_t l, int64_t h, int64_t d, float scale) {
  StoreElement(DType::kF32, ScaleAt(b, l, h, d), scale);
}

void Tensor::Set(int64_t b, int64_t l, int64_t h, int64_t d, float x) {
  StoreElement(dtype_, At(b, l, h, d), x, Scale(b, l, h, d));
}

float Tensor::Get(int64_t b, int64_t l, int64_t h, int64_t d) const {
  return LoadElement(dtype_, At(b, l, h, d), Scale(b, l, h, d));
}

std::vector<double> Tensor::ToDoubles() const {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(dims_.NumElements()));
  ForEach(dims_,
          [&](int64_t b, int64_t l, int64_t h, int64_t d) { values.push_back(Get(b, l, h, d)); });
  return values;
}

std::vector<double> Tensor::Scales() const {
  std::vector<double> scales;
  scales.reserve(static_cast<size_t>(dims_.NumElements()));
  ForEach(dims_,
          [&](int64_t b, int64_t l, int64_t h, int64_t d) { scales.push_back(Scale(b, l, h, d)); });
  return scales;
}

TensorView Tensor::Slice(int64_t begin, int64_t end) const {
  TensorView slice = view_;
  slice.data = At(0, begin, 0, 0);
  slice.length = end - begin;
  if (dtype_ == DType::kI8) {
    slice.scale.data = reinterpret_cast<const float*>(ScaleAt(0, begin, 0, 0));
  }
  return slice;
}

void Tensor::Wipe() { buffer_.Fill(GuardedBuffer::kFillByte); }

bool Tensor::IsWiped() const {
  const unsigned char* end = buffer_.data() + buffer_.size();
  return std::all_of(static_cast<const unsigned char*>(buffer_.data()), end,
                     [](unsigned char byte) { return byte == GuardedBuffer::kFillByte; });
}

bool Tensor::GapsAreWiped() const {
  if (dims_.NumElements() * SizeBytes(dtype_) == static_cast<int64_t>(buffer_.size())) return true;
  std::vector<bool> is_element(buffer_.size(), false);
  ForEach(dims_, [&](int64_t b, int64_t l, int64_t h, int64_t d) {
    const size_t offset = static_cast<size_t>(At(b, l, h, d) - buffer_.data());
    for (int64_t i = 0; i < SizeBytes(dtype_); ++i) {
      is_element[offset + static_cast<size_t>(i)] = true;
    }
  });
  for (size_t i = 0; i < buffer_.size(); ++i) {
    if (!is_element[i] && buffer_.data()[i] != GuardedBuffer::kFillByte) return false;
  }
  return true;
}

std::string Tensor::ToString() const {
  return std::string(sightline::Name(dtype_)) +
         (dtype_ == DType::kI8 ? GranularityName(granularity_) : "") + " [" +
         std::to_string(dims_.batch) + ", " + std::to_string(dims_.length) + ", " +
         std::to_string(dims_.heads) + ", " + std::to_string(dims_.dim) + "] " + Name(layout_);
}

bool SameBits(const Tensor& a, const Tensor& b) {
  const Dims& n = a.dims();
  if (a.dtype() != b.dtype() || n.batch != b.dims().batch || n.length != b.dims().length ||
      n.heads != b.dims().heads || n.dim != b.dims().dim) {
    return false;
  }
  for (int64_t i = 0; i < n.batch; ++i) {
    for (int64_t l = 0; l < n.length; ++l) {
      for (int64_t h = 0; h < n.heads; ++h) {
        for (int64_t d = 0; d < n.dim; ++d) {
          const float x = a.Get(i, l, h, d);
          const float y = b.Get(i, l, h, d);
          if (memcmp(&x, &y, sizeof(x)) != 0) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace testing
}  // namespace sightline
