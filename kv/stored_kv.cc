#include "kv/stored_kv.h"

#include <string.h>

#include <algorithm>
#include <iterator>
#include <new>
#include <utility>

#include "dispatch/memory.h"
#include "dispatch/validate.h"

namespace sightline {
namespace internal {
namespace {

// The one precision that has a layout; false for layouts that this library does not know.
bool PrecisionOf(LayoutId layout, Precision* precision) {
  switch (layout) {
    case LayoutId::kF32:
      *precision = Precision::kF32;
      return true;
    case LayoutId::kF16:
      *precision = Precision::kF16;
      return true;
    case LayoutId::kBF16:
      *precision = Precision::kBF16;
      return true;
    case LayoutId::kMixed16:
      *precision = Precision::kMixed16;
      return true;
    case LayoutId::kI8BiasedK:
    case LayoutId::kI8BiasedV:
    case LayoutId::kI8RotatedBiasedK:
    case LayoutId::kI8RotatedBiasedV:
      *precision = Precision::kI8;
      return true;
    case LayoutId::kI8Fine:
    case LayoutId::kI8FineBiasedV:
      *precision = Precision::kI8Fine;
      return true;
    case LayoutId::kNone:
      break;
  }
  return false;
}

// A field and what it may be.
struct Field {
  const char* name;
  int64_t value;
  int64_t min;
  int64_t max;
};

Status CheckFields(const char* file, const Field* fields, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const Field& field = fields[i];
    if (field.value >= field.min && field.value <= field.max) continue;
    return Status::Error(StatusCode::kCorrupt, "%s: %s is %lld, must be %lld to %lld", file,
                         field.name, static_cast<long long>(field.value),
                         static_cast<long long>(field.min), static_cast<long long>(field.max));
  }
  return Status();
}

// Everything that can be said of the numbers alone.
Status CheckMeta(const char* file, const KvMeta& meta, Precision* precision) {
  if (meta.version != kKvFileVersion || meta.layout_version != kLayoutVersion) {
    return Status::Error(
        StatusCode::kUnsupported,
        "%s has version %lu of K/V files and %lu of layouts, this library reads %lu and %lu", file,
        static_cast<unsigned long>(meta.version), static_cast<unsigned long>(meta.layout_version),
        static_cast<unsigned long>(kKvFileVersion), static_cast<unsigned long>(kLayoutVersion));
  }
  if (!PrecisionOf(meta.layout, precision)) {
    return Status::Error(StatusCode::kUnsupported,
                         "%s has layout %lu, which this library does not know", file,
                         static_cast<unsigned long>(meta.layout));
  }
  const auto content = static_cast<int64_t>(meta.content);
  const int64_t expected = static_cast<int64_t>(*precision);
  const Field kinds[] = {
      {"content", content, static_cast<int64_t>(KvContent::kBlock),
       static_cast<int64_t>(KvContent::kCache)},
      {"precision", int64_t{meta.precision}, expected, expected},
      {"reserved", meta.reserved[0], 0, 0},
      {"reserved", meta.reserved[1], 0, 0},
  };
  Status status = CheckFields(file, kinds, std::size(kinds));
  if (!status.ok()) return status;

  // Fields that do not belong to the content are 0.
  const bool has_pages = meta.content != KvContent::kBlock;
  const bool is_cache = meta.content == KvContent::kCache;
  constexpr int64_t kTile = kKvTile;
  constexpr int64_t kHeadDim = kMaxHeadDim;
  const int64_t max_pages =
      has_pages && meta.page_tokens > 0 && meta.length >= 0 && meta.length <= kMaxCount
          ? static_cast<int64_t>(PagesOf(meta.length, meta.page_tokens))
          : 0;
  const int64_t batch = std::clamp<int64_t>(meta.batch, 0, kMaxCount);
  const Field fields[] = {
      {"batch", meta.batch, is_cache ? 1 : 0, kMaxCount},
      {"num_kv_heads", meta.num_kv_heads, 1, kMaxCount},
      {"head_dim", meta.head_dim, 1, kHeadDim},
      {"v_head_dim", meta.v_head_dim, 1, kHeadDim},
      {"length", meta.length, 0, kMaxCount},
      {"page_tokens", meta.page_tokens, has_pages ? kTile : 0, has_pages ? kMaxPageTokens : 0},
      {"page_tokens % 128", meta.page_tokens % kTile, 0, 0},
      {"num_pages", meta.num_pages, 0, batch * max_pages},
      {"is_settled", int64_t{meta.is_settled}, is_cache && meta.length >= kTile ? 1 : 0,
       is_cache ? 1 : 0},
      {"capacity", meta.capacity, 0, is_cache ? kMaxCount : 0},
      {"window_left", meta.window_left, is_cache ? -1 : 0, is_cache ? kMaxCount : 0},
      {"num_sinks", meta.num_sinks, 0, is_cache && meta.window_left >= 0 ? kMaxCount : 0},
      {"forgotten_pages", meta.forgotten_pages, 0, is_cache ? kMaxCount : 0},
  };
  return CheckFields(file, fields, std::size(fields));
}

}  // namespace

bool FindKept(const PackedKv& packed, std::unique_ptr<uint32_t[]>* kept) {
  kept->reset();
  const size_t batch = static_cast<size_t>(packed.geometry().batch);
  const size_t num_tiles = TilesOf(packed.length());
  bool has_all = true;
  for (size_t b = 0; b < batch && has_all; ++b) {
    const SequenceKeys keys = packed.keys(b);
    const TileKeys* tiles = keys.pages.tiles;
    const size_t used = TilesOf(static_cast<int64_t>(keys.count));
    has_all = tiles == nullptr || std::all_of(tiles, tiles + used,
                                              [](TileKeys tile) { return tile == TileKeys::kAll; });
  }
  if (has_all) return true;
  std::unique_ptr<uint32_t[]> bits(new (std::nothrow)
                                       uint32_t[Product(batch, num_tiles, kTileWords)]);
  if (bits == nullptr) return false;
  uint32_t* out = bits.get();
  size_t gone = 0;
  for (size_t b = 0; b < batch; ++b) {
    const SequenceKeys keys = packed.keys(b);
    const KeyPages& pages = keys.pages;
    for (size_t word = 0; word < num_tiles * kTileWords; ++word) {
      const TileKeys tile =
          pages.tiles == nullptr ? TileKeys::kAll : pages.tiles[word / kTileWords];
      const uint32_t there = tile == TileKeys::kAll    ? ~uint32_t{0}
                             : tile == TileKeys::kNone ? 0
                                                       : pages.kept[word];
      const size_t count = KeysWithin(keys.count, word * 32, 32);
      const uint32_t exists = count == 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
      *out++ = there & exists;
      gone += (~there & exists) != 0;
    }
  }
  if (gone != 0) *kept = std::move(bits);
  return true;
}

Status StoredKv::New(const KvMeta& meta, std::shared_ptr<StoredKv>* stored) {
  const KvGeometry geometry = {
      meta.layout,    meta.layout_version, static_cast<Precision>(meta.precision),
      meta.batch,     meta.num_kv_heads,   meta.head_dim,
      meta.v_head_dim};
  const int64_t capacity = meta.content == KvContent::kBlock ? meta.length : meta.page_tokens;
  *stored = ShareOrNull(new (std::nothrow) StoredKv(geometry, meta, static_cast<size_t>(capacity)));
  if (*stored != nullptr) {
    (*stored)->lens_.reset(new (std::nothrow) int32_t[static_cast<size_t>(meta.batch)]);
  }
  if (*stored == nullptr || (*stored)->lens_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "the lengths of %lld sequences",
                         static_cast<long long>(meta.batch));
  }
  return Status();
}

