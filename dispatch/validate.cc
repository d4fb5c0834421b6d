#include "dispatch/validate.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include <algorithm>
#include <iterator>

#include "dispatch/key_sources.h"
#include "dispatch/plan.h"
#include "dispatch/relative_buckets.h"

namespace sightline {
namespace internal {
namespace {

using LL = long long;  // what %lld prints

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;

// Times log2(e) it is still an f32.
constexpr float kMaxScale = 1e38f;

// Times log2(e), and one over it, they are still f32 of full precision.
constexpr float kMinSoftcap = 1e-30f;
constexpr float kMaxSoftcap = 1e30f;

Status ValidateRange(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return Status();
  return Status::Error(kInvalid, "%s is %lld, must be %lld to %lld", name, LL{value}, LL{min},
                       LL{max});
}

const char* Text(bool flag) { return flag ? "true" : "false"; }

// One axis of a view.
struct Axis {
  const char* name;
  int64_t count;
  int64_t stride;
};

// Of `count` elements, cut off where the address space ends; empty for a null pointer.
template <typename T>
MemorySpan SpanOf(const T* data, int64_t count) {
  if (data == nullptr) return {};
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uint64_t room = (UINTPTR_MAX - begin) / sizeof(T);
  const uint64_t reached = std::min(static_cast<uint64_t>(count), room);
  return {begin, begin + static_cast<uintptr_t>(reached) * sizeof(T)};
}

// What a view touches; empty if it has no elements or no scales.
struct ViewSpans {
  MemorySpan elements;
  MemorySpan scales;
};

class ViewCheck {
 public:
  // Q, K, V and O: channels are up to kMaxHeadDim.
  template <typename Void>
  ViewCheck(const char* name, const BasicTensorView<Void>& view)
      : ViewCheck(name, view, 1, kMaxHeadDim) {}
  // Others: `dim` is min_dim to max_dim.
  template <typename Void>
  ViewCheck(const char* name, const BasicTensorView<Void>& view, int64_t min_dim, int64_t max_dim)
      : name_(name),
        min_dim_(min_dim),
        max_dim_(max_dim),
        dtype_(view.dtype),
        address_(reinterpret_cast<uintptr_t>(view.data)),
        axes_{{"batch", view.batch, view.batch_stride},
              {"length", view.length, view.length_stride},
              {"heads", view.heads, view.head_stride},
              {"dim", view.dim, view.dim_stride}},
        scale_address_(reinterpret_cast<uintptr_t>(view.scale.data)),
        scale_axes_{{"batch", view.batch, view.scale.batch_stride},
                    {"length", view.length, view.scale.length_stride},
                    {"heads", view.heads, view.scale.head_stride},
                    {"dim", view.dim, view.scale.dim_stride}} {}
  ViewCheck(const char* name, const MaskView& view)
      : name_(name),
        min_dim_(0),
        max_dim_(kMaxCount),
        is_mask_(true),
        address_(reinterpret_cast<uintptr_t>(view.data)),
        axes_{{"batch", view.batch, view.batch_stride},
              {"length", view.length, view.length_stride},
              {"heads", view.heads, view.head_stride},
              {"dim", view.dim, view.dim_stride}} {}

  Status ValidateShape() const {
    if (ElementBytes() == 0) {
      return Status::Error(kInvalid, "%s.dtype is %d, must be f32, f16, bf16 or i8", name_,
                           static_cast<int>(dtype_));
    }
    for (const Axis& axis : axes_) {
      const bool may_be_empty = &axis == &axes_[0] || &axis == &axes_[1];
      const bool is_dim = &axis == &axes_[3];
      const int64_t min = is_dim ? min_dim_ : may_be_empty ? 0 : 1;
      const int64_t max = is_dim ? max_dim_ : kMaxCount;
      if (axis.count < min || axis.count > max) {
        return Status::Error(kInvalid, "%s.%s is %lld, must be %lld to %lld", name_, axis.name,
                             LL{axis.count}, LL{min}, LL{max});
      }
    }
    return Status();
  }

  // Shape, strides and addresses, which give the spans.
  Status Validate(ViewSpans* spans) const {
    *spans = ViewSpans();
    Status status = ValidateShape();
    if (!status.ok()) return status;
    status = ValidateMemory("", address_, ElementBytes(), axes_, &spans->elements);
    if (!status.ok() || is_mask_) return status;
    if (dtype_ == DType::kI8) {
      return ValidateMemory(".scale", scale_address_, sizeof(float), scale_axes_, &spans->scales);
    }
    if (scale_address_ == 0) return Status();
    return Status::Error(kInvalid, "%s.scale.data is given, must be null: %s is %s, not i8", name_,
                         name_, Name(dtype_));
  }

  // Outputs: no two elements share memory. Checked as nesting: every axis steps over all that the
  // axes with smaller strides span.
  Status ValidateDistinct() const {
    if (IsEmpty()) return Status();
    Axis sorted[4] = {axes_[0], axes_[1], axes_[2], axes_[3]};
    std::sort(sorted, sorted + 4, [](const Axis& a, const Axis& b) {
      return Magnitude(a.stride) < Magnitude(b.stride);
    });
    uint64_t inner_bytes = static_cast<uint64_t>(ElementBytes());
    for (const Axis& axis : sorted) {
      if (axis.count <= 1) continue;
      if (Magnitude(axis.stride) < inner_bytes) {
        return Status::Error(
            kInvalid, "%s's %s stride is %lld bytes: elements overlap, which an output's must not",
            name_, axis.name, LL{axis.stride});
      }
      inner_bytes += static_cast<uint64_t>(axis.count - 1) * Magnitude(axis.stride);
    }
    return Status();
  }

 private:
  static uint64_t Magnitude(int64_t stride) {
    return stride < 0 ? uint64_t{0} - static_cast<uint64_t>(stride) : static_cast<uint64_t>(stride);
  }

  int64_t ElementBytes() const { return is_mask_ ? 1 : SizeBytes(dtype_); }
  const char* TypeName() const { return is_mask_ ? "a mask" : Name(dtype_); }
  bool IsEmpty() const { return axes_[0].count == 0 || axes_[1].count == 0 || axes_[3].count == 0; }

