// Saving, mapping, loading and converting: sightline/kv_file.h. What files hold, and how it is
// checked: kv/stored_kv.h. Pages go into a file from where they are; those with tokens that are
// there no more are copied first, without them.
#include "sightline/kv_file.h"

#include <string.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <utility>

#include "dispatch/memory.h"
#include "dispatch/parallel.h"
#include "dispatch/tiers.h"
#include "dispatch/validate.h"
#include "kv/file.h"
#include "kv/packed_block.h"
#include "kv/paged_kv.h"
#include "kv/prepare.h"
#include "kv/stored_kv.h"
#include "kv/unpack.h"

namespace sightline {
namespace internal {
namespace {

constexpr size_t kMaxSections = 6;

Status NoMemory(const char* what, size_t bytes) {
  return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for %s", bytes, what);
}

// Keys of each sequence.
Status CopyLens(const PackedKv& packed, std::unique_ptr<int32_t[]>* lens) {
  const size_t batch = static_cast<size_t>(packed.geometry().batch);
  lens->reset(new (std::nothrow) int32_t[batch]);
  if (*lens == nullptr) return NoMemory("lengths", batch * sizeof(int32_t));
  for (size_t b = 0; b < batch; ++b) (*lens)[b] = static_cast<int32_t>(packed.keys(b).count);
  return Status();
}

KvMeta MetaOf(const PackedKv& packed, KvContent content) {
  const KvGeometry& geometry = packed.geometry();
  KvMeta meta = {};
  meta.version = kKvFileVersion;
  meta.content = content;
  meta.layout_version = geometry.layout_version;
  meta.layout = geometry.layout;
  meta.precision = static_cast<uint32_t>(geometry.precision);
  meta.batch = geometry.batch;
  meta.num_kv_heads = geometry.num_kv_heads;
  meta.head_dim = geometry.head_dim;
  meta.v_head_dim = geometry.v_head_dim;
  meta.length = packed.length();
  return meta;
}

// ---- Saving -------------------------------------------------------------------------------------

bool IsKept(const uint32_t* kept, size_t token) {
  return kept == nullptr || (kept[token / 32] >> token % 32 & 1) != 0;
}

// Zeroes what a page has of tokens that are not kept, or behind the first num_tokens. Scales of K
// stay where there is a token: kernels round the others of its tile by them.
void ClearTokens(const PackedHead& head, size_t num_tokens, const uint32_t* kept) {
  const PackedShape& s = head.shape;
  const PackedOffsets& o = head.offsets;
  const size_t k_bytes = KElementBytes(s.layout);
  const size_t v_bytes = VElementBytes(s.layout);
  const auto clear = [&](size_t begin, size_t bytes) { memset(head.base + begin, 0, bytes); };
  for (size_t key = 0; key < s.capacity; ++key) {
    if (key < num_tokens && IsKept(kept, key)) continue;
    for (size_t d = 0; d < PaddedHeadDim(s); ++d) clear(o.k + KIndex(s, key, d) * k_bytes, k_bytes);
    for (size_t c = 0; c < PaddedVHeadDim(s); ++c) {
      clear(o.v + VIndex(s, key, c) * v_bytes, v_bytes);
    }
    if (HasQuantizedK(s.layout) && key >= num_tokens) clear(o.k_scale + key * 4, 4);
  }
  const size_t used = (num_tokens + kKvTile - 1) / kKvTile;
  const size_t unused = NumKvTiles(s) - used;
  const size_t row_bytes = PaddedVHeadDim(s) * 4;
  if (HasQuantizedV(s.layout)) {
    clear(o.v_scale + used * row_bytes, unused * row_bytes);
  } else {
    clear(o.v_special + used, unused);
  }
}

// The pages of all sequences, each once, as pieces of a section.
class PageList {
 public:
  Status Create(const PackedKv& packed, const uint32_t* kept);

  const uint32_t* table() const { return table_.get(); }
  const FilePiece* pieces() const { return pieces_.get(); }
  size_t count() const { return count_; }

