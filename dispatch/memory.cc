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

// Asks for large pages, which many systems give only to those who ask. Without them reads from DRAM
// wait for the translation of addresses, and new memory is handed over 4 KiB at a time. The price
// is that the system may tidy up its memory, once, where it has none at hand; and the advice stays
// with the addresses when an allocator gives them to somebody else.
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