  // Strides and address of the elements or of the scales (`part` is what their name ends in), which
  // give the span.
  Status ValidateMemory(const char* part, uintptr_t address, int64_t element, const Axis (&axes)[4],
                        MemorySpan* span) const {
    for (const Axis& axis : axes) {
      if (axis.stride % element != 0) {
        return Status::Error(
            kInvalid, "%s%s's %s stride is %lld bytes, must be a multiple of the element's %lld",
            name_, part, axis.name, LL{axis.stride}, LL{element});
      }
    }
    if (IsEmpty()) return Status();
    if (address == 0) {
      return Status::Error(kInvalid, "%s%s.data is null, must not be: %s is %s and not empty",
                           name_, part, name_, TypeName());
    }
    if (address % static_cast<uintptr_t>(element) != 0) {
      return Status::Error(kInvalid, "%s%s.data is not aligned to its element's %lld bytes", name_,
                           part, LL{element});
    }

    // Offsets of the lowest and highest element.
    int64_t low = 0;
    int64_t high = 0;
    bool overflow = false;
    for (const Axis& axis : axes) {
      int64_t reach = 0;
      overflow |= __builtin_mul_overflow(axis.count - 1, axis.stride, &reach);
      int64_t& bound = reach < 0 ? low : high;
      overflow |= __builtin_add_overflow(bound, reach, &bound);
    }
    overflow |= __builtin_add_overflow(high, element, &high);
    // The low bound is negative or 0; its magnitude must not pass address 0. Extents are of 64
    // bits, addresses may be of 32: the sum is exact, and overflows where its type does.
    const uint64_t below = static_cast<uint64_t>(-(low + 1)) + 1;
    overflow = overflow || below > address || __builtin_add_overflow(address, high, &span->end);
    if (overflow) {
      return Status::Error(kInvalid, "%s%s's sizes and strides overflow the address space", name_,
                           part);
    }
    span->begin = address - static_cast<uintptr_t>(below);
    return Status();
  }

  const char* name_;
  int64_t min_dim_;
  int64_t max_dim_;
  bool is_mask_ = false;
  DType dtype_ = DType::kI8;
  uintptr_t address_;
  Axis axes_[4];
  uintptr_t scale_address_ = 0;
  Axis scale_axes_[4] = {};
};

Status ValidateEqual(const char* name, int64_t value, const char* other_name, int64_t other) {
  if (value == other) return Status();
  return Status::Error(kInvalid, "%s is %lld, but %s is %lld", name, LL{value}, other_name,
                       LL{other});
}

#define SIGHTLINE_RETURN_IF_ERROR(expression) \
  if (Status status = (expression); !status.ok()) return status

Status ValidateKvSpans(const ConstTensorView& k, const ConstTensorView& v, ViewSpans* k_spans,
                       ViewSpans* v_spans) {
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("k", k).Validate(k_spans));
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("v", v).Validate(v_spans));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("v.batch", v.batch, "k.batch", k.batch));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("v.length", v.length, "k.length", k.length));
  return ValidateEqual("v.heads", v.heads, "k.heads", k.heads);
}

// Address and size for `user`, and the span of what it needs: the rest of a large arena is not used
// and may hold anything.
Status ValidateWorkspaceBlock(const Workspace& workspace, size_t needed_bytes, const char* user,
                              MemorySpan* span) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(workspace.data);
  if (workspace.data == nullptr && needed_bytes > 0)
    return Status::Error(kInvalid, "workspace.data is null");
  if (address % Workspace::kAlignmentBytes != 0) {
    return Status::Error(kInvalid, "workspace.data is not aligned to %zu bytes",
                         Workspace::kAlignmentBytes);
  }
  if (workspace.bytes < needed_bytes) {
    return Status::Error(kInvalid, "workspace.bytes is %zu, %s needs %zu", workspace.bytes, user,
                         needed_bytes);
  }
  *span = {address, address + needed_bytes};
  return Status();
}

// An optional array of 4-byte elements; its span goes to *memory.
template <typename T>
Status ValidateArray(const char* name, const T* data, int64_t count, ArgMemory* memory) {
  static_assert(sizeof(T) == 4, "f32 or int32");
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  if (address % sizeof(T) != 0) {
    return Status::Error(kInvalid, "%s is not aligned to its element's %zu bytes", name, sizeof(T));
  }
  memory->Add(name, SpanOf(data, count));
  return Status();
}

// n + 1 offsets from 0 to `total` that never fall, with at most max_count between two of them.
Status ValidateIndptr(const char* name, const int32_t* indptr, int64_t n, const char* total_name,
                      int64_t total, const char* max_name, int64_t max_count) {
  if (indptr[0] != 0)
    return Status::Error(kInvalid, "%s[0] is %d, must be 0", name, static_cast<int>(indptr[0]));
  for (int64_t s = 0; s < n; ++s) {
    const int64_t count = int64_t{indptr[s + 1]} - indptr[s];
    if (count < 0) {
      return Status::Error(kInvalid, "%s[%lld] is %d, must not be below the %d before it", name,
                           LL{s + 1}, static_cast<int>(indptr[s + 1]), static_cast<int>(indptr[s]));
    }
    if (count > max_count) {
      return Status::Error(StatusCode::kCapacityExceeded,
                           "%s gives sequence %lld a length of %lld, the plan's %s is %lld", name,
                           LL{s}, LL{count}, max_name, LL{max_count});
    }
  }
  if (indptr[n] != total) {
    return Status::Error(kInvalid, "%s[%lld] is %d, must be %s, which is %lld", name, LL{n},
                         static_cast<int>(indptr[n]), total_name, LL{total});
  }
  return Status();
}

// Geometry and format of a memory or cache against the plan.
Status ValidatePacked(const char* name, const PlanImpl& plan, const PackedKv& packed) {
  const AttentionDesc& desc = plan.desc;
  const KvGeometry& geometry = packed.geometry();
  if (geometry.layout_version != kLayoutVersion) {
    return Status::Error(StatusCode::kUnsupported,
                         "%s was packed with layout version %u; this library reads version %u",
                         name, geometry.layout_version, kLayoutVersion);
  }
  if (!desc.any_precision && geometry.precision != desc.precision) {
    return Status::Error(kInvalid, "%s's precision is %s, the plan's is %s", name,
                         Name(geometry.precision), Name(desc.precision));
  }
  if (!desc.any_precision && IsRotated(geometry.layout) != desc.rotate_k) {
    return Status::Error(kInvalid, "%s's rotate_k is %s, the plan's is %s", name,
                         Text(IsRotated(geometry.layout)), Text(desc.rotate_k));
  }
  if (plan.FindKernelsFor(packed) == nullptr) {
    const auto& kernels = plan.table->kernels[static_cast<size_t>(geometry.precision)];
    return Status::Error(StatusCode::kUnsupported,
                         "%s has layout %u; the plan's tier reads layout %u: create both for one "
                         "tier, or Convert it",
                         name, static_cast<unsigned>(geometry.layout),
                         static_cast<unsigned>(LayoutOf(kernels, IsRotated(geometry.layout))));
  }
  if (geometry.num_kv_heads != desc.num_kv_heads || geometry.head_dim != desc.head_dim ||
      geometry.v_head_dim != desc.v_head_dim) {
    return Status::Error(
        kInvalid,
        "%s has num_kv_heads %lld, head_dim %lld, v_head_dim %lld; the plan has %lld, %lld, %lld",
        name, LL{geometry.num_kv_heads}, LL{geometry.head_dim}, LL{geometry.v_head_dim},
        LL{desc.num_kv_heads}, LL{desc.head_dim}, LL{desc.v_head_dim});
  }
  return Status();
}