Status StoredKv::Corrupt(const char* what, int64_t value, int64_t min, int64_t max) const {
  return Status::Error(StatusCode::kCorrupt, "%s: %s is %lld, must be %lld to %lld", file_->name(),
                       what, static_cast<long long>(value), static_cast<long long>(min),
                       static_cast<long long>(max));
}

// Copies a small section, which has to have so many bytes.
Status StoredKv::Fetch(uint32_t id, size_t bytes, void* out) const {
  const MappedFile::Section section = file_->Find(id);
  if (section.data == nullptr || section.bytes != bytes) {
    return Status::Error(StatusCode::kCorrupt, "%s: section %lu has %zu bytes, must have %zu",
                         file_->name(), static_cast<unsigned long>(id), section.bytes, bytes);
  }
  if (Status status = file_->Verify(id); !status.ok()) return status;
  if (bytes != 0) memcpy(out, section.data, bytes);
  return Status();
}

// The section of K and V.
Status StoredKv::PlaceData(size_t count, size_t bytes_of_each) {
  const MappedFile::Section section = file_->Find(kDataSection);
  const size_t bytes = Product(count, bytes_of_each);
  if (section.data == nullptr || section.bytes != bytes) {
    return Status::Error(StatusCode::kCorrupt,
                         "%s: section %lu has %zu bytes, must have %zu times %zu", file_->name(),
                         static_cast<unsigned long>(kDataSection), section.bytes, count,
                         bytes_of_each);
  }
  data_ = section.data;
  bytes_ = bytes;
  return Status();
}

