// Run: validate, pack K and V if they are not yet, then tasks of up to kTaskRows rows of a sequence
// and kv head each. Where keys come from several segments, a task reads one after the other; where
// heads of a group do not see the same ones, each has tasks of its own.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <type_traits>

#include "dispatch/key_sources.h"
#include "dispatch/merge.h"
#include "dispatch/parallel.h"
#include "dispatch/plan.h"
#include "dispatch/validate.h"
#include "dispatch/window_slices.h"
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

// Sets *rows, which are those of no tensor, unless there is none. In place: what is copied when it
// has just been written makes the CPU wait, and decode has little time.
template <class View>
void SetRows(const View& view, const RowSet& set, Rows* rows) {
  if (view.data == nullptr) return;
  // Inputs are only read: kernels take both through one type.
  rows->data = const_cast<unsigned char*>(static_cast<const unsigned char*>(view.data)) +
               OffsetIn(view, set);
  rows->dtype = view.dtype;
  if (view.scale.data != nullptr) {
    rows->scale = HeadScales(view, set.batch, set.head);
    rows->scale.data =
        ScaleAt(rows->scale.data, static_cast<int64_t>(set.query) * rows->scale.length_stride);
  }
  rows->length_stride = view.length_stride;
  rows->beam_stride = view.batch_stride;
  rows->head_stride = view.head_stride;
  rows->dim_stride = view.dim_stride;
  rows->beams = set.beams;
  rows->group = set.group;
}

template <class View>
Rows RowsOf(const View& view, const RowSet& set) {
  Rows rows = {};
  SetRows(view, set, &rows);
  return rows;
}

// Blocks count from query 0 of their sequence: set.query is 0 there.
MaskRows MaskRowsOf(const MaskView& view, const RowSet& set, int64_t q_block, int64_t kv_block) {
  if (view.data == nullptr) return {};
  return {static_cast<const unsigned char*>(view.data) + OffsetIn(view, set),
          view.length_stride,
          view.batch_stride,
          view.head_stride,
          view.dim_stride,
          static_cast<size_t>(q_block),
          static_cast<size_t>(kv_block),
          0};
}

// A call as kernels see it: sequences, whose queries may come from several beams and groups of
// heads.
struct Call {
  const PlanImpl& plan;
  const AttentionArgs& args;
  KeySources keys;
  PackedHeads packed;  // of k and v given as tensors
  SequenceSpans queries;
  size_t num_kv_heads;
  size_t beams;
  size_t group;
  float* biases;  // [num_heads][BiasPlaces]: biases by distance in octaves
};

Call CallOf(const PlanImpl& plan, const AttentionArgs& args, const PackedHeads& packed,
            float* biases) {
  Call call = {plan, args, KeySources(args), packed, {}, 0, 1, 0, biases};
  call.num_kv_heads = static_cast<size_t>(plan.desc.num_kv_heads);
  call.group = static_cast<size_t>(plan.desc.num_heads / plan.desc.num_kv_heads);
  call.queries = {call.keys.num_sequences(), args.q.length, args.q_indptr, nullptr};
  if (args.num_sequences == 0) {
    call.beams = static_cast<size_t>(args.q.batch) / call.keys.num_sequences();
  }
  return call;
}

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

// Makes *part the one of a sequence's keys that is segment i, or all keys of one whose K and V are
// tensors.
void FindPart(const Call& call, size_t sequence, size_t i, KeyPart* part) {
  if (call.keys.are_tensors()) {
    part->kernels = call.plan.kernels;
    part->shape = &call.packed.shape;
    part->offsets = &call.packed.offsets;
    const size_t first = sequence * call.num_kv_heads;
    part->first_head = std::max(call.packed.first, first) - first;
    part->keys = {call.packed.at(sequence, part->first_head).base, {}, call.keys.count(sequence)};
    part->width = part->count = part->keys.count;
    part->bias = nullptr;
    return;
  }
  const KvSegment& segment = call.keys.segment(i);
  const PackedKv& packed = *PackedOf(segment);
  part->kernels = call.plan.desc.any_precision ? &call.plan.KernelsFor(packed) : call.plan.kernels;
  part->shape = &packed.shape();
  part->offsets = &packed.offsets();
  part->keys = call.keys.keys(sequence, i);
  part->first_head = 0;
  part->width = part->count =
      call.args.kv_lens != nullptr ? call.keys.count(sequence) : part->keys.count;
  part->bias = segment.bias;
}

