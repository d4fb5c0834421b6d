// Allocation that reports failure instead of throwing, with or without exceptions.
#ifndef SIGHTLINE_DISPATCH_MEMORY_H_
#define SIGHTLINE_DISPATCH_MEMORY_H_

#include <stddef.h>

#include <memory>
#include <new>

#include "kv/layout.h"

namespace sightline {
namespace internal {

// Memory aligned to kPackedAlignBytes, of undefined contents; null if there is none. Free with
// FreeAligned.
inline unsigned char* AllocateAligned(size_t bytes) {
  return static_cast<unsigned char*>(
      ::operator new(bytes, std::align_val_t{kPackedAlignBytes}, std::nothrow));
}
inline void FreeAligned(unsigned char* block) {
  ::operator delete(block, std::align_val_t{kPackedAlignBytes});
}

// Shares ownership of `object`; null, with the object deleted, if the counter cannot be allocated.
template <class T, class Deleter = std::default_delete<T>>
std::shared_ptr<T> ShareOrNull(T* object, Deleter deleter = {}) {
#if defined(__cpp_exceptions)
  try {
    return std::shared_ptr<T>(object, deleter);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
#else
  return std::shared_ptr<T>(object, deleter);
#endif
}

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_MEMORY_H_