 private:
  // What there is of page `index` of the table.
  struct Page {
    const unsigned char* data;
    size_t index;
  };
  const uint32_t* KeptOf(size_t index) const {
    const size_t page = index % num_pages_;
    return kept_ == nullptr
               ? nullptr
               : kept_ + (index / num_pages_ * num_tiles_ + page * page_tiles_) * kTileWords;
  }
  size_t TokensOf(size_t index) const {
    return KeysWithin(packed_->keys(index / num_pages_).count, index % num_pages_ * page_tokens_,
                      page_tokens_);
  }
  // Null where no token is.
  const unsigned char* DataOf(size_t index) const {
    if (TokensOf(index) == 0) return nullptr;
    return packed_->keys(index / num_pages_).pages.data[index % num_pages_];
  }
  bool IsWhole(size_t index) const {
    const uint32_t* kept = KeptOf(index);
    return TokensOf(index) == page_tokens_ &&
           (kept == nullptr || std::all_of(kept, kept + page_tiles_ * kTileWords,
                                           [](uint32_t word) { return word == ~uint32_t{0}; }));
  }
  bool IsSame(size_t a, size_t b) const {
    if (TokensOf(a) != TokensOf(b)) return false;
    if (kept_ == nullptr) return true;
    const size_t tiles = (TokensOf(a) + kKvTile - 1) / kKvTile;
    return memcmp(KeptOf(a), KeptOf(b), tiles * kTileWords * sizeof(uint32_t)) == 0;
  }

  const PackedKv* packed_ = nullptr;
  const uint32_t* kept_ = nullptr;
  size_t num_pages_ = 0;  // of the longest sequence
  size_t num_tiles_ = 0;
  size_t page_tokens_ = 0;
  size_t page_tiles_ = 0;
  std::unique_ptr<uint32_t[]> table_;
  std::unique_ptr<FilePiece[]> pieces_;
  std::shared_ptr<unsigned char> copies_;
  size_t count_ = 0;
};

Status PageList::Create(const PackedKv& packed, const uint32_t* kept) {
  packed_ = &packed;
  kept_ = kept;
  page_tokens_ = packed.shape().capacity;
  page_tiles_ = page_tokens_ / kKvTile;
  num_pages_ = PagesOf(packed.length(), static_cast<int64_t>(page_tokens_));
  num_tiles_ = TilesOf(packed.length());
  const size_t num_kv_heads = static_cast<size_t>(packed.geometry().num_kv_heads);
  const size_t page_bytes = num_kv_heads * packed.offsets().bytes;
  const size_t entries = Product(static_cast<size_t>(packed.geometry().batch), num_pages_);

  // Beams share most of their pages: equal ones become neighbours, the first of which is written.
  table_.reset(new (std::nothrow) uint32_t[entries]());
  pieces_.reset(new (std::nothrow) FilePiece[entries]);
  const std::unique_ptr<Page[]> pages(new (std::nothrow) Page[entries]);
  const std::unique_ptr<size_t[]> first(new (std::nothrow) size_t[entries]);
  if (table_ == nullptr || pieces_ == nullptr || pages == nullptr || first == nullptr) {
    return NoMemory("a table of pages", Product(entries, sizeof(Page) + sizeof(FilePiece)));
  }
  for (size_t i = 0; i < entries; ++i) pages[i] = {DataOf(i), i};
  std::sort(pages.get(), pages.get() + entries, [](const Page& a, const Page& b) {
    return a.data != b.data ? std::less<>()(a.data, b.data) : a.index < b.index;
  });
  size_t num_copies = 0;
  for (size_t i = 0, leader = 0; i < entries; ++i) {
    if (pages[i].data != pages[leader].data) leader = i;
    const bool is_new = !IsSame(pages[i].index, pages[leader].index) || i == leader;
    first[pages[i].index] = pages[is_new ? i : leader].index;
    num_copies += is_new && pages[i].data != nullptr && !IsWhole(pages[i].index);
  }
  unsigned char* copy = nullptr;
  if (num_copies != 0) {
    copy = AllocateAligned(Product(num_copies, page_bytes));
    if (copy != nullptr) copies_ = ShareOrNull(copy, FreeAligned);
    if (copies_ == nullptr) return NoMemory("copies of pages", Product(num_copies, page_bytes));
  }
  // In the order of tokens, so that equal caches make equal files.
  for (size_t i = 0; i < entries; ++i) {
    const unsigned char* data = DataOf(i);
    if (data == nullptr) continue;
    if (first[i] != i) {
      table_[i] = table_[first[i]];
      continue;
    }
    if (!IsWhole(i)) {
      memcpy(copy, data, page_bytes);
      for (size_t h = 0; h < num_kv_heads; ++h) {
        const PackedHead head = {copy + h * packed.offsets().bytes, packed.shape(),
                                 packed.offsets()};
        ClearTokens(head, TokensOf(i), KeptOf(i));
      }
      data = copy;
      copy += page_bytes;
    }
    pieces_[count_] = {data, page_bytes};
    table_[i] = static_cast<uint32_t>(++count_);
  }
  return Status();
}

// Sections of one piece, but for pages.
class SectionList {
 public:
  void Add(uint32_t id, const void* data, size_t bytes) {
    pieces_[count_] = {data, bytes};
    Add(id, &pieces_[count_], bytes == 0 ? size_t{0} : size_t{1});
  }
  void Add(uint32_t id, const FilePiece* pieces, size_t num_pieces) {
    sections_[count_++] = {id, pieces, num_pieces};
  }
  Status Save(const char* path) const { return SaveFile(path, kKvFileKind, sections_, count_); }

