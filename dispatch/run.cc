// Run: validate, pack K and V if they are not yet, then tasks of up to kTaskRows rows of a sequence
// and kv head each.
#include <string.h>

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

// Rows of q, or of a tensor with the same batch, length and heads: those of one sequence and kv
// head.
struct RowSet {
  size_t batch;
  size_t query;
  size_t head;
  size_t beams;
  size_t group;
};

template <class View>
int64_t OffsetIn(const View& view, const RowSet& set) {
  return static_cast<int64_t>(set.batch) * view.batch_stride +
         static_cast<int64_t>(set.query) * view.length_stride +
         static_cast<int64_t>(set.head) * view.head_stride;
}

template <class View>
Rows RowsOf(const View& view, const RowSet& set) {
  Rows rows = {};
  if (view.data == nullptr) return rows;
  // Inputs are only read: kernels take both through one type.
  rows.data = const_cast<unsigned char*>(static_cast<const unsigned char*>(view.data)) +
              OffsetIn(view, set);
  rows.dtype = view.dtype;
  rows.scale = HeadScales(view, set.batch, set.head);
  rows.scale.data =
      ScaleAt(rows.scale.data, static_cast<int64_t>(set.query) * rows.scale.length_stride);
  rows.length_stride = view.length_stride;
  rows.beam_stride = view.batch_stride;
  rows.head_stride = view.head_stride;
  rows.dim_stride = view.dim_stride;
  rows.beams = set.beams;
  rows.group = set.group;
  return rows;
}

// A block of block_mask begins with query 0 of its sequence: set.query is 0 there.
MaskRows MaskRowsOf(const MaskView& view, const RowSet& set, int64_t q_block, int64_t kv_block) {
  if (view.data == nullptr) return {};
  return {static_cast<const unsigned char*>(view.data) + OffsetIn(view, set),
          view.length_stride,
          view.batch_stride,
          view.head_stride,
          view.dim_stride,
          static_cast<size_t>(q_block),
          static_cast<size_t>(kv_block)};
}

// A call as kernels see it: sequences, whose queries may come from several beams and groups of
// heads.
struct Call {
  const PlanImpl& plan;
  const AttentionArgs& args;
  PackedHeads heads;
  SequenceSpans queries;
  SequenceSpans keys;
  size_t beams;
  size_t group;
  float* biases;  // [num_heads][BiasPlaces]: biases by distance in octaves
};

// Rows of one sequence that read one kv head: its queries in `beams` beams and `group` heads.
struct Selection {
  size_t sequence;
  size_t beam;
  size_t beams;
  size_t head;
  size_t group;
};

size_t NumRowsOf(const Call& call, const Selection& rows) {
  return call.queries.at(rows.sequence).count * rows.beams * rows.group;
}

DistanceBias DistanceBiasOf(const Call& call, size_t head) {
  const AttentionArgs& args = call.args;
  DistanceBias bias = {};
  if (args.relative_bias != nullptr) {
    bias.table = args.relative_bias + head;
    bias.table_stride = static_cast<size_t>(call.plan.desc.num_heads);
    bias.bucket = call.plan.buckets;
    bias.max_distance = call.plan.desc.relative_buckets.max_distance;
    bias.octaves = call.biases + head * call.plan.BiasPlaces();
  }
  if (args.alibi_slopes != nullptr) bias.slopes = args.alibi_slopes + head;
  return bias;
}

AttendTask TaskOf(const Call& call, const Selection& rows) {
  const AttentionDesc& desc = call.plan.desc;
  const AttentionArgs& args = call.args;
  const TokenSpan queries = call.queries.at(rows.sequence);
  const RowSet set = {queries.batch * call.beams + rows.beam, queries.begin, rows.head, rows.beams,
                      rows.group};
  AttendTask task = {};
  task.head = call.heads.at(rows.sequence, rows.head / call.group);
  task.kv_len = call.keys.at(rows.sequence).count;
  task.q = RowsOf(args.q, set);
  task.out = RowsOf(args.out, set);
  task.lse = RowsOf(args.lse, set);
  task.q_len = queries.count;
  task.row_end = NumRowsOf(call, rows);
  task.scale_log2e = call.plan.scale_log2e;

  const int64_t bottom_right = static_cast<int64_t>(task.kv_len) - static_cast<int64_t>(task.q_len);
  task.q_start = args.q_start == AttentionArgs::kBottomRight ? bottom_right : args.q_start;
  task.window_left = desc.window_left < 0 ? kUnbounded : desc.window_left;
  task.window_right = desc.causal ? 0 : desc.window_right < 0 ? kUnbounded : desc.window_right;
  if (args.prefix_lens != nullptr) {
    task.prefix_len = std::min(static_cast<size_t>(args.prefix_lens[rows.sequence]), task.kv_len);
  }
  task.masks[0] = MaskRowsOf(args.mask, set, 1, 1);
  task.masks[1] =
      MaskRowsOf(args.block_mask.blocks, set, args.block_mask.q_block, args.block_mask.kv_block);

  task.softcap_log2e = desc.softcap * kLog2E;
  task.bias = RowsOf(args.bias, set);
  task.distance_bias = DistanceBiasOf(call, rows.head);
  if (args.sinks != nullptr) task.sinks = args.sinks + rows.head;
  return task;
}

