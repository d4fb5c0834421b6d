#include "kv/paged_kv.h"

#include <string.h>

#include <algorithm>
#include <new>
#include <utility>

#include "dispatch/memory.h"
#include "dispatch/parallel.h"
#include "kv/prepare.h"
#include "kv/unpack.h"
#include "quant/elements.h"

namespace sightline {
namespace internal {
namespace {

void CopyRowsToF32(const SourceRows& rows, size_t num_rows, size_t dim, float* out) {
  const Row& first = rows.first;
  const bool is_dense = first.dtype == DType::kF32 && first.dim_stride == int64_t{sizeof(float)};
  for (size_t i = 0; i < num_rows; ++i, out += dim) {
    const Row row = RowAt(rows, i);
    if (is_dense) {
      memcpy(out, row.data, dim * sizeof(float));
    } else {
      for (size_t d = 0; d < dim; ++d) out[d] = LoadElement(row, d);
    }
  }
}

// Rows of which row `count` is the first of these; what is before is not to be read.
SourceRows Behind(const SourceRows& rows, size_t count) {
  const auto back = [count](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) - count * static_cast<uintptr_t>(stride);
  };
  SourceRows behind = rows;
  behind.first.data = reinterpret_cast<unsigned char*>(back(rows.first.data, rows.length_stride));
  behind.first.scale =
      reinterpret_cast<const float*>(back(rows.first.scale, rows.scale_length_stride));
  return behind;
}

// What the first num_keys keys of a head take, to another head.
void CopyHead(const PackedHead& from, size_t num_keys, const PackedHead& to) {
  const PackedShape& shape = from.shape;
  const PackedOffsets& o = from.offsets;
  const auto copy = [&](size_t begin, size_t bytes) {
    memcpy(to.base + begin, from.base + begin, bytes);
  };
  const size_t k_keys = RoundUp(num_keys, kKeyBlock);
  copy(o.k, k_keys * PaddedHeadDim(shape) * KElementBytes(shape.layout));
  const size_t channels = PaddedVHeadDim(shape);
  const size_t v_bytes = VElementBytes(shape.layout);
  for (size_t key = 0; key < num_keys; key += kVTileKeys) {
    const size_t rows = RoundUp(std::min(kVTileKeys, num_keys - key), VDepth(shape.layout));
    for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, channel);
      copy(o.v + panel.offset * v_bytes, rows * panel.width * v_bytes);
    }
  }
  const size_t num_tiles = (num_keys + kKvTile - 1) / kKvTile;
  if (HasQuantizedK(shape.layout)) copy(o.k_scale, num_keys * sizeof(float));
  if (HasQuantizedV(shape.layout)) copy(o.v_scale, num_tiles * channels * sizeof(float));
  copy(o.k_center, CenterBytes(o));
  if (!HasQuantizedV(shape.layout)) copy(o.v_special, num_tiles);
}

}  // namespace

size_t TailHeadBytes(const PackedShape& shape, const PackedOffsets& offsets) {
  const size_t row_bytes = (shape.head_dim + shape.v_head_dim) * sizeof(float);
  return RoundUp(CenterBytes(offsets) + kKvTile * row_bytes, kPackedAlignBytes);
}

KvPoolImpl::KvPoolImpl(const KvPoolDesc& given, const PrecisionKernels& with, size_t max_pages)
    : desc(given),
      kernels(with),
      shape(ShapeOf(LayoutOf(with, given.format.rotate_k), static_cast<size_t>(given.head_dim),
                    static_cast<size_t>(given.v_head_dim), static_cast<size_t>(given.page_tokens))),
      offsets(OffsetsOf(shape)),
      pages(Product(static_cast<size_t>(given.num_kv_heads), offsets.bytes), max_pages),
      tails(Product(static_cast<size_t>(given.num_kv_heads), TailHeadBytes(shape, offsets)),
            SIZE_MAX),
      no_pages(PageTable::Create(shape.capacity, 1)) {}

