// kv/file.h: what is saved comes back; what was cut off, changed or made up is refused, and nothing
// outside the file is read; whatever goes wrong while a file is replaced, the old one or the new
// one is there.
#include "kv/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "support/check.h"
#include "support/directory.h"
#include "support/file_bytes.h"
#include "support/numeric.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {
namespace {

using internal::FileAccess;
using internal::FileCheck;
using internal::FileOptions;
using internal::FilePiece;
using internal::FileSection;
using internal::kFileAlignBytes;
using internal::kFilePageBytes;
using internal::kMaxFileSections;
using internal::MappedFile;
using internal::SaveFile;

constexpr uint32_t kKind = 0x4b56;
constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
constexpr StatusCode kIoError = StatusCode::kIoError;
constexpr StatusCode kCorrupt = StatusCode::kCorrupt;

using File = std::shared_ptr<const MappedFile>;

struct Content {
  uint32_t id;
  Bytes bytes;
};

Bytes FirstOf(const Bytes& bytes, size_t count) {
  return Bytes(bytes.data(), bytes.data() + count);
}

Bytes RandomBytes(size_t count, uint64_t seed) {
  Rng rng(seed);
  Bytes bytes(count);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(rng.Next() >> 56);
  return bytes;
}

// Each section in pieces of up to piece_bytes.
Status Save(const std::string& path, const std::vector<Content>& contents,
            size_t piece_bytes = SIZE_MAX, uint32_t kind = kKind) {
  std::vector<std::vector<FilePiece>> pieces(contents.size());
  std::vector<FileSection> sections;
  for (size_t i = 0; i < contents.size(); ++i) {
    const Bytes& bytes = contents[i].bytes;
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t count = std::min(piece_bytes, bytes.size() - begin);
      pieces[i].push_back({bytes.data() + begin, count});
      begin += count;
    }
    sections.push_back({contents[i].id, pieces[i].data(), pieces[i].size()});
  }
  return SaveFile(path.c_str(), kind, sections.data(), sections.size());
}

Status Open(const std::string& path, const FileOptions& options, File* file) {
  return MappedFile::Open(path.c_str(), kKind, options, file);
}

bool Holds(const MappedFile& file, const std::vector<Content>& contents) {
  if (file.num_sections() != contents.size()) return false;
  for (size_t i = 0; i < contents.size(); ++i) {
    const Bytes& bytes = contents[i].bytes;
    const MappedFile::Section section = file.Find(contents[i].id);
    if (section.data == nullptr || section.data != file.section(i).data ||
        section.bytes != bytes.size() || file.section(i).id != contents[i].id) {
      return false;
    }
    if (!std::equal(bytes.begin(), bytes.end(), section.data)) return false;
  }
  return true;
}

