// Opens whatever bytes libFuzzer thinks of as a file of sections. The first byte of the input says
// how much is forged for it: it would take long to guess a magic number or a checksum. With
// --write-seeds=FOLDER it writes files to begin with.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "fuzz/seeds.h"
#include "kv/file.h"
#include "support/file_bytes.h"

using sightline::Status;
using sightline::internal::FileCheck;
using sightline::internal::kFileAlignBytes;
using sightline::internal::MappedFile;
using namespace sightline::testing;

namespace {

constexpr uint32_t kKind = 1;

}  // namespace

// Files that are right, of no section, a few and the most, each as it is and to be forged.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const std::vector<FilePart> parts = {{7, std::vector<unsigned char>(100, 1)},
                                       {3, {}},
                                       {4, std::vector<unsigned char>(64, 2)},
                                       {5, std::vector<unsigned char>(4100, 3)}};
  std::vector<std::vector<unsigned char>> seeds;
  for (const size_t count : {size_t{0}, size_t{1}, size_t{3}, parts.size()}) {
    const std::vector<FilePart> some(parts.begin(), parts.begin() + static_cast<ptrdiff_t>(count));
    for (const uint8_t forged : std::vector<uint8_t>{0, 7}) {
      std::vector<unsigned char> seed = {forged};
      const std::vector<unsigned char> file = Assemble(some, kKind, UINT32_MAX);
      seed.insert(seed.end(), file.begin(), file.end());
      seeds.push_back(std::move(seed));
    }
  }
  WriteSeeds(seeds, *argc, *argv);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const unsigned forged = data[0];
  const size_t bytes = size - 1;
  constexpr std::align_val_t kAlignment{kFileAlignBytes};
  // Of its exact size, so that AddressSanitizer sees the first byte beyond.
  unsigned char* const file_bytes = static_cast<unsigned char*>(::operator new(bytes, kAlignment));
  memcpy(file_bytes, data + 1, bytes);
  if (bytes >= kHeaderBytes && (forged & 1) != 0) {
    memcpy(file_bytes, kMagic, sizeof(kMagic));
    PutNumber(0x01020304, file_bytes + kByteOrderAt, 4);
    PutNumber(sightline::internal::kFileVersion, file_bytes + kVersionAt, 4);
    PutNumber(kKind, file_bytes + kKindAt, 4);
    if ((forged & 2) != 0) PutNumber(bytes, file_bytes + kFileBytesAt, 8);
    if ((forged & 4) != 0) memset(file_bytes + kReservedAt, 0, kHeadCrcAt - kReservedAt);
    SealHead(file_bytes, bytes);
  }

  std::shared_ptr<const MappedFile> file;
  const Status status = MappedFile::Wrap(file_bytes, bytes, kKind, FileCheck::kHeader, &file);
  if (status.ok() != (file != nullptr)) abort();
  if (file != nullptr) {
    const bool is_intact = file->Verify().ok();
    for (size_t i = 0; i < file->num_sections(); ++i) {
      const MappedFile::Section section = file->section(i);
      if (section.data < file_bytes || section.bytes > bytes) abort();
      const uint64_t crc = GetNumber(file_bytes + EntryAt(i) + kEntryCrcAt, 4);
      // Reads every byte.
      const bool is_right = Crc32c(section.data, section.bytes) == crc;
      if (is_right != file->Verify(section.id).ok() || (is_intact && !is_right)) abort();
    }
  }
  file.reset();
  ::operator delete(file_bytes, kAlignment);
  return 0;
}
