// Run: validate, pack K and V if they are not yet, then tasks of up to kTaskRows rows each.
#include <algorithm>
#include <atomic>

#include "dispatch/parallel.h"
#include "dispatch/plan.h"
#include "dispatch/validate.h"
#include "kv/prepare.h"
#include "sightline/attention.h"

namespace sightline {
namespace internal {
namespace {

// Holds the plan's own workspace for the duration of a Run.
class OwnWorkspace {
 public:
  explicit OwnWorkspace(const PlanImpl& plan) : plan_(plan) {}
  OwnWorkspace(const OwnWorkspace&) = delete;
  OwnWorkspace& operator=(const OwnWorkspace&) = delete;
  ~OwnWorkspace() {
    if (taken_) plan_.own_workspace_busy.store(false, std::memory_order_release);
  }

  Status Take(Workspace* workspace) {
    if (!plan_.desc.owns_workspace) {
      return Status::Error(StatusCode::kInvalidArgument,
                           "workspace is null, and the plan owns none (owns_workspace is false)");
    }
    if (plan_.own_workspace_busy.exchange(true, std::memory_order_acquire)) {
      return Status::Error(StatusCode::kBusy,
                           "the plan's own workspace serves another Run; bring one of your own");
    }
    taken_ = true;
    workspace->data = plan_.own_workspace;
    workspace->bytes = plan_.workspace_bytes;
    return Status();
  }

 private:
  const PlanImpl& plan_;
  bool taken_ = false;
};

// The rows of q or out that share one (batch, kv head) of K/V.
template <class View>
Rows RowsOf(const View& view, size_t kv_batch, size_t kv_head, size_t beams, size_t group) {
  Rows rows = {};
  // Inputs are only read: kernels take both through one type.
  rows.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(view.data)) +
              static_cast<int64_t>(kv_batch * beams) * view.batch_stride +
              static_cast<int64_t>(kv_head * group) * view.head_stride;
  rows.dtype = view.dtype;
  rows.scale = HeadScales(view, kv_batch * beams, kv_head * group);
  rows.length_stride = view.length_stride;
  rows.beam_stride = view.batch_stride;
  rows.head_stride = view.head_stride;
  rows.dim_stride = view.dim_stride;
  rows.beams = beams;
  rows.group = group;
  return rows;
}

void Attend(const PlanImpl& plan, const AttentionArgs& args, const PackedHeads& heads,
            size_t kv_batch, size_t kv_len, unsigned char* scratch, const ParallelFor& parallel) {
  const size_t beams = static_cast<size_t>(args.q.batch) / kv_batch;
  const size_t group = static_cast<size_t>(plan.desc.num_heads / plan.desc.num_kv_heads);
  const size_t num_rows = static_cast<size_t>(args.q.length) * beams * group;
  const size_t tasks_per_head = (num_rows + kTaskRows - 1) / kTaskRows;
  const bool few = num_rows <= plan.kernels->decode_rows;
  const auto attend = few ? plan.kernels->decode : plan.kernels->prefill;
  // Split and driver depend on shapes alone, so that results do not depend on the number of
  // workers.
  ForEachTask(parallel, kv_batch * heads.num_kv_heads * tasks_per_head,
              [&](size_t index, size_t worker) {
                const size_t head = index / tasks_per_head;
                const size_t batch = head / heads.num_kv_heads;
                const size_t kv_head = head % heads.num_kv_heads;
                AttendTask task = {};
                task.head = heads.at(batch, kv_head);
                task.kv_len = kv_len;
                task.q = RowsOf(args.q, batch, kv_head, beams, group);
                task.out = RowsOf(args.out, batch, kv_head, beams, group);
                task.q_len = static_cast<size_t>(args.q.length);
                task.row_begin = index % tasks_per_head * kTaskRows;
                task.row_end = std::min(task.row_begin + kTaskRows, num_rows);
                task.causal = plan.desc.mask == Mask::kCausal;
                task.scale_log2e = plan.scale_log2e;
                attend(task, scratch + worker * plan.scratch_bytes);
              });
}

}  // namespace
}  // namespace internal

Status Run(const Plan& plan, const AttentionArgs& args, const Workspace& given,
           const ParallelFor& parallel) {
  if (plan.empty()) {
    return Status::Error(StatusCode::kInvalidArgument, "the plan is empty: create it first");
  }
  const internal::PlanImpl& impl = *PlanAccess::Get(plan);
  const internal::PackedKv* packed = nullptr;
  Status status = internal::ValidateArgs(impl.desc, impl.layout, args, &packed);
  if (status.ok()) status = internal::ValidateParallel(parallel);
  if (!status.ok()) return status;
  if (parallel.num_workers > static_cast<size_t>(impl.desc.max_workers)) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "parallel.num_workers is %zu, the plan's max_workers %lld",
                         parallel.num_workers, static_cast<long long>(impl.desc.max_workers));
  }

  Workspace workspace = given;
  internal::OwnWorkspace own(impl);
  const bool none_given = given.data == nullptr && given.bytes == 0;
  if (none_given && impl.workspace_bytes > 0) {
    status = own.Take(&workspace);
  } else {
    status = internal::ValidateWorkspace(given, impl.workspace_bytes, args);
  }
  if (!status.ok()) return status;
  if (args.q.batch == 0 || args.q.length == 0) return Status();

  unsigned char* base = static_cast<unsigned char*>(workspace.data);
  unsigned char* scratch = base + impl.packed_bytes;
  if (packed != nullptr) {
    internal::Attend(impl, args, packed->heads(), static_cast<size_t>(packed->header().batch),
                     static_cast<size_t>(packed->header().length), scratch, parallel);
  } else {
    const internal::PackedHeads heads = impl.PackedHeadsIn(base, args.k.length);
    internal::PackTensors(*impl.kernels, heads, args.k, args.v, parallel);
    internal::Attend(impl, args, heads, static_cast<size_t>(args.k.batch),
                     static_cast<size_t>(args.k.length), scratch, parallel);
  }
  return Status();
}

}  // namespace sightline