// The bytes of a file, in memory that is as long as they are.
class Image {
 public:
  explicit Image(const Bytes& bytes)
      : data_(static_cast<unsigned char*>(
            ::operator new(bytes.size(), std::align_val_t{kFileAlignBytes}))) {
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  ~Image() { ::operator delete(data_, std::align_val_t{kFileAlignBytes}); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  unsigned char* data() const { return data_; }

 private:
  unsigned char* data_;
};

Status OpenBytes(const Bytes& bytes, FileCheck check = FileCheck::kHeader) {
  const Image image(bytes);
  File file;
  return MappedFile::Wrap(image.data(), bytes.size(), kKind, check, &file);
}

// Sections of no byte, a few, a page less one, a page, and more.
std::vector<Content> Contents() {
  return {{7, RandomBytes(100, 1)},  {3, {}},
          {0, RandomBytes(4095, 2)}, {0xffffffff, RandomBytes(4096, 3)},
          {42, RandomBytes(1, 4)},   {1, RandomBytes(300001, 5)}};
}

// A file of a few hundred bytes, for tests that try all of them.
std::vector<Content> SmallContents() {
  return {{5, RandomBytes(40, 6)}, {2, RandomBytes(64, 7)}, {9, RandomBytes(70, 8)}};
}

Bytes FileOf(const std::vector<Content>& contents) {
  const Directory directory;
  REQUIRE_THAT(Save(directory / "file", contents), IsOk());
  return ReadAll(directory / "file");
}

// ---- What is saved comes back -----------------------------------------------------------------

TEST_CASE("the tests' own CRC32C is CRC32C", "[file]") {
  const std::string digits = "123456789";  // the check value of every catalogue of CRCs
  CHECK(Crc32c(reinterpret_cast<const unsigned char*>(digits.data()), 9) == 0xe3069283);
  const Bytes zeros(32);  // RFC 3720, B.4
  CHECK(Crc32c(zeros.data(), zeros.size()) == 0x8a9136aa);
}

TEST_CASE("a file gives what was saved", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  const std::vector<Content> contents = Contents();
  const size_t piece_bytes = GENERATE(SIZE_MAX, 1, 1000, 128 * 1024, 128 * 1024 + 1);
  REQUIRE_THAT(Save(path, contents, piece_bytes), IsOk());
  CHECK(directory.Names() == std::vector<std::string>{"file"});
  for (const FileAccess access : {FileAccess::kMap, FileAccess::kRead}) {
    for (const FileCheck check : {FileCheck::kHeader, FileCheck::kSections}) {
      File file;
      REQUIRE_THAT(Open(path, {check, access}, &file), IsOk());
      CHECK(Holds(*file, contents));
      CHECK(file->is_mapped() == (access == FileAccess::kMap));
      CHECK(file->bytes() == ReadAll(path).size());
      CHECK_THAT(file->Verify(), IsOk());
      for (const Content& content : contents) {
        const MappedFile::Section section = file->Find(content.id);
        const size_t alignment = access == FileAccess::kMap && section.bytes >= kFilePageBytes
                                     ? kFilePageBytes
                                     : kFileAlignBytes;
        CHECK(reinterpret_cast<uintptr_t>(section.data) % alignment == 0);
        CHECK_THAT(file->Verify(content.id), IsOk());
      }
      CHECK(file->Find(8).data == nullptr);
      CHECK(file->Find(8).bytes == 0);
      CHECK_THAT(file->Verify(8), IsError(kInvalid, "8"));
    }
  }
  // How a section was cut into pieces leaves no trace.
  CHECK((ReadAll(path) == FileOf(contents)));
}

TEST_CASE("files of no and of as many sections as there may be", "[file]") {
  const Directory directory;
  std::vector<Content> contents;
  for (uint32_t i = 0; i <= kMaxFileSections; ++i) {
    if (i == 0 || i == kMaxFileSections) {
      REQUIRE_THAT(Save(directory / "file", contents), IsOk());
      File file;
      REQUIRE_THAT(Open(directory / "file", {FileCheck::kSections}, &file), IsOk());
      CHECK(Holds(*file, contents));
    }
    contents.push_back({i * 2654435761u, RandomBytes(i, i)});
  }
  CHECK_THAT(Save(directory / "file", contents), IsError(kInvalid, "num_sections"));
}

// docs/files.md, byte by byte.
TEST_CASE("a file looks as documented", "[file]") {
  const std::vector<Content> contents = Contents();
  const Bytes bytes = FileOf(contents);
  Bytes expected(bytes.size());
  unsigned char* at = expected.data();
  std::copy(std::begin(kMagic), std::end(kMagic), at);
  PutNumber(0x01020304, at + kByteOrderAt, 4);
  PutNumber(1, at + kVersionAt, 4);
  PutNumber(kKind, at + kKindAt, 4);
  PutNumber(contents.size(), at + kNumSectionsAt, 4);
  PutNumber(bytes.size(), at + kFileBytesAt, 8);
  size_t end = EntryAt(contents.size());
  for (size_t i = 0; i < contents.size(); ++i) {
    const Bytes& section = contents[i].bytes;
    while (end % (section.size() >= 4096 ? 4096 : 64) != 0) ++end;
    PutNumber(end, at + EntryAt(i) + kEntryOffsetAt, 8);
    PutNumber(section.size(), at + EntryAt(i) + kEntryBytesAt, 8);
    PutNumber(contents[i].id, at + EntryAt(i) + kEntryIdAt, 4);
    PutNumber(Crc32c(section.data(), section.size()), at + EntryAt(i) + kEntryCrcAt, 4);
    REQUIRE(end + section.size() <= expected.size());
    std::copy(section.begin(), section.end(), at + end);
    end += section.size();
  }
  SealHead(at, expected.size());
  CHECK(end == bytes.size());
  CHECK((bytes == expected));
}

TEST_CASE("a file in memory is opened where it is", "[file]") {
  const std::vector<Content> contents = Contents();
  const Bytes bytes = FileOf(contents);
  const Image image(bytes);
  File file;
  REQUIRE_THAT(MappedFile::Wrap(image.data(), bytes.size(), kKind, FileCheck::kSections, &file),
               IsOk());
  CHECK(Holds(*file, contents));
  CHECK(file->section(0).data > image.data());
  CHECK(file->section(0).data < image.data() + bytes.size());
  CHECK_FALSE(file->is_mapped());

  const File before = file;
  const auto wrap = [&](const void* data, size_t count) {
    return MappedFile::Wrap(data, count, kKind, FileCheck::kHeader, &file);
  };
  CHECK_THAT(wrap(nullptr, 0), IsError(kInvalid, "data"));
  CHECK_THAT(wrap(image.data() + 32, bytes.size() - 32), IsError(kInvalid, "data"));
  CHECK(file == before);
  CHECK_THAT(MappedFile::Wrap(image.data(), bytes.size(), kKind, FileCheck::kHeader, nullptr),
             IsError(kInvalid, "file"));
}

TEST_CASE("an open file outlives its name", "[file]") {
  const FileAccess access = GENERATE(FileAccess::kMap, FileAccess::kRead);
  const Directory directory;
  const std::string path = directory / "file";
  REQUIRE_THAT(Save(path, Contents()), IsOk());
  File old_file, new_file;
  REQUIRE_THAT(Open(path, {FileCheck::kHeader, access}, &old_file), IsOk());
  const std::vector<Content> others = SmallContents();
  REQUIRE_THAT(Save(path, others), IsOk());
  REQUIRE_THAT(Open(path, {FileCheck::kHeader, access}, &new_file), IsOk());
  CHECK(unlink(path.c_str()) == 0);
  CHECK(Holds(*old_file, Contents()));
  CHECK(Holds(*new_file, others));
  CHECK_THAT(old_file->Verify(), IsOk());

  // A file may be saved from its own sections.
  const MappedFile::Section section = old_file->Find(1);
  REQUIRE_THAT(Save(path, {{1, Bytes(section.data, section.data + section.bytes)}}), IsOk());
  REQUIRE_THAT(Open(path, {}, &new_file), IsOk());
  const FilePiece piece = {new_file->Find(1).data, new_file->Find(1).bytes};
  const FileSection twice[] = {{1, &piece, 1}, {2, &piece, 1}};
  REQUIRE_THAT(SaveFile(path.c_str(), kKind, twice, 2), IsOk());
  REQUIRE_THAT(Open(path, {FileCheck::kSections}, &new_file), IsOk());
  CHECK(new_file->Find(2).bytes == section.bytes);
}

// ---- What is not as it was saved is refused ---------------------------------------------------

TEST_CASE("every changed byte of header and table is found in constant time", "[file]") {
  const Bytes bytes = FileOf(SmallContents());
  REQUIRE_THAT(OpenBytes(bytes), IsOk());
  const Image image(bytes);
  size_t found = 0;
  const size_t head_bytes = EntryAt(SmallContents().size());
  for (size_t at = 0; at < head_bytes; ++at) {
    for (int change = 1; change < 256; ++change) {
      image.data()[at] = static_cast<unsigned char>(bytes[at] ^ change);
      File file;
      const Status status =
          MappedFile::Wrap(image.data(), bytes.size(), kKind, FileCheck::kHeader, &file);
      found += !status.ok() && file == nullptr;
    }
    image.data()[at] = bytes[at];
  }
  CHECK(found == head_bytes * 255);
}

TEST_CASE("every length but the right one is refused", "[file]") {
  const Bytes bytes = FileOf(SmallContents());
  for (size_t length = 0; length < bytes.size(); ++length) {
    INFO(length << " of " << bytes.size() << " bytes");
    CHECK_THAT(OpenBytes(FirstOf(bytes, length)), IsError(kCorrupt, "bytes"));
  }
  Bytes longer = bytes;
  longer.push_back(0);
  CHECK_THAT(OpenBytes(longer), IsError(kCorrupt, "bytes"));

  const Directory directory;
  for (const int length : {0, 1, 63, 64, 160, 200}) {
    WriteAll(directory / "cut", FirstOf(bytes, static_cast<size_t>(length)));
    for (const FileAccess access : {FileAccess::kMap, FileAccess::kRead}) {
      File file;
      CHECK_THAT(Open(directory / "cut", {FileCheck::kHeader, access}, &file),
                 IsError(kCorrupt, "bytes"));
      CHECK(file == nullptr);
    }
  }
}

// What kHeader promises and what it does not.
TEST_CASE("changed payload and padding are found by a full check alone", "[file]") {
  const std::vector<Content> contents = SmallContents();
  const Bytes bytes = FileOf(contents);
  const Image image(bytes);
  for (size_t at = EntryAt(contents.size()); at < bytes.size(); ++at) {
    image.data()[at] = static_cast<unsigned char>(bytes[at] ^ 1 << at % 8);
    INFO("byte " << at);
    File file;
    REQUIRE_THAT(MappedFile::Wrap(image.data(), bytes.size(), kKind, FileCheck::kHeader, &file),
                 IsOk());
    CHECK_THAT(file->Verify(), IsError(kCorrupt, "section"));
    size_t wrong = 0;
    for (const Content& content : contents) {
      const MappedFile::Section section = file->Find(content.id);
      const bool is_inside =
          image.data() + at >= section.data && image.data() + at < section.data + section.bytes;
      CHECK(file->Verify(content.id).ok() == !is_inside);
      if (is_inside) {
        CHECK_THAT(file->Verify(content.id), IsError(kCorrupt, std::to_string(content.id)));
      }
      wrong += is_inside;
    }
    CHECK(wrong <= 1);
    CHECK_THAT(OpenBytes(Bytes(image.data(), image.data() + bytes.size()), FileCheck::kSections),
               IsError(kCorrupt, "section"));
    image.data()[at] = bytes[at];
  }
}

// Whoever can write checksums can write any header.
TEST_CASE("headers that contradict themselves are refused whatever their checksum", "[file]") {
  const Bytes valid = FileOf(SmallContents());
  const size_t first = EntryAt(0), second = EntryAt(1), last = EntryAt(2);
  struct Forgery {
    const char* what;
    StatusCode code;
    const char* named;
    size_t at;
    size_t size;
    uint64_t value;
  };
  const uint64_t file_bytes = valid.size();
  const uint64_t second_offset = GetNumber(&valid[second + kEntryOffsetAt], 8);
  const uint64_t last_offset = GetNumber(&valid[last + kEntryOffsetAt], 8);
  const Forgery forgeries[] = {
      {"magic", kInvalid, "Sightline", 0, 1, 'S'},
      {"line ends", kInvalid, "Sightline", 5, 2, 0x0d0a},
      {"big-endian", kUnsupported, "order", kByteOrderAt, 4, 0x04030201},
      {"no byte order", kUnsupported, "order", kByteOrderAt, 4, 0},
      {"version 0", kUnsupported, "version", kVersionAt, 4, 0},
      {"version 2", kUnsupported, "version", kVersionAt, 4, 2},
      {"last version", kUnsupported, "version", kVersionAt, 4, 0xffffffff},
      {"other kind", kInvalid, "kind", kKindAt, 4, kKind + 1},
      {"no sections", kCorrupt, "end", kNumSectionsAt, 4, 0},
      {"fewer sections", kCorrupt, "section", kNumSectionsAt, 4, 2},
      {"more sections", kCorrupt, "section", kNumSectionsAt, 4, 4},
      {"a table longer than the file", kCorrupt, "table", kNumSectionsAt, 4, 126},
      {"more sections than there may be", kCorrupt, "sections", kNumSectionsAt, 4, 127},
      {"as many sections as can be said", kCorrupt, "sections", kNumSectionsAt, 4, 0xffffffff},
      {"longer", kCorrupt, "header", kFileBytesAt, 8, file_bytes + 1},
      {"shorter", kCorrupt, "header", kFileBytesAt, 8, file_bytes - 1},
      {"no bytes", kCorrupt, "header", kFileBytesAt, 8, 0},
      {"2^63 bytes", kCorrupt, "header", kFileBytesAt, 8, uint64_t{1} << 63},
      {"2^64 - 1 bytes", kCorrupt, "header", kFileBytesAt, 8, UINT64_MAX},
      {"reserved", kCorrupt, "reserved", kReservedAt, 1, 1},
      {"last reserved", kCorrupt, "reserved", kHeadCrcAt - 1, 1, 1},
      {"reserved of a section", kCorrupt, "reserved", second + kEntryReservedAt, 8, 1},
      {"section over the header", kCorrupt, "section", first + kEntryOffsetAt, 8, 0},
      {"section over the table", kCorrupt, "section", first + kEntryOffsetAt, 8, 64},
      {"section over the one before", kCorrupt, "section", second + kEntryOffsetAt, 8,
       second_offset - 64},
      {"sections in the same place", kCorrupt, "section", last + kEntryOffsetAt, 8, second_offset},
      {"a gap", kCorrupt, "section", last + kEntryOffsetAt, 8, last_offset + 64},
      {"not aligned", kCorrupt, "section", last + kEntryOffsetAt, 8, last_offset + 8},
      {"beyond the file", kCorrupt, "section", last + kEntryOffsetAt, 8, file_bytes + 4096},
      {"offset 2^64 - 64", kCorrupt, "section", last + kEntryOffsetAt, 8, UINT64_MAX - 63},
      {"one byte beyond the file", kCorrupt, "section", last + kEntryBytesAt, 8, 71},
      {"one byte short of the file", kCorrupt, "end", last + kEntryBytesAt, 8, 69},
      {"2^63 - 1 bytes in a section", kCorrupt, "section", last + kEntryBytesAt, 8, INT64_MAX},
      {"2^64 - 1 bytes in a section", kCorrupt, "section", last + kEntryBytesAt, 8, UINT64_MAX},
      {"bytes that wrap around", kCorrupt, "section", last + kEntryBytesAt, 8, 0 - last_offset},
      {"bytes that wrap around into the file", kCorrupt, "section", second + kEntryBytesAt, 8,
       64 - second_offset},
      {"first section as long as the file", kCorrupt, "section", first + kEntryBytesAt, 8,
       file_bytes},
      {"two of one id", kCorrupt, "sections", last + kEntryIdAt, 4, 5},
  };
  for (const Forgery& forgery : forgeries) {
    Bytes bytes = valid;
    PutNumber(forgery.value, &bytes[forgery.at], forgery.size);
    SealHead(bytes.data(), bytes.size());
    INFO(forgery.what);
    CHECK_THAT(OpenBytes(bytes), IsError(forgery.code, forgery.named));
  }
  // The same without forging shows that it is the forgery that is refused.
  Bytes resealed = valid;
  SealHead(resealed.data(), resealed.size());
  CHECK((resealed == valid));
}

// A hole takes no room on the disk: the size may be anything that the file system can say.
TEST_CASE("absurd sizes that the file really has", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  for (const uint64_t section_bytes : {uint64_t{1} << 32, uint64_t{1} << 43, uint64_t{1} << 62}) {
    Bytes head = FileOf({{1, Bytes(4096)}});
    head.resize(4096);
    const uint64_t file_bytes = 4096 + section_bytes;
    PutNumber(file_bytes, &head[kFileBytesAt], 8);
    PutNumber(section_bytes, &head[EntryAt(0) + kEntryBytesAt], 8);
    SealHead(head.data(), head.size());
    WriteAll(path, head);
    if (truncate(path.c_str(), static_cast<off_t>(file_bytes)) != 0) continue;
    INFO(section_bytes << " bytes");
    File file;
    const Status status = Open(path, {}, &file);
    if (status.ok()) {
      CHECK(file->Find(1).bytes == section_bytes);
      CHECK(file->Find(1).data[0] == 0);
      CHECK(file->Find(1).data[static_cast<size_t>(section_bytes - 1)] == 0);
    } else {
      CHECK(status.code() ==
            (file_bytes > SIZE_MAX ? StatusCode::kUnsupported : StatusCode::kOutOfMemory));
    }
    // A header alone, cut from such a file.
    REQUIRE(truncate(path.c_str(), 4096) == 0);
    CHECK_THAT(Open(path, {}, &file), IsError(kCorrupt, "header"));
  }
}

// 20000 files that were a valid one, and what became of their bytes. Whatever opens has its
// sections inside the file, and what was changed is found unless its checksums were changed too.
TEST_CASE("made-up files are refused or harmless", "[file]") {
  const std::vector<Bytes> originals = {
      FileOf({}), FileOf(SmallContents()),
      FileOf({{1, RandomBytes(64, 20)}, {2, RandomBytes(128, 21)}}),
      FileOf({{1, {}}, {2, RandomBytes(5000, 22)}, {3, {}}})};
  Rng rng(23);
  const auto below = [&](size_t limit) {
    return static_cast<size_t>(rng.Below(static_cast<int64_t>(limit)));
  };
  // What forged numbers like to be: around 0, powers of two, the file's own numbers.
  const auto number = [&](const Bytes& bytes) -> uint64_t {
    const uint64_t jitter = below(129) - uint64_t{64};
    switch (below(5)) {
      case 0:
        return jitter;
      case 1:
        return (uint64_t{1} << below(64)) + jitter;
      case 2:
        return bytes.size() + jitter;
      case 3:
        return GetNumber(&bytes[below(bytes.size() - 8)], 8) + jitter;
      default:
        return rng.Next() >> below(64);
    }
  };
  const Directory directory;
  size_t opened = 0, intact = 0, refused = 0;
  constexpr int kCases = 20000;
  for (int i = 0; i < kCases; ++i) {
    Bytes bytes = originals[below(originals.size())];
    const size_t num_changes = 1 + below(4);
    for (size_t change = 0; change < num_changes; ++change) {
      const size_t size = bytes.size();
      // Most changes where they do most: in header and table.
      const size_t at = below(below(4) != 0 ? std::min<size_t>(size, 200) : size);
      switch (below(7)) {
        case 0:  // a bit
          bytes[at] = static_cast<unsigned char>(bytes[at] ^ 1 << below(8));
          break;
        case 1:  // a byte
          bytes[at] = static_cast<unsigned char>(below(256));
          break;
        case 2:
        case 3: {  // a number, where numbers are
          const size_t width = below(2) != 0 ? 8 : 4;
          const size_t field = at / width * width;
          if (field + width <= size) PutNumber(number(bytes), &bytes[field], width);
          break;
        }
        case 4:  // the end cut off, or something appended
          bytes.resize(below(2) != 0 ? std::max<size_t>(at, 9) : size + below(200), 0x5a);
          break;
        case 5: {  // a part over another
          const size_t from = below(size);
          const size_t count = std::min({below(100), size - from, size - at});
          const Bytes part(&bytes[from], &bytes[from] + count);
          std::copy(part.begin(), part.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        }
        default: {  // the beginning of one, the end of another
          const Bytes& other = originals[below(originals.size())];
          bytes.resize(std::max<size_t>(at, 9));
          if (at < other.size()) {
            bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(at), other.end());
          }
          break;
        }
      }
    }
    const bool is_sealed = below(4) != 0;
    if (is_sealed) {
      if (bytes.size() >= kHeaderBytes && below(2) != 0) {  // one obstacle less
        PutNumber(bytes.size(), &bytes[kFileBytesAt], 8);
      }
      SealHead(bytes.data(), bytes.size());
    }

    // A page that faults behind it, a heap block of its size (for AddressSanitizer), or a file.
    const GuardedBuffer guarded(i % 2 == 0 ? bytes.size() : 0, Placement::kAtEnd, kFileAlignBytes);
    const Image image(i % 2 == 0 ? Bytes() : bytes);
    if (i % 2 == 0) std::copy(bytes.begin(), bytes.end(), guarded.data());
    File file;
    Status status;
    if (i % 10 == 9) {
      WriteAll(directory / "file", bytes);
      const FileAccess access = i % 20 == 9 ? FileAccess::kMap : FileAccess::kRead;
      status = Open(directory / "file", {FileCheck::kHeader, access}, &file);
    } else {
      status = MappedFile::Wrap(i % 2 == 0 ? guarded.data() : image.data(), bytes.size(), kKind,
                                FileCheck::kHeader, &file);
    }
    INFO("case " << i << ": " << status.message());
    REQUIRE(status.ok() == (file != nullptr));
    if (!status.ok()) {
      REQUIRE((status.code() == kCorrupt || status.code() == kUnsupported ||
               status.code() == kInvalid));
      ++refused;
      continue;
    }
    ++opened;
    REQUIRE(file->bytes() == bytes.size());
    const Status verified = file->Verify();
    REQUIRE((verified.ok() || verified.code() == kCorrupt));
    size_t read = 0;
    for (size_t s = 0; s < file->num_sections(); ++s) {
      const MappedFile::Section section = file->section(s);
      REQUIRE(reinterpret_cast<uintptr_t>(section.data) % kFileAlignBytes == 0);
      REQUIRE(section.bytes <= bytes.size());
      read += section.bytes;
      if (verified.ok()) {
        REQUIRE(Crc32c(section.data, section.bytes) ==
                GetNumber(&bytes[EntryAt(s) + kEntryCrcAt], 4));
      }
    }
    REQUIRE(read + EntryAt(file->num_sections()) <= bytes.size());
    intact += verified.ok();
    if (verified.ok() && !is_sealed) {
      REQUIRE(std::find(originals.begin(), originals.end(), bytes) != originals.end());
    }
  }
  // The deeper checks were reached.
  CHECK(opened + refused == kCases);
  CHECK(opened > 500);
  CHECK(intact > 50);
  CHECK(refused > kCases / 2);
  CHECK(opened - intact > 100);
}

// ---- What cannot be opened or saved -----------------------------------------------------------

TEST_CASE("Open says what is wrong with a path", "[file]") {
  const Directory directory;
  REQUIRE_THAT(Save(directory / "file", SmallContents()), IsOk());
  File file;
  REQUIRE_THAT(Open(directory / "file", {}, &file), IsOk());
  const File before = file;
  CHECK_THAT(Open(directory / "nothing", {}, &file), IsError(kIoError, "nothing"));
  CHECK_THAT(Open(directory / "nothing", {}, &file), IsError(kIoError, "directory"));
  CHECK_THAT(Open(directory / "file/nothing", {}, &file), IsError(kIoError, "nothing"));
  CHECK_THAT(Open(directory.path(), {}, &file), IsError(kInvalid, "path"));
  CHECK_THAT(Open("/dev/null", {}, &file), IsError(kInvalid, "path"));
  CHECK_THAT(Open("", {}, &file), IsError(kInvalid, "path"));
  CHECK_THAT(MappedFile::Open(nullptr, kKind, {}, &file), IsError(kInvalid, "path"));
  CHECK_THAT(MappedFile::Open((directory / "file").c_str(), kKind, {}, nullptr),
             IsError(kInvalid, "file"));
  CHECK_THAT(MappedFile::Open((directory / "file").c_str(), kKind + 1, {}, &file),
             IsError(kInvalid, "kind"));
  CHECK_THAT(Open(std::string(5000, 'x'), {}, &file), IsError(kInvalid, "path"));
  // The end of a long path is shown.
  CHECK_THAT(Open(std::string(3000, '/') + "nothing", {}, &file), IsError(kIoError, "nothing"));
  const std::string pipe = directory / "pipe";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);  // nobody writes to it
  CHECK_THAT(Open(pipe, {}, &file), IsError(kInvalid, "path"));
  WriteAll(directory / "text", Bytes(100, 'x'));
  CHECK_THAT(Open(directory / "text", {}, &file), IsError(kInvalid, "Sightline"));
  CHECK(file == before);
}

TEST_CASE("SaveFile refuses what contradicts its documentation", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  REQUIRE_THAT(Save(path, SmallContents()), IsOk());
  const Bytes before = ReadAll(path);
  const FilePiece piece = {"abc", 3};
  const FilePiece no_data = {nullptr, 3};
  const FilePiece too_long[] = {{"abc", 3}, {"abc", SIZE_MAX - 1}, {"abc", SIZE_MAX - 1}};
  const FileSection same_id[] = {{1, &piece, 1}, {2, &piece, 1}, {1, &piece, 1}};
  const FileSection null_piece = {1, &no_data, 1};
  const FileSection null_pieces = {1, nullptr, 1};
  const FileSection overflowing = {1, too_long, 3};
  const auto save = [&](const FileSection* sections, size_t count) {
    return SaveFile(path.c_str(), kKind, sections, count);
  };
  CHECK_THAT(save(nullptr, 1), IsError(kInvalid, "sections"));
  CHECK_THAT(save(same_id, 3), IsError(kInvalid, "id"));
  CHECK_THAT(save(&null_piece, 1), IsError(kInvalid, "data"));
  CHECK_THAT(save(&null_pieces, 1), IsError(kInvalid, "pieces"));
  // With 32 bits no three pieces are that long.
  if (sizeof(size_t) == 8) CHECK_THAT(save(&overflowing, 1), IsError(kInvalid, "sections"));
  CHECK_THAT(Save("", SmallContents()), IsError(kInvalid, "path"));
  CHECK_THAT(Save(directory.path() + "/", SmallContents()), IsError(kInvalid, "path"));
  CHECK_THAT(Save(directory.path(), SmallContents()), IsError(kInvalid, "path"));
  CHECK_THAT(Save("/dev/null", SmallContents()), IsError(kInvalid, "path"));
  CHECK_THAT(SaveFile(nullptr, kKind, nullptr, 0), IsError(kInvalid, "path"));
  CHECK((ReadAll(path) == before));
  CHECK(directory.Names() == std::vector<std::string>{"file"});

  CHECK_THAT(save(same_id, 2), IsOk());
  const FilePiece nothing = {nullptr, 0};
  const FileSection empty = {1, &nothing, 1};
  CHECK_THAT(save(&empty, 1), IsOk());
  CHECK_THAT(save(nullptr, 0), IsOk());
}

// Root may do anything: for a while this process is nobody.
class Unprivileged {
 public:
  Unprivileged() : was_root_(geteuid() == 0) {
    if (was_root_) is_nobody_ = seteuid(65534) == 0;
  }
  ~Unprivileged() {
    if (was_root_ && seteuid(0) != 0) abort();
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;
  bool ok() const { return !was_root_ || is_nobody_; }

 private:
  bool was_root_;
  bool is_nobody_ = false;
};

TEST_CASE("missing permissions and directories leave everything as it was", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  REQUIRE_THAT(Save(path, SmallContents()), IsOk());
  const Bytes before = ReadAll(path);
  CHECK_THAT(Save(directory / "nowhere/file", SmallContents()), IsError(kIoError, "nowhere"));
  CHECK_THAT(Save(path + "/file", SmallContents()), IsError(kIoError, "directory"));

  REQUIRE(chmod(path.c_str(), 0) == 0);
  REQUIRE(chmod(directory.path().c_str(), 0555) == 0);
  Status opened, saved;
  bool is_tried = false;
  {
    const Unprivileged nobody;
    is_tried = nobody.ok();
    File file;
    opened = Open(path, {}, &file);
    saved = Save(path, Contents());
  }
  REQUIRE(chmod(directory.path().c_str(), 0755) == 0);
  REQUIRE(chmod(path.c_str(), 0644) == 0);
  if (is_tried) {
    CHECK_THAT(opened, IsError(kIoError, "Permission"));
    CHECK_THAT(saved, IsError(kIoError, "Permission"));
    CHECK((ReadAll(path) == before));
  }
  CHECK(directory.Names() == std::vector<std::string>{"file"});
}

// A disk that is full after so many bytes, or looks so: files of this process may not grow beyond.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(size_t bytes) {
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old_limit_) == 0);
    old_handler_ = signal(SIGXFSZ, SIG_IGN);
    rlimit limit = old_limit_;
    limit.rlim_cur = bytes;
    is_set_ = setrlimit(RLIMIT_FSIZE, &limit) == 0;
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_limit_);
    signal(SIGXFSZ, old_handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  bool ok() const { return is_set_; }

 private:
  rlimit old_limit_;
  void (*old_handler_)(int);
  bool is_set_ = false;
};

