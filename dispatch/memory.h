// Allocation that reports failure instead of throwing, with or without exceptions.
#ifndef SIGHTLINE_DISPATCH_MEMORY_H_
#define SIGHTLINE_DISPATCH_MEMORY_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <new>

#include "kv/layout.h"

namespace sightline {
namespace internal {

// A product of counts, or SIZE_MAX where it cannot be counted: on 32-bit machines two counts may
// have such a product, and three on any. What is of that size is never there, whether it is to be
// allocated or to be found in a file.
inline size_t Product(size_t a, size_t b) {
  size_t product;
  return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}
inline size_t Product(size_t a, size_t b, size_t c) { return Product(Product(a, b), c); }

// Memory aligned to kPackedAlignBytes, of undefined contents, for which large pages are asked for
// if it is large; null if there is none. Free with FreeAligned. No object is larger than half of
// what can be addressed; libraries that round the size up for the alignment would pass its end.
unsigned char* AllocateAligned(size_t bytes);
void FreeAligned(unsigned char* block);

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
