// Files that hold sections of bytes: how K and V outlive a process. What the sections mean is the
// business of whoever writes and reads them. Byte layout, guarantees and limits: docs/files.md.
//
// SaveFile reads each byte of the caller's once, in pieces that stay in cache between its checksum
// and its write. MappedFile::Open reads one page, whatever the size of the file; sections are then
// served from the page cache, without a copy, and cost what touching them costs. Verifying a
// section reads all of it, at 4.6 to 6.3 GB/s on a Zen 4 core (22 and more where Abseil is compiled
// for CPUs with SSE4.2 and PCLMUL).
//
// Nothing here trusts a file: sizes are compared before anything is added to them, and no byte
// outside the file is read, whatever its header says.
#ifndef SIGHTLINE_KV_FILE_CONTAINER_H_  // sightline/kv_file.h has the guard of this path
#define SIGHTLINE_KV_FILE_CONTAINER_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "sightline/status.h"

namespace sightline {
namespace internal {

// Raised whenever the bytes below change their meaning. Files of other versions are refused.
constexpr uint32_t kFileVersion = 1;

// Where sections begin: at a multiple of a cache line, which is what kernels ask of packed heads;
// from the size of a page on at a multiple of one, so that pages which are locked, dropped or read
// ahead belong to one section. A page of padding is little beside a section that has pages.
constexpr size_t kFileAlignBytes = 64;
constexpr size_t kFilePageBytes = 4096;

// Header and table then fill a page: opening a file reads it and nothing else.
constexpr size_t kMaxFileSections = 126;

// Memory that goes into a section.
struct FilePiece {
  const void* data;
  size_t bytes;
};

// A section to be written: its pieces, one after the other. Ids are the caller's and distinct.
struct FileSection {
  uint32_t id;
  const FilePiece* pieces;
  size_t num_pieces;
};

// Writes a file of the caller's `kind`, in one step: at any moment, whatever happens to the process
// or the machine, `path` is what it was before or the whole new file, and after success the new
// file is on the disk. It is written under another name in the same directory,
// `.sightline-<16 digits>.tmp`, which an error removes; a process that is killed leaves it behind.
//
// kInvalidArgument: sections that contradict the above, or a path that is something other than a
// file. kIoError: what the operating system said; `path` is untouched, unless the message says that
// only the directory could not be brought to the disk. kUnsupported: a big-endian machine.
Status SaveFile(const char* path, uint32_t kind, const FileSection* sections, size_t num_sections);

// What opening a file checks.
enum class FileCheck {
  kHeader,    // header and table of sections, in constant time; payload is found as it is
  kSections,  // also the checksum of every section, and that padding is 0: reads the whole file
};

// How a file's bytes are reached.
enum class FileAccess {
  kMap,   // mapped: in constant time and shared with other processes; where there is no mmap, kRead
  kRead,  // read into memory of its own, which no later change of the file reaches
};

struct FileOptions {
  FileCheck check = FileCheck::kHeader;
  FileAccess access = FileAccess::kMap;
};

// An open file. Immutable: any number of threads may read one. Sections stay where they are as long
// as the object lives, also after the file was replaced by SaveFile or removed. A mapped file that
// somebody shortens in place is out of anyone's hands: reading what is gone ends the process with
// SIGBUS, and what somebody overwrites in place changes under its readers. FileAccess::kRead is for
// files that are not safe from that.
class MappedFile {
 public:
  struct Section {
    uint32_t id;
    const unsigned char* data;  // aligned to kFileAlignBytes; null if there is no such section
    size_t bytes;
  };

  // On error *file is unchanged. kInvalidArgument: the file is none of Sightline's, or of another
  // kind. kUnsupported: of another version or byte order, or larger than the address space.
  // kCorrupt: cut off, or not what its checksums say. kIoError, kOutOfMemory.
  static Status Open(const char* path, uint32_t kind, const FileOptions& options,
                     std::shared_ptr<const MappedFile>* file);
  // The same for a file that is in memory already, such as an asset inside a package: the caller
  // keeps it there, unchanged, as long as *file lives. `data` is aligned to kFileAlignBytes.
  static Status Wrap(const void* data, size_t bytes, uint32_t kind, FileCheck check,
                     std::shared_ptr<const MappedFile>* file);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // A section of 0 bytes has data, so that it can be told from one that does not exist.
  Section Find(uint32_t id) const;
  size_t num_sections() const { return num_sections_; }
  Section section(size_t index) const;  // in the order they were written

  // Of all sections and the padding between them, or of one section. kCorrupt: the message names
  // the section. kInvalidArgument: there is no such section.
  Status Verify() const;
  Status Verify(uint32_t id) const;

  const char* name() const { return name_; }  // for messages: the path, or its end
  size_t bytes() const { return bytes_; }     // of the whole file
  bool is_mapped() const { return storage_ == Storage::kMapping; }

 private:
  enum class Storage { kNone, kCaller, kMapping, kBlock };
  struct Entry {
    uint64_t offset;
    uint64_t bytes;
    uint32_t id;
    uint32_t crc;
  };

  MappedFile() = default;
  static Status New(const char* name, std::shared_ptr<MappedFile>* file);
  Status Parse(const unsigned char* head, size_t head_bytes, uint64_t file_bytes, uint32_t kind);
  Status VerifyEntry(const Entry& entry) const;

  Storage storage_ = Storage::kNone;
  const unsigned char* base_ = nullptr;
  size_t bytes_ = 0;
  size_t num_sections_ = 0;
  Entry entries_[kMaxFileSections] = {};
  char name_[256] = {};
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_FILE_CONTAINER_H_
