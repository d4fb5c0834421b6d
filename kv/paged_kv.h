// The storage behind KvCache: each sequence has a table of pages, which hold a packed head for each
// kv head, and where V or K is quantised a tail: the tokens of the open tile in f32.
//
// Floats are packed where they belong, token by token. V in int8 shares a scale among the 128 keys
// of a tile, so the open tile is kept in f32 beside its packed form and packed anew at each append:
// at most 128 rows, and closed tiles never change. The centres of quantised K and V, and the
// balance of rotated K, have to be the same for all keys: they are the first tile's, settled when
// it closes; until then K is packed anew as well. Every page has a copy of them. All of this
// depends on the tokens alone, not on how they were grouped into appends.
//
// Cost of appending one token: floats store it; int8 quantises its K and up to 128 rows of V, and
// in the first tile, whose centres still move, up to 128 rows of K as well; of mixed16 that is all.
// The first append after a fork copies what the open page holds, and a pointer for each page.
#ifndef SIGHTLINE_KV_PAGED_KV_H_
#define SIGHTLINE_KV_PAGED_KV_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "kv/block_pool.h"
#include "kv/packed_kv.h"
#include "kv/page_table.h"
#include "sightline/kv.h"
#include "sightline/parallel.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// Pages of one geometry, and the tails that go with them.
struct KvPoolImpl {
  KvPoolImpl(const KvPoolDesc& given, const PrecisionKernels& with, size_t max_pages);

  const KvPoolDesc desc;  // v_head_dim resolved
  const PrecisionKernels& kernels;
  const PackedShape shape;  // of a page's heads
  const PackedOffsets offsets;
  BlockPool pages;
  BlockPool tails;
  // What sequences begin with, and come back to; null if memory is short.
  const Ref<PageTable> no_pages;
};

// One head's part of a tail: centres, then rows of K and of V in f32.
size_t TailHeadBytes(const PackedShape& shape, const PackedOffsets& offsets);

// A cache as a file has it (docs/files.md); everything in it is validated.
struct KvSnapshot {
  int64_t length;
  bool is_settled;
  size_t forgotten_pages;
  size_t num_pages;            // that there are
  const unsigned char* pages;  // one after the other
  const uint32_t* table;       // [batch][pages of length]: number of the page plus 1; 0: forgotten
  const uint32_t* kept;        // [batch][tiles of length][kTileWords]; null: all tokens
  const unsigned char* tails;  // [batch] of tail_bytes
};

class PagedKv final : public PackedKv {
 public:
  // What a cache is told beside its pool's geometry.
  struct Limits {
    int64_t capacity;
    int64_t window_left;
    int64_t num_sinks;
  };
  static Status Create(std::shared_ptr<KvPoolImpl> pool, int64_t batch, const Limits& limits,
                       std::shared_ptr<PagedKv>* packed);

  int64_t length() const override { return length_; }
  SequenceKeys keys(size_t batch) const override;
  size_t bytes() const override;
  KvBlock block() const override { return {nullptr, 0}; }
  const Limits& limits() const { return limits_; }
  const KvPoolImpl& pool() const { return *pool_; }
  size_t num_evicted(size_t batch) const { return sequences_[batch].table->num_evicted(); }

  // See KvCache; arguments are validated, but for what depends on the state.
  Status Append(const ConstTensorView& k, const ConstTensorView& v, const ParallelFor& parallel);
  Status Truncate(int64_t length);
  Status Share(std::shared_ptr<PagedKv>* child) const;
  // Of what is to be a memory: so many first tokens of each sequence stay. On error it is of no
  // use.
  Status SetLengths(const int32_t* kv_lens);
  Status Reorder(const int32_t* parents, int64_t batch);
  Status Evict(size_t batch, const int32_t* positions, size_t count);
  void Clear();

  // For files: what is to be known beside the pages, and how an empty cache becomes what one was.
  bool is_settled() const { return is_settled_; }
  size_t forgotten_pages() const { return forgotten_pages_; }
  size_t tail_bytes() const { return HasTail() ? pool_->tails.block_bytes() : 0; }
  // Into zeros. What no later append reads stays 0.
  void CopyTail(size_t batch, unsigned char* tail) const;
  // On error the cache is of no use.
  Status Restore(const KvSnapshot& snapshot);

 private:
  struct Sequence {
    Ref<PageTable> table;
    Ref<Block> tail;
  };
  // Of one head's part of a tail.
  struct Tail {
    unsigned char* centers;  // as in a packed head, from k_center on
    float* k;                // [kKvTile][head_dim]: of the first tile until it closes
    float* v;                // [kKvTile][v_head_dim]
  };

  struct PageRange {
    size_t begin;
    size_t end;
  };

  PagedKv(std::shared_ptr<KvPoolImpl> pool, const KvGeometry& geometry, const Limits& limits);

  bool HasTail() const { return HasQuantizedK(geometry_.layout); }
  Tail TailOf(unsigned char* tail, size_t kv_head) const;
  Tail TailOf(const Sequence& sequence, size_t kv_head) const {
    return TailOf(sequence.tail->data(), kv_head);
  }
  void CopyTailRows(unsigned char* from, unsigned char* to) const;
  PackedHead HeadAt(const Sequence& sequence, size_t key, size_t kv_head) const;
  size_t PageTokens() const { return shape_.capacity; }
  size_t FirstWindowPage() const;
  int64_t HeldTokens(const PageTable& table, const PageRange& forgotten) const;
  PageRange PagesToForget() const;
  size_t CountFreed(const PageRange& forgotten) const;
  bool OpenPageIsGone(const Sequence& sequence) const;

  Status OutOfPages() const;
  Status OwnTable(Sequence& sequence, size_t num_pages) const;
  Status OwnTail(Sequence& sequence) const;
  Status OwnOpenPage(Sequence& sequence) const;
  Status MakeRoom(Sequence& sequence, size_t num_tokens, const PageRange& forgotten,
                  size_t* num_new_pages) const;
  Status MakeRoomForAll(size_t num_tokens, const PageRange& forgotten, BlockStock* stock) const;
  void TakePages(const Sequence& sequence, size_t num_tokens, BlockStock* stock) const;
  void CopyCenters(const Sequence& sequence, size_t kv_head, size_t key) const;
  void AppendToHead(const Sequence& sequence, size_t kv_head, const SourceRows& k,
                    const SourceRows& v, size_t num_tokens) const;
  void Reopen(const Sequence& sequence, size_t length) const;

  std::shared_ptr<KvPoolImpl> pool_;  // outlives the sequences
  Limits limits_;
  std::unique_ptr<Sequence[]> sequences_;
  int64_t length_ = 0;
  std::unique_ptr<int32_t[]> lens_;  // null: all sequences have length_, as those of caches do
  bool is_settled_ = false;          // the first tile has closed
  size_t forgotten_pages_ = 0;       // the window has forgotten pages up to this one
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_PAGED_KV_H_