 private:
  FilePiece pieces_[kMaxSections];
  FileSection sections_[kMaxSections];
  size_t count_ = 0;
};

// A file once more, section by section.
Status SaveCopy(const MappedFile& file, const char* path) {
  Status status = file.Verify();
  if (!status.ok()) return status;
  SectionList sections;
  for (size_t i = 0; i < file.num_sections(); ++i) {
    const MappedFile::Section section = file.section(i);
    sections.Add(section.id, section.data, section.bytes);
  }
  return sections.Save(path);
}

// cache: `packed` itself, if the file is to go on as one.
Status SavePacked(const PackedKv& packed, const PagedKv* cache, const char* path) {
  if (packed.file() != nullptr) return SaveCopy(*packed.file(), path);
  const size_t batch = static_cast<size_t>(packed.geometry().batch);
  std::unique_ptr<int32_t[]> lens;
  Status status = CopyLens(packed, &lens);
  if (!status.ok()) return status;
  const bool has_pages = packed.block().data == nullptr;
  KvMeta meta = MetaOf(packed, cache != nullptr ? KvContent::kCache
                               : has_pages      ? KvContent::kPages
                                                : KvContent::kBlock);
  SectionList sections;
  sections.Add(kMetaSection, &meta, sizeof(meta));
  sections.Add(kLensSection, lens.get(), batch * sizeof(int32_t));
  if (!has_pages) {
    const unsigned char* heads = batch == 0 ? nullptr : packed.keys(0).heads;
    const size_t num_heads = batch * static_cast<size_t>(packed.geometry().num_kv_heads);
    sections.Add(kDataSection, heads, num_heads * packed.offsets().bytes);
    return sections.Save(path);
  }

  std::unique_ptr<uint32_t[]> kept;
  if (!FindKept(packed, &kept))
    return NoMemory("bits of tokens", Product(batch, TilesOf(meta.length), 16));
  PageList pages;
  status = pages.Create(packed, kept.get());
  if (!status.ok()) return status;
  meta.page_tokens = static_cast<int64_t>(packed.shape().capacity);
  meta.num_pages = static_cast<int64_t>(pages.count());
  const size_t num_pages = PagesOf(meta.length, meta.page_tokens);
  sections.Add(kTableSection, pages.table(), batch * num_pages * sizeof(uint32_t));
  if (kept != nullptr) {
    const size_t words = batch * TilesOf(meta.length) * kTileWords;
    sections.Add(kKeptSection, kept.get(), words * sizeof(uint32_t));
  }
  std::unique_ptr<unsigned char[]> tails;
  if (cache != nullptr) {
    meta.is_settled = cache->is_settled() ? 1 : 0;
    meta.capacity = cache->limits().capacity;
    meta.window_left = cache->limits().window_left;
    meta.num_sinks = cache->limits().num_sinks;
    meta.forgotten_pages = static_cast<int64_t>(cache->forgotten_pages());
    const size_t bytes = meta.length == 0 ? 0 : cache->tail_bytes();
    if (bytes != 0) {
      const size_t all_bytes = Product(batch, bytes);
      tails.reset(new (std::nothrow) unsigned char[all_bytes]());
      if (tails == nullptr) return NoMemory("open tiles", all_bytes);
      for (size_t b = 0; b < batch; ++b) cache->CopyTail(b, tails.get() + b * bytes);
      sections.Add(kTailsSection, tails.get(), all_bytes);
    }
  }
  sections.Add(kDataSection, pages.pieces(), pages.count());
  return sections.Save(path);
}

// ---- Loading ------------------------------------------------------------------------------------

Status OpenStored(const char* path, const FileOptions& options, std::shared_ptr<StoredKv>* stored) {
  std::shared_ptr<const MappedFile> file;
  Status status = MappedFile::Open(path, kKvFileKind, options, &file);
  return status.ok() ? StoredKv::Open(std::move(file), stored) : status;
}

// Takes the file's number where none is given, which is `unset`; or they have to be the same.
Status Complete(const char* file, const char* name, int64_t unset, int64_t stored, int64_t* given) {
  if (*given == unset) *given = stored;
  if (*given == stored) return Status();
  return Status::Error(StatusCode::kInvalidArgument, "%s is %lld, %s has %lld", name,
                       static_cast<long long>(*given), file, static_cast<long long>(stored));
}

Status CompleteDesc(const char* file, const KvMeta& meta, KvCacheDesc* desc) {
  struct Count {
    const char* name;
    int64_t unset;
    int64_t stored;
    int64_t* given;
  };
  const Count counts[] = {{"batch", 1, meta.batch, &desc->batch},
                          {"window_left", -1, meta.window_left, &desc->window_left},
                          {"num_sinks", 0, meta.num_sinks, &desc->num_sinks},
                          {"num_kv_heads", 0, meta.num_kv_heads, &desc->num_kv_heads},
                          {"head_dim", 0, meta.head_dim, &desc->head_dim},
                          {"v_head_dim", 0, meta.v_head_dim, &desc->v_head_dim},
                          {"page_tokens", 0, meta.page_tokens, &desc->page_tokens}};
  if (desc->capacity == 0) desc->capacity = meta.capacity;
  const size_t num_counts = desc->pool != nullptr ? 3 : std::size(counts);  // it has the others
  for (size_t i = 0; i < num_counts; ++i) {
    const Count& count = counts[i];
    Status status = Complete(file, count.name, count.unset, count.stored, count.given);
    if (!status.ok()) return status;
  }
  if (desc->pool == nullptr) {
    const bool is_unset = desc->format.precision == Precision::kF32 && !desc->format.rotate_k;
    if (is_unset) {
      desc->format.precision = static_cast<Precision>(meta.precision);
      desc->format.rotate_k = IsRotated(meta.layout);
    }
  }
  return Status();
}

// That what a cache was created with is what the file has.
Status CompareFormat(const char* file, const KvMeta& meta, const PagedKv& cache) {
  const KvGeometry& geometry = cache.geometry();
  if (geometry.precision != static_cast<Precision>(meta.precision) ||
      IsRotated(geometry.layout) != IsRotated(meta.layout)) {
    return Status::Error(StatusCode::kInvalidArgument, "format is %s%s, %s has %s%s",
                         Name(geometry.precision),
                         IsRotated(geometry.layout) ? " with rotate_k" : "", file,
                         Name(static_cast<Precision>(meta.precision)),
                         IsRotated(meta.layout) ? " with rotate_k" : "");
  }
  if (geometry.layout != meta.layout) {
    return Status::Error(StatusCode::kUnsupported,
                         "%s has layout %lu, the tier reads layout %lu: Map and Convert it", file,
                         static_cast<unsigned long>(meta.layout),
                         static_cast<unsigned long>(geometry.layout));
  }
  int64_t pool[] = {geometry.num_kv_heads, geometry.head_dim, geometry.v_head_dim,
                    cache.pool().desc.page_tokens};
  const int64_t stored[] = {meta.num_kv_heads, meta.head_dim, meta.v_head_dim, meta.page_tokens};
  const char* const names[] = {"pool's num_kv_heads", "pool's head_dim", "pool's v_head_dim",
                               "pool's page_tokens"};
  for (size_t i = 0; i < std::size(pool); ++i) {
    Status status = Complete(file, names[i], -1, stored[i], &pool[i]);
    if (!status.ok()) return status;
  }
  return Status();
}

// ---- Converting ---------------------------------------------------------------------------------

// Layouts that differ in what is biased alone, of K (in int8) and V: a bit of each element.
bool DifferInBias(LayoutId a, LayoutId b) {
  const auto unbiased = [](LayoutId layout) {
    switch (layout) {
      case LayoutId::kI8BiasedV:
        return LayoutId::kI8BiasedK;
      case LayoutId::kI8FineBiasedV:
        return LayoutId::kI8Fine;
      case LayoutId::kI8RotatedBiasedV:
        return LayoutId::kI8RotatedBiasedK;
      default:
        return layout;
    }
  };
  return a != b && unbiased(a) == unbiased(b);
}

// Of the first num_keys keys of a head. V of keys that share a lane with them is 0, biased or not.
void FlipBias(const PackedHead& head, size_t num_keys) {
  const PackedShape& s = head.shape;
  for (size_t key = 0; key < num_keys && !HasWideK(s.layout); ++key) {
    for (size_t d = 0; d < PaddedHeadDim(s); ++d) {
      head.base[head.offsets.k + KIndex(s, key, d)] ^= kBias;
    }
  }
  for (size_t key = 0; key < RoundUp(num_keys, VDepth(s.layout)); ++key) {
    for (size_t c = 0; c < PaddedVHeadDim(s); ++c) {
      head.base[head.offsets.v + VIndex(s, key, c)] ^= kBias;
    }
  }
}

// Packs the sequences of one layout in another, head by head.
class Converter {
 public:
  Converter(const PackedKv& from, const PrecisionKernels& kernels, const ParallelFor& parallel)
      : from_(from), kernels_(kernels), parallel_(parallel) {}