// A cache that forgets what is behind its window is for plans that do not look there. (A memory
// made of one has what it has.)
Status ValidateWindow(const char* name, const AttentionDesc& desc, const KvCache& cache) {
  const int64_t kept = cache.window_left();
  if (kept < 0 || (desc.window_left >= 0 && desc.window_left <= kept)) return Status();
  return Status::Error(kInvalid,
                       "%s keeps a window_left of %lld, the plan's is %lld, must be 0 to %lld",
                       name, LL{kept}, LL{desc.window_left}, LL{kept});
}

// A segment by itself; `name` is what messages call it.
Status ValidateSegment(const char* name, const PlanImpl& plan, const KvSegment& segment) {
  if ((segment.memory != nullptr) == (segment.cache != nullptr)) {
    return Status::Error(
        kInvalid, "%s has %s, must have exactly one", name,
        segment.memory != nullptr ? "both a memory and a cache" : "neither memory nor cache");
  }
  const PackedKv* packed = PackedOf(segment);
  if (packed == nullptr) return Status::Error(kInvalid, "%s is empty: create it first", name);
  SIGHTLINE_RETURN_IF_ERROR(ValidatePacked(name, plan, *packed));
  if (segment.cache != nullptr) {
    SIGHTLINE_RETURN_IF_ERROR(ValidateWindow(name, plan.desc, *segment.cache));
  }
  if (segment.kv_len < -1 || segment.kv_len > kMaxCount) {
    return Status::Error(kInvalid, "%s.kv_len is %lld, must be -1 to %lld", name,
                         LL{segment.kv_len}, LL{kMaxCount});
  }
  return Status();
}

// Biases of a segment, and none but -inf that would not be finite in octaves beside scores.
Status ValidateSegmentBias(const char* name, int64_t num_heads, const float* bias) {
  if (bias == nullptr) return Status();
  if (reinterpret_cast<uintptr_t>(bias) % sizeof(float) != 0)
    return Status::Error(kInvalid, "%s.bias is not aligned to its element's 4 bytes", name);
  constexpr float kLargest = 1e30f;
  for (int64_t h = 0; h < num_heads; ++h) {
    if (bias[h] == -HUGE_VALF || fabsf(bias[h]) <= kLargest) continue;
    return Status::Error(kInvalid, "%s.bias[%lld] is %g, must be -inf or %g to %g", name, LL{h},
                         double{bias[h]}, double{-kLargest}, double{kLargest});
  }
  return Status();
}

// Lists of segments: indices that never fall, and what they point to is of batch 1.
Status ValidateSegmentLists(const AttentionArgs& args, ArgMemory* memory) {
  const int64_t num_lists = args.num_segment_lists;
  const int32_t* indptr = args.segment_indptr;
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_segment_lists", num_lists, 0, kMaxCount));
  if ((indptr == nullptr) != (num_lists == 0)) {
    return Status::Error(kInvalid, "segment_indptr is %s, but num_segment_lists is %lld",
                         indptr == nullptr ? "null" : "given", LL{num_lists});
  }
  if (indptr == nullptr) return Status();
  SIGHTLINE_RETURN_IF_ERROR(ValidateArray("segment_indptr", indptr, num_lists + 1, memory));
  return ValidateIndptr("segment_indptr", indptr, num_lists, "num_segments", args.num_segments,
                        "num_segments", args.num_segments);
}

Status ValidateSegments(const PlanImpl& plan, const AttentionArgs& args, ArgMemory* memory) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_segments", args.num_segments, 0, kMaxCount));
  if (args.segments == nullptr && args.num_segments != 0)
    return Status::Error(kInvalid, "segments is null, but num_segments is %lld",
                         LL{args.num_segments});
  if (args.kv_lens != nullptr)
    return Status::Error(kInvalid, "kv_lens is given, must be null: segments have kv_len");
  SIGHTLINE_RETURN_IF_ERROR(ValidateSegmentLists(args, memory));
  int64_t batch = 1;
  for (int64_t i = 0; i < args.num_segments; ++i) {
    const KvSegment& segment = args.segments[i];
    const auto validate = [&](const char* name) {
      SIGHTLINE_RETURN_IF_ERROR(ValidateSegment(name, plan, segment));
      SIGHTLINE_RETURN_IF_ERROR(ValidateSegmentBias(name, plan.desc.num_heads, segment.bias));
      const int64_t own_batch = PackedOf(segment)->geometry().batch;
      if (own_batch == 1) return Status();
      if (args.segment_indptr != nullptr || (batch != 1 && own_batch != batch)) {
        const int64_t wanted = args.segment_indptr != nullptr ? 1 : batch;
        return Status::Error(kInvalid, "%s's batch is %lld, must be %s%lld", name, LL{own_batch},
                             wanted == 1 ? "" : "1 or ", LL{wanted});
      }
      batch = own_batch;
      return Status();
    };
    if (validate("").ok()) continue;
    char name[40];  // takes time to write, and is only for what fails, which has changed nothing
    snprintf(name, sizeof(name), "segments[%lld]", LL{i});
    return validate(name);
  }
  return Status();
}

// An optional tensor or mask counts as given if anything of it is.
template <class View>
bool IsGiven(const View& view) {
  return view.data != nullptr || view.heads != 0;
}

struct Count {
  int64_t count;
  const char* what;
};

