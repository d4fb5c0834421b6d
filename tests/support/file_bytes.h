// The bytes of kv/file.h's files, from docs/files.md alone: no code is shared with the library, so
// that the two can disagree.
#ifndef SIGHTLINE_TESTS_SUPPORT_FILE_BYTES_H_
#define SIGHTLINE_TESTS_SUPPORT_FILE_BYTES_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

namespace sightline {
namespace testing {

// Bit by bit, from the polynomial.
inline uint32_t Crc32c(const unsigned char* data, size_t bytes, uint32_t crc = 0) {
  crc = ~crc;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

constexpr unsigned char kMagic[8] = {0x89, 'S', 'L', 'K', 'V', '\r', '\n', 0x1a};

// Where the fields are.
constexpr size_t kHeaderBytes = 64;
constexpr size_t kEntryBytes = 32;
constexpr size_t kByteOrderAt = 8;
constexpr size_t kVersionAt = 12;
constexpr size_t kKindAt = 16;
constexpr size_t kNumSectionsAt = 20;
constexpr size_t kFileBytesAt = 24;
constexpr size_t kReservedAt = 32;
constexpr size_t kHeadCrcAt = 60;
constexpr size_t kEntryOffsetAt = 0;
constexpr size_t kEntryBytesAt = 8;
constexpr size_t kEntryIdAt = 16;
constexpr size_t kEntryCrcAt = 20;
constexpr size_t kEntryReservedAt = 24;
inline size_t EntryAt(size_t i) { return kHeaderBytes + i * kEntryBytes; }

inline uint64_t GetNumber(const unsigned char* at, size_t bytes) {
  uint64_t x = 0;
  for (size_t i = bytes; i-- > 0;) x = x << 8 | at[i];
  return x;
}
inline void PutNumber(uint64_t x, unsigned char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<unsigned char>(x >> 8 * i);
}

// Makes the checksum of header and table right, as far as the table is there.
inline void SealHead(unsigned char* file, size_t bytes) {
  if (bytes < kHeaderBytes) return;
  const size_t num_sections = std::min(static_cast<size_t>(GetNumber(file + kNumSectionsAt, 4)),
                                       (bytes - kHeaderBytes) / kEntryBytes);
  uint32_t crc = Crc32c(file, kHeadCrcAt);
  crc = Crc32c(file + kHeaderBytes, num_sections * kEntryBytes, crc);
  PutNumber(crc, file + kHeadCrcAt, 4);
}

// A file section by section.
struct FilePart {
  uint32_t id;
  std::vector<unsigned char> bytes;
};

// Of a whole file that is right.
inline std::vector<FilePart> PartsOf(const std::vector<unsigned char>& file) {
  std::vector<FilePart> parts;
  for (size_t i = 0; i < GetNumber(file.data() + kNumSectionsAt, 4); ++i) {
    const unsigned char* entry = file.data() + EntryAt(i);
    const unsigned char* begin = file.data() + GetNumber(entry + kEntryOffsetAt, 8);
    parts.push_back({static_cast<uint32_t>(GetNumber(entry + kEntryIdAt, 4)),
                     {begin, begin + GetNumber(entry + kEntryBytesAt, 8)}});
  }
  return parts;
}

// Checksums of sections from `unsealed_id` on are 0: those of large ones take long.
inline std::vector<unsigned char> Assemble(const std::vector<FilePart>& parts, uint32_t kind,
                                           uint32_t unsealed_id) {
  std::vector<unsigned char> file(kHeaderBytes + parts.size() * kEntryBytes);
  memcpy(file.data(), kMagic, sizeof(kMagic));
  PutNumber(0x01020304, file.data() + kByteOrderAt, 4);
  PutNumber(1, file.data() + kVersionAt, 4);
  PutNumber(kind, file.data() + kKindAt, 4);
  PutNumber(parts.size(), file.data() + kNumSectionsAt, 4);
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::vector<unsigned char>& bytes = parts[i].bytes;
    const size_t alignment = bytes.size() >= 4096 ? 4096 : 64;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    unsigned char* entry = file.data() + EntryAt(i);
    PutNumber(file.size(), entry + kEntryOffsetAt, 8);
    PutNumber(bytes.size(), entry + kEntryBytesAt, 8);
    PutNumber(parts[i].id, entry + kEntryIdAt, 4);
    const uint32_t crc = parts[i].id < unsealed_id ? Crc32c(bytes.data(), bytes.size()) : 0;
    PutNumber(crc, entry + kEntryCrcAt, 4);
    file.insert(file.end(), bytes.begin(), bytes.end());
  }
  PutNumber(file.size(), file.data() + kFileBytesAt, 8);
  SealHead(file.data(), file.size());
  return file;
}

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_FILE_BYTES_H_