// True if a segment is hidden from some of these heads, but not from all.
bool SeeDifferentParts(const Call& call, const Selection& rows) {
  if (rows.group == 1 || call.keys.are_tensors()) return false;
  const size_t end = call.keys.segments_end(rows.sequence);
  for (size_t i = call.keys.segments_begin(rows.sequence); i < end; ++i) {
    const float* bias = call.keys.segment(i).bias;
    if (bias == nullptr) continue;
    bias += rows.head;
    const auto hidden = std::count(bias, bias + rows.group, -INFINITY);
    if (hidden != 0 && static_cast<size_t>(hidden) != rows.group) return true;
  }
  return false;
}

// Calls attend(rows); where these heads do not see the same parts, once for each of them.
template <class Function>
void ForHeadsThatSeeTheSame(const Call& call, const Selection& rows, const Function& attend) {
  if (!SeeDifferentParts(call, rows)) return attend(rows);
  for (size_t h = 0; h < rows.group; ++h) {
    attend({rows.sequence, rows.beam, rows.beams, rows.head + h, 1});
  }
}

// The parts of a sequence's keys, in their order: those of which rows see something, or one without
// keys if they see none.
class Parts {
 public:
  // rows: of heads that see the same parts. all: also those of which they see nothing.
  Parts(const Call& call, const Selection& rows, bool all = false)
      : num_keys_(call.keys.count(rows.sequence)),
        call_(call),
        sequence_(rows.sequence),
        head_(rows.head),
        all_(all),
        next_(call.keys.are_tensors() ? 0 : call.keys.segments_begin(rows.sequence)),
        end_(call.keys.are_tensors() ? 1 : call.keys.segments_end(rows.sequence)) {
    Find();
    if (has_next_) {
      Next();
    } else {
      KeyPart& none = parts_[current_];
      none.kernels = call.plan.kernels;
      none.shape = &call.plan.no_keys.shape;
      none.offsets = &call.plan.no_keys.offsets;
    }
  }

  const KeyPart& operator*() const { return parts_[current_]; }
  const KeyPart* operator->() const { return &parts_[current_]; }
  size_t num_keys() const { return num_keys_; }  // of all parts
  // Whether any part found so far has biases, which may hide it from this head alone.
  bool has_biases() const { return has_biases_; }
  // Whether another one follows, and if the same kernels read it in the same layout: rows keep
  // their Q, which rotated K has another one of.
  bool has_next() const { return has_next_; }
  bool continues() const {
    return has_next_ && Following().kernels == (*this)->kernels &&
           Following().shape->layout == (*this)->shape->layout;
  }
  void Next() {
    current_ = 1 - current_;
    has_next_ = false;
    Find();
  }

 private:
  KeyPart& Following() { return parts_[1 - current_]; }
  const KeyPart& Following() const { return parts_[1 - current_]; }

  void Find() {
    while (next_ != end_ && !has_next_) {
      KeyPart& part = Following();
      FindPart(call_, sequence_, next_++, &part);
      part.begin = begin_;
      begin_ += part.width;
      has_biases_ |= part.bias != nullptr;
      const bool is_hidden = part.bias != nullptr && part.bias[head_] == -INFINITY;
      // Where all tokens are forgotten there is no page.
      if (is_hidden || part.keys.heads == nullptr) part.count = 0;
      if (part.count == 0) part.bias = nullptr;
      has_next_ = part.count != 0 || (all_ && part.width != 0);
    }
  }

  size_t num_keys_;
  const Call& call_;
  size_t sequence_;
  size_t head_;
  bool all_;
  size_t next_;
  size_t end_;
  size_t begin_ = 0;
  KeyPart parts_[2] = {};  // this one and the following, by turns
  size_t current_ = 0;
  bool has_next_ = false;
  bool has_biases_ = false;
};