  // kept: see FindKept.
  Status Convert(const KvFormat& format, std::unique_ptr<uint32_t[]> kept,
                 std::shared_ptr<const PackedKv>* converted);

 private:
  Status ToBlock(const KvFormat& format, bool flips, std::shared_ptr<const PackedKv>* converted);
  Status ToPages(const KvFormat& format, bool flips, std::unique_ptr<uint32_t[]> kept,
                 std::shared_ptr<const PackedKv>* converted);
  size_t num_kv_heads() const { return static_cast<size_t>(from_.geometry().num_kv_heads); }
  Status TakeRows();
  bool UnpackHead(size_t b, size_t h, const uint32_t* kept);
  template <class PageAt>
  void PackHead(const PackedKv& to, size_t num_keys, const PageAt& page_at) const;

  const PackedKv& from_;
  const PrecisionKernels& kernels_;
  const ParallelFor& parallel_;
  std::unique_ptr<float[]> k_, v_;  // of one head
};

Status Converter::TakeRows() {
  const size_t length = static_cast<size_t>(from_.length());
  const PackedShape& shape = from_.shape();
  k_.reset(new (std::nothrow) float[Product(length, shape.head_dim)]);
  v_.reset(new (std::nothrow) float[Product(length, shape.v_head_dim)]);
  if (k_ != nullptr && v_ != nullptr) return Status();
  return NoMemory("a head in f32",
                  Product(length, (shape.head_dim + shape.v_head_dim) * sizeof(float)));
}

// Rows of tokens that are not kept become those of a neighbour, which moves no mean and no range
// far. False if none is kept.
bool Converter::UnpackHead(size_t b, size_t h, const uint32_t* kept) {
  const SequenceKeys keys = from_.keys(b);
  const PackedShape& shape = from_.shape();
  const size_t num_tiles = (keys.count + kKvTile - 1) / kKvTile;
  ForEachTask(parallel_, num_tiles, [&](size_t tile, size_t) {
    size_t key = tile * kKvTile;
    const size_t count = std::min(kKvTile, keys.count - key);
    if (kept != nullptr && std::all_of(kept + tile * kTileWords, kept + (tile + 1) * kTileWords,
                                       [](uint32_t word) { return word == 0; })) {
      return;
    }
    float* k = k_.get() + key * shape.head_dim;
    float* v = v_.get() + key * shape.v_head_dim;
    AttendTask task = {};
    task.head = {keys.heads, shape, from_.offsets()};
    task.pages = keys.pages;
    unsigned char* heads = FindPage(task, &key);
    UnpackRows({heads + h * from_.offsets().bytes, shape, from_.offsets()}, key, count, k, v);
  });
  size_t last = 0;
  while (last < keys.count && !IsKept(kept, last)) ++last;
  if (last == keys.count) return false;
  for (size_t key = 0; kept != nullptr && key < keys.count; ++key) {
    if (IsKept(kept, key)) {
      last = key;
      continue;
    }
    const float* k = k_.get();
    const float* v = v_.get();
    std::copy_n(k + last * shape.head_dim, shape.head_dim, k_.get() + key * shape.head_dim);
    std::copy_n(v + last * shape.v_head_dim, shape.v_head_dim, v_.get() + key * shape.v_head_dim);
  }
  return true;
}

// page_at: where a page's head begins, null if it is forgotten. The first one is not.
template <class PageAt>
void Converter::PackHead(const PackedKv& to, size_t num_keys, const PageAt& page_at) const {
  const PackedShape& shape = to.shape();
  const PackedOffsets& offsets = to.offsets();
  const auto task_for = [&](size_t page, size_t key, size_t count) {
    PackTask task = {};
    task.head = {page_at(page), shape, offsets};
    task.k = DenseRows(k_.get() + key * shape.head_dim, shape.head_dim);
    task.v = DenseRows(v_.get() + key * shape.v_head_dim, shape.v_head_dim);
    task.key_begin = key - page * shape.capacity;
    task.num_keys = count;
    return task;
  };
  const size_t num_pages = (num_keys + shape.capacity - 1) / shape.capacity;
  const unsigned char* centers = nullptr;
  for (size_t page = 0; page < num_pages && kernels_.center != nullptr; ++page) {
    unsigned char* head = page_at(page);
    if (head == nullptr) continue;
    if (centers == nullptr) {
      PackScratch scratch;
      PackTask task = task_for(page, 0, num_keys);
      task.key_begin = 0;
      kernels_.center(task, scratch.bytes);
      centers = head + offsets.k_center;
    } else {
      memcpy(head + offsets.k_center, centers, CenterBytes(offsets));
    }
  }
  ForEachTask(parallel_, (num_keys + kVTileKeys - 1) / kVTileKeys, [&](size_t index, size_t) {
    PackScratch scratch;
    const size_t end = std::min((index + 1) * kVTileKeys, num_keys);
    for (size_t key = index * kVTileKeys; key < end; key += kKvTile) {
      const size_t page = key / shape.capacity;
      if (page_at(page) == nullptr) continue;
      kernels_.pack(task_for(page, key, std::min(kKvTile, end - key)), scratch.bytes);
    }
  });
}

Status Converter::Convert(const KvFormat& format, std::unique_ptr<uint32_t[]> kept,
                          std::shared_ptr<const PackedKv>* converted) {
  const bool flips = DifferInBias(from_.geometry().layout, LayoutOf(kernels_, format.rotate_k));
  const bool has_pages = from_.geometry().batch != 0 && from_.keys(0).pages.data != nullptr;
  const bool makes_pages = flips ? has_pages : kept != nullptr;
  return makes_pages ? ToPages(format, flips, std::move(kept), converted)
                     : ToBlock(format, flips, converted);
}

Status Converter::ToBlock(const KvFormat& format, bool flips,
                          std::shared_ptr<const PackedKv>* converted) {
  const KvGeometry& geometry = from_.geometry();
  CrossMemoryDesc desc;
  desc.batch = geometry.batch;
  desc.kv_len = from_.length();
  desc.num_kv_heads = geometry.num_kv_heads;
  desc.head_dim = geometry.head_dim;
  desc.v_head_dim = geometry.v_head_dim;
  desc.format = format;
  const size_t batch = static_cast<size_t>(geometry.batch);
  std::unique_ptr<int32_t[]> lens;
  Status status = CopyLens(from_, &lens);
  if (!status.ok()) return status;
  std::shared_ptr<PackedBlock> block;
  status = PackedBlock::Create(desc, lens.get(), kernels_, nullptr, nullptr, &block);
  if (status.ok() && !flips) status = TakeRows();
  if (!status.ok()) return status;
  const PackedHeads heads = block->heads();
  for (size_t b = 0; b < batch; ++b) {
    for (size_t h = 0; h < num_kv_heads(); ++h) {
      if (flips) {
        const PackedHead head = heads.at(b, h);
        memcpy(head.base, from_.keys(b).heads + h * head.offsets.bytes, head.offsets.bytes);
        FlipBias(head, from_.keys(b).count);
        continue;
      }
      if (!UnpackHead(b, h, nullptr)) continue;
      PackHead(*block, from_.keys(b).count, [&](size_t) { return heads.at(b, h).base; });
    }
  }
  *converted = std::move(block);
  return status;
}

Status Converter::ToPages(const KvFormat& format, bool flips, std::unique_ptr<uint32_t[]> kept,
                          std::shared_ptr<const PackedKv>* converted) {
  KvGeometry geometry = from_.geometry();
  geometry.layout = LayoutOf(kernels_, format.rotate_k);
  geometry.precision = format.precision;
  const uint32_t* bits = kept.get();
  const size_t page_tokens = flips ? from_.shape().capacity : kVTileKeys;
  std::shared_ptr<StoredKv> to;
  std::unique_ptr<int32_t[]> lens;
  Status status = CopyLens(from_, &lens);
  if (status.ok()) {
    status = StoredKv::CreatePages(geometry, static_cast<int64_t>(page_tokens), from_.length(),
                                   lens.get(), std::move(kept), &to);
  }
  if (status.ok() && !flips) status = TakeRows();
  if (!status.ok()) return status;
  const size_t head_bytes = to->offsets().bytes;
  for (size_t b = 0; b < static_cast<size_t>(geometry.batch); ++b) {
    const size_t length = from_.keys(b).count;
    for (size_t begin = 0; flips && begin < length; begin += page_tokens) {
      const size_t page = begin / page_tokens;
      unsigned char* heads = to->page(b, page);
      if (heads == nullptr) continue;
      memcpy(heads, from_.keys(b).pages.data[page], num_kv_heads() * head_bytes);
      for (size_t h = 0; h < num_kv_heads(); ++h) {
        FlipBias({heads + h * head_bytes, to->shape(), to->offsets()},
                 std::min(page_tokens, length - begin));
      }
    }
    for (size_t h = 0; !flips && h < num_kv_heads(); ++h) {
      if (!UnpackHead(b, h, bits + b * TilesOf(from_.length()) * kTileWords)) continue;
      PackHead(*to, length, [&](size_t page) {
        unsigned char* heads = to->page(b, page);
        return heads == nullptr ? nullptr : heads + h * head_bytes;
      });
    }
  }
  *converted = std::move(to);
  return status;
}

Status EmptyMemory() {
  return Status::Error(StatusCode::kInvalidArgument, "the memory is empty: create it first");
}

}  // namespace
}  // namespace internal

using internal::FileAccess;
using internal::FileCheck;
using internal::PackedKv;
using internal::PagedKv;
using internal::StoredKv;

Status Save(const CrossMemory& memory, const char* path) {
  if (memory.empty()) return internal::EmptyMemory();
  return internal::SavePacked(*KvAccess::Get(memory), nullptr, path);
}

Status Save(const KvCache& cache, const char* path) {
  if (cache.empty()) {
    return Status::Error(StatusCode::kInvalidArgument, "the cache is empty: create it first");
  }
  const PagedKv* packed = KvAccess::GetPaged(cache);
  return internal::SavePacked(*packed, packed, path);
}

Status Map(const char* path, CrossMemory* memory, const KvMapOptions& options) {
  if (memory == nullptr) return Status::Error(StatusCode::kInvalidArgument, "memory is null");
  const FileCheck check =
      options.check == KvCheck::kFull ? FileCheck::kSections : FileCheck::kHeader;
  std::shared_ptr<StoredKv> stored;
  Status status = internal::OpenStored(
      path, {check, options.copy ? FileAccess::kRead : FileAccess::kMap}, &stored);
  if (status.ok()) KvAccess::Set(std::move(stored), memory);
  return status;
}

Status Load(const char* path, const KvCacheDesc& given, KvCache* cache) {
  if (cache == nullptr) return Status::Error(StatusCode::kInvalidArgument, "cache is null");
  std::shared_ptr<StoredKv> stored;
  Status status = internal::OpenStored(path, {FileCheck::kSections, FileAccess::kMap}, &stored);
  if (!status.ok()) return status;
  const internal::KvMeta& meta = stored->meta();
  const char* file = stored->file()->name();
  if (meta.content != internal::KvContent::kCache) {
    return Status::Error(StatusCode::kInvalidArgument, "%s holds a memory, not a cache: Map it",
                         file);
  }
  KvCacheDesc desc = given;
  status = internal::CompleteDesc(file, meta, &desc);
  KvCache loaded;
  if (status.ok()) status = KvCache::Create(desc, &loaded);
  if (!status.ok()) return status;
  PagedKv& packed = *KvAccess::GetPaged(loaded);
  status = internal::CompareFormat(file, meta, packed);
  if (status.ok()) status = packed.Restore(stored->snapshot());
  if (status.ok()) *cache = std::move(loaded);
  return status;
}

Status Verify(const CrossMemory& memory) {
  if (memory.empty()) return internal::EmptyMemory();
  const internal::MappedFile* file = KvAccess::Get(memory)->file();
  return file == nullptr ? Status() : file->Verify();
}

Status Convert(const CrossMemory& memory, const KvFormat& format, CrossMemory* converted,
               const ParallelFor& parallel) {
  if (converted == nullptr) {
    return Status::Error(StatusCode::kInvalidArgument, "converted is null");
  }
  if (memory.empty()) return internal::EmptyMemory();
  Status status = internal::ValidatePrecision("format.", format.precision, format.rotate_k);
  if (status.ok()) status = internal::ValidateParallel(parallel);
  const internal::PrecisionKernels* kernels = nullptr;
  if (status.ok()) status = internal::FindKernels(format, &kernels);
  if (!status.ok()) return status;
  const PackedKv& packed = *KvAccess::Get(memory);
  if (packed.geometry().layout == internal::LayoutOf(*kernels, format.rotate_k)) {
    *converted = memory;
    return status;
  }
  std::unique_ptr<uint32_t[]> kept;
  if (!internal::FindKept(packed, &kept)) {
    return internal::NoMemory("bits of tokens", internal::TilesOf(packed.length()) * 16);
  }
  internal::Converter converter(packed, *kernels, parallel);
  std::shared_ptr<const PackedKv> result;
  status = converter.Convert(format, std::move(kept), &result);
  if (status.ok()) KvAccess::Set(std::move(result), converted);
  return status;
}

}  // namespace sightline