Status StoredKv::CheckLens() const {
  const int64_t least = meta_.content == KvContent::kCache ? meta_.length : 0;
  for (size_t b = 0; b < static_cast<size_t>(meta_.batch); ++b) {
    if (lens_[b] < least || lens_[b] > meta_.length) {
      return Corrupt("the length of a sequence", lens_[b], least, meta_.length);
    }
  }
  return Status();
}

Status StoredKv::ReadBlock() {
  const size_t num_heads =
      Product(static_cast<size_t>(meta_.batch), static_cast<size_t>(meta_.num_kv_heads));
  return PlaceData(num_heads, offsets_.bytes);
}

// Tiles and bits for kernels, from those that are kept.
Status StoredKv::MakeTiles() {
  const size_t num_tiles = TilesOf(meta_.length);
  const size_t all_tiles = Product(static_cast<size_t>(meta_.batch), num_tiles);
  tiles_.reset(new (std::nothrow) TileKeys[all_tiles]);
  bits_.reset(new (std::nothrow) uint32_t[Product(all_tiles, kTileWords)]);
  if (tiles_ == nullptr || bits_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "the bits of %lld tokens",
                         static_cast<long long>(meta_.length));
  }
  for (size_t i = 0; i < all_tiles; ++i) {
    const size_t count = KeysWithin(LengthOf(i / num_tiles), i % num_tiles * kKvTile, kKvTile);
    const uint32_t* kept = kept_.get() + i * kTileWords;
    const size_t gone = CopyKeptBits(kept, count, bits_.get() + i * kTileWords);
    tiles_[i] = gone == 0 ? TileKeys::kAll : gone == count ? TileKeys::kNone : TileKeys::kSome;
  }
  return Status();
}

Status StoredKv::ReadPages() {
  const size_t batch = static_cast<size_t>(meta_.batch);
  const size_t num_pages = NumPages();
  const size_t num_tiles = TilesOf(meta_.length);
  const size_t entries = Product(batch, num_pages);
  const Status no_memory =
      Status::Error(StatusCode::kOutOfMemory, "%s: tables of %zu pages", file_->name(), entries);
  // Sizes first: nothing is allocated that is larger than the file.
  const MappedFile::Section table = file_->Find(kTableSection);
  if (table.bytes / sizeof(uint32_t) != entries) {
    return Status::Error(StatusCode::kCorrupt,
                         "%s: section %lu has %zu bytes, must have %zu times 4", file_->name(),
                         static_cast<unsigned long>(kTableSection), table.bytes, entries);
  }
  table_.reset(new (std::nothrow) uint32_t[entries]);
  pages_.reset(new (std::nothrow) const unsigned char*[entries]);
  if (table_ == nullptr || pages_ == nullptr) return no_memory;
  Status status = Fetch(kTableSection, entries * sizeof(uint32_t), table_.get());
  if (!status.ok()) return status;

  const MappedFile::Section kept = file_->Find(kKeptSection);
  if (kept.data != nullptr) {
    const size_t words = Product(batch, num_tiles, kTileWords);
    if (kept.bytes / sizeof(uint32_t) == words) {
      kept_.reset(new (std::nothrow) uint32_t[words]);
      if (kept_ == nullptr) return no_memory;
    }
    status = Fetch(kKeptSection, Product(words, sizeof(uint32_t)), kept_.get());
    if (status.ok()) status = MakeTiles();
    if (!status.ok()) return status;
    for (size_t b = 0; b < batch; ++b) {
      const size_t last = (b + 1) * num_tiles * kTileWords;
      for (size_t token = LengthOf(b); token < num_tiles * kKvTile; ++token) {
        const uint32_t word = kept_[last - num_tiles * kTileWords + token / 32];
        if ((word >> token % 32 & 1) != 0) {
          return Corrupt("the bit of a token behind the last", 1, 0, 0);
        }
      }
    }
  }

  status = PlaceData(static_cast<size_t>(meta_.num_pages), PageBytes());
  if (!status.ok()) return status;
  const size_t page_tiles = static_cast<size_t>(meta_.page_tokens) / kKvTile;
  for (size_t i = 0; i < entries; ++i) {
    if (table_[i] > static_cast<uint64_t>(meta_.num_pages)) {
      return Corrupt("the number of a page", table_[i], 0, meta_.num_pages);
    }
    pages_[i] = table_[i] == 0 ? nullptr : data_ + (table_[i] - 1) * PageBytes();
    if (pages_[i] != nullptr) continue;
    const size_t begin = i % num_pages * page_tiles;
    const size_t end = std::min(begin + page_tiles, TilesOf(lens_[i / num_pages]));
    for (size_t tile = begin; tile < end; ++tile) {
      if (tiles_ == nullptr || tiles_[i / num_pages * num_tiles + tile] != TileKeys::kNone) {
        return Corrupt("the number of a page with tokens", 0, 1, meta_.num_pages);
      }
    }
  }
  return Status();
}

