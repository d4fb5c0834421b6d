// File: sightline/kv.h
// K and V that outlive a call: CrossMemory (prepared once, then read-only) and KvCache (grows by
// tokens, forks, forgets).
//
//   CrossMemory memory;                    // once per encoder output
//   Status status = CrossMemory::Create(k, v, {Precision::kI8}, &memory);
//   args.memory = &memory;                 // at every step, for every beam, from any thread
//
//   KvCache cache;                         // once per sequence
//   status = KvCache::Create(desc, &cache);
//   status = cache.Append(k_step, v_step); // at every step
//   args.cache = &cache;
//
//   KvSegment segments[2];                 // several of either, one after the other
//   segments[0].memory = &passage;
//   segments[1].cache = &cache;
//
// All hold K and V packed and quantised the way the kernels read them. Formats: docs/contract.md;
// how to use them: docs/memories.md.
#ifndef SIGHTLINE_KV_H_
#define SIGHTLINE_KV_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "sightline/parallel.h"
#include "sightline/status.h"
#include "sightline/tensor.h"

namespace sightline {

// What is stored, and for which kernels.
struct KvFormat {
  Precision precision = Precision::kF32;
  const char* tier = nullptr;  // nullptr or "" = the active tier; see sightline/tier.h
  // kI8 only. For K with outlier channels, which most models have: mixes the channels of K, and
  // those of Q at each call, so that a few large ones do not take the precision of the others.
  // Where four channels are ten times larger the error falls from 4.7 to 1.5 % (2.1 % on x86
  // without VNNI: docs/precision.md); it costs 1 to 4 % of the time of 2048 tokens. The plan has to
  // say the same: AttentionDesc::rotate_k.
  bool rotate_k = false;
};

namespace internal {
class BlockPool;
class PackedKv;
class PagedKv;
struct KvPoolImpl;
struct MemorySetImpl;
}  // namespace internal

// What a memory is to hold.
struct CrossMemoryDesc {
  int64_t batch = 1;   // sequences; may be 0
  int64_t kv_len = 0;  // of the longest; may be 0
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // 1 to 512
  int64_t v_head_dim = 0;  // 1 to 512; 0 = head_dim
  KvFormat format;
};

// Memory of the caller's. It is neither freed nor touched but for what is placed there, and
// outlives that, with all its copies.
struct KvPlacement {
  static constexpr size_t kAlignmentBytes = 64;
  void* data = nullptr;  // aligned to kAlignmentBytes; null: the library allocates
  size_t bytes = 0;      // at least what Bytes says
};

struct CrossMemoryOptions {
  // [batch]: keys of each sequence, 0 to kv_len; the rest of k and v is padding, and not read.
  // Null: all have kv_len, whose room each takes.
  const int32_t* kv_lens = nullptr;
  KvPlacement placement;
};

class KvCache;

// Encoder K/V of a cross-attention: packed once, immutable, reference-counted. Copies are cheap and
// share the storage. Any number of threads, plans, steps and beams may read one at the same time.
class CrossMemory {
 public:
  // An empty memory, which Run refuses.
  CrossMemory() = default;

  // Packs k [batch, kv_len, num_kv_heads, head_dim] and v [batch, kv_len, num_kv_heads,
  // v_head_dim], of the same or different element types; they are not needed afterwards. kv_len may
  // be 0. One block is allocated, besides the handle's few hundred bytes; none if it is placed by
  // the caller. On error *memory is unchanged: kInvalidArgument, kUnsupported (precision, tier),
  // kOutOfMemory.
  static Status Create(const ConstTensorView& k, const ConstTensorView& v, const KvFormat& format,
                       CrossMemory* memory, const ParallelFor& parallel = {},
                       const CrossMemoryOptions& options = {});

  // What a cache holds at this moment, for encoders that stream: chunks are appended to the cache,
  // and the memory shares its pages, without a copy. Later appends do not change it. What
  // was evicted, or a window has forgotten, is hidden. kv_lens: [batch], keys of each sequence, 0
  // to the cache's length, where some streams have ended and the rest of them is padding; null: all
  // have its length.
  static Status From(const KvCache& cache, CrossMemory* memory, const int32_t* kv_lens = nullptr);