// Where the weights of entry `listed` of weights.heads go, for the rows of a sequence.
Rows WeightsRowsOf(const Call& call, size_t sequence, size_t listed) {
  const TokenSpan span = call.queries.at(sequence);
  return RowsOf(call.args.weights.out,
                {span.batch * call.beams, span.begin, listed, call.beams, 1});
}

// The place of a head in weights.heads, or its end: whatever comes first, as a head may be listed
// twice.
size_t FindListed(const WeightsOutput& weights, size_t head) {
  if (weights.heads == nullptr) return head;
  const int32_t* end = weights.heads + weights.num_heads;
  return static_cast<size_t>(std::find(weights.heads, end, static_cast<int32_t>(head)) -
                             weights.heads);
}

// True if prefill leaves the weights of a sequence's queries on the way.
bool WeighsOnTheWay(const Call& call, size_t sequence) {
  const WeightsOutput& weights = call.args.weights;
  const size_t num_rows = call.queries.at(sequence).count * call.beams * call.group;
  return weights.out.data != nullptr && call.plan.kernels->prefill_weighs &&
         num_rows > call.plan.kernels->decode_rows && call.group == 1 && !weights.average_heads &&
         weights.queries == nullptr && weights.out.dtype == DType::kF32 &&
         weights.out.dim_stride == int64_t{sizeof(float)};
}

// Rows of the packed heads in `range`.
void Attend(const Call& call, const HeadRange& range, unsigned char* scratch,
            const ParallelFor& parallel) {
  const size_t longest = call.queries.longest() * call.beams * call.group;
  const size_t tasks_per_head = (longest + kTaskRows - 1) / kTaskRows;
  // Split and driver depend on shapes alone, so that results do not depend on the number of
  // workers.
  ForEachTask(parallel, (range.end - range.begin) * tasks_per_head,
              [&](size_t index, size_t worker) {
                const size_t head = range.begin + index / tasks_per_head;
                const size_t sequence = head / call.heads.num_kv_heads;
                const size_t kv_head = head % call.heads.num_kv_heads;
                const Selection rows = {sequence, 0, call.beams, kv_head * call.group, call.group};
                const size_t row_begin = index % tasks_per_head * kTaskRows;
                const size_t num_rows = NumRowsOf(call, rows);
                if (row_begin >= num_rows) return;  // a shorter sequence than others
                AttendTask task = TaskOf(call, rows);
                task.row_begin = row_begin;
                task.row_end = std::min(row_begin + kTaskRows, num_rows);
                if (WeighsOnTheWay(call, sequence)) {
                  const size_t listed = FindListed(call.args.weights, kv_head);
                  if (listed < static_cast<size_t>(call.args.weights.out.heads)) {
                    task.weights.out = WeightsRowsOf(call, sequence, listed);
                    task.weights.num_keys = static_cast<size_t>(call.args.weights.out.dim);
                  }
                }
                const bool few = num_rows <= call.plan.kernels->decode_rows;
                const auto attend = few ? call.plan.kernels->decode : call.plan.kernels->prefill;
                attend(task, scratch + worker * call.plan.scratch_bytes);
              });
}

// K and V given as tensors are packed and read by turns: of so many bytes for each worker that its
// second-level cache still holds them, through which the caller's rows have passed as well, and of
// a head for each worker at least.
constexpr size_t kPackedBytesAtOnce = size_t{128} << 10;

