#include "dispatch/validate.h"

#include <math.h>
#include <stddef.h>

#include <algorithm>

namespace sightline {
namespace internal {
namespace {

using LL = long long;  // what %lld prints

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;

// Times log2(e) it is still an f32.
constexpr float kMaxScale = 1e38f;

// Extents are checked in 64 bits; on a 32-bit machine they would have to fit 32.
static_assert(sizeof(size_t) == 8, "32-bit address spaces are not supported yet");

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

// Bytes of memory: [begin, end).
struct Span {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool Overlaps(const Span& other) const {
    return begin < end && other.begin < other.end && begin < other.end && other.begin < end;
  }
};

// What a view touches; empty if it has no elements or no scales.
struct ViewSpans {
  Span elements;
  Span scales;
};

class ViewCheck {
 public:
  template <typename Void>
  ViewCheck(const char* name, const BasicTensorView<Void>& view)
      : name_(name),
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

  // Shape, strides and addresses, which give the spans.
  Status Validate(ViewSpans* spans) const {
    *spans = ViewSpans();
    if (SizeBytes(dtype_) == 0) {
      return Status::Error(kInvalid, "%s.dtype is %d, must be f32, f16, bf16 or i8", name_,
                           static_cast<int>(dtype_));
    }
    for (const Axis& axis : axes_) {
      const bool may_be_empty = &axis == &axes_[0] || &axis == &axes_[1];
      const int64_t min = may_be_empty ? 0 : 1;
      const int64_t max = &axis == &axes_[3] ? int64_t{kMaxHeadDim} : kMaxCount;
      if (axis.count < min || axis.count > max) {
        return Status::Error(kInvalid, "%s.%s is %lld, must be %lld to %lld", name_, axis.name,
                             LL{axis.count}, LL{min}, LL{max});
      }
    }
    Status status = ValidateMemory("", address_, SizeBytes(dtype_), axes_, &spans->elements);
    if (!status.ok()) return status;
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
    uint64_t inner_bytes = static_cast<uint64_t>(SizeBytes(dtype_));
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

  bool IsEmpty() const { return axes_[0].count == 0 || axes_[1].count == 0; }

  // Strides and address of the elements or of the scales (`part` is what their name ends in), which
  // give the span.
  Status ValidateMemory(const char* part, uintptr_t address, int64_t element, const Axis (&axes)[4],
                        Span* span) const {
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
                           name_, part, name_, Name(dtype_));
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
    // The low bound is negative or 0; its magnitude must not pass address 0.
    overflow = overflow || static_cast<uintptr_t>(-(low + 1)) + 1 > address ||
               __builtin_add_overflow(address, static_cast<uintptr_t>(high), &span->end);
    if (overflow) {
      return Status::Error(kInvalid, "%s%s's sizes and strides overflow the address space", name_,
                           part);
    }
    span->begin = address - (static_cast<uintptr_t>(-(low + 1)) + 1);
    return Status();
  }

  const char* name_;
  DType dtype_;
  uintptr_t address_;
  Axis axes_[4];
  uintptr_t scale_address_;
  Axis scale_axes_[4];
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

// Geometry and format of a memory or cache against the plan.
Status ValidatePacked(const char* name, const AttentionDesc& desc, LayoutId layout,
                      const PackedKv& packed) {
  const PackedHeader& header = packed.header();
  if (header.layout_version != kLayoutVersion) {
    return Status::Error(StatusCode::kUnsupported,
                         "%s was packed with layout version %u; this library reads version %u",
                         name, header.layout_version, kLayoutVersion);
  }
  if (packed.precision() != desc.precision) {
    return Status::Error(kInvalid, "%s's precision is %s, the plan's is %s", name,
                         Name(packed.precision()), Name(desc.precision));
  }
  if (IsRotated(header.layout) != desc.rotate_k) {
    return Status::Error(kInvalid, "%s's rotate_k is %s, the plan's is %s", name,
                         Text(IsRotated(header.layout)), Text(desc.rotate_k));
  }
  if (header.layout != layout) {
    return Status::Error(
        StatusCode::kUnsupported,
        "%s has layout %u; the plan's tier reads layout %u: create both for one tier", name,
        static_cast<unsigned>(header.layout), static_cast<unsigned>(layout));
  }
  if (header.num_kv_heads != desc.num_kv_heads || header.head_dim != desc.head_dim ||
      header.v_head_dim != desc.v_head_dim) {
    return Status::Error(
        kInvalid,
        "%s has num_kv_heads %lld, head_dim %lld, v_head_dim %lld; the plan has %lld, %lld, %lld",
        name, LL{header.num_kv_heads}, LL{header.head_dim}, LL{header.v_head_dim},
        LL{desc.num_kv_heads}, LL{desc.head_dim}, LL{desc.v_head_dim});
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
  if (desc.mask != Mask::kNone && desc.mask != Mask::kCausal) {
    return Status::Error(kInvalid, "mask is %d, must be kNone or kCausal",
                         static_cast<int>(desc.mask));
  }
  if (!(fabsf(desc.scale) <= kMaxScale)) {
    return Status::Error(kInvalid, "scale is %g, its magnitude must be at most %g",
                         double{desc.scale}, double{kMaxScale});
  }
  return ValidatePrecision("", desc.precision, desc.rotate_k);
}

Status ValidateCacheDesc(const KvCacheDesc& desc) {
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("batch", desc.batch, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("num_kv_heads", desc.num_kv_heads, 1, kMaxCount));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("head_dim", desc.head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("v_head_dim", desc.v_head_dim, 1, kMaxHeadDim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateRange("capacity", desc.capacity, 0, kMaxCount));
  return ValidatePrecision("format.", desc.format.precision, desc.format.rotate_k);
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

Status ValidateArgs(const AttentionDesc& desc, LayoutId layout, const AttentionArgs& args,
                    const PackedKv** packed) {
  ViewSpans q, out, k, v;
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("q", args.q).Validate(&q));
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("out", args.out).Validate(&out));
  SIGHTLINE_RETURN_IF_ERROR(ViewCheck("out", args.out).ValidateDistinct());
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("q.heads", args.q.heads, "num_heads", desc.num_heads));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("q.dim", args.q.dim, "head_dim", desc.head_dim));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("out.batch", args.out.batch, "q.batch", args.q.batch));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("out.length", args.out.length, "q.length", args.q.length));
  SIGHTLINE_RETURN_IF_ERROR(
      ValidateEqual("out.heads", args.out.heads, "num_heads", desc.num_heads));
  SIGHTLINE_RETURN_IF_ERROR(ValidateEqual("out.dim", args.out.dim, "v_head_dim", desc.v_head_dim));
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

