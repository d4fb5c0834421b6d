// K and V that are read where somebody else put them: the sections of an open file, or pages that a
// conversion has filled. Read-only, as kernels see it like any other.
//
// A file is believed nothing. All numbers that decide where something is are in sections of their
// own beside K and V, whose checksums are always verified, and are checked one by one all the same,
// for whoever writes a file can write its checksums; what is used later is a copy, which no change
// of the file under its mapping reaches. What is left are elements, scales and centres, which may
// be anything: kernels make numbers of them, not places.
#ifndef SIGHTLINE_KV_STORED_KV_H_
#define SIGHTLINE_KV_STORED_KV_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "dispatch/memory.h"
#include "kv/file.h"
#include "kv/packed_kv.h"
#include "kv/paged_kv.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// The kind of kv/file.h's files that these are, and their sections. docs/files.md has all of this
// in words.
constexpr uint32_t kKvFileKind = 1;
enum KvSection : uint32_t {
  kMetaSection = 1,
  kLensSection = 2,   // int32 [batch]: keys of each sequence
  kTableSection = 3,  // of pages: uint32 [batch][pages of length], see KvSnapshot
  kKeptSection = 4,   // the same; only if a token is forgotten. uint32 [batch][tiles of length]
                      // [kTileWords], bits of tokens that do not exist are 0
  kTailsSection = 5,  // of a cache that has them, see PagedKv
  kDataSection = 6,   // heads of a block, or pages
};

// Raised whenever anything but K and V changes its meaning; for those there is kLayoutVersion.
constexpr uint32_t kKvFileVersion = 1;

enum class KvContent : uint32_t {
  kBlock = 1,  // a head for each sequence and kv head
  kPages = 2,
  kCache = 3,  // pages, and what it takes to go on
};

// All of kMetaSection.
struct KvMeta {
  uint32_t version;
  KvContent content;
  uint32_t layout_version;
  LayoutId layout;
  uint32_t precision;
  uint32_t is_settled;  // of a cache, as all that follows page_tokens but num_pages; 0 otherwise
  int64_t batch;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t v_head_dim;
  int64_t length;       // of the longest sequence; of a cache, of all
  int64_t page_tokens;  // 0 without pages
  int64_t num_pages;
  int64_t capacity;
  int64_t window_left;
  int64_t num_sinks;
  int64_t forgotten_pages;
  int64_t reserved[2];
};
static_assert(sizeof(KvMeta) == 128, "no padding");

inline size_t PagesOf(int64_t length, int64_t page_tokens) {
  return page_tokens == 0 ? 0 : static_cast<size_t>((length + page_tokens - 1) / page_tokens);
}
inline size_t TilesOf(int64_t length) {
  return (static_cast<size_t>(length) + kKvTile - 1) / kKvTile;
}

// How many of the keys [begin, begin + count) a sequence of so many has.
inline size_t KeysWithin(size_t length, size_t begin, size_t count) {
  return length <= begin ? 0 : length - begin < count ? length - begin : count;
}

// Bits of the tokens that are there, as kKeptSection has them; *kept becomes null where all are.
// False if memory is short.
bool FindKept(const PackedKv& packed, std::unique_ptr<uint32_t[]>* kept);

class StoredKv final : public PackedKv {
 public:
  // What a file holds. kUnsupported, kCorrupt, kOutOfMemory.
  static Status Open(std::shared_ptr<const MappedFile> file, std::shared_ptr<StoredKv>* stored);
  // Pages of zeros for so many tokens of each sequence, of the longest `length`, but for those of
  // which nothing is kept; kept: null, or bits as above.
  static Status CreatePages(const KvGeometry& geometry, int64_t page_tokens, int64_t length,
                            const int32_t* lens, std::unique_ptr<uint32_t[]> kept,
                            std::shared_ptr<StoredKv>* stored);

  int64_t length() const override { return meta_.length; }
  SequenceKeys keys(size_t batch) const override;
  size_t bytes() const override { return bytes_; }
  KvBlock block() const override { return {nullptr, 0}; }
  const MappedFile* file() const override { return file_.get(); }

  const KvMeta& meta() const { return meta_; }
  KvSnapshot snapshot() const;  // of a cache
  // The place of a page, null if it is forgotten. CreatePages: to be filled.
  unsigned char* page(size_t batch, size_t i) const;

 private:
  StoredKv(const KvGeometry& geometry, const KvMeta& meta, size_t capacity)
      : PackedKv(geometry, capacity), meta_(meta) {}
  static Status New(const KvMeta& meta, std::shared_ptr<StoredKv>* stored);

  Status ReadBlock();
  Status ReadPages();
  Status Fetch(uint32_t id, size_t bytes, void* out) const;
  Status PlaceData(size_t count, size_t bytes_of_each);
  Status Corrupt(const char* what, int64_t value, int64_t min, int64_t max) const;
  Status CheckLens() const;
  Status MakeTiles();
  size_t LengthOf(size_t batch) const { return static_cast<size_t>(lens_[batch]); }
  size_t NumPages() const { return PagesOf(meta_.length, meta_.page_tokens); }
  size_t PageBytes() const {
    return Product(static_cast<size_t>(meta_.num_kv_heads), offsets_.bytes);
  }

  KvMeta meta_;
  std::shared_ptr<const MappedFile> file_;
  std::shared_ptr<unsigned char> owned_;
  const unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
  std::unique_ptr<int32_t[]> lens_;
  // Of pages, each for all sequences one after the other; the last three only if tokens are gone.
  std::unique_ptr<uint32_t[]> table_;
  std::unique_ptr<const unsigned char*[]> pages_;
  std::unique_ptr<uint32_t[]> kept_;  // as in the file
  std::unique_ptr<TileKeys[]> tiles_;
  std::unique_ptr<uint32_t[]> bits_;  // and with those of tokens that do not exist set
  const unsigned char* tails_ = nullptr;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_STORED_KV_H_