void PackAndAttend(const Call& call, unsigned char* scratch, const ParallelFor& parallel) {
  const size_t num_heads = call.keys.num_sequences * call.heads.num_kv_heads;
  const size_t workers = std::max<size_t>(parallel.num_workers, 1);
  const PackedShape& shape = call.heads.shape;
  const size_t key_bytes =
      shape.head_dim * KElementBytes(shape.layout) + shape.v_head_dim * VElementBytes(shape.layout);
  HeadRange range = {0, 0};
  while (range.end < num_heads) {
    range.begin = range.end;
    size_t bytes = 0;
    while (range.end < num_heads &&
           (bytes < workers * kPackedBytesAtOnce || range.end - range.begin < workers)) {
      bytes += call.keys.at(range.end / call.heads.num_kv_heads).count * key_bytes;
      ++range.end;
    }
    PackTensors(*call.plan.kernels, call.heads, range, call.args.k, call.args.v, call.keys,
                parallel);
    Attend(call, range, scratch, parallel);
  }
}

// Fills call.biases, which decoding few rows can do without.
void SpreadBuckets(const Call& call, const ParallelFor& parallel) {
  const PlanImpl& plan = call.plan;
  const size_t num_heads = static_cast<size_t>(plan.desc.num_heads);
  const size_t most_rows = call.queries.longest() * call.beams * call.group;
  if (call.args.relative_bias == nullptr || most_rows <= plan.kernels->decode_rows) return;
  const size_t num_places = plan.BiasPlaces();
  const size_t last = num_places - 2 * kBiasPadding - 1;  // bucket of the largest distance
  ForEachTask(parallel, num_heads, [&](size_t head, size_t) {
    float* places = call.biases + head * num_places;
    for (size_t i = 0; i < num_places; ++i) {
      const size_t padded = std::max(i, kBiasPadding) - kBiasPadding;
      const size_t bucket = plan.buckets[last - std::min(padded, last)];
      places[i] = call.args.relative_bias[bucket * num_heads + head] * kLog2E;
    }
  });
}

void RunSecondPass(const Call& call, AttendTask task, size_t begin, size_t end,
                   unsigned char* scratch) {
  for (size_t row = begin; row < end; row += kTaskRows) {
    task.row_begin = row;
    task.row_end = std::min(row + kTaskRows, end);
    const bool few = task.row_end - task.row_begin <= call.plan.kernels->decode_rows;
    (few ? call.plan.kernels->weigh_few : call.plan.kernels->weigh_many)(task, scratch);
  }
}

// Weights of queries [begin, end) of those listed, for one head; runs of neighbours together.
void WeighQueries(const Call& call, AttendTask task, size_t begin, size_t end,
                  unsigned char* scratch) {
  const int32_t* queries = call.args.weights.queries;
  while (begin < end) {
    const size_t first = queries != nullptr ? static_cast<size_t>(queries[begin]) : begin;
    size_t count = 1;
    while (begin + count < end &&
           (queries == nullptr ||
            queries[begin + count] == queries[begin] + static_cast<int32_t>(count))) {
      ++count;
    }
    task.weights.first_row = (first - begin) * call.beams;
    RunSecondPass(call, task, first * call.beams, (first + count) * call.beams, scratch);
    begin += count;
  }
}

void Weigh(const Call& call, unsigned char* scratch, const ParallelFor& parallel) {
  const WeightsOutput& weights = call.args.weights;
  const size_t num_heads =
      static_cast<size_t>(weights.heads != nullptr ? weights.num_heads : call.plan.desc.num_heads);
  // Heads that are averaged take turns in one task.
  const size_t heads_per_task = weights.average_heads ? num_heads : 1;
  const size_t tasks_per_chunk = num_heads / heads_per_task;
  const bool all = weights.queries == nullptr;
  const size_t longest = all ? call.queries.longest() : static_cast<size_t>(weights.num_queries);
  const size_t chunk = std::max<size_t>(kTaskRows / call.beams, 1);
  const size_t num_chunks = (longest + chunk - 1) / chunk;
  ForEachTask(
      parallel, call.keys.num_sequences * num_chunks * tasks_per_chunk,
      [&](size_t index, size_t worker) {
        const size_t sequence = index / (num_chunks * tasks_per_chunk);
        const size_t begin = index / tasks_per_chunk % num_chunks * chunk;
        const TokenSpan span = call.queries.at(sequence);
        const size_t end = std::min(begin + chunk, all ? span.count : longest);
        for (size_t i = 0; i < heads_per_task; ++i) {
          const size_t listed = index % tasks_per_chunk + i;
          const size_t head =
              weights.heads != nullptr ? static_cast<size_t>(weights.heads[listed]) : listed;
          if (WeighsOnTheWay(call, sequence) && FindListed(weights, head) == listed) continue;
          AttendTask task = TaskOf(call, {sequence, 0, call.beams, head, 1});
          task.weights.out = WeightsRowsOf(call, sequence, weights.average_heads ? 0 : listed);
          task.weights.num_keys = static_cast<size_t>(weights.out.dim);
          task.weights.adds = i > 0;
          task.weights.factor = weights.average_heads ? 1.0f / static_cast<float>(num_heads) : 1.0f;
          WeighQueries(call, task, begin, end, scratch + worker * call.plan.scratch_bytes);
        }
      });
}