  const bool has_tensors =
      args.k.data != nullptr || args.v.data != nullptr || args.k.heads != 0 || args.v.heads != 0;
  const int sources =
      (has_tensors ? 1 : 0) + (args.memory != nullptr ? 1 : 0) + (args.cache != nullptr ? 1 : 0);
  if (sources != 1) {
    return Status::Error(kInvalid, "%d of {k and v}, memory, cache are given, must be exactly one",
                         sources);
  }

  int64_t kv_batch = 0;
  *packed = nullptr;
  if (has_tensors) {
    SIGHTLINE_RETURN_IF_ERROR(ValidateKvSpans(args.k, args.v, &k, &v));
    SIGHTLINE_RETURN_IF_ERROR(
        ValidateKvShape(args.k, args.v, desc.num_kv_heads, desc.head_dim, desc.v_head_dim, "plan"));
    if (args.k.length > desc.max_kv_len) {
      return Status::Error(StatusCode::kCapacityExceeded,
                           "k.length is %lld, the plan's max_kv_len %lld", LL{args.k.length},
                           LL{desc.max_kv_len});
    }
    kv_batch = args.k.batch;
  } else {
    const char* name = args.memory != nullptr ? "memory" : "cache";
    *packed = args.memory != nullptr ? KvAccess::Get(*args.memory) : KvAccess::Get(*args.cache);
    if (*packed == nullptr) return Status::Error(kInvalid, "%s is empty: create it first", name);
    SIGHTLINE_RETURN_IF_ERROR(ValidatePacked(name, desc, layout, **packed));
    const uintptr_t block = reinterpret_cast<uintptr_t>((*packed)->block());
    k.elements = {block, block + (*packed)->bytes()};
    kv_batch = (*packed)->header().batch;
  }
  if (kv_batch == 0 ? args.q.batch != 0 : args.q.batch % kv_batch != 0) {
    return Status::Error(kInvalid,
                         "q.batch is %lld, must be a multiple of the K/V batch, which is %lld",
                         LL{args.q.batch}, LL{kv_batch});
  }
  // Scales are only read, those of `out` too.
  const struct {
    const char* name;
    const Span& span;
  } inputs[] = {{"q", q.elements},
                {"q.scale", q.scales},
                {*packed != nullptr ? "the memory or cache" : "k", k.elements},
                {"k.scale", k.scales},
                {"v", v.elements},
                {"v.scale", v.scales},
                {"out.scale", out.scales}};
  for (const auto& input : inputs) {
    if (out.elements.Overlaps(input.span))
      return Status::Error(kInvalid, "out overlaps %s", input.name);
  }
  return Status();
}

Status ValidateWorkspace(const Workspace& workspace, size_t needed_bytes,
                         const AttentionArgs& args) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(workspace.data);
  if (workspace.data == nullptr && needed_bytes > 0)
    return Status::Error(kInvalid, "workspace.data is null");
  if (address % Workspace::kAlignmentBytes != 0) {
    return Status::Error(kInvalid, "workspace.data is not aligned to %zu bytes",
                         Workspace::kAlignmentBytes);
  }
  if (workspace.bytes < needed_bytes) {
    return Status::Error(kInvalid, "workspace.bytes is %zu, the plan needs %zu", workspace.bytes,
                         needed_bytes);
  }
  // Only what is needed is used: the rest of a large arena may hold anything.
  const Span span = {address, address + needed_bytes};
  const struct {
    const char* name;
    const ConstTensorView view;
  } tensors[] = {{"q", args.q}, {"k", args.k}, {"v", args.v}, {"out", args.out}};
  for (const auto& tensor : tensors) {
    ViewSpans used;
    if (tensor.view.data == nullptr) continue;
    SIGHTLINE_RETURN_IF_ERROR(ViewCheck(tensor.name, tensor.view).Validate(&used));
    if (span.Overlaps(used.elements))
      return Status::Error(kInvalid, "workspace overlaps %s", tensor.name);
    if (span.Overlaps(used.scales))
      return Status::Error(kInvalid, "workspace overlaps %s.scale", tensor.name);
  }
  return Status();
}

#undef SIGHTLINE_RETURN_IF_ERROR

}  // namespace internal
}  // namespace sightline
