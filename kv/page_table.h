// Which pages hold the tokens of a sequence, and which tokens are there no more. Forks share a
// table until one of them changes it.
#ifndef SIGHTLINE_KV_PAGE_TABLE_H_
#define SIGHTLINE_KV_PAGE_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "dispatch/kernel_table.h"
#include "kv/block_pool.h"

namespace sightline {
namespace internal {

// Bits of the tokens of a tile that are there, with those behind the first num_tokens set: they are
// to come. Returns how many are 0.
size_t CopyKeptBits(const uint32_t* kept, size_t num_tokens, uint32_t* bits);

// Tables are changed by those alone who own them alone; what is said of pages also goes for the
// tiles of their tokens.
class PageTable {
 public:
  // Null if memory is short. room: for how many pages.
  static Ref<PageTable> Create(size_t page_tokens, size_t room);
  // A table of the same pages, with room for more.
  Ref<PageTable> Clone(size_t room) const;
  static void Free(PageTable* table) { delete table; }

  size_t page_tokens() const { return page_tokens_; }
  size_t num_pages() const { return num_pages_; }
  size_t room() const { return room_; }
  Block* page(size_t i) const { return pages_[i].get(); }  // null: forgotten
  size_t num_held() const { return num_held_; }            // pages that are there
  size_t num_evicted() const { return num_evicted_; }

  // For kernels, which find a page's heads at its beginning.
  KeyPages pages() const { return {data_.get(), 0, tiles_.get(), kept_.get()}; }
  // The first page that is there, or null.
  unsigned char* first_page() const {
    return first_ < num_pages_ ? pages_[first_]->data() : nullptr;
  }

  // A page of which nothing is there.
  void PushForgotten() {
    ++num_pages_;
    SeekFirst();
  }
  void Push(Ref<Block> page);  // there is room
  // Of one that was forgotten the tokens to come are there again.
  void Replace(size_t i, Ref<Block> page);
  // Forgets what is behind the first `num_tokens`.
  void Truncate(size_t num_tokens);

  // Evicts the tokens whose bits are 0, of tiles of kKvTile up to that of token num_tokens - 1; no
  // token of the table was evicted before. Pages stay as they are. False if memory is short.
  bool Keep(const uint32_t* kept, size_t num_tokens);
  // False if memory for bits is short. Of tokens [0, num_tokens) of the sequence; those in the page
  // that num_tokens is in the middle of stay in memory.
  bool Evict(const int32_t* positions, size_t count, size_t num_tokens);
  // All tokens of pages [begin, end) that are full; there is memory for bits. Pages go to the
  // stock.
  void EvictPages(size_t begin, size_t end, BlockStock* stock);
  // Memory for bits. False if it is short.
  bool MakeBits();

  Owners owners;

 private:
  PageTable() = default;
  bool IsKept(size_t token) const;
  void SetTile(size_t tile);
  uint32_t* BitsOf(size_t tile) const { return kept_.get() + tile * kTileWords; }
  size_t TilesOfPage() const { return page_tokens_ / kKvTile; }
  Ref<Block> Drop(size_t i);
  void DropPageIfEmpty(size_t i);
  void SeekFirst() {
    while (first_ < num_pages_ && !pages_[first_]) ++first_;
  }

  size_t page_tokens_ = 0;
  size_t num_pages_ = 0;
  size_t num_held_ = 0;
  size_t first_ = 0;  // page that is there; num_pages_ if none is
  size_t room_ = 0;
  size_t num_evicted_ = 0;
  std::unique_ptr<Ref<Block>[]> pages_;
  std::unique_ptr<const unsigned char*[]> data_;
  std::unique_ptr<TileKeys[]> tiles_;  // null until a token is forgotten; then of all the room
  std::unique_ptr<uint32_t[]> kept_;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_PAGE_TABLE_H_