// One task for each row of mass, so that sums are in the order of queries.
void SumWeights(const Call& call, unsigned char* scratch, const ParallelFor& parallel) {
  const TensorView& mass = call.args.mass;
  const size_t num_heads = static_cast<size_t>(mass.heads);
  const bool by_beam = static_cast<size_t>(mass.batch) != call.keys.num_sequences;
  const bool by_head = num_heads != call.heads.num_kv_heads;
  const auto sum = [&](size_t index, size_t worker) {
    const size_t batch = index / num_heads;
    const size_t head = index % num_heads;
    Selection rows = {batch, 0, call.beams, head * call.group, call.group};
    if (by_beam) rows = {batch / call.beams, batch % call.beams, 1, rows.head, rows.group};
    if (by_head) rows.head = head;
    if (by_head) rows.group = 1;
    AttendTask task = TaskOf(call, rows);
    task.weights.mass = RowAt(RowsOf(mass, {batch, 0, head, 1, 1}), 0);
    task.weights.num_keys = static_cast<size_t>(mass.dim);
    task.weights.factor = 1.0f;
    for (size_t key = 0; key < task.weights.num_keys; ++key) {
      unsigned char* at =
          task.weights.mass.data + static_cast<int64_t>(key) * task.weights.mass.dim_stride;
      memset(at, 0, sizeof(float));
    }
    RunSecondPass(call, task, 0, NumRowsOf(call, rows), scratch + worker * call.plan.scratch_bytes);
  };
  ForEachTask(parallel, static_cast<size_t>(mass.batch) * num_heads, sum);
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
  internal::ArgMemory memory;
  Status status = internal::ValidateArgs(impl.desc, impl.layout, args, &packed, &memory);
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
    status = internal::ValidateWorkspace(given, impl.workspace_bytes, memory);
  }
  if (!status.ok()) return status;
  if (args.q.batch == 0) return Status();

  unsigned char* base = static_cast<unsigned char*>(workspace.data);
  internal::Call call = {impl, args, {}, {}, {}, 1, 0, nullptr};
  call.group = static_cast<size_t>(impl.desc.num_heads / impl.desc.num_kv_heads);
  call.keys = internal::KeySequences(args, packed);
  call.queries = {call.keys.num_sequences, args.q.length, args.q_indptr, nullptr};
  if (args.num_sequences == 0) {
    call.beams = static_cast<size_t>(args.q.batch) / call.keys.num_sequences;
  }
  if (packed != nullptr) {
    call.heads = packed->heads();
  } else {
    call.heads = impl.PackedHeadsIn(base, static_cast<int64_t>(call.keys.longest()));
  }
  call.biases = reinterpret_cast<float*>(base + impl.packed_bytes);
  internal::SpreadBuckets(call, parallel);
  unsigned char* scratch = base + impl.packed_bytes + impl.bias_bytes;
  if (packed == nullptr && args.q.length > 0) {
    internal::PackAndAttend(call, scratch, parallel);
  } else {
    const size_t num_heads = call.keys.num_sequences * call.heads.num_kv_heads;
    internal::Attend(call, {0, num_heads}, scratch, parallel);
  }
  if (args.weights.out.data != nullptr) internal::Weigh(call, scratch, parallel);
  if (args.mass.data != nullptr) internal::SumWeights(call, scratch, parallel);
  return Status();
}

}  // namespace sightline