// Sets what *task, which is all zeros, needs to know about rows [begin, end), but for their keys.
void SetTaskRows(const Call& call, const Selection& rows, size_t begin, size_t end,
                 AttendTask* task) {
  const AttentionDesc& desc = call.plan.desc;
  const AttentionArgs& args = call.args;
  const TokenSpan queries = call.queries.at(rows.sequence);
  const RowSet set = {queries.batch * call.beams + rows.beam, queries.begin, rows.head, rows.beams,
                      rows.group};
  SetRows(args.q, set, &task->q);
  SetRows(args.out, set, &task->out);
  SetRows(args.lse, set, &task->lse);
  task->q_len = queries.count;
  task->row_begin = begin;
  task->row_end = end;
  task->scale_log2e = call.plan.scale_log2e;
  task->fetch_ahead = call.plan.fetch_ahead;
  task->window_left = desc.window_left < 0 ? kUnbounded : desc.window_left;
  task->window_right = desc.causal ? 0 : desc.window_right < 0 ? kUnbounded : desc.window_right;
  task->masks[0] = MaskRowsOf(args.mask, set, 1, 1);
  // Ragged sequences have entries of their own here, padded ones those of q.
  const RowSet blocks = {rows.sequence * call.beams + rows.beam, 0, rows.head, rows.beams,
                         rows.group};
  task->masks[1] =
      MaskRowsOf(args.block_mask.blocks, blocks, args.block_mask.q_block, args.block_mask.kv_block);
  task->softcap_log2e = desc.softcap * kLog2E;
  SetRows(args.bias, set, &task->bias);
  task->distance_bias = DistanceBiasOf(call, rows.head);
}

// Where a task finds the keys of a part.
void SetKeys(const KeyPart& part, size_t kv_head, AttendTask* task) {
  const size_t head_offset = (kv_head - part.first_head) * part.offsets->bytes;
  unsigned char* heads = part.keys.heads;  // null where no token is there
  task->head.base = heads == nullptr ? heads : heads + head_offset;
  task->head.shape = *part.shape;
  task->head.offsets = *part.offsets;
  task->pages = part.keys.pages;
  task->pages.head_offset += head_offset;
  task->kv_len = part.count;
}

// The same, and what goes by their position. Keys count from the part's first one on: positions,
// masks and biases move by as much, of a task whose keys began at `from`.
void SetPart(const Call& call, const Selection& rows, const Parts& parts, size_t from,
             AttendTask* task) {
  const AttentionArgs& args = call.args;
  const KeyPart& part = *parts;
  SetKeys(part, rows.head / call.group, task);
  task->score_offset = part.bias != nullptr ? part.bias + rows.head : nullptr;
  const int64_t begin = static_cast<int64_t>(part.begin);
  const int64_t bottom_right =
      static_cast<int64_t>(parts.num_keys()) - static_cast<int64_t>(task->q_len);
  task->q_start =
      (args.q_start == AttentionArgs::kBottomRight ? bottom_right : args.q_start) - begin;
  if (args.prefix_lens != nullptr) {
    const int64_t prefix = int64_t{args.prefix_lens[rows.sequence]} - begin;
    task->prefix_len = std::min(static_cast<size_t>(std::max<int64_t>(prefix, 0)), task->kv_len);
  }
  for (MaskRows& mask : task->masks) mask.first_key = part.begin;
  if (task->bias.data != nullptr) {
    task->bias.data += (begin - static_cast<int64_t>(from)) * task->bias.dim_stride;
  }
}

AttendTask TaskOf(const Call& call, const Selection& rows, const Parts& parts) {
  AttendTask task = {};
  SetTaskRows(call, rows, 0, NumRowsOf(call, rows), &task);
  SetPart(call, rows, parts, 0, &task);
  return task;
}

// True if weights.queries, which ascend, leave some out.
bool LeavesQueriesOut(const Call& call) {
  const WeightsOutput& weights = call.args.weights;
  return weights.queries != nullptr && weights.num_queries < call.args.q.length;
}

// The queries of a sequence whose weights are asked for.
struct WeighedQueries {
  TokenSpan span;         // their rows in weights.out
  const int32_t* listed;  // [span.count], along the length of q; null: all of the sequence
  size_t begin;           // of the sequence, there