// A mask's or bias's axes; `dim` are keys, or blocks of them.
template <class View>
Status ValidatePerScore(const char* name, const View& view, const AttentionDesc& desc,
                        const Count& batch, const Count& length, int64_t min_dim) {
  const struct {
    const char* axis;
    int64_t given;
    Count wanted;
  } checks[] = {{"batch", view.batch, batch},
                {"length", view.length, length},
                {"heads", view.heads, {desc.num_heads, "num_heads"}}};
  for (const auto& check : checks) {
    if (check.given != check.wanted.count) {
      return Status::Error(kInvalid, "%s.%s is %lld, must be %lld: %s", name, check.axis,
                           LL{check.given}, LL{check.wanted.count}, check.wanted.what);
    }
  }
  if (view.dim < min_dim) {
    return Status::Error(kInvalid,
                         "%s.dim is %lld, must be at least %lld: the keys, or blocks of them", name,
                         LL{view.dim}, LL{min_dim});
  }
  return Status();
}

// q, out and lse, among themselves and against the plan.
Status ValidateQueries(const AttentionDesc& desc, const AttentionArgs& args, ViewSpans* q,
                       ViewSpans* out, ViewSpans* lse) {
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("q", args.q).Validate(q));
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("out", args.out).Validate(out));
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("out", args.out).ValidateDistinct());
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("q.heads", args.q.heads, "num_heads", desc.num_heads));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("q.dim", args.q.dim, "head_dim", desc.head_dim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("out.batch", args.out.batch, "q.batch", args.q.batch));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("out.length", args.out.length, "q.length", args.q.length));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("out.heads", args.out.heads, "num_heads", desc.num_heads));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("out.dim", args.out.dim, "v_head_dim", desc.v_head_dim));
  if (!IsGiven(args.lse)) return Status();
  if (args.lse.dtype != DType::kF32)
    return Status::Error(kInvalid, "lse.dtype is %s, must be f32", Name(args.lse.dtype));
  const ViewCheck check("lse", args.lse, 1, 1);
  SIGHTLINE_RETURN_IF_ERROR(check.Validate(lse));
  SIGHTLINE_RETURN_IF_ERROR(check.ValidateDistinct());
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("lse.batch", args.lse.batch, "q.batch", args.q.batch));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("lse.length", args.lse.length, "q.length", args.q.length));
  return ValidateEqual("lse.heads", args.lse.heads, "num_heads", desc.num_heads);
}

// K and V by whichever of their sources is given.
Status ValidateSource(const PlanImpl& plan, const AttentionArgs& args, ArgMemory* memory) {
  const AttentionDesc& desc = plan.desc;
  const bool has_tensors =
      args.k.data != nullptr || args.v.data != nullptr || args.k.heads != 0 || args.v.heads != 0;
  const bool has_segments = HasSegments(args);
  const int sources = (has_tensors ? 1 : 0) + (args.memory != nullptr ? 1 : 0) +
                      (args.cache != nullptr ? 1 : 0) + (has_segments ? 1 : 0);
  if (sources != 1) {
    return Status::Error(kInvalid,
                         "%d of {k and v}, memory, cache, segments are given, must be exactly one",
                         sources);
  }
  if (has_segments) return ValidateSegments(plan, args, memory);
  if (args.segment_indptr != nullptr)
    return Status::Error(kInvalid, "segment_indptr is given, but there are no segments");
  if (has_tensors) {
    ViewSpans k, v;
    SIGHTLINE_RETURN_IF_ERROR(ValidateKvSpans(args.k, args.v, &k, &v));
    SIGHTLINE_RETURN_IF_ERROR(
        ValidateKvShape(args.k, args.v, desc.num_kv_heads, desc.head_dim, desc.v_head_dim, "plan"));
    if (args.kv_indptr == nullptr && args.k.length > desc.max_kv_len) {
      return Status::Error(StatusCode::kCapacityExceeded,
                           "k.length is %lld, the plan's max_kv_len %lld", LL{args.k.length},
                           LL{desc.max_kv_len});
    }
    memory->Add("k", k.elements);
    memory->Add("k.scale", k.scales);
    memory->Add("v", v.elements);
    memory->Add("v.scale", v.scales);
    return Status();
  }
  KvSegment segment;
  segment.memory = args.memory;
  segment.cache = args.cache;
  return ValidateSegment(args.memory != nullptr ? "memory" : "cache", plan, segment);
}

// The name of a memory whose block has something of the span, or null. Pages of caches are the
// library's own.
const char* OverlappingBlock(const KeySources& keys, const MemorySpan& span) {
  for (size_t i = 0; i < keys.num_segments(); ++i) {
    const KvBlock block = PackedOf(keys.segment(i))->block();
    const uintptr_t begin = reinterpret_cast<uintptr_t>(block.data);
    if (span.Overlaps({begin, begin + block.bytes})) return "the memory";
  }
  return nullptr;
}

// A padded batch: q's batch is a multiple of K's and V's. kv_batch: theirs.
Status ValidatePadded(const AttentionDesc& desc, const AttentionArgs& args, int64_t kv_batch) {
  if (args.q_indptr != nullptr || args.kv_indptr != nullptr) {
    return Status::Error(kInvalid, "%s is given, must be null: num_sequences is 0",
                         args.q_indptr != nullptr ? "q_indptr" : "kv_indptr");
  }
  if (args.q.batch > desc.max_batch) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "q.batch is %lld, the plan's max_batch %lld", LL{args.q.batch},
                         LL{desc.max_batch});
  }
  if (args.q.length > desc.max_q_len) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "q.length is %lld, the plan's max_q_len %lld", LL{args.q.length},
                         LL{desc.max_q_len});
  }
  if (kv_batch == 0 ? args.q.batch != 0 : args.q.batch % kv_batch != 0) {
    return Status::Error(kInvalid,
                         "q.batch is %lld, must be a multiple of the K/V batch, which is %lld",
                         LL{args.q.batch}, LL{kv_batch});
  }
  return Status();
}

