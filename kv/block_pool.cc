#include "kv/block_pool.h"

#include <string.h>

#include <new>

#include "dispatch/memory.h"

namespace sightline {
namespace internal {

void Block::Free(Block* block) {
  BlockPool& pool = *block->pool;
  const std::lock_guard<std::mutex> lock(pool.mutex_);
  block->next_free = pool.free_;
  pool.free_ = block;
  ++pool.num_free_;
}

BlockPool::~BlockPool() {
  while (free_ != nullptr) {
    Block* block = free_;
    free_ = block->next_free;
    block->~Block();
    FreeAligned(reinterpret_cast<unsigned char*>(block));
  }
}

// Under the lock, whose holder knows that there may be one more.
Block* BlockPool::Allocate() {
  if (block_bytes_ > SIZE_MAX / 2) return nullptr;  // nor could it be added to
  unsigned char* memory = AllocateAligned(sizeof(Block) + block_bytes_);
  if (memory == nullptr) return nullptr;
  Block* block = new (memory) Block();
  block->pool = this;
  ++num_blocks_;
  return block;
}

bool BlockPool::Reserve(size_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (num_blocks_ < count && num_blocks_ < max_blocks_) {
    Block* block = Allocate();
    if (block == nullptr) return false;
    memset(block->data(), 0, block_bytes_);  // touched, too
    block->next_free = free_;
    free_ = block;
    ++num_free_;
  }
  return true;
}

Ref<Block> BlockPool::Take() {
  Block* block = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_ != nullptr) {
      block = free_;
      free_ = block->next_free;
      --num_free_;
    } else if (num_blocks_ < max_blocks_) {
      block = Allocate();
    }
  }
  if (block == nullptr) return {};
  new (&block->owners) Owners();
  return Ref<Block>(block);
}

void BlockPool::Clear(Block* block) const { memset(block->data(), 0, block_bytes_); }

size_t BlockPool::num_taken() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_blocks_ - num_free_;
}

BlockStock::~BlockStock() {
  while (count_ != 0) Take();
}

void BlockStock::Push(Ref<Block> block) {
  Block* pushed = block.Release();
  pushed->next_free = first_;
  first_ = pushed;
  ++count_;
}

bool BlockStock::Draw() {
  Ref<Block> block = pool_->Take();
  if (!block) return false;
  pool_->Clear(block.get());
  Push(std::move(block));
  return true;
}

void BlockStock::Put(Ref<Block> block) {
  if (!block || !block->owners.IsOne()) return;
  pool_->Clear(block.get());
  Push(std::move(block));
}

Ref<Block> BlockStock::Take() {
  Block* taken = first_;
  first_ = taken->next_free;
  --count_;
  return Ref<Block>(taken);
}

}  // namespace internal
}  // namespace sightline