Status StoredKv::Open(std::shared_ptr<const MappedFile> file, std::shared_ptr<StoredKv>* stored) {
  const MappedFile::Section section = file->Find(kMetaSection);
  if (section.bytes != sizeof(KvMeta)) {
    return Status::Error(StatusCode::kCorrupt, "%s: section %lu has %zu bytes, must have %zu",
                         file->name(), static_cast<unsigned long>(kMetaSection), section.bytes,
                         sizeof(KvMeta));
  }
  Status status = file->Verify(kMetaSection);
  if (!status.ok()) return status;
  KvMeta meta;
  memcpy(&meta, section.data, sizeof(meta));
  Precision precision = Precision::kF32;
  status = CheckMeta(file->name(), meta, &precision);
  if (!status.ok()) return status;
  const size_t lens_bytes = Product(static_cast<size_t>(meta.batch), sizeof(int32_t));
  if (file->Find(kLensSection).bytes != lens_bytes) {
    return Status::Error(StatusCode::kCorrupt, "%s: section %lu has %zu bytes, must have %zu",
                         file->name(), static_cast<unsigned long>(kLensSection),
                         file->Find(kLensSection).bytes, lens_bytes);
  }

  std::shared_ptr<StoredKv> opened;
  status = New(meta, &opened);
  if (!status.ok()) return status;
  opened->file_ = std::move(file);
  status = opened->Fetch(kLensSection, lens_bytes, opened->lens_.get());
  if (status.ok()) status = opened->CheckLens();
  const bool is_block = meta.content == KvContent::kBlock;
  if (status.ok()) status = is_block ? opened->ReadBlock() : opened->ReadPages();
  if (!status.ok()) return status;

  const MappedFile& from = *opened->file_;
  size_t num_sections = is_block ? 3 : 4;
  if (!is_block && opened->kept_ != nullptr) ++num_sections;
  if (meta.content == KvContent::kCache && HasQuantizedK(meta.layout) && meta.length > 0) {
    const MappedFile::Section tails = from.Find(kTailsSection);
    // Their number is at most that of the sequences, whose lengths are in the file.
    const size_t head_bytes = TailHeadBytes(opened->shape_, opened->offsets_);
    const size_t bytes = Product(static_cast<size_t>(meta.num_kv_heads), head_bytes,
                                 static_cast<size_t>(meta.batch));
    if (tails.data == nullptr || tails.bytes != bytes) {
      return Status::Error(StatusCode::kCorrupt,
                           "%s: section %lu has %zu bytes, must have %lld times %lld times %zu",
                           from.name(), static_cast<unsigned long>(kTailsSection), tails.bytes,
                           static_cast<long long>(meta.batch),
                           static_cast<long long>(meta.num_kv_heads), head_bytes);
    }
    opened->tails_ = tails.data;
    ++num_sections;
  }
  if (from.num_sections() != num_sections) {
    return Status::Error(StatusCode::kCorrupt, "%s has %zu sections, must have %zu", from.name(),
                         from.num_sections(), num_sections);
  }
  *stored = std::move(opened);
  return Status();
}