Status ValidateRagged(const AttentionDesc& desc, const AttentionArgs& args, int64_t kv_batch,
                      ArgMemory* memory) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_sequences", args.num_sequences, 0, kMaxCount));
  if (args.num_sequences > desc.max_batch) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "num_sequences is %lld, the plan's max_batch %lld", LL{args.num_sequences},
                         LL{desc.max_batch});
  }
  if (args.q_indptr == nullptr) {
    return Status::Error(kInvalid, "q_indptr is null, must not be: num_sequences is %lld",
                         LL{args.num_sequences});
  }
  if (args.q.batch != 1) {
    return Status::Error(kInvalid, "q.batch is %lld, must be 1: num_sequences is %lld",
                         LL{args.q.batch}, LL{args.num_sequences});
  }
  const int64_t n = args.num_sequences;
  SIGHTLINE_RETURN_IF_ERROR(ValidateArray("q_indptr", args.q_indptr, n + 1, memory));
  SIGHTLINE_RETURN_IF_ERROR(ValidateArray("kv_indptr", args.kv_indptr, n + 1, memory));
  SIGHTLINE_RETURN_IF_ERROR(ValidateIndptr("q_indptr", args.q_indptr, n, "q.length", args.q.length,
                                           "max_q_len", desc.max_q_len));
  if (args.kv_indptr == nullptr) {
    return ValidateEqual("num_sequences", n, "the batch of K and V", kv_batch);
  }
  if (args.memory != nullptr || args.cache != nullptr || args.segments != nullptr) {
    return Status::Error(kInvalid, "kv_indptr is given, must be null: %s for each sequence",
                         args.memory != nullptr  ? "memory has a batch entry"
                         : args.cache != nullptr ? "cache has a batch entry"
                                                 : "segments are listed");
  }
  if (kv_batch != 1)
    return Status::Error(kInvalid, "k.batch is %lld, must be 1: kv_indptr is given", LL{kv_batch});
  return ValidateIndptr("kv_indptr", args.kv_indptr, n, "k.length", args.k.length, "max_kv_len",
                        desc.max_kv_len);
}

// A mask or bias with an element for each query, head and key.
template <class View>
Status ValidatePerKey(const char* name, const View& view, const AttentionDesc& desc,
                      const ConstTensorView& q, int64_t longest) {
  return ValidatePerScore(name, view, desc, {q.batch, "q's batch"},
                          {q.length, "the number of queries"}, longest);
}

Status ValidateBlockMask(const AttentionDesc& desc, const AttentionArgs& args, int64_t longest,
                         ArgMemory* memory) {
  const BlockMask& block_mask = args.block_mask;
  if (!IsGiven(block_mask.blocks)) return Status();
  const char* name = "block_mask.blocks";
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("block_mask.q_block", block_mask.q_block, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateRange("block_mask.kv_block", block_mask.kv_block, 1, kMaxCount));
  ViewSpans spans;
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck(name, block_mask.blocks).Validate(&spans));
  const auto blocks = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
  Count batch = {args.q.batch, "q's batch"};
  Count queries = {args.q.length, "the number of blocks of queries"};
  if (args.num_sequences != 0) {
    const SequenceSpans sequences = {static_cast<size_t>(args.num_sequences), args.q.length,
                                     args.q_indptr, nullptr};
    batch = {args.num_sequences, "num_sequences"};
    queries = {static_cast<int64_t>(sequences.longest()),
               "the number of blocks of the longest sequence's queries"};
  }
  queries.count = blocks(queries.count, block_mask.q_block);
  SIGHTLINE_RETURN_IF_ERROR(ValidatePerScore(name, block_mask.blocks, desc, batch, queries,
                                             blocks(longest, block_mask.kv_block)));
  memory->Add("block_mask", spans.elements);
  return Status();
}

// Lengths and masks; `keys` are what they are for.
Status ValidateMasks(const AttentionDesc& desc, const AttentionArgs& args, const KeySources& keys,
                     int64_t longest, ArgMemory* memory) {
  if (args.q_start != AttentionArgs::kBottomRight)
    SIGHTLINE_RETURN_IF_ERROR(ValidateRange("q_start", args.q_start, -kMaxCount, kMaxCount));
  const int64_t n = static_cast<int64_t>(keys.num_sequences());
  SIGHTLINE_RETURN_IF_ERROR(ValidateArray("kv_lens", args.kv_lens, n, memory));
  SIGHTLINE_RETURN_IF_ERROR(ValidateArray("prefix_lens", args.prefix_lens, n, memory));
  const bool has_lens = args.kv_lens != nullptr || args.prefix_lens != nullptr;
  for (int64_t s = 0; has_lens && s < n; ++s) {
    const int64_t kv_len = static_cast<int64_t>(keys.count_all(static_cast<size_t>(s)));
    const struct {
      const char* name;
      const int32_t* lens;
      int64_t max;
    } arrays[] = {{"kv_lens", args.kv_lens, kv_len}, {"prefix_lens", args.prefix_lens, kMaxCount}};
    for (const auto& array : arrays) {
      if (array.lens != nullptr && (array.lens[s] < 0 || array.lens[s] > array.max)) {
        return Status::Error(kInvalid, "%s[%lld] is %d, must be 0 to %lld", array.name, LL{s},
                             static_cast<int>(array.lens[s]), LL{array.max});
      }
    }
  }
  ViewSpans spans;
  if (IsGiven(args.mask)) {
    SIGHTLINE_RETURN_IF_ERROR(ViewCheck("mask", args.mask).Validate(&spans));
    SIGHTLINE_RETURN_IF_ERROR(ValidatePerKey("mask", args.mask, desc, args.q, longest));
    memory->Add("mask", spans.elements);
  }
  return ValidateBlockMask(desc, args, longest, memory);
}

Status ValidateBiases(const AttentionDesc& desc, const AttentionArgs& args, int64_t longest,
                      ArgMemory* memory) {
  if (IsGiven(args.bias)) {
    ViewSpans spans;
    if (args.bias.dtype != DType::kF32 && args.bias.dtype != DType::kF16 &&
        args.bias.dtype != DType::kBF16) {
      return Status::Error(kInvalid, "bias.dtype is %d (%s), must be f32, f16 or bf16",
                           static_cast<int>(args.bias.dtype), Name(args.bias.dtype));
    }
    SIGHTLINE_RETURN_IF_ERROR(ViewCheck("bias", args.bias, 0, kMaxCount).Validate(&spans));
    SIGHTLINE_RETURN_IF_ERROR(ValidatePerKey("bias", args.bias, desc, args.q, longest));
    memory->Add("bias", spans.elements);
  }
  const int64_t num_buckets = desc.relative_buckets.num_buckets;
  if ((args.relative_bias != nullptr) != (num_buckets != 0)) {
    return Status::Error(kInvalid, "relative_bias is %s, but the plan's relative_buckets has %lld",
                         args.relative_bias != nullptr ? "given" : "null", LL{num_buckets});
  }
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateArray("relative_bias", args.relative_bias, num_buckets * desc.num_heads, memory));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateArray("alibi_slopes", args.alibi_slopes, desc.num_heads, memory));
  return ValidateArray("sinks", args.sinks, desc.num_heads, memory);
}