PagedKv::PagedKv(std::shared_ptr<KvPoolImpl> pool, const KvGeometry& geometry, const Limits& limits)
    : PackedKv(geometry, pool->shape.capacity), pool_(std::move(pool)), limits_(limits) {}

Status PagedKv::Create(std::shared_ptr<KvPoolImpl> pool, int64_t batch, const Limits& limits,
                       std::shared_ptr<PagedKv>* packed) {
  const KvPoolDesc& desc = pool->desc;
  const KvGeometry geometry = {pool->shape.layout, kLayoutVersion, desc.format.precision, batch,
                               desc.num_kv_heads,  desc.head_dim,  desc.v_head_dim};
  std::shared_ptr<PagedKv> created =
      ShareOrNull(new (std::nothrow) PagedKv(std::move(pool), geometry, limits));
  const Status no_memory = Status::Error(StatusCode::kOutOfMemory, "the cache of %lld sequences",
                                         static_cast<long long>(batch));
  if (created == nullptr) return no_memory;
  created->sequences_.reset(new (std::nothrow) Sequence[static_cast<size_t>(batch)]);
  if (created->sequences_ == nullptr) return no_memory;
  for (size_t b = 0; b < static_cast<size_t>(batch); ++b) {
    created->sequences_[b].table = created->pool_->no_pages;
  }
  *packed = std::move(created);
  return Status();
}

SequenceKeys PagedKv::keys(size_t batch) const {
  const PageTable& table = *sequences_[batch].table.get();
  const int64_t length = lens_ != nullptr ? lens_[batch] : length_;
  return {table.first_page(), table.pages(), static_cast<size_t>(length)};
}

size_t PagedKv::bytes() const {
  size_t bytes = 0;
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    const Sequence& sequence = sequences_[b];
    for (size_t i = 0; i < sequence.table->num_pages(); ++i) {
      if (sequence.table->page(i) != nullptr) bytes += pool_->pages.block_bytes();
    }
    if (sequence.tail) bytes += pool_->tails.block_bytes();
  }
  return bytes;
}

PagedKv::Tail PagedKv::TailOf(unsigned char* tail, size_t kv_head) const {
  unsigned char* centers = tail + kv_head * TailHeadBytes(shape_, offsets_);
  float* k = reinterpret_cast<float*>(centers + CenterBytes(offsets_));
  return {centers, k, k + kKvTile * shape_.head_dim};
}

// The head in the page of `key`.
PackedHead PagedKv::HeadAt(const Sequence& sequence, size_t key, size_t kv_head) const {
  Block* page = sequence.table->page(key / PageTokens());
  return {page->data() + kv_head * offsets_.bytes, shape_, offsets_};
}

// The first page of which a window may forget something.
size_t PagedKv::FirstWindowPage() const {
  const size_t sinks = static_cast<size_t>(limits_.num_sinks);
  return (sinks + PageTokens() - 1) / PageTokens();
}

// Tokens whose memory is in use, whether they are seen or not, when these pages are gone.
int64_t PagedKv::HeldTokens(const PageTable& table, const PageRange& forgotten) const {
  const size_t num_pages = table.num_pages();
  size_t held = table.num_held() * PageTokens();
  if (num_pages > 0 && table.page(num_pages - 1) != nullptr) {
    held -= num_pages * PageTokens() - static_cast<size_t>(length_);
  }
  for (size_t i = forgotten.begin; i < forgotten.end; ++i) {  // full ones
    if (table.page(i) != nullptr) held -= PageTokens();
  }
  return static_cast<int64_t>(held);
}

// What a window forgets before the next token is appended.
PagedKv::PageRange PagedKv::PagesToForget() const {
  PageRange range = {std::max(forgotten_pages_, FirstWindowPage()), 0};
  if (limits_.window_left >= 0 && length_ > limits_.window_left) {
    range.end = static_cast<size_t>(length_ - limits_.window_left) / PageTokens();
  }
  range.end = std::max(range.begin, range.end);
  return range;
}

