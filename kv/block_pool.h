// Blocks of memory of one size that several owners share and one of them writes: pages of caches,
// and what caches keep beside them. Freed blocks are handed out again.
#ifndef SIGHTLINE_KV_BLOCK_POOL_H_
#define SIGHTLINE_KV_BLOCK_POOL_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "kv/layout.h"

namespace sightline {
namespace internal {

// How many share an object. Whoever finds that it is the only one may write: what the others did
// with the object has happened before.
class Owners {
 public:
  void Add() { count_.fetch_add(1, std::memory_order_relaxed); }
  // True for the last.
  bool Drop() { return count_.fetch_sub(1, std::memory_order_acq_rel) == 1; }
  bool IsOne() const { return Count() == 1; }
  uint32_t Count() const { return count_.load(std::memory_order_acquire); }

 private:
  std::atomic<uint32_t> count_{1};
};

// A counted reference to a T, which has `owners` and is freed by T::Free.
template <class T>
class Ref {
 public:
  Ref() = default;
  // Takes over the reference that whoever made the object has.
  explicit Ref(T* object) : object_(object) {}
  Ref(const Ref& other) : object_(other.object_) {
    if (object_ != nullptr) object_->owners.Add();
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr && object_->owners.Drop()) T::Free(object_);
  }

  T* get() const { return object_; }
  // Hands over the reference.
  T* Release() { return std::exchange(object_, nullptr); }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

class BlockPool;

// The head of a block; its bytes follow.
struct alignas(kPackedAlignBytes) Block {
  Owners owners;
  BlockPool* pool;
  Block* next_free;

  unsigned char* data() { return reinterpret_cast<unsigned char*>(this + 1); }
  static void Free(Block* block);  // hands it back to its pool
};

// Thread-safe. Outlives its blocks: whoever holds one keeps the pool.
class BlockPool {
 public:
  // Blocks are allocated one by one when they are wanted, at most max_blocks at a time.
  BlockPool(size_t block_bytes, size_t max_blocks)
      : block_bytes_(block_bytes), max_blocks_(max_blocks) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool();

  // Allocates so many that `count` are there. False if memory is short.
  bool Reserve(size_t count);

  // A block, whatever is in it; null if there are max_blocks, or no memory.
  Ref<Block> Take();
  void Clear(Block* block) const;  // to zeros

  size_t block_bytes() const { return block_bytes_; }
  size_t max_blocks() const { return max_blocks_; }
  size_t num_taken() const;

 private:
  friend struct Block;
  Block* Allocate();

  const size_t block_bytes_;
  const size_t max_blocks_;
  mutable std::mutex mutex_;
  Block* free_ = nullptr;
  size_t num_blocks_ = 0;  // allocated
  size_t num_free_ = 0;
};

// Blocks of zeros set aside before anything is changed that may not fail half way.
class BlockStock {
 public:
  explicit BlockStock(BlockPool* pool) : pool_(pool) {}
  BlockStock(const BlockStock&) = delete;
  BlockStock& operator=(const BlockStock&) = delete;
  ~BlockStock();

  size_t count() const { return count_; }
  // Takes one from the pool. False if there is none.
  bool Draw();
  // Keeps a block that nobody else has.
  void Put(Ref<Block> block);
  // There is one.
  Ref<Block> Take();

 private:
  void Push(Ref<Block> block);

  BlockPool* pool_;
  Block* first_ = nullptr;  // linked by next_free
  size_t count_ = 0;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_BLOCK_POOL_H_