Status StoredKv::CreatePages(const KvGeometry& geometry, int64_t page_tokens, int64_t length,
                             const int32_t* lens, std::unique_ptr<uint32_t[]> kept,
                             std::shared_ptr<StoredKv>* stored) {
  KvMeta meta = {};
  meta.content = KvContent::kPages;
  meta.layout_version = geometry.layout_version;
  meta.layout = geometry.layout;
  meta.precision = static_cast<uint32_t>(geometry.precision);
  meta.batch = geometry.batch;
  meta.num_kv_heads = geometry.num_kv_heads;
  meta.head_dim = geometry.head_dim;
  meta.v_head_dim = geometry.v_head_dim;
  meta.length = length;
  meta.page_tokens = page_tokens;
  std::shared_ptr<StoredKv> created;
  Status status = New(meta, &created);
  if (!status.ok()) return status;
  const size_t batch = static_cast<size_t>(geometry.batch);
  std::copy_n(lens, batch, created->lens_.get());
  created->kept_ = std::move(kept);
  if (created->kept_ != nullptr) status = created->MakeTiles();
  if (!status.ok()) return status;

  const size_t num_tiles = TilesOf(length);
  const size_t num_pages = created->NumPages();
  const size_t page_tiles = static_cast<size_t>(page_tokens) / kKvTile;
  const size_t entries = Product(batch, num_pages);
  created->pages_.reset(new (std::nothrow) const unsigned char*[entries]);
  if (created->pages_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "a table of %zu pages", entries);
  }
  const auto has_tokens = [&](size_t b, size_t page) {
    const size_t begin = page * page_tiles;
    const size_t end = std::min(begin + page_tiles, TilesOf(lens[b]));
    if (begin >= end || created->kept_ == nullptr) return begin < end;
    const TileKeys* tiles = created->tiles_.get() + b * num_tiles;
    return std::any_of(tiles + begin, tiles + end,
                       [](TileKeys keys) { return keys != TileKeys::kNone; });
  };
  size_t count = 0;
  for (size_t i = 0; i < entries; ++i) count += has_tokens(i / num_pages, i % num_pages);
  const size_t bytes = Product(count, created->PageBytes());
  unsigned char* data = AllocateAligned(std::max<size_t>(bytes, 1));
  if (data != nullptr) created->owned_ = ShareOrNull(data, FreeAligned);
  if (created->owned_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for packed K and V", bytes);
  }
  memset(data, 0, bytes);
  created->bytes_ = bytes;
  for (size_t i = 0; i < entries; ++i) {
    const bool is_there = has_tokens(i / num_pages, i % num_pages);
    created->pages_[i] = is_there ? data : nullptr;
    if (is_there) data += created->PageBytes();
  }
  *stored = std::move(created);
  return Status();
}

// Inputs are only read: kernels take them through one type.
SequenceKeys StoredKv::keys(size_t batch) const {
  const size_t count = LengthOf(batch);
  if (meta_.content == KvContent::kBlock) {
    return {const_cast<unsigned char*>(data_) + batch * PageBytes(), {}, count};
  }
  const size_t num_pages = NumPages();
  const size_t num_tiles = TilesOf(meta_.length);
  const unsigned char* const* pages = pages_.get() + batch * num_pages;
  const auto* const* first = std::find_if(
      pages, pages + num_pages, [](const unsigned char* page) { return page != nullptr; });
  KeyPages key_pages = {pages, 0, nullptr, nullptr};
  if (tiles_ != nullptr) {
    key_pages.tiles = tiles_.get() + batch * num_tiles;
    key_pages.kept = bits_.get() + batch * num_tiles * kTileWords;
  }
  return {first == pages + num_pages ? nullptr : const_cast<unsigned char*>(*first), key_pages,
          count};
}

unsigned char* StoredKv::page(size_t batch, size_t i) const {
  return const_cast<unsigned char*>(pages_[batch * NumPages() + i]);
}

KvSnapshot StoredKv::snapshot() const {
  return {meta_.length,
          meta_.is_settled != 0,
          static_cast<size_t>(meta_.forgotten_pages),
          static_cast<size_t>(meta_.num_pages),
          data_,
          table_.get(),
          kept_.get(),
          tails_};
}

}  // namespace internal
}  // namespace sightline