// An optional output of f32, or of any floats, with a dim of its own; its span goes to *output.
Status ValidateOutput(const char* name, const TensorView& view, bool f32_only, int64_t min_dim,
                      MemorySpan* output) {
  if (view.dtype != DType::kF32 &&
      (f32_only || (view.dtype != DType::kF16 && view.dtype != DType::kBF16))) {
    return Status::Error(kInvalid, "%s.dtype is %s, must be %s", name, Name(view.dtype),
                         f32_only ? "f32" : "f32, f16 or bf16");
  }
  const ViewCheck check(name, view, 0, kMaxCount);
  ViewSpans spans;
  SIGHTLINE_RETURN_IF_ERROR(check.Validate(&spans));
  SIGHTLINE_RETURN_IF_ERROR(check.ValidateDistinct());
  if (view.dim < min_dim) {
    return Status::Error(kInvalid, "%s.dim is %lld, must be at least %lld: the keys", name,
                         LL{view.dim}, LL{min_dim});
  }
  *output = spans.elements;
  return Status();
}

// Indices of [0, end), in ascending order or in any.
Status ValidateIndices(const char* name, const int32_t* indices, int64_t count, int64_t end,
                       bool ascending) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t min = ascending && i > 0 ? int64_t{indices[i - 1]} + 1 : 0;
    if (indices[i] < min || indices[i] >= end) {
      return Status::Error(kInvalid, "%s[%lld] is %d, must be %lld to %lld%s", name, LL{i},
                           static_cast<int>(indices[i]), LL{min}, LL{end - 1},
                           ascending ? ", in ascending order" : "");
    }
  }
  return Status();
}

// Outputs of the second pass.
Status ValidateWeights(const AttentionDesc& desc, const AttentionArgs& args, int64_t longest,
                       ArgMemory* memory, MemorySpan* output) {
  const WeightsOutput& weights = args.weights;
  if (!IsGiven(weights.out)) return Status();
  if (!IsGiven(args.lse))
    return Status::Error(kInvalid, "lse is null, must not be: weights.out is computed from it");
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateOutput("weights.out", weights.out, weights.average_heads, longest, output));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateArray("weights.heads", weights.heads, weights.num_heads, memory));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateArray("weights.queries", weights.queries, weights.num_queries, memory));
  const struct {
    const char* name;
    const int32_t* indices;
    int64_t count;
  } lists[] = {{"weights.heads", weights.heads, weights.num_heads},
               {"weights.queries", weights.queries, weights.num_queries}};
  for (const auto& list : lists) {
    if (list.indices == nullptr && list.count != 0) {
      return Status::Error(kInvalid, "%s is null, must not be: there are %lld", list.name,
                           LL{list.count});
    }
  }
  int64_t num_heads = desc.num_heads;
  if (weights.heads != nullptr) {
    num_heads = weights.num_heads;
    SIGHTLINE_RETURN_IF_ERROR(ValidateRange("weights.num_heads", num_heads, 1, kMaxCount));
    SIGHTLINE_RETURN_IF_ERROR(
        ValidateIndices("weights.heads", weights.heads, num_heads, desc.num_heads, false));
  }
  int64_t num_queries = args.q.length;
  if (weights.queries != nullptr) {
    num_queries = weights.num_queries;
    SIGHTLINE_RETURN_IF_ERROR(ValidateRange("weights.num_queries", num_queries, 0, kMaxCount));
    SIGHTLINE_RETURN_IF_ERROR(
        ValidateIndices("weights.queries", weights.queries, num_queries, args.q.length, true));
  }
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("weights.out.batch", weights.out.batch, "q.batch", args.q.batch));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("weights.out.length", weights.out.length,
                                          "the number of its queries", num_queries));
  return ValidateEqual("weights.out.heads", weights.out.heads, "the number of its heads",
                       weights.average_heads ? 1 : num_heads);
}

Status ValidateMass(const AttentionDesc& desc, const AttentionArgs& args, int64_t num_sequences,
                    int64_t longest, MemorySpan* output) {
  const TensorView& mass = args.mass;
  if (!IsGiven(mass)) return Status();
  if (!IsGiven(args.lse))
    return Status::Error(kInvalid, "lse is null, must not be: mass is computed from it");
  SIGHTLINE_RETURN_IF_ERROR(ValidateOutput("mass", mass, true, longest, output));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("mass.length", mass.length, "the sum over queries", 1));
  const struct {
    const char* axis;
    int64_t given;
    int64_t one;
    int64_t other;
  } checks[] = {{"batch", mass.batch, args.num_sequences == 0 ? args.q.batch : args.num_sequences,
                 num_sequences},
                {"heads", mass.heads, desc.num_heads, desc.num_kv_heads}};
  for (const auto& check : checks) {
    if (check.given != check.one && check.given != check.other) {
      return Status::Error(kInvalid, "mass.%s is %lld, must be %lld or, summed, %lld", check.axis,
                           LL{check.given}, LL{check.one}, LL{check.other});
    }
  }
  return Status();
}

}  // namespace

Status ValidatePrecision(const char* prefix, Precision precision, bool rotate_k) {
  if (static_cast<size_t>(precision) >= kNumPrecisions) {
    return Status::Error(kInvalid,
                         "%sprecision is %d, must be f32, f16, i8, i8_fine, bf16 or mixed16",
                         prefix, static_cast<int>(precision));
  }
  if (rotate_k && precision != Precision::kI8) {
    return Status::Error(kInvalid,
                         "%srotate_k is true, must be false for precision %s: i8 alone has it",
                         prefix, Name(precision));
  }
  return Status();
}

Status ValidateParallel(const ParallelFor& parallel) {
  if (parallel.num_workers == 0)
    return Status::Error(kInvalid, "parallel.num_workers is 0, must be at least 1");
  if (parallel.num_workers > 1 && parallel.run == nullptr) {
    return Status::Error(kInvalid, "parallel.run is null, but parallel.num_workers is %zu",
                         parallel.num_workers);
  }
  return Status();
}

Status ValidateBuckets(const RelativeBuckets& buckets) {
  if (buckets.num_buckets == 0) return Status();
  const int64_t step = buckets.bidirectional ? 2 : 1;
  const int64_t min = 2 * step;  // at least one of a side holds a single distance, and one the rest
  constexpr int64_t kMaxBuckets = 4096;
  if (buckets.num_buckets < min || buckets.num_buckets > kMaxBuckets ||
      buckets.num_buckets % step != 0) {
    return Status::Error(kInvalid,
                         "relative_buckets.num_buckets is %lld, must be 0 or %lld to %lld%s",
                         LL{buckets.num_buckets}, LL{min}, LL{kMaxBuckets},
                         buckets.bidirectional ? " and even" : "");
  }
  constexpr int64_t kMaxDistance = 65536;
  return ValidateRange("relative_buckets.max_distance", buckets.max_distance,
                       ExactBuckets(buckets) + 1, kMaxDistance);
}

