// File: sightline/kv.h
// K and V that outlive a call: CrossMemory (prepared once, then read-only) and KvCache
// (append-only).
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
// Both hold K and V packed and quantised the way the kernels read them. Formats: docs/contract.md.
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
  // Where four channels are ten times larger the error falls from 5 to 1.4 % (2.0 % on x86 without
  // VNNI; one row alone up to 2.6 %: docs/precision.md); it costs 1 to 4 % of
  // the time of 2048 tokens. The plan has to say the same: AttentionDesc::rotate_k.
  bool rotate_k = false;
};

namespace internal {
class PackedKv;
}

// Encoder K/V of a cross-attention: packed once, immutable, reference-counted. Copies are cheap and
// share the storage. Any number of threads, plans, steps and beams may read one at the same time.
class CrossMemory {
 public:
  // An empty memory, which Run refuses.
  CrossMemory() = default;

  // Packs k [batch, kv_len, num_kv_heads, head_dim] and v [batch, kv_len, num_kv_heads,
  // v_head_dim], of the same or different element types; they are not needed afterwards. kv_len may
  // be 0. On error *memory is unchanged: kInvalidArgument, kUnsupported (precision, tier),
  // kOutOfMemory.
  static Status Create(const ConstTensorView& k, const ConstTensorView& v, const KvFormat& format,
                       CrossMemory* memory, const ParallelFor& parallel = {});

  bool empty() const { return packed_ == nullptr; }
  // All are 0 (kF32, false) for an empty memory.
  int64_t batch() const;
  int64_t kv_len() const;
  int64_t num_kv_heads() const;
  int64_t head_dim() const;
  int64_t v_head_dim() const;
  Precision precision() const;
  bool rotate_k() const;
  size_t bytes() const;  // of the one block that holds everything

 private:
  friend struct KvAccess;
  std::shared_ptr<const internal::PackedKv> packed_;
};

struct KvCacheDesc {
  int64_t batch = 1;  // sequences, all of the same length
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // 1 to 512
  int64_t v_head_dim = 0;  // 1 to 512; 0 = head_dim
  int64_t capacity = 0;    // most tokens it will ever hold
  KvFormat format;
};

// Self-attention cache. Memory is allocated, and touched, once, in Create; Append neither allocates
// nor moves what is stored. How tokens are grouped into appends does not change a bit of any later
// result. Not thread-safe while appending; any number of threads may read between appends.
//
// kI8 and kI8Fine also keep the tokens of the open tile, up to 128, in f32, and quantise their
// values anew at each append: below a capacity of about 550 and 1150 tokens that is more memory
// than kF16 takes. kMixed16 keeps the first 128, until when the mean of K moves.
class KvCache {
 public:
  // An empty cache, which Run and Append refuse. Caches are moved, not copied.
  KvCache() = default;
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;

  // On error *cache is unchanged: kInvalidArgument, kUnsupported (precision, tier), kOutOfMemory.
  static Status Create(const KvCacheDesc& desc, KvCache* cache);

  // Appends n >= 0 tokens: k [batch, n, num_kv_heads, head_dim], v [batch, n, num_kv_heads,
  // v_head_dim]. kCapacityExceeded or kInvalidArgument leave the cache as it was.
  Status Append(const ConstTensorView& k, const ConstTensorView& v,
                const ParallelFor& parallel = {});

  // Forgets all tokens, keeps the memory.
  void Clear();

  bool empty() const { return packed_ == nullptr; }
  // All are 0 (kF32, false) for an empty cache.
  int64_t length() const;  // tokens appended so far
  int64_t capacity() const;
  int64_t batch() const;
  int64_t num_kv_heads() const;
  int64_t head_dim() const;
  int64_t v_head_dim() const;
  Precision precision() const;
  bool rotate_k() const;
  size_t bytes() const;  // of the one block that holds everything

 private:
  friend struct KvAccess;
  std::shared_ptr<internal::PackedKv> packed_;
};

}  // namespace sightline

#endif  // SIGHTLINE_KV_H_