  // Its number in the sequence.
  size_t at(size_t i) const {
    return listed == nullptr ? i : static_cast<size_t>(listed[i]) - begin;
  }
};

WeighedQueries WeighedQueriesOf(const Call& call, size_t sequence) {
  const WeightsOutput& weights = call.args.weights;
  const TokenSpan all = call.queries.at(sequence);
  if (!LeavesQueriesOut(call)) return {all, nullptr, all.begin};
  const auto first_from = [&](size_t query) {
    return std::lower_bound(weights.queries, weights.queries + weights.num_queries,
                            static_cast<int64_t>(query));
  };
  const int32_t* begin = first_from(all.begin);
  const int32_t* end = first_from(all.begin + all.count);
  const TokenSpan span = {all.batch, static_cast<size_t>(begin - weights.queries),
                          static_cast<size_t>(end - begin)};
  return {span, begin, all.begin};
}

// Of one sequence.
size_t MostWeighedQueries(const Call& call) {
  size_t most = 0;
  for (size_t s = 0; s < call.keys.num_sequences(); ++s) {
    most = std::max(most, WeighedQueriesOf(call, s).span.count);
  }
  return most;
}

// Where the weights of entry `listed` of weights.heads go, for the rows of a sequence.
Rows WeightsRowsOf(const Call& call, size_t sequence, size_t listed) {
  const TokenSpan span = WeighedQueriesOf(call, sequence).span;
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

// True if the first pass leaves weights on the way.
bool CanWeighOnTheWay(const Call& call) {
  const WeightsOutput& weights = call.args.weights;
  return weights.out.data != nullptr && call.plan.kernels->weighs_on_the_way &&
         call.keys.num_segments() <= 1 && !call.plan.desc.any_precision && call.group == 1 &&
         !weights.average_heads && !LeavesQueriesOut(call) && weights.out.dtype == DType::kF32 &&
         weights.out.dim_stride == int64_t{sizeof(float)};
}

// True if f32 weights are more than kKeptBytes. In floating point, which broadcasts do not
// overflow.
bool ExceedsCaches(const TensorView& weights) {
  double bytes = sizeof(float);
  for (const int64_t axis : {weights.batch, weights.length, weights.heads, weights.dim}) {
    bytes *= static_cast<double>(axis);
  }
  return bytes > static_cast<double>(kKeptBytes);
}

// Has a task of the first pass leave the weights of its head, if they are asked for.
void SetWeights(const Call& call, size_t sequence, size_t head, AttendTask* task) {
  if (!CanWeighOnTheWay(call)) return;
  task->weights = {};
  const TensorView& out = call.args.weights.out;
  const size_t listed = FindListed(call.args.weights, head);
  if (listed >= static_cast<size_t>(out.heads)) return;
  task->weights.out = WeightsRowsOf(call, sequence, listed);
  task->weights.num_keys = static_cast<size_t>(out.dim);
  task->weights.factor = 1.0f;
  task->weights.past_caches = ExceedsCaches(out);
}

void MoveRows(size_t heads, Rows* rows) {
  if (rows->data == nullptr) return;
  rows->data += static_cast<int64_t>(heads) * rows->head_stride;
  ScaleView& scale = rows->scale;
  if (scale.data == nullptr) return;
  scale.data = ScaleAt(scale.data, static_cast<int64_t>(heads) * scale.head_stride);
}

// Moves a task to the next kv head.
void MoveToNextHead(const Call& call, AttendTask* task) {
  const size_t group = call.group;
  if (task->head.base != nullptr) task->head.base += task->head.offsets.bytes;
  task->pages.head_offset += task->head.offsets.bytes;
  MoveRows(group, &task->q);
  MoveRows(group, &task->out);
  MoveRows(group, &task->lse);
  MoveRows(group, &task->bias);
  for (MaskRows& mask : task->masks) {
    if (mask.data != nullptr) mask.data += static_cast<int64_t>(group) * mask.head_stride;
  }
  DistanceBias& bias = task->distance_bias;
  if (bias.table != nullptr) {
    bias.table += group;
    bias.octaves += group * call.plan.BiasPlaces();
  }
  if (bias.slopes != nullptr) bias.slopes += group;
  if (task->sinks != nullptr) task->sinks += group;
}

// Tasks of the parts that decode reads in one go, each leading to the one behind it. They are made
// as they are needed, on the stack: all 16 KiB would take as long as decoding a hundred keys.
class PartTasks {
 public:
  // One over rows [row_begin, row_end), without keys.
  PartTasks(const Call& call, const Selection& rows, size_t row_begin, size_t row_end)
      : call_(call), rows_(rows), first_(*new(tasks_[0]) AttendTask()) {
    SetTaskRows(call, rows, row_begin, row_end, &first_);
  }
  PartTasks(const PartTasks&) = delete;  // its tasks point to each other
  PartTasks& operator=(const PartTasks&) = delete;

  AttendTask& first() { return first_; }
  const AttendTask& first() const { return first_; }
  AttendTask& last() { return *last_; }  // which leaves the output
  const PrecisionKernels& kernels() const { return *kernels_; }

  void MoveToNextHead() {
    first_.is_next_head = true;
    for (AttendTask* task = &first_; task != nullptr;) {
      internal::MoveToNextHead(call_, task);
      task = const_cast<AttendTask*>(task->next);  // ours
    }
  }

  // Makes tasks of the next parts that the same kernels read, and leaves `parts` at the last.
  // continues: rows have seen the parts before. Returns whether they go on with the next.
  bool Take(bool continues, Parts* parts) {
    kernels_ = (*parts)->kernels;
    last_ = &first_;
    for (size_t count = 1;; ++count, parts->Next()) {
      SetPart(call_, rows_, *parts, begin_, last_);
      if (count == 1) begin_ = (*parts)->begin;
      last_->next = nullptr;
      last_->continues = continues;
      continues = parts->continues();
      last_->pauses = continues;
      last_->sinks = nullptr;
      if (!parts->has_next() && call_.args.sinks != nullptr) {
        last_->sinks = call_.args.sinks + rows_.head;
      }
      last_->part = count - 1;
      if (!continues || count == kMostParts) return continues;
      AttendTask* next = new (tasks_[count]) AttendTask(first_);
      last_->next = next;
      last_ = next;
    }
  }

 private:
  static_assert(std::is_trivially_destructible<AttendTask>(), "nobody destroys them");

  const Call& call_;
  const Selection& rows_;
  alignas(AttendTask) unsigned char tasks_[kMostParts][sizeof(AttendTask)];
  AttendTask& first_;
  AttendTask* last_ = &first_;
  const PrecisionKernels* kernels_ = nullptr;
  size_t begin_ = 0;  // of the first one's keys
};

void RunTasks(const PartTasks& tasks, size_t num_rows, unsigned char* scratch) {
  if (num_rows <= tasks.kernels().decode_rows) {
    tasks.kernels().decode(tasks.first(), scratch);
    return;
  }
  for (const AttendTask* task = &tasks.first(); task != nullptr; task = task->next) {
    tasks.kernels().prefill(*task, scratch);
  }
}

// One task of the first pass, over all parts of its keys; tasks: of its rows, none taken. Returns
// whether they have all parts at once, the same for all heads, so that they can be moved to the
// next.
bool AttendRows(const Call& call, const Selection& rows, PartTasks& tasks, unsigned char* scratch) {
  const size_t kv_head = rows.head / call.group;
  PartialRows partial(scratch, static_cast<size_t>(call.plan.desc.v_head_dim));
  unsigned char* kernel_scratch = scratch + call.plan.partial_bytes;
  AttendTask& first = tasks.first();
  SetWeights(call, rows.sequence, kv_head, &first);
  bool continues = false;
  bool is_merged = false;
  bool is_first = true;
  Parts parts(call, rows);
  for (;; parts.Next(), is_first = false) {
    continues = tasks.Take(continues, &parts);
    // Kernels of different precisions leave what they have, to be merged.
    is_merged |= !continues && parts.has_next();
    if (is_merged) partial.Redirect(&tasks.last());
    RunTasks(tasks, NumRowsOf(call, rows), kernel_scratch);
    if (is_merged && !continues) partial.Add(first);
    if (!parts.has_next()) break;
  }
  if (!is_merged) return is_first && !parts.has_biases();
  AttendTask output = {};
  SetTaskRows(call, rows, first.row_begin, first.row_end, &output);
  partial.Store(output);
  return false;
}

// The first pass of so many rows from row_begin on, up to kTaskRows, and, if that is soon done, of
// the same rows of the next kv heads, num_heads in all. Returns how many of these that were.
size_t AttendSelection(const Call& call, const Selection& rows, size_t num_heads, size_t row_begin,
                       unsigned char* scratch) {
  const size_t num_rows = NumRowsOf(call, rows);
  if (row_begin >= num_rows) return 1;
  PartTasks tasks(call, rows, row_begin, std::min(row_begin + kTaskRows, num_rows));
  const bool can_move = AttendRows(call, rows, tasks, scratch);
  if (!can_move) return 1;
  for (size_t i = 1; i < num_heads; ++i) {
    tasks.MoveToNextHead();
    SetWeights(call, rows.sequence, rows.head / call.group + i, &tasks.first());
    RunTasks(tasks, num_rows, scratch + call.plan.partial_bytes);
  }
  return num_heads;
}

// The first pass of rows [row_begin, row_begin + kTaskRows) of head `head` and, if that is soon
// done, of those behind it, up to `end`. Returns how many heads that were. A group that is divided
// has as many rows in each of its query heads.
size_t AttendHeads(const Call& call, size_t head, size_t end, size_t row_begin,
                   unsigned char* scratch) {
  const size_t kv_head = head % call.num_kv_heads;
  const size_t num_heads = std::min(end - head, call.num_kv_heads - kv_head);
  size_t done = 0;
  ForHeadsThatSeeTheSame(
      call, {head / call.num_kv_heads, 0, call.beams, kv_head * call.group, call.group},
      [&](const Selection& rows) {
        done = AttendSelection(call, rows, num_heads, row_begin, scratch);
      });
  return done;
}

// Rows of heads [begin, end), counted through the sequences: all kv heads of the first, then those
// of the second.
void Attend(const Call& call, const HeadRange& range, unsigned char* scratch,
            const ParallelFor& parallel) {
  const size_t longest = call.queries.longest() * call.beams * call.group;
  const size_t tasks_per_head = (longest + kTaskRows - 1) / kTaskRows;
  // Split and driver of a head's rows depend on shapes alone, so that results do not depend on the
  // number of workers. Of heads with one task each, several go to a worker together, as long as
  // each has a few such.
  const size_t num_heads = range.end - range.begin;
  const size_t workers = parallel.num_workers;
  size_t heads_at_once = 1;
  if (tasks_per_head == 1) {
    heads_at_once = std::max<size_t>(workers <= 1 ? num_heads : num_heads / (4 * workers), 1);
  }
  const size_t num_runs = (num_heads + heads_at_once - 1) / heads_at_once;
  ForEachTask(parallel, num_runs * tasks_per_head, [&](size_t index, size_t worker) {
    const size_t begin = range.begin + index / tasks_per_head * heads_at_once;
    const size_t end = std::min(begin + heads_at_once, range.end);
    for (size_t head = begin; head < end;) {
      head += AttendHeads(call, head, end, index % tasks_per_head * kTaskRows,
                          scratch + worker * call.plan.scratch_bytes);
    }
  });
}

// K and V given as tensors are packed and read by turns: of so many bytes for each worker that its
// second-level cache still holds them, through which the caller's rows have passed as well, and of
// a head for each worker at least.
constexpr size_t kPackedBytesAtOnce = size_t{128} << 10;

// The heads of the turn that begins with this one.
HeadRange TurnFrom(const Call& call, size_t begin, size_t num_workers) {
  const PackedShape& shape = call.packed.shape;
  const size_t key_bytes = KeyBytes(shape.layout, shape.head_dim, shape.v_head_dim);
  const size_t num_heads = call.keys.num_sequences() * call.num_kv_heads;
  const size_t workers = std::max<size_t>(num_workers, 1);
  HeadRange turn = {begin, begin};
  for (size_t bytes = 0; turn.end < num_heads; ++turn.end) {
    if (bytes >= workers * kPackedBytesAtOnce && turn.end - begin >= workers) break;
    bytes += std::min(call.keys.count(turn.end / call.num_kv_heads), shape.capacity) * key_bytes;
  }
  return turn;
}

void PackAndAttend(const Call& call, const HeadRange& turn, unsigned char* scratch,
                   const ParallelFor& parallel) {
  PackTensors(*call.plan.kernels, call.packed, turn, call.args.k, call.args.v, call.keys.spans(),
              parallel);
  Attend(call, turn, scratch, parallel);
}

// The first pass over K and V given as tensors. Turns follow one another in the same memory, which
// caches have then, unless a second pass reads all of them once more; so do slices.
void AttendTensors(Call call, unsigned char* scratch, const ParallelFor& parallel) {
  const AttentionArgs& args = call.args;
  const bool is_read_again = args.weights.out.data != nullptr || args.mass.data != nullptr;
  const int64_t queries = QueriesOfSlice(call.plan, args, parallel.num_workers);
  if (queries < args.q.length) {
    call.packed =
        call.plan.PackedHeadsIn(call.packed.base, KeysOfSlice(call.plan.desc, args, queries));
  }
  const size_t num_heads = call.keys.num_sequences() * call.num_kv_heads;
  for (HeadRange turn = {0, 0}; turn.end < num_heads;) {
    turn = TurnFrom(call, turn.end, parallel.num_workers);
    if (!is_read_again) call.packed.first = turn.begin;
    FindCenters(*call.plan.kernels, call.packed, turn, args.k, args.v, call.keys.spans(), parallel);
    if (queries == args.q.length) {
      PackAndAttend(call, turn, scratch, parallel);
      continue;
    }
    for (int64_t begin = 0, count = 0; begin < args.q.length; begin += count) {
      count = QueriesFrom(args, begin, queries);
      const AttentionArgs slice = SliceOf(call.plan.desc, args, begin, count);
      PackAndAttend(CallOf(call.plan, slice, call.packed, call.biases), turn, scratch, parallel);
    }
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

// Rows [begin, end) of a second pass over one part.
void RunSecondPass(const KeyPart& part, AttendTask task, size_t begin, size_t end,
                   unsigned char* scratch) {
  for (size_t row = begin; row < end; row += kTaskRows) {
    task.row_begin = row;
    task.row_end = std::min(row + kTaskRows, end);
    const bool few = task.row_end - task.row_begin <= part.kernels->decode_rows;
    (few ? part.kernels->weigh_few : part.kernels->weigh_many)(task, scratch);
  }
}

// What a second pass makes of the keys of one part, given what it is to make of all keys.
WeightsTask WeightsOf(const WeightsTask& all, const KeyPart& part, bool is_last) {
  WeightsTask weights = all;
  const int64_t begin = static_cast<int64_t>(part.begin);
  if (all.out.data != nullptr) weights.out.data += begin * all.out.dim_stride;
  if (all.mass.data != nullptr) weights.mass.data += begin * all.mass.dim_stride;
  weights.num_keys = is_last ? all.num_keys - part.begin : part.width;
  return weights;
}

// Weights of queries [begin, end) of those asked for, for one head and part; runs of neighbours
// together.
void WeighQueries(const WeighedQueries& queries, const KeyPart& part, AttendTask task, size_t begin,
                  size_t end, unsigned char* scratch) {
  const size_t beams = task.q.beams;
  while (begin < end) {
    const size_t first = queries.at(begin);
    size_t count = 1;
    while (begin + count < end && queries.at(begin + count) == first + count) ++count;
    task.weights.first_row = (first - begin) * beams;
    RunSecondPass(part, task, first * beams, (first + count) * beams, scratch);
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
  const size_t chunk = std::max<size_t>(kTaskRows / call.beams, 1);
  const size_t num_chunks = (MostWeighedQueries(call) + chunk - 1) / chunk;
  ForEachTask(parallel, call.keys.num_sequences() * num_chunks * tasks_per_chunk,
              [&](size_t index, size_t worker) {
                const size_t sequence = index / (num_chunks * tasks_per_chunk);
                const size_t begin = index / tasks_per_chunk % num_chunks * chunk;
                const WeighedQueries queries = WeighedQueriesOf(call, sequence);
                const size_t end = std::min(begin + chunk, queries.span.count);
                if (begin >= end) return;
                for (size_t i = 0; i < heads_per_task; ++i) {
                  const size_t listed = index % tasks_per_chunk + i;
                  const size_t head = weights.heads != nullptr
                                          ? static_cast<size_t>(weights.heads[listed])
                                          : listed;
                  if (CanWeighOnTheWay(call) && FindListed(weights, head) == listed) continue;
                  WeightsTask all = {};
                  all.out = WeightsRowsOf(call, sequence, weights.average_heads ? 0 : listed);
                  all.num_keys = static_cast<size_t>(weights.out.dim);
                  all.adds = i > 0;
                  all.factor = weights.average_heads ? 1.0f / static_cast<float>(num_heads) : 1.0f;
                  const Selection rows = {sequence, 0, call.beams, head, 1};
                  for (Parts parts(call, rows, true);; parts.Next()) {
                    AttendTask task = TaskOf(call, rows, parts);
                    task.weights = WeightsOf(all, *parts, !parts.has_next());
                    WeighQueries(queries, *parts, task, begin, end,
                                 scratch + worker * call.plan.scratch_bytes);
                    if (!parts.has_next()) break;
                  }
                }
              });
}

// One task for each row of mass, so that sums are in the order of queries.
void SumWeights(const Call& call, unsigned char* scratch, const ParallelFor& parallel) {
  const TensorView& mass = call.args.mass;
  const size_t num_heads = static_cast<size_t>(mass.heads);
  const bool by_beam = static_cast<size_t>(mass.batch) != call.keys.num_sequences();
  const bool by_head = num_heads != call.num_kv_heads;
  const auto sum = [&](size_t index, size_t worker) {
    const size_t batch = index / num_heads;
    const size_t head = index % num_heads;
    Selection rows = {batch, 0, call.beams, head * call.group, call.group};
    if (by_beam) rows = {batch / call.beams, batch % call.beams, 1, rows.head, rows.group};
    if (by_head) rows.head = head;
    if (by_head) rows.group = 1;
    WeightsTask all = {};
    all.mass = RowAt(RowsOf(mass, {batch, 0, head, 1, 1}), 0);
    all.num_keys = static_cast<size_t>(mass.dim);
    all.factor = 1.0f;
    for (size_t key = 0; key < all.num_keys; ++key) {
      memset(all.mass.data + static_cast<int64_t>(key) * all.mass.dim_stride, 0, sizeof(float));
    }
    ForHeadsThatSeeTheSame(call, rows, [&](const Selection& alike) {
      for (Parts parts(call, alike);; parts.Next()) {
        AttendTask task = TaskOf(call, alike, parts);
        task.weights = WeightsOf(all, *parts, !parts.has_next());
        RunSecondPass(*parts, task, 0, NumRowsOf(call, alike),
                      scratch + worker * call.plan.scratch_bytes);
        if (!parts.has_next()) break;
      }
    });
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
  internal::ArgMemory memory;
  Status status = internal::ValidateArgs(impl, args, &memory);
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
    status = internal::ValidateWorkspace(given, impl.workspace_bytes, memory, args);
  }
  if (!status.ok()) return status;
  if (args.q.batch == 0) return Status();

  unsigned char* base = static_cast<unsigned char*>(workspace.data);
  internal::Call call =
      internal::CallOf(impl, args, {}, reinterpret_cast<float*>(base + impl.packed_bytes));
  if (call.keys.are_tensors()) {
    call.packed = impl.PackedHeadsIn(base, static_cast<int64_t>(call.keys.longest()));
  }
  internal::SpreadBuckets(call, parallel);
  unsigned char* scratch = base + impl.packed_bytes + impl.bias_bytes;
  if (call.keys.are_tensors() && args.q.length > 0) {
    internal::AttendTensors(call, scratch, parallel);
  } else {
    const size_t num_heads = call.keys.num_sequences() * call.num_kv_heads;
    internal::Attend(call, {0, num_heads}, scratch, parallel);
  }
  if (args.weights.out.data != nullptr) internal::Weigh(call, scratch, parallel);
  if (args.mass.data != nullptr) internal::SumWeights(call, scratch, parallel);
  return Status();
}

}  // namespace sightline
