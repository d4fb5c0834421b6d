#include "support/allocations.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include <atomic>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SIGHTLINE_TESTS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SIGHTLINE_TESTS_SANITIZED 1
#endif
#endif

#if defined(__GLIBC__) && !defined(SIGHTLINE_TESTS_SANITIZED)
#define SIGHTLINE_TESTS_COUNT_ALLOCATIONS 1
#else
#define SIGHTLINE_TESTS_COUNT_ALLOCATIONS 0
#endif

namespace {
// Constant-initialised: malloc is called long before main.
std::atomic<bool> counting{false};
std::atomic<int64_t> num_allocations{0};
std::atomic<int64_t> num_bytes{0};
}  // namespace

#if defined(SIGHTLINE_TESTS_SANITIZED)
// What no machine has must be refused with a status here too, instead of ending the program.
extern "C" {
const char* __asan_default_options();
const char* __asan_default_options() { return "allocator_may_return_null=1"; }
const char* __tsan_default_options();
const char* __tsan_default_options() { return "allocator_may_return_null=1"; }
}
#endif

#if SIGHTLINE_TESTS_COUNT_ALLOCATIONS

namespace {
void Count(size_t bytes) {
  if (counting.load(std::memory_order_relaxed)) {
    num_allocations.fetch_add(1, std::memory_order_relaxed);
    num_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  }
}
}  // namespace

// glibc's own, under the names it keeps for programs that replace the public ones.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* block, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void* block);

void* malloc(size_t bytes) noexcept {
  Count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  Count(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* block, size_t bytes) noexcept {
  Count(bytes);
  return __libc_realloc(block, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** block, size_t alignment, size_t bytes) noexcept {
  Count(bytes);
  void* result = __libc_memalign(alignment, bytes);
  if (result == nullptr) return ENOMEM;
  *block = result;
  return 0;
}
void free(void* block) noexcept { __libc_free(block); }
}  // extern "C"

#endif  // SIGHTLINE_TESTS_COUNT_ALLOCATIONS

namespace sightline {
namespace testing {

bool CanCountAllocations() { return SIGHTLINE_TESTS_COUNT_ALLOCATIONS != 0; }

AllocationCounter::AllocationCounter() {
  num_allocations = 0;
  num_bytes = 0;
  counting = true;
}

int64_t AllocationCounter::Stop() {
  counting = false;
  return num_allocations;
}

int64_t AllocationCounter::bytes() const { return num_bytes; }

}  // namespace testing
}  // namespace sightline