// How many of these pages nobody will have once all sequences have forgotten them.
size_t PagedKv::CountFreed(const PageRange& forgotten) const {
  const size_t batch = static_cast<size_t>(geometry_.batch);
  size_t count = 0;
  for (size_t b = 0; b < batch; ++b) {
    for (size_t i = forgotten.begin; i < forgotten.end; ++i) {
      const Block* page = sequences_[b].table->page(i);
      if (page == nullptr) continue;
      const auto has_it = [=](const Sequence& sequence) { return sequence.table->page(i) == page; };
      const Sequence* begin = sequences_.get();
      const auto holders = std::count_if(begin, begin + batch, has_it);
      const bool is_first = std::find_if(begin, begin + batch, has_it) == begin + b;
      if (is_first && page->owners.Count() == static_cast<uint32_t>(holders)) ++count;
    }
  }
  return count;
}

Status PagedKv::OutOfPages() const {
  if (pool_->pages.num_taken() >= pool_->pages.max_blocks()) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "all %zu pages of the pool are in use (max_pages)",
                         pool_->pages.max_blocks());
  }
  return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for a page of the cache",
                       pool_->pages.block_bytes());
}

// Makes the sequence's table its own, with room for num_pages.
Status PagedKv::OwnTable(Sequence& sequence, size_t num_pages) const {
  const PageTable& table = *sequence.table.get();
  if (table.owners.IsOne() && num_pages <= table.room()) return Status();
  const size_t room = std::max(num_pages, std::min(2 * table.room(), table.num_pages() + 64));
  Ref<PageTable> own = table.Clone(room);
  if (!own) return Status::Error(StatusCode::kOutOfMemory, "a table of %zu pages", room);
  sequence.table = std::move(own);
  return Status();
}

// And its tail, if it has to have one.
Status PagedKv::OwnTail(Sequence& sequence) const {
  if (!HasTail() || (sequence.tail && sequence.tail->owners.IsOne())) return Status();
  Ref<Block> own = pool_->tails.Take();
  if (!own) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for the open tile of the cache",
                         pool_->tails.block_bytes());
  }
  if (sequence.tail) {
    CopyTailRows(sequence.tail->data(), own->data());  // nothing else is read of it
  } else {
    pool_->tails.Clear(own.get());
  }
  sequence.tail = std::move(own);
  return Status();
}

// What appending to the open tile reads.
void PagedKv::CopyTailRows(unsigned char* from_tail, unsigned char* to_tail) const {
  const size_t num_rows = static_cast<size_t>(length_) % kKvTile;
  const bool reads_v = !is_settled_ || HasQuantizedV(geometry_.layout);
  for (size_t h = 0; h < static_cast<size_t>(geometry_.num_kv_heads); ++h) {
    const Tail from = TailOf(from_tail, h);
    const Tail to = TailOf(to_tail, h);
    memcpy(to.centers, from.centers, CenterBytes(offsets_));
    if (!is_settled_) memcpy(to.k, from.k, num_rows * shape_.head_dim * sizeof(float));
    if (reads_v) memcpy(to.v, from.v, num_rows * shape_.v_head_dim * sizeof(float));
  }
}

void PagedKv::CopyTail(size_t batch, unsigned char* tail) const {
  const Sequence& sequence = sequences_[batch];
  if (sequence.tail) CopyTailRows(sequence.tail->data(), tail);
}

// What rows have in common, to the page of `key`.
void PagedKv::CopyCenters(const Sequence& sequence, size_t kv_head, size_t key) const {
  if (!HasTail()) return;
  memcpy(HeadAt(sequence, key, kv_head).base + offsets_.k_center, TailOf(sequence, kv_head).centers,
         CenterBytes(offsets_));
}

