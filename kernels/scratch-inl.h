// A task's scratch: one block from the workspace, handed out piece by piece.
#ifndef SIGHTLINE_KERNELS_SCRATCH_INL_H_
#define SIGHTLINE_KERNELS_SCRATCH_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Every piece is aligned to a cache line. With a null base it only counts.
class ScratchArena {
 public:
  explicit ScratchArena(uint8_t* base) : base_(base) {}

  template <typename T>
  T* Take(size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = RoundUp(used_ + count * sizeof(T), kPackedAlignBytes);
    return piece;
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCRATCH_INL_H_