TEST_CASE("a write that fails leaves the old file", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  REQUIRE_THAT(Save(path, SmallContents()), IsOk());
  const std::vector<Content> contents = Contents();
  const size_t file_bytes = FileOf(contents).size();
  bool has_effect = false;
  for (const size_t limit : {size_t{0}, size_t{1}, size_t{64}, size_t{5000}, size_t{128 * 1024},
                             size_t{128 * 1024 + 1}, size_t{200000}, file_bytes - 1}) {
    Status status;
    {
      const FileSizeLimit full(limit);
      REQUIRE(full.ok());
      status = Save(path, contents);
    }
    INFO("limit " << limit);
    if (!has_effect && status.ok()) SKIP("no limit of file sizes, as under QEMU");
    has_effect = true;
    CHECK_THAT(status, IsError(kIoError, "large"));
    CHECK(directory.Names() == std::vector<std::string>{"file"});
    File file;
    REQUIRE_THAT(Open(path, {FileCheck::kSections}, &file), IsOk());
    CHECK(Holds(*file, SmallContents()));
  }
  REQUIRE_THAT(Save(path, contents), IsOk());
}

// Rename replaces whatever has the name: a link, not what it points to.
TEST_CASE("a link is replaced, what it points to is not", "[file]") {
  const Directory directory;
  REQUIRE_THAT(Save(directory / "file", SmallContents()), IsOk());
  REQUIRE(symlink("file", (directory / "link").c_str()) == 0);
  File file;
  REQUIRE_THAT(Open(directory / "link", {}, &file), IsOk());
  REQUIRE_THAT(Save(directory / "link", Contents()), IsOk());
  REQUIRE_THAT(Open(directory / "link", {}, &file), IsOk());
  CHECK(Holds(*file, Contents()));
  REQUIRE_THAT(Open(directory / "file", {}, &file), IsOk());
  CHECK(Holds(*file, SmallContents()));
}

