#include "dispatch/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace sightline {
namespace internal {
namespace {

// A large page is 2 MiB where pages are of 4 KiB: a block of twice that has one in it wherever it
// begins.
constexpr size_t kLargeBlock = size_t{4} << 20;

// Asks for large pages, of which many systems give none to who does not ask. K and V that are read
// from DRAM would wait for the translation of their addresses, and memory that is new for the
// system to give it page by page. Where it has none to give, nothing changes.
void AskForLargePages([[maybe_unused]] unsigned char* block, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  // Whole pages, of which the first and the last may be others' as well: it is advice.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(block);
  const uintptr_t first = begin / page * page;
  const uintptr_t end = (begin + bytes + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

unsigned char* AllocateAligned(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  auto* block = static_cast<unsigned char*>(
      ::operator new(bytes, std::align_val_t{kPackedAlignBytes}, std::nothrow));
  if (block != nullptr && bytes >= kLargeBlock) AskForLargePages(block, bytes);
  return block;
}

void FreeAligned(unsigned char* block) {
  ::operator delete(block, std::align_val_t{kPackedAlignBytes});
}

}  // namespace internal
}  // namespace sightline
