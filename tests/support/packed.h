// What memories and caches hold, for tests that look at the bytes.
#ifndef SIGHTLINE_TESTS_SUPPORT_PACKED_H_
#define SIGHTLINE_TESTS_SUPPORT_PACKED_H_

#include <stddef.h>

#include <vector>

#include "kv/packed_kv.h"

namespace sightline {
namespace testing {

// Where a key of a head is packed: the head in its block or page, and its place there.
struct PackedKey {
  internal::PackedHead head;
  size_t key;
};
inline PackedKey FindKey(const internal::PackedKv& packed, size_t batch, size_t kv_head,
                         size_t key) {
  const internal::SequenceKeys keys = packed.keys(batch);
  internal::AttendTask task = {};
  task.head = {keys.heads, packed.shape(), packed.offsets()};
  task.pages = keys.pages;
  unsigned char* heads = internal::FindPage(task, &key);
  return {{heads + kv_head * packed.offsets().bytes, packed.shape(), packed.offsets()}, key};
}

// All bytes of a memory, or of a cache's pages, which have all of their tokens.
inline std::vector<unsigned char> PackedBytes(const internal::PackedKv& packed) {
  const internal::KvBlock block = packed.block();
  if (block.data != nullptr) return {block.data, block.data + block.bytes};
  std::vector<unsigned char> bytes;
  const size_t page_bytes =
      static_cast<size_t>(packed.geometry().num_kv_heads) * packed.offsets().bytes;
  for (size_t b = 0; b < static_cast<size_t>(packed.geometry().batch); ++b) {
    const internal::SequenceKeys keys = packed.keys(b);
    for (size_t key = 0; key < keys.count; key += packed.shape().capacity) {
      const unsigned char* page = keys.pages.data[key / packed.shape().capacity];
      bytes.insert(bytes.end(), page, page + page_bytes);
    }
  }
  return bytes;
}

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_PACKED_H_