// And the page that the next token goes to, if it is there: its table is its own.
Status PagedKv::OwnOpenPage(Sequence& sequence) const {
  const size_t length = static_cast<size_t>(length_);
  const size_t used = length % PageTokens();
  Block* old = used == 0 ? nullptr : sequence.table->page(length / PageTokens());
  if (old == nullptr || old->owners.IsOne()) return Status();
  const Ref<Block> own = pool_->pages.Take();
  if (!own) return OutOfPages();
  for (size_t h = 0; h < static_cast<size_t>(geometry_.num_kv_heads); ++h) {
    const PackedHead to = {own->data() + h * offsets_.bytes, shape_, offsets_};
    ClearHead(to, used);
    CopyHead({old->data() + h * offsets_.bytes, shape_, offsets_}, used, to);
  }
  sequence.table->Replace(length / PageTokens(), own);
  return Status();
}

bool PagedKv::OpenPageIsGone(const Sequence& sequence) const {
  const size_t length = static_cast<size_t>(length_);
  return length % PageTokens() != 0 && sequence.table->page(length / PageTokens()) == nullptr;
}

// Everything that appending up to num_tokens tokens will write to and that `forgotten` takes, but
// for pages, which it counts. What it changes nobody notices.
Status PagedKv::MakeRoom(Sequence& sequence, size_t num_tokens, const PageRange& forgotten,
                         size_t* num_new_pages) const {
  const size_t num_pages = (num_tokens + PageTokens() - 1) / PageTokens();
  Status status = OwnTable(sequence, num_pages);
  if (status.ok() && forgotten.begin < forgotten.end && !sequence.table->MakeBits()) {
    status = Status::Error(StatusCode::kOutOfMemory, "the bits of %lld tokens",
                           static_cast<long long>(length_));
  }
  if (status.ok()) status = OwnTail(sequence);
  if (status.ok()) status = OwnOpenPage(sequence);
  if (!status.ok()) return status;
  *num_new_pages += num_pages - sequence.table->num_pages();
  if (OpenPageIsGone(sequence)) ++*num_new_pages;
  return status;
}

// The same for all sequences, with the pages: those that are forgotten may serve again.
Status PagedKv::MakeRoomForAll(size_t num_tokens, const PageRange& forgotten,
                               BlockStock* stock) const {
  Status status;
  size_t num_new_pages = 0;
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    status = MakeRoom(sequences_[b], num_tokens, forgotten, &num_new_pages);
    if (!status.ok()) return status;
  }
  while (stock->count() < num_new_pages && stock->Draw()) {
  }
  const size_t missing = num_new_pages - stock->count();
  return missing != 0 && missing > CountFreed(forgotten) ? OutOfPages() : status;
}

// Adds pages for up to num_tokens tokens.
void PagedKv::TakePages(const Sequence& sequence, size_t num_tokens, BlockStock* stock) const {
  const size_t length = static_cast<size_t>(length_);
  if (OpenPageIsGone(sequence)) {
    sequence.table->Replace(length / PageTokens(), stock->Take());
    for (size_t h = 0; h < static_cast<size_t>(geometry_.num_kv_heads); ++h) {
      CopyCenters(sequence, h, length);
    }
  }
  while (sequence.table->num_pages() * PageTokens() < num_tokens) {
    sequence.table->Push(stock->Take());
  }
}