  // Bytes of the block that Create makes.
  static Status Bytes(const CrossMemoryDesc& desc, size_t* bytes);

  bool empty() const { return packed_ == nullptr; }
  // All are 0 (kF32, false) for an empty memory.
  int64_t batch() const;
  int64_t kv_len() const;  // of the tensors: no sequence is longer
  int64_t kv_len(int64_t batch_entry) const;
  int64_t num_kv_heads() const;
  int64_t head_dim() const;
  int64_t v_head_dim() const;
  Precision precision() const;
  bool rotate_k() const;
  size_t bytes() const;  // of the one block, or the pages, that hold everything

 private:
  friend struct KvAccess;
  friend class CrossMemorySet;
  std::shared_ptr<const internal::PackedKv> packed_;
};

// The memories of all layers of a decoder in one block. Copies share it.
class CrossMemorySet {
 public:
  CrossMemorySet() = default;

  // Room for num_layers memories that hold what `desc` says. On error *set is unchanged.
  static Status Create(const CrossMemoryDesc& desc, int64_t num_layers, CrossMemorySet* set,
                       const KvPlacement& placement = {});
  static Status Bytes(const CrossMemoryDesc& desc, int64_t num_layers, size_t* bytes);

  // Packs the K and V of a layer, once; see CrossMemory::Create. kv_len of k and v may be less than
  // the desc's. Layers may be filled by several threads at a time.
  Status Fill(int64_t layer, const ConstTensorView& k, const ConstTensorView& v,
              const ParallelFor& parallel = {}, const int32_t* kv_lens = nullptr);

  bool empty() const { return impl_ == nullptr; }
  int64_t num_layers() const;          // 0 when empty
  CrossMemory layer(int64_t i) const;  // empty until it is filled, or if there is no such layer
  size_t bytes() const;

 private:
  std::shared_ptr<internal::MemorySetImpl> impl_;
};

// Pages that caches of the same geometry share.
struct KvPoolDesc {
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // 1 to 512
  int64_t v_head_dim = 0;  // 1 to 512; 0 = head_dim
  KvFormat format;
  // Tokens of a page: a multiple of 128, up to 65536. Small pages waste less of the last one and
  // are copied faster after a fork; large ones are read faster from DRAM.
  int64_t page_tokens = 256;
  int64_t max_pages = 0;     // of all caches together; freed pages wait in the pool for the next
  bool preallocate = false;  // all pages at once, rather than each when it is first needed
};

// Thread-safe: caches of one pool may be used by different threads. Copies share the pages.
class KvPool {
 public:
  KvPool() = default;

  // On error *pool is unchanged: kInvalidArgument, kUnsupported (precision, tier), kOutOfMemory.
  static Status Create(const KvPoolDesc& desc, KvPool* pool);

  bool empty() const { return impl_ == nullptr; }
  int64_t page_tokens() const;  // all 0 when empty
  int64_t max_pages() const;
  int64_t pages_in_use() const;  // shared ones count once
  size_t page_bytes() const;

 private:
  friend class KvCache;
  std::shared_ptr<internal::KvPoolImpl> impl_;
};

struct KvCacheDesc {
  int64_t batch = 1;  // sequences, all of the same length: beams
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // 1 to 512
  int64_t v_head_dim = 0;  // 1 to 512; 0 = head_dim
  // Most tokens it will ever hold at once. Tokens count until their page is freed: with a window
  // that is up to window_left + page_tokens + the largest append, and the sinks' pages.
  int64_t capacity = 0;
  KvFormat format;

  // For models with a sliding window: most keys before its own position that a query will look at.
  // Older tokens are forgotten, page by page, but for the first num_sinks; positions go on. Plans
  // have to have a window_left of at most as much, and their queries are those of the last append
  // or later: what only older ones could see may be gone. -1: all tokens are kept.
  int64_t window_left = -1;
  int64_t num_sinks = 0;