Status ValidateDesc(const AttentionDesc& desc) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_heads", desc.num_heads, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_kv_heads", desc.num_kv_heads, 1, kMaxCount));
  if (desc.num_heads % desc.num_kv_heads != 0) {
    return Status::Error(kInvalid, "num_kv_heads is %lld, must divide num_heads, which is %lld",
                         LL{desc.num_kv_heads}, LL{desc.num_heads});
  }
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("head_dim", desc.head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("v_head_dim", desc.v_head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("max_batch", desc.max_batch, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("max_q_len", desc.max_q_len, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("max_kv_len", desc.max_kv_len, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("max_workers", desc.max_workers, 1, 1 << 16));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("window_left", desc.window_left, -1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("window_right", desc.window_right, -1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateBuckets(desc.relative_buckets));
  if (desc.softcap != 0.0f && !(desc.softcap >= kMinSoftcap && desc.softcap <= kMaxSoftcap)) {
    return Status::Error(kInvalid, "softcap is %g, must be 0 or %g to %g", double{desc.softcap},
                         double{kMinSoftcap}, double{kMaxSoftcap});
  }
  if (!(fabsf(desc.scale) <= kMaxScale)) {
    return Status::Error(kInvalid, "scale is %g, its magnitude must be at most %g",
                         double{desc.scale}, double{kMaxScale});
  }
  return ValidatePrecision("", desc.precision, desc.rotate_k);
}

Status ValidatePoolDesc(const KvPoolDesc& desc) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_kv_heads", desc.num_kv_heads, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("head_dim", desc.head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("v_head_dim", desc.v_head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("max_pages", desc.max_pages, 0, kMaxCount));
  constexpr int64_t kTile = kKvTile;
  if (desc.page_tokens < kTile || desc.page_tokens > kMaxPageTokens ||
      desc.page_tokens % kTile != 0) {
    return Status::Error(kInvalid, "page_tokens is %lld, must be a multiple of %lld up to %lld",
                         LL{desc.page_tokens}, LL{kTile}, LL{kMaxPageTokens});
  }
  return ValidatePrecision("format.", desc.format.precision, desc.format.rotate_k);
}

// What a cache has of its own, whatever its pages come from.
Status ValidateCacheLimits(const KvCacheDesc& desc) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("batch", desc.batch, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("capacity", desc.capacity, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("window_left", desc.window_left, -1, kMaxCount));
  return ValidateRange("num_sinks", desc.num_sinks, 0, desc.window_left < 0 ? 0 : kMaxCount);
}

Status ValidateCacheDesc(const KvCacheDesc& desc, const KvPoolDesc& own) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateCacheLimits(desc));
  return ValidatePoolDesc(own);
}

Status ValidatePooledCacheDesc(const KvCacheDesc& desc, const KvFormat& of_pool) {
  const KvFormat& format = desc.format;
  const bool is_given = format.precision != KvFormat().precision || format.rotate_k;
  if (is_given && (format.precision != of_pool.precision || format.rotate_k != of_pool.rotate_k)) {
    return Status::Error(kInvalid, "format is %s%s, the pool's is %s%s", Name(format.precision),
                         format.rotate_k ? " with rotate_k" : "", Name(of_pool.precision),
                         of_pool.rotate_k ? " with rotate_k" : "");
  }
  const struct {
    const char* name;
    int64_t given;
  } counts[] = {{"num_kv_heads", desc.num_kv_heads},
                {"head_dim", desc.head_dim},
                {"v_head_dim", desc.v_head_dim},
                {"page_tokens", desc.page_tokens}};
  for (const auto& count : counts) {
    if (count.given != 0) {
      return Status::Error(kInvalid, "%s is %lld, must be 0: the pool has one", count.name,
                           LL{count.given});
    }
  }
  return ValidateCacheLimits(desc);
}

Status ValidateMemoryDesc(const CrossMemoryDesc& desc, int64_t num_layers) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("batch", desc.batch, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("kv_len", desc.kv_len, 0, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_kv_heads", desc.num_kv_heads, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("head_dim", desc.head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("v_head_dim", desc.v_head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_layers", num_layers, 1, kMaxCount));
  return ValidatePrecision("format.", desc.format.precision, desc.format.rotate_k);
}

Status ValidateKvLens(const int32_t* kv_lens, int64_t batch, int64_t kv_len) {
  for (int64_t b = 0; kv_lens != nullptr && b < batch; ++b) {
    if (kv_lens[b] < 0 || kv_lens[b] > kv_len) {
      return Status::Error(kInvalid, "kv_lens[%lld] is %d, must be 0 to %lld", LL{b},
                           static_cast<int>(kv_lens[b]), LL{kv_len});
    }
  }
  return Status();
}

Status ValidatePlacement(const KvPlacement& placement, size_t needed_bytes) {
  if (placement.data == nullptr) {
    return Status::Error(kInvalid, "placement.data is null, but placement.bytes is %zu",
                         placement.bytes);
  }
  if (reinterpret_cast<uintptr_t>(placement.data) % KvPlacement::kAlignmentBytes != 0) {
    return Status::Error(kInvalid, "placement.data is not aligned to %zu bytes",
                         KvPlacement::kAlignmentBytes);
  }
  if (placement.bytes < needed_bytes) {
    return Status::Error(kInvalid, "placement.bytes is %zu, must be at least %zu", placement.bytes,
                         needed_bytes);
  }
  return Status();
}

Status ValidateParents(const int32_t* parents, int64_t batch, int64_t old_batch) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("batch", batch, 1, kMaxCount));
  if (parents == nullptr) return Status::Error(kInvalid, "parents is null");
  return ValidateIndices("parents", parents, batch, old_batch, false);
}

Status ValidateEviction(int64_t batch_entry, const int32_t* positions, int64_t count, int64_t batch,
                        int64_t length) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("batch_entry", batch_entry, 0, batch - 1));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("count", count, 0, kMaxCount));
  if (positions == nullptr && count != 0)
    return Status::Error(kInvalid, "positions is null, must not be: there are %lld", LL{count});
  return ValidateIndices("positions", positions, count, length, false);
}