void PagedKv::AppendToHead(const Sequence& sequence, size_t kv_head, const SourceRows& k,
                           const SourceRows& v, size_t num_tokens) const {
  const size_t length = static_cast<size_t>(length_);
  PackScratch scratch;
  bool is_settled = is_settled_ || !HasTail();
  for (size_t done = 0; done < num_tokens;) {
    const size_t in_tile = (length + done) % kKvTile;
    const size_t count = std::min(kKvTile - in_tile, num_tokens - done);
    const size_t tile_begin = length + done - in_tile;
    PackTask task = {};
    task.head = HeadAt(sequence, tile_begin, kv_head);
    task.k = Skip(k, done);
    task.v = Skip(v, done);
    task.key_begin = tile_begin % PageTokens();
    task.num_keys = count;
    if (is_settled && task.key_begin == 0 && in_tile == 0) {
      CopyCenters(sequence, kv_head, tile_begin);
    }
    if (is_settled && (count == kKvTile || !HasQuantizedV(geometry_.layout))) {
      task.key_begin += in_tile;  // nothing of the tile depends on what comes
    } else {
      const Tail tail = TailOf(sequence, kv_head);
      CopyRowsToF32(task.v, count, shape_.v_head_dim, tail.v + in_tile * shape_.v_head_dim);
      task.v = DenseRows(tail.v, shape_.v_head_dim);
      task.num_keys = in_tile + count;
      if (is_settled) {
        task.k = Behind(task.k, in_tile);
        task.num_keys_done = in_tile;
      } else {
        CopyRowsToF32(task.k, count, shape_.head_dim, tail.k + in_tile * shape_.head_dim);
        task.k = DenseRows(tail.k, shape_.head_dim);
        pool_->kernels.center(task, scratch.bytes);
        memcpy(tail.centers, task.head.base + offsets_.k_center, CenterBytes(offsets_));
        is_settled = task.num_keys == kKvTile;
      }
    }
    pool_->kernels.pack(task, scratch.bytes);
    done += count;
  }
}

Status PagedKv::Append(const ConstTensorView& k, const ConstTensorView& v,
                       const ParallelFor& parallel) {
  const size_t batch = static_cast<size_t>(geometry_.batch);
  const size_t num_kv_heads = static_cast<size_t>(geometry_.num_kv_heads);
  const size_t num_tokens = static_cast<size_t>(k.length);
  if (num_tokens == 0) return Status();
  const PageRange forgotten = PagesToForget();
  for (size_t b = 0; b < batch; ++b) {
    const int64_t held = HeldTokens(*sequences_[b].table.get(), forgotten);
    if (k.length <= limits_.capacity - held) continue;
    return Status::Error(StatusCode::kCapacityExceeded,
                         "k.length is %lld, the cache holds %lld of %lld tokens",
                         static_cast<long long>(k.length), static_cast<long long>(held),
                         static_cast<long long>(limits_.capacity));
  }
  const size_t length = static_cast<size_t>(length_) + num_tokens;
  BlockStock stock(&pool_->pages);
  Status status = MakeRoomForAll(length, forgotten, &stock);
  if (!status.ok()) return status;
  for (size_t b = 0; b < batch; ++b) {
    sequences_[b].table->EvictPages(forgotten.begin, forgotten.end, &stock);
  }
  forgotten_pages_ = std::max(forgotten_pages_, forgotten.end);
  for (size_t b = 0; b < batch; ++b) TakePages(sequences_[b], length, &stock);

  ForEachTask(parallel, batch * num_kv_heads, [&](size_t index, size_t) {
    const size_t b = index / num_kv_heads;
    const size_t h = index % num_kv_heads;
    AppendToHead(sequences_[b], h, SourceRowsOf(k, b, h), SourceRowsOf(v, b, h), num_tokens);
  });
  length_ += k.length;
  if (length_ >= static_cast<int64_t>(kKvTile)) is_settled_ = true;
  return status;
}