  // Where pages come from: a pool, which then gives geometry, page_tokens and format (leave these
  // out), or
  // the cache's own, of page_tokens tokens (see KvPoolDesc). 0: 512, or what the capacity takes if
  // that is less; without a window 1024 for a capacity of 32768 or more and 2048 from 65536 on, as
  // long as K and V of a head take no more than 256 KiB of a page.
  const KvPool* pool = nullptr;
  int64_t page_tokens = 0;
};

// Self-attention cache of one sequence, or of several of the same length. Tokens have positions 0,
// 1, 2 … in the order of their appends; that of a token never changes.
//
// Memory comes page by page, and what is stored does not move. How tokens are grouped into appends
// does not change a bit of any later result. Not thread-safe while it changes; any number of
// threads may read it otherwise, and caches that share pages or a pool are independent.
//
// kI8 and kI8Fine also keep the tokens of the open tile, up to 128, in f32, and quantise their
// values anew at each append; the quanta of closed tiles never change. kMixed16 keeps the first
// 128, until when the mean of K moves.
class KvCache {
 public:
  // An empty cache, which Run and Append refuse. Caches are moved, or copied by Fork.
  KvCache() = default;
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  // On error *cache is unchanged: kInvalidArgument, kUnsupported (precision, tier), kOutOfMemory.
  static Status Create(const KvCacheDesc& desc, KvCache* cache);

  // Appends n >= 0 tokens: k [batch, n, num_kv_heads, head_dim], v [batch, n, num_kv_heads,
  // v_head_dim]. kCapacityExceeded (of the cache or its pool), kOutOfMemory and kInvalidArgument
  // leave the cache as it was.
  Status Append(const ConstTensorView& k, const ConstTensorView& v,
                const ParallelFor& parallel = {});

  // Forgets the tokens from position `length` on, 0 to length(): speculative decoding takes back
  // what was not accepted. Later appends give what they would have given without them, but where V
  // is quantised and `length` lies within a closed tile: its values are then read back from their
  // quanta, and rounded once more when the tile goes on. Until the next append quanta of the open
  // tile stay as they are; means that have settled stay for good.
  // What a window has forgotten does not come back: kInvalidArgument if that would be missing.
  Status Truncate(int64_t length);

  // Makes *child a cache with the same tokens, which goes its own way from here: in constant time,
  // for both share all pages until one of them appends to the open one, which it then copies.
  Status Fork(KvCache* child) const;

  // Beam search: sequence i becomes what sequence parents[i] was, i < batch, which is the new
  // number of sequences. No token is copied; see Fork.
  Status Reorder(const int32_t* parents, int64_t batch);

  // Forgets these tokens of a sequence, by position: no query sees them any more. Pages of which
  // nothing is left are freed. Positions that are forgotten already may be among them.
  Status Evict(int64_t batch_entry, const int32_t* positions, int64_t count);

  // Forgets all tokens.
  void Clear();

  bool empty() const { return packed_ == nullptr; }
  // All are 0 (kF32, false) for an empty cache.
  int64_t length() const;                          // tokens appended so far, less those truncated
  int64_t num_evicted(int64_t batch_entry) const;  // and those that were forgotten
  int64_t capacity() const;
  int64_t batch() const;
  int64_t num_kv_heads() const;
  int64_t head_dim() const;
  int64_t v_head_dim() const;
  int64_t page_tokens() const;
  int64_t window_left() const;  // -1: none
  Precision precision() const;
  bool rotate_k() const;
  size_t bytes() const;  // of the pages it holds, shared ones included, and what goes with them

 private:
  friend class CrossMemory;
  friend struct KvAccess;
  std::shared_ptr<internal::PagedKv> packed_;
};

// Keys of a call that come from one memory or cache; see AttentionArgs::segments.
struct KvSegment {
  const CrossMemory* memory = nullptr;  // exactly one of
  const KvCache* cache = nullptr;       // these
  int64_t kv_len = -1;  // so many first keys are used; -1 = all. What is longer is cut off.
  // [num_heads], in natural units like AttentionArgs::bias: added to all scores of the segment;
  // null = 0. Finite, up to 1e30, or -inf, which hides the segment from that head. Where heads of a
  // group do not see the same segments, each of them reads K and V by itself.
  const float* bias = nullptr;
};

}  // namespace sightline

#endif  // SIGHTLINE_KV_H_
