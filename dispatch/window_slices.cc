#include "dispatch/window_slices.h"

#include <algorithm>

#include "dispatch/kernel_table.h"

namespace sightline {
namespace internal {
namespace {

// A slice has so many bytes of packed keys at least, half of what the second-level caches of
// today's small cores hold, and three times the queries that the keys it may share with its
// neighbours are: a window, and to a tile's bounds on either side half of one. Beyond what caches
// keep it gains nothing.
constexpr size_t kLeastBytes = size_t{256} << 10;
constexpr int64_t kQueriesPerSharedKey = 3;
// Tasks are whole but for the last one.
constexpr int64_t kTaskQueries = kTaskRows;
// V of int8 has scales for each tile, which are then the same in every slice.
constexpr int64_t kTileKeys = kKvTile;

int64_t RoundUpTo(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Keys that a query sees, at most; kUnbounded if there is no end to them.
int64_t WindowKeys(const AttentionDesc& desc) {
  if (desc.window_left < 0 || (!desc.causal && desc.window_right < 0)) return kUnbounded;
  return desc.window_left + 1 + (desc.causal ? 0 : desc.window_right);
}

// A view of elements [begin, begin + count) along the length, if it is given.
template <class View>
void CutLength(int64_t begin, int64_t count, View* view) {
  if (view->data == nullptr) return;
  auto* data = const_cast<unsigned char*>(static_cast<const unsigned char*>(view->data));
  view->data = data + begin * view->length_stride;
  view->length = count;
}

// The same of a tensor, which may have scales.
template <class View>
void CutTensor(int64_t begin, int64_t count, View* view) {
  CutLength(begin, count, view);
  ScaleView& scale = view->scale;
  if (scale.data != nullptr) scale.data = ScaleAt(scale.data, begin * scale.length_stride);
}

// The same of a mask's or bias's keys.
template <class View>
void CutKeys(int64_t begin, int64_t count, View* view) {
  if (view->data == nullptr) return;
  view->data = static_cast<const unsigned char*>(view->data) + begin * view->dim_stride;
  view->dim = count;
}

}  // namespace

int64_t QueriesOfSlice(const PlanImpl& plan, const AttentionArgs& args, size_t num_workers) {
  const int64_t whole = args.q.length;
  // Lengths, prefixes and blocks are lists or count from the first query or key on, and second
  // passes read all keys.
  if (args.num_sequences > 0 || args.kv_lens != nullptr || args.prefix_lens != nullptr ||
      args.block_mask.blocks.data != nullptr || args.weights.out.data != nullptr ||
      args.mass.data != nullptr || args.k.batch == 0) {
    return whole;
  }
  const AttentionDesc& desc = plan.desc;
  const int64_t window = WindowKeys(desc);
  if (window == kUnbounded) return whole;
  const int64_t key_bytes = static_cast<int64_t>(KeyBytes(
      plan.layout, static_cast<size_t>(desc.head_dim), static_cast<size_t>(desc.v_head_dim)));
  int64_t queries = std::max(static_cast<int64_t>(kLeastBytes) / key_bytes,
                             kQueriesPerSharedKey * (window + kTileKeys));
  // Workers that get no head of their own share one's tasks.
  const int64_t heads = args.k.batch * desc.num_kv_heads;
  queries *= (static_cast<int64_t>(num_workers) + heads - 1) / heads;
  queries = RoundUpTo(queries, kTaskQueries);
  const bool is_long = queries + window <= std::min(whole, args.k.length) / 2;
  const bool is_kept = (queries + window) * key_bytes <= static_cast<int64_t>(kKeptBytes);
  return is_long && is_kept ? queries : whole;
}

int64_t QueriesFrom(const AttentionArgs& args, int64_t begin, int64_t queries) {
  const int64_t left = args.q.length - begin;
  // Alone, the rows of a last task might be few enough for decode, which rounds otherwise.
  return left < queries + kTaskQueries ? left : queries;
}

int64_t KeysOfSlice(const AttentionDesc& desc, const AttentionArgs& args, int64_t queries) {
  const int64_t seen = queries + kTaskQueries + WindowKeys(desc);
  return std::min(RoundUpTo(seen, kTileKeys) + kTileKeys, args.k.length);
}

AttentionArgs SliceOf(const AttentionDesc& desc, const AttentionArgs& args, int64_t begin,
                      int64_t count) {
  AttentionArgs slice = args;
  for (ConstTensorView* view : {&slice.q, &slice.bias}) CutTensor(begin, count, view);
  for (TensorView* view : {&slice.out, &slice.lse}) CutTensor(begin, count, view);
  CutLength(begin, count, &slice.mask);

  const int64_t num_keys = args.k.length;
  const int64_t start =
      begin +
      (args.q_start != AttentionArgs::kBottomRight ? args.q_start : num_keys - args.q.length);
  const int64_t right = desc.causal ? 0 : desc.window_right;
  const int64_t seen_end = std::clamp<int64_t>(start + count + right, 0, num_keys);
  const int64_t seen_begin = std::clamp<int64_t>(start - desc.window_left, 0, seen_end);
  const int64_t first = seen_begin / kTileKeys * kTileKeys;
  const int64_t limit = std::min(RoundUpTo(seen_end, kTileKeys), num_keys);
  for (ConstTensorView* view : {&slice.k, &slice.v}) CutTensor(first, limit - first, view);
  CutKeys(first, limit - first, &slice.bias);
  CutKeys(first, limit - first, &slice.mask);
  slice.q_start = start - first;
  return slice;
}

}  // namespace internal
}  // namespace sightline