// Fills the tail of a sequence for the tile that `length` is in the middle of, which has closed.
void PagedKv::Reopen(const Sequence& sequence, size_t length) const {
  const size_t num_rows = length % kKvTile;
  const size_t tile_begin = length - num_rows;
  const bool is_gone = sequence.table->page(tile_begin / PageTokens()) == nullptr;
  for (size_t h = 0; h < static_cast<size_t>(geometry_.num_kv_heads); ++h) {
    if (is_gone) {
      // Nobody sees them: they are to take nothing of the range.
      const Tail tail = TailOf(sequence, h);
      const unsigned char* center = tail.centers + offsets_.v_center - offsets_.k_center;
      const size_t row_bytes = shape_.v_head_dim * sizeof(float);
      for (size_t i = 0; i < num_rows; ++i) {
        memcpy(tail.v + i * shape_.v_head_dim, center, row_bytes);
      }
      continue;
    }
    const PackedHead head = HeadAt(sequence, tile_begin, h);
    float* v = TailOf(sequence, h).v;
    for (size_t i = 0; i < num_rows; ++i, v += shape_.v_head_dim) {
      UnpackValue(head, tile_begin % PageTokens() + i, v);
    }
  }
}

Status PagedKv::Truncate(int64_t length) {
  if (length < 0 || length > length_) {
    return Status::Error(StatusCode::kInvalidArgument, "length is %lld, must be 0 to %lld",
                         static_cast<long long>(length), static_cast<long long>(length_));
  }
  if (length == length_) return Status();
  if (length == 0) {
    Clear();
    return Status();
  }
  // The next query is at `length`, and may look back over what was forgotten.
  const int64_t begin = static_cast<int64_t>(FirstWindowPage() * PageTokens());
  const int64_t forgotten = static_cast<int64_t>(forgotten_pages_ * PageTokens());
  if (std::max(length - limits_.window_left, begin) < std::min(length, forgotten)) {
    return Status::Error(StatusCode::kInvalidArgument,
                         "length is %lld, but the window has forgotten tokens up to %lld",
                         static_cast<long long>(length), static_cast<long long>(forgotten));
  }
  const size_t num_tokens = static_cast<size_t>(length);
  const bool is_open =  // the tile that it ends in: its tail is there
      length % int64_t{kKvTile} == 0 || (length / int64_t{kKvTile} == length_ / int64_t{kKvTile});
  const bool reopens = HasQuantizedV(geometry_.layout) && !is_open;
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    Status status = OwnTable(sequences_[b], 0);
    if (status.ok() && reopens) status = OwnTail(sequences_[b]);
    if (!status.ok()) return status;
  }
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    if (reopens) Reopen(sequences_[b], num_tokens);
    sequences_[b].table->Truncate(num_tokens);
  }
  length_ = length;
  forgotten_pages_ = std::min(forgotten_pages_, num_tokens / PageTokens());
  return Status();
}

Status PagedKv::Share(std::shared_ptr<PagedKv>* child) const {
  const size_t batch = static_cast<size_t>(geometry_.batch);
  std::shared_ptr<PagedKv> created =
      ShareOrNull(new (std::nothrow) PagedKv(pool_, geometry_, limits_));
  if (created != nullptr) created->sequences_.reset(new (std::nothrow) Sequence[batch]);
  if (created == nullptr || created->sequences_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "a cache of %zu sequences", batch);
  }
  std::copy_n(sequences_.get(), batch, created->sequences_.get());
  created->length_ = length_;
  created->is_settled_ = is_settled_;
  created->forgotten_pages_ = forgotten_pages_;
  *child = std::move(created);
  return Status();
}

Status PagedKv::SetLengths(const int32_t* kv_lens) {
  const size_t batch = static_cast<size_t>(geometry_.batch);
  lens_.reset(new (std::nothrow) int32_t[batch]);
  if (lens_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "the lengths of %zu sequences", batch);
  }
  for (size_t b = 0; b < batch; ++b) {
    Sequence& sequence = sequences_[b];
    const size_t num_tokens = static_cast<size_t>(kv_lens[b]);
    if ((num_tokens + PageTokens() - 1) / PageTokens() == sequence.table->num_pages()) continue;
    Status status = OwnTable(sequence, 0);
    if (!status.ok()) return status;
    sequence.table->Truncate(num_tokens);
  }
  std::copy_n(kv_lens, batch, lens_.get());
  length_ = *std::max_element(kv_lens, kv_lens + batch);
  return Status();
}