Status ValidateKv(const ConstTensorView& k, const ConstTensorView& v) {
  ViewSpans k_spans, v_spans;
  return ValidateKvSpans(k, v, &k_spans, &v_spans);
}

Status ValidateKvShape(const ConstTensorView& k, const ConstTensorView& v, int64_t num_kv_heads,
                       int64_t head_dim, int64_t v_head_dim, const char* what) {
  const struct {
    const char* name;
    int64_t given;
    int64_t wanted;
  } checks[] = {
      {"k.heads", k.heads, num_kv_heads}, {"k.dim", k.dim, head_dim}, {"v.dim", v.dim, v_head_dim}};
  for (const auto& check : checks) {
    if (check.given != check.wanted) {
      return Status::Error(kInvalid, "%s is %lld, the %s has %lld", check.name, LL{check.given},
                           what, LL{check.wanted});
    }
  }
  return Status();
}

Status ValidateArgs(const PlanImpl& plan, const AttentionArgs& args, ArgMemory* memory) {
  const AttentionDesc& desc = plan.desc;
  ViewSpans q, out, lse;
  SIGHTLINE_RETURN_IF_ERROR(ValidateQueries(desc, args, &q, &out, &lse));
  memory->Add("q", q.elements);
  memory->Add("q.scale", q.scales);
  memory->Add("out.scale", out.scales);
  SIGHTLINE_RETURN_IF_ERROR(ValidateSource(plan, args, memory));
  // Ragged tensors have their sequences in one batch entry.
  const bool is_packed = args.k.heads == 0 && args.k.data == nullptr;
  const int64_t kv_batch =
      is_packed ? static_cast<int64_t>(KeySources(args).num_sequences()) : args.k.batch;
  SIGHTLINE_RETURN_IF_ERROR(args.num_sequences == 0 ? ValidatePadded(desc, args, kv_batch)
                                                    : ValidateRagged(desc, args, kv_batch, memory));
  const KeySources keys(args);
  const int64_t longest = static_cast<int64_t>(keys.longest());
  if (longest > kMaxCount) {
    return Status::Error(kInvalid, "segments have %lld keys together, must be at most %lld",
                         LL{longest}, LL{kMaxCount});
  }
  SIGHTLINE_RETURN_IF_ERROR(ValidateMasks(desc, args, keys, longest, memory));
  SIGHTLINE_RETURN_IF_ERROR(ValidateBiases(desc, args, longest, memory));

  MemorySpan weights, mass;
  SIGHTLINE_RETURN_IF_ERROR(ValidateWeights(desc, args, longest, memory, &weights));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateMass(desc, args, static_cast<int64_t>(keys.num_sequences()), longest, &mass));

  // Scales are only read, those of `out` too.
  const struct {
    const char* name;
    const MemorySpan& span;
  } outputs[] = {
      {"out", out.elements}, {"lse", lse.elements}, {"weights.out", weights}, {"mass", mass}};
  for (const auto& output : outputs) {
    const char* overlapping = memory->Overlapping(output.span);
    if (overlapping == nullptr) overlapping = OverlappingBlock(keys, output.span);
    if (overlapping != nullptr)
      return Status::Error(kInvalid, "%s overlaps %s", output.name, overlapping);
    memory->Add(output.name, output.span);
  }
  return Status();
}

Status ValidateWorkspace(const Workspace& workspace, size_t needed_bytes, const ArgMemory& memory,
                         const AttentionArgs& args) {
  MemorySpan span;
  SIGHTLINE_RETURN_IF_ERROR(ValidateWorkspaceBlock(workspace, needed_bytes, "the plan", &span));
  const char* overlapping = memory.Overlapping(span);
  if (overlapping == nullptr) overlapping = OverlappingBlock(KeySources(args), span);
  if (overlapping != nullptr) return Status::Error(kInvalid, "workspace overlaps %s", overlapping);
  return Status();
}

Status ValidateAlignmentShape(const AlignmentArgs& args) {
  const ConstTensorView& weights = args.weights;
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("weights", weights, 1, kMaxCount).ValidateShape());
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("skip_first", args.skip_first, 0, weights.length));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateRange("skip_last", args.skip_last, 0, weights.length - args.skip_first));
  constexpr int64_t kMaxWidth = AlignmentArgs::kMaxMedianWidth;
  if (args.median_width < 1 || args.median_width > kMaxWidth || args.median_width % 2 == 0) {
    return Status::Error(kInvalid, "median_width is %lld, must be odd and 1 to %lld",
                         LL{args.median_width}, LL{kMaxWidth});
  }
  return Status();
}

Status ValidateAlignment(const AlignmentArgs& args, const Workspace& workspace,
                         size_t needed_bytes) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateAlignmentShape(args));
  const ConstTensorView& view = args.weights;
  ViewSpans weights;
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("weights", view, 1, kMaxCount).Validate(&weights));
  const int64_t num_aligned = view.length - args.skip_first - args.skip_last;
  if (args.first_frame == nullptr && view.batch > 0 && num_aligned > 0) {
    return Status::Error(kInvalid, "first_frame is null, must not be: there are tokens to align");
  }
  if ((args.path == nullptr) != (args.path_lens == nullptr)) {
    const bool has_path = args.path != nullptr;
    return Status::Error(kInvalid, "%s is null, but %s is given: both or none must be",
                         has_path ? "path_lens" : "path", has_path ? "path" : "path_lens");
  }
  MemorySpan scratch;
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateWorkspaceBlock(workspace, needed_bytes, "this alignment", &scratch));

  // Nothing that is written may meet anything else.
  const int64_t num_steps = num_aligned == 0 ? 0 : num_aligned + view.dim - 1;
  const struct {
    const char* name;
    MemorySpan span;
    bool is_written;
  } blocks[] = {{"weights", weights.elements, false},
                {"weights.scale", weights.scales, false},
                {"first_frame", SpanOf(args.first_frame, view.batch * num_aligned), true},
                {"path", SpanOf(args.path, view.batch * num_steps), true},
                {"path_lens", SpanOf(args.path_lens, view.batch), true},
                {"workspace", scratch, true}};
  for (const auto* block = std::begin(blocks); block != std::end(blocks); ++block) {
    for (const auto* other = std::begin(blocks); other != block; ++other) {
      if (block->is_written && block->span.Overlaps(other->span))
        return Status::Error(kInvalid, "%s overlaps %s", block->name, other->name);
    }
  }
  return Status();
}

#undef SIGHTLINE_RETURN_IF_ERROR

}  // namespace internal
}  // namespace sightline