TEST_CASE("a file without a directory goes to the current one", "[file]") {
  const Directory directory;
  const int here = open(".", O_RDONLY | O_DIRECTORY);
  REQUIRE(here >= 0);
  REQUIRE(chdir(directory.path().c_str()) == 0);
  const Status status = Save("file", SmallContents());
  CHECK(fchdir(here) == 0);
  close(here);
  CHECK_THAT(status, IsOk());
  CHECK(directory.Names() == std::vector<std::string>{"file"});
}

// The permissions of any new file.
TEST_CASE("files obey the umask", "[file]") {
  const Directory directory;
  const mode_t old_mask = umask(027);
  const Status status = Save(directory / "file", SmallContents());
  umask(old_mask);
  REQUIRE_THAT(status, IsOk());
  struct stat info;
  REQUIRE(stat((directory / "file").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0640);
}

TEST_CASE("a process that is killed while it saves leaves the old file or the new one", "[file]") {
  const Directory directory;
  const std::string path = directory / "file";
  const std::vector<Content> contents[] = {{{1, RandomBytes(200000, 30)}, {2, RandomBytes(50, 31)}},
                                           {{1, RandomBytes(700, 32)}, {3, RandomBytes(9000, 33)}}};
  REQUIRE_THAT(Save(path, contents[0]), IsOk());
  Rng rng(34);
  int seen[2] = {};
  size_t left_behind = 0;
  constexpr int kRounds = 40;
  for (int round = 0; round < kRounds; ++round) {
    int begun[2];
    REQUIRE(pipe(begun) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      if (write(begun[1], "", 1) != 1) _exit(1);
      for (size_t i = 1; Save(path, contents[i % 2], 5000).ok(); ++i) {
      }
      _exit(1);
    }
    char byte;
    REQUIRE(read(begun[0], &byte, 1) == 1);
    close(begun[0]);
    close(begun[1]);
    usleep(static_cast<useconds_t>(rng.Below(8000)));
    REQUIRE(kill(child, SIGKILL) == 0);
    int result = 0;
    REQUIRE(waitpid(child, &result, 0) == child);
    INFO("round " << round);
    REQUIRE(WIFSIGNALED(result));  // otherwise saving had failed
    File file;
    REQUIRE_THAT(Open(path, {FileCheck::kSections}, &file), IsOk());
    const bool is_first = Holds(*file, contents[0]);
    REQUIRE((is_first || Holds(*file, contents[1])));
    ++seen[is_first ? 0 : 1];
    for (const std::string& name : directory.Names()) {
      if (name == "file") continue;
      REQUIRE(name.size() == strlen(".sightline-0123456789abcdef.tmp"));
      REQUIRE(name.rfind(".sightline-", 0) == 0);
      ++left_behind;
      REQUIRE(unlink((directory / name).c_str()) == 0);
    }
  }
  // Some were killed in the middle, or this shows nothing.
  CHECK(left_behind > 0);
  CHECK(seen[0] + seen[1] == kRounds);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