Status PagedKv::Reorder(const int32_t* parents, int64_t batch) {
  const size_t count = static_cast<size_t>(batch);
  std::unique_ptr<Sequence[]> reordered(new (std::nothrow) Sequence[count]);
  if (reordered == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "a cache of %zu sequences", count);
  }
  for (size_t b = 0; b < count; ++b) {
    reordered[b] = sequences_[static_cast<size_t>(parents[b])];
  }
  sequences_ = std::move(reordered);
  geometry_.batch = batch;
  return Status();
}

Status PagedKv::Evict(size_t batch, const int32_t* positions, size_t count) {
  Sequence& sequence = sequences_[batch];
  Status status = OwnTable(sequence, 0);
  if (!status.ok()) return status;
  if (!sequence.table->Evict(positions, count, static_cast<size_t>(length_))) {
    return Status::Error(StatusCode::kOutOfMemory, "the bits of %lld tokens",
                         static_cast<long long>(length_));
  }
  return status;
}

Status PagedKv::Restore(const KvSnapshot& snapshot) {
  const Status no_memory = Status::Error(
      StatusCode::kOutOfMemory, "the tables of %lld sequences of %lld tokens",
      static_cast<long long>(geometry_.batch), static_cast<long long>(snapshot.length));
  const size_t page_bytes = pool_->pages.block_bytes();
  std::unique_ptr<Ref<Block>[]> pages(new (std::nothrow) Ref<Block>[snapshot.num_pages]);
  if (pages == nullptr) return no_memory;
  for (size_t i = 0; i < snapshot.num_pages; ++i) {
    pages[i] = pool_->pages.Take();
    if (!pages[i]) return OutOfPages();
    memcpy(pages[i]->data(), snapshot.pages + i * page_bytes, page_bytes);
  }
  length_ = snapshot.length;
  is_settled_ = snapshot.is_settled;
  forgotten_pages_ = snapshot.forgotten_pages;
  const size_t length = static_cast<size_t>(length_);
  const size_t num_pages = (length + PageTokens() - 1) / PageTokens();
  const size_t num_tiles = (length + kKvTile - 1) / kKvTile;
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    Sequence& sequence = sequences_[b];
    sequence.table = PageTable::Create(PageTokens(), std::max<size_t>(num_pages, 1));
    if (!sequence.table) return no_memory;
    for (size_t i = 0; i < num_pages; ++i) {
      const uint32_t page = snapshot.table[b * num_pages + i];
      if (page == 0) {
        sequence.table->PushForgotten();
      } else {
        sequence.table->Push(pages[page - 1]);
      }
    }
    if (snapshot.kept != nullptr &&
        !sequence.table->Keep(snapshot.kept + b * num_tiles * kTileWords, length)) {
      return no_memory;
    }
    const int64_t held = HeldTokens(*sequence.table.get(), {0, 0});
    if (held > limits_.capacity) {
      return Status::Error(StatusCode::kCapacityExceeded,
                           "capacity is %lld, must be at least %lld, which the file holds",
                           static_cast<long long>(limits_.capacity), static_cast<long long>(held));
    }
    if (!HasTail() || length == 0) continue;
    if (Status status = OwnTail(sequence); !status.ok()) return status;
    memcpy(sequence.tail->data(), snapshot.tails + b * tail_bytes(), tail_bytes());
  }
  return Status();
}

void PagedKv::Clear() {
  for (size_t b = 0; b < static_cast<size_t>(geometry_.batch); ++b) {
    Ref<PageTable>& table = sequences_[b].table;
    if (table->owners.IsOne()) {
      table->Truncate(0);
    } else {
      table = pool_->no_pages;
    }
  }
  length_ = 0;
  is_settled_ = false;
  forgotten_pages_ = 0;
}

}  // namespace internal
}  // namespace sightline
