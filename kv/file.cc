// Saving and opening files of sections: kv/file.h. From top to bottom: the bytes, what the
// operating system does (once for POSIX, once for Windows), writing, reading.
#include "kv/file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

#include "absl/crc/crc32c.h"
#include "dispatch/memory.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#if !defined(NOMINMAX)  // MinGW's library defines it
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sightline {
namespace internal {
namespace {

// ---- The bytes: docs/files.md has them as a table -----------------------------------------------

// In the manner of PNG: a byte that is no text, a name, and the line ends that a transfer as text
// would have changed.
constexpr char kMagic[8] = {'\x89', 'S', 'L', 'K', 'V', '\r', '\n', '\x1a'};
constexpr uint32_t kByteOrder = 0x01020304;

struct Header {
  char magic[8];
  uint32_t byte_order;
  uint32_t version;
  uint32_t kind;
  uint32_t num_sections;
  uint64_t file_bytes;
  unsigned char reserved[28];  // 0
  uint32_t crc;                // of all that is before it, then of the table
};

struct TableEntry {
  uint64_t offset;
  uint64_t bytes;
  uint32_t id;
  uint32_t crc;
  uint64_t reserved;  // 0
};

static_assert(sizeof(Header) == 64 && offsetof(Header, crc) == 60);
static_assert(sizeof(TableEntry) == 32);
static_assert(sizeof(Header) + kMaxFileSections * sizeof(TableEntry) == kFilePageBytes);

// Numbers are stored as a little-endian machine has them in memory, payload too: a big-endian
// machine could neither map what others wrote nor write what they can map.
bool IsLittleEndian() {
  const uint32_t one = 1;
  unsigned char first;
  memcpy(&first, &one, 1);
  return first == 1;
}

constexpr uint64_t kMaxFileBytes = INT64_MAX;  // what file systems and off_t can say

uint64_t AlignmentOf(uint64_t section_bytes) {
  return section_bytes >= kFilePageBytes ? kFilePageBytes : kFileAlignBytes;
}

// Where a section of `bytes` lies behind one that ends at `end`: the next place that is aligned.
// There is one such place, so that overlaps, gaps, disorder and misalignment are one comparison.
// False if it would end beyond `limit`.
bool PlaceSection(uint64_t end, uint64_t bytes, uint64_t limit, uint64_t* offset) {
  const uint64_t padding = (0 - end) & (AlignmentOf(bytes) - 1);
  if (end > limit || padding > limit - end || bytes > limit - end - padding) return false;
  *offset = end + padding;
  return true;
}

uint64_t TableEnd(uint64_t num_sections) {
  return sizeof(Header) + num_sections * sizeof(TableEntry);
}

uint32_t ExtendCrc(uint32_t crc, const void* data, size_t bytes) {
  const std::string_view view(static_cast<const char*>(data), bytes);
  return static_cast<uint32_t>(absl::ExtendCrc32c(absl::crc32c_t{crc}, view));
}

uint32_t HeadCrc(const Header& header, const TableEntry* table) {
  const uint32_t crc = ExtendCrc(0, &header, offsetof(Header, crc));
  return ExtendCrc(crc, table, header.num_sections * sizeof(TableEntry));
}

// ---- Messages ---------------------------------------------------------------------------------

// As much of a path as leaves room for the rest of a message: its end, which says more.
struct ShownPath {
  explicit ShownPath(const char* path) {
    const size_t length = strlen(path);
    if (length < sizeof(text)) {
      memcpy(text, path, length + 1);
    } else {
      memcpy(text, "...", 3);
      memcpy(text + 3, path + length - (sizeof(text) - 4), sizeof(text) - 3);
    }
  }
  char text[256];
};

unsigned long long Number(uint64_t x) { return x; }

#if defined(_WIN32)
using SystemError = DWORD;
constexpr SystemError kNoMemory = ERROR_NOT_ENOUGH_MEMORY;

Status IoError(const char* what, const char* path, SystemError error) {
  char reason[128];
  const DWORD length =
      FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, error, 0,
                     reason, static_cast<DWORD>(sizeof(reason)), nullptr);
  reason[length < sizeof(reason) ? length : sizeof(reason) - 1] = '\0';
  return Status::Error(error == kNoMemory ? StatusCode::kOutOfMemory : StatusCode::kIoError,
                       "cannot %s %s: %s (%lu)", what, ShownPath(path).text, reason,
                       static_cast<unsigned long>(error));
}
#else
// strerror_r comes in two kinds: POSIX's returns an error and fills `buffer`, GNU's returns the
// text.
[[maybe_unused]] const char* ReasonOf(int result, const char* buffer) {
  return result == 0 ? buffer : "unknown error";
}
[[maybe_unused]] const char* ReasonOf(const char* result, const char*) { return result; }

Status IoError(const char* what, const char* path, int error) {
  char buffer[128] = "";
  return Status::Error(error == ENOMEM ? StatusCode::kOutOfMemory : StatusCode::kIoError,
                       "cannot %s %s: %s", what, ShownPath(path).text,
                       ReasonOf(strerror_r(error, buffer, sizeof(buffer)), buffer));
}
#endif

Status NotAFile(const char* path) {
  return Status::Error(StatusCode::kInvalidArgument, "path: %s is not a regular file",
                       ShownPath(path).text);
}

// ---- The operating system -----------------------------------------------------------------------

// Windows counts what one call transfers in 32 bits, macOS in 31: larger pieces go in turns.
constexpr size_t kMaxTransferBytes = size_t{1} << 30;

// Long paths are refused rather than cut. Linux's PATH_MAX; others' are shorter.
constexpr size_t kMaxPathBytes = 4096;

// A name for a temporary file. It need not be secret, for whoever creates it insists that it is
// new; it should differ between processes and calls, so that few attempts fail.
constexpr size_t kTemporaryNameBytes = sizeof(".sightline-0123456789abcdef.tmp");
constexpr int kMaxAttempts = 100;
void NameTemporary(uint64_t process, char* name) {
  static std::atomic<uint64_t> calls{0};
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  uint64_t x = static_cast<uint64_t>(now) + (process << 40) +
               calls.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;  // the finaliser of splitmix64
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  snprintf(name, kTemporaryNameBytes, ".sightline-%016llx.tmp", Number(x ^ x >> 31));
}

// Length of the part of `path` that names its directory, with the separator; 0: the current one.
size_t DirectoryLength(const char* path) {
  size_t length = strlen(path);
  const auto is_separator = [](char c) {
#if defined(_WIN32)
    return c == '/' || c == '\\' || c == ':';
#else
    return c == '/';
#endif
  };
  while (length > 0 && !is_separator(path[length - 1])) --length;
  return length;
}

Status CheckPath(const char* path) {
  if (path == nullptr || path[0] == '\0') {
    return Status::Error(StatusCode::kInvalidArgument, "path is empty");
  }
  if (strlen(path) >= kMaxPathBytes - kTemporaryNameBytes) {
    return Status::Error(StatusCode::kInvalidArgument,
                         "path has %zu bytes, at most %zu are allowed", strlen(path),
                         kMaxPathBytes - kTemporaryNameBytes - 1);
  }
  return Status();
}

#if defined(_WIN32)

// A file under a temporary name that Commit moves to `path`.
class NewFile {
 public:
  NewFile() = default;
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (handle_ == INVALID_HANDLE_VALUE) return;
    CloseHandle(handle_);
    DeleteFileA(temporary_);
  }

  Status Create(const char* path) {
    path_ = path;
    const DWORD attributes = GetFileAttributesA(path);
    if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0) {
      return NotAFile(path);
    }
    const size_t directory = DirectoryLength(path);
    memcpy(temporary_, path, directory);
    for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
      NameTemporary(GetCurrentProcessId(), temporary_ + directory);
      handle_ = CreateFileA(temporary_, GENERIC_WRITE, 0, nullptr, CREATE_NEW,
                            FILE_ATTRIBUTE_NORMAL, nullptr);
      if (handle_ != INVALID_HANDLE_VALUE) return Status();
      if (GetLastError() != ERROR_FILE_EXISTS) break;
    }
    return IoError("create", temporary_, GetLastError());
  }

  Status Write(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const DWORD turn = static_cast<DWORD>(bytes < kMaxTransferBytes ? bytes : kMaxTransferBytes);
      DWORD written = 0;
      if (!::WriteFile(handle_, from, turn, &written, nullptr)) {
        return IoError("write", path_, GetLastError());
      }
      from += written;
      bytes -= written;
    }
    return Status();
  }

  Status Rewind() {
    const LARGE_INTEGER begin = {};
    if (!SetFilePointerEx(handle_, begin, nullptr, FILE_BEGIN)) {
      return IoError("write", path_, GetLastError());
    }
    return Status();
  }

  Status Commit() {
    if (!FlushFileBuffers(handle_)) return IoError("write", path_, GetLastError());
    CloseHandle(handle_);
    handle_ = INVALID_HANDLE_VALUE;
    if (!MoveFileExA(temporary_, path_, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) {
      const DWORD error = GetLastError();
      DeleteFileA(temporary_);
      return IoError("replace", path_, error);
    }
    return Status();
  }

 private:
  const char* path_ = nullptr;
  char temporary_[kMaxPathBytes] = {};
  HANDLE handle_ = INVALID_HANDLE_VALUE;
};

// A file that is read.
class OldFile {
 public:
  OldFile() = default;
  OldFile(const OldFile&) = delete;
  OldFile& operator=(const OldFile&) = delete;
  ~OldFile() {
    if (handle_ != INVALID_HANDLE_VALUE) CloseHandle(handle_);
  }

  Status Open(const char* path) {
    path_ = path;
    handle_ = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                          OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    LARGE_INTEGER size = {};
    if (handle_ == INVALID_HANDLE_VALUE || !GetFileSizeEx(handle_, &size)) {
      return IoError("open", path, GetLastError());
    }
    bytes_ = static_cast<uint64_t>(size.QuadPart);
    return Status();
  }
  uint64_t bytes() const { return bytes_; }

  // The first bytes of the file; *count is less than asked for only at its end.
  Status Read(unsigned char* to, size_t bytes, size_t* count) {
    *count = 0;
    const LARGE_INTEGER begin = {};
    if (!SetFilePointerEx(handle_, begin, nullptr, FILE_BEGIN)) {
      return IoError("read", path_, GetLastError());
    }
    while (*count < bytes) {
      const size_t left = bytes - *count;
      const DWORD turn = static_cast<DWORD>(left < kMaxTransferBytes ? left : kMaxTransferBytes);
      DWORD got = 0;
      if (!::ReadFile(handle_, to + *count, turn, &got, nullptr)) {
        return IoError("read", path_, GetLastError());
      }
      if (got == 0) break;
      *count += got;
    }
    return Status();
  }

 private:
  const char* path_ = nullptr;
  uint64_t bytes_ = 0;
  HANDLE handle_ = INVALID_HANDLE_VALUE;
};

#else

// The disk's own cache included, where the system makes a difference.
int Sync(int descriptor) {
#if defined(F_FULLFSYNC)
  if (fcntl(descriptor, F_FULLFSYNC) == 0) return 0;
#endif
  int result;
  do {
    result = fsync(descriptor);
  } while (result != 0 && errno == EINTR);
  return result;
}

int OpenAt(int directory, const char* path, int flags, mode_t mode) {
  int descriptor;
  do {
    descriptor = openat(directory, path, flags | O_CLOEXEC, mode);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

// A file under a temporary name that Commit moves to `path`. Its directory is opened first and
// everything happens in there, so that a directory which is moved meanwhile takes the file along.
class NewFile {
 public:
  NewFile() = default;
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (file_ >= 0) close(file_);
    if (exists_) unlinkat(directory_, temporary_, 0);
    if (directory_ >= 0) close(directory_);
  }

  Status Create(const char* path) {
    path_ = path;
    const size_t length = DirectoryLength(path);
    name_ = path + length;
    char directory[kMaxPathBytes] = ".";
    if (length > 0) memcpy(directory, path, length);
    if (length > 0) directory[length] = '\0';
    directory_ = OpenAt(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
    if (directory_ < 0) return IoError("write", path, errno);
    // Renaming would put a file in the place of a device, which nobody means. A symbolic link is
    // looked through for that, but it is the link that is replaced.
    struct stat old;
    if (*name_ == '\0' || (fstatat(directory_, name_, &old, 0) == 0 && !S_ISREG(old.st_mode))) {
      return NotAFile(path);
    }
    for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
      NameTemporary(static_cast<uint64_t>(getpid()), temporary_);
      file_ = OpenAt(directory_, temporary_, O_WRONLY | O_CREAT | O_EXCL, 0666);
      if (file_ >= 0 || errno != EEXIST) break;
    }
    if (file_ < 0) return IoError("write", path, errno);
    exists_ = true;
    return Status();
  }

  Status Write(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const size_t turn = bytes < kMaxTransferBytes ? bytes : kMaxTransferBytes;
      const ssize_t written = write(file_, from, turn);
      if (written < 0 && errno == EINTR) continue;
      // No progress and no error: some file systems say so that they are full.
      if (written <= 0) return IoError("write", path_, written < 0 ? errno : ENOSPC);
      from += written;
      bytes -= static_cast<size_t>(written);
    }
    return Status();
  }

  Status Rewind() {
    return lseek(file_, 0, SEEK_SET) == 0 ? Status() : IoError("write", path_, errno);
  }

  Status Commit() {
    // The order is what makes it atomic: contents reach the disk before the name does.
    if (Sync(file_) != 0) return IoError("write", path_, errno);
    const int closed = close(file_);
    file_ = -1;
    // Interrupted, it is closed all the same.
    if (closed != 0 && errno != EINTR) return IoError("write", path_, errno);
    if (renameat(directory_, temporary_, directory_, name_) != 0) {
      return IoError("replace", path_, errno);
    }
    exists_ = false;
    // Some file systems have directories that cannot be synchronised, and say EINVAL.
    if (Sync(directory_) != 0 && errno != EINVAL) {
      return IoError("sync the directory of the new", path_, errno);
    }
    return Status();
  }

 private:
  const char* path_ = nullptr;
  const char* name_ = nullptr;  // in the directory
  char temporary_[kTemporaryNameBytes] = {};
  int directory_ = -1;
  int file_ = -1;
  bool exists_ = false;  // under its temporary name
};

// A file that is read.
class OldFile {
 public:
  OldFile() = default;
  OldFile(const OldFile&) = delete;
  OldFile& operator=(const OldFile&) = delete;
  ~OldFile() {
    if (file_ >= 0) close(file_);
  }

  Status Open(const char* path) {
    path_ = path;
    // A pipe that nobody writes to would block; for files the flag means nothing.
    file_ = OpenAt(AT_FDCWD, path, O_RDONLY | O_NONBLOCK, 0);
    struct stat info;
    if (file_ < 0 || fstat(file_, &info) != 0) return IoError("open", path, errno);
    if (!S_ISREG(info.st_mode)) return NotAFile(path);
    bytes_ = static_cast<uint64_t>(info.st_size);
    return Status();
  }
  uint64_t bytes() const { return bytes_; }

  // The first bytes of the file; *count is less than asked for only at its end.
  Status Read(unsigned char* to, size_t bytes, size_t* count) {
    *count = 0;
    while (*count < bytes) {
      const size_t left = bytes - *count;
      const size_t turn = left < kMaxTransferBytes ? left : kMaxTransferBytes;
      const ssize_t got = pread(file_, to + *count, turn, static_cast<off_t>(*count));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return IoError("read", path_, errno);
      if (got == 0) break;
      *count += static_cast<size_t>(got);
    }
    return Status();
  }

  Status Map(size_t bytes, const unsigned char** base) {
    void* mapping = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_, 0);
    if (mapping == MAP_FAILED) return IoError("map", path_, errno);
    *base = static_cast<const unsigned char*>(mapping);
    return Status();
  }

 private:
  const char* path_ = nullptr;
  uint64_t bytes_ = 0;
  int file_ = -1;
};

#endif

// ---- Writing ------------------------------------------------------------------------------------

// Pieces smaller than this are collected, for a call of the operating system costs a microsecond;
// of larger ones so much is summed and then written, while it is in the L2.
constexpr size_t kTurnBytes = 128 * 1024;

class SectionWriter {
 public:
  explicit SectionWriter(NewFile* file) : file_(file), buffer_(AllocateAligned(kTurnBytes)) {}
  SectionWriter(const SectionWriter&) = delete;
  SectionWriter& operator=(const SectionWriter&) = delete;
  ~SectionWriter() { FreeAligned(buffer_); }
  bool has_memory() const { return buffer_ != nullptr; }

  // Appends zeros up to `offset`: less than a page and a table, which the buffer holds.
  Status Pad(uint64_t offset) {
    const size_t bytes = static_cast<size_t>(offset - position_);
    if (bytes > kTurnBytes - buffered_) {
      if (Status status = Flush(); !status.ok()) return status;
    }
    memset(buffer_ + buffered_, 0, bytes);
    buffered_ += bytes;
    position_ = offset;
    return Status();
  }

  Status Append(FilePiece piece, uint32_t* crc) {
    const unsigned char* from = static_cast<const unsigned char*>(piece.data);
    for (size_t left = piece.bytes; left > 0;) {
      const size_t turn = left < kTurnBytes ? left : kTurnBytes;
      *crc = ExtendCrc(*crc, from, turn);
      if (turn > kTurnBytes - buffered_) {
        if (Status status = Flush(); !status.ok()) return status;
      }
      if (turn < kTurnBytes) {
        memcpy(buffer_ + buffered_, from, turn);
        buffered_ += turn;
      } else if (Status status = file_->Write(from, turn); !status.ok()) {
        return status;
      }
      from += turn;
      left -= turn;
      position_ += turn;
    }
    return Status();
  }

  Status Flush() {
    const size_t bytes = buffered_;
    buffered_ = 0;
    return file_->Write(buffer_, bytes);
  }

 private:
  NewFile* file_;
  unsigned char* buffer_;
  size_t buffered_ = 0;
  uint64_t position_ = 0;
};

// Fills the table but for checksums; *file_bytes is where the last section ends.
Status PlaceSections(const FileSection* sections, size_t num_sections, TableEntry* table,
                     uint64_t* file_bytes) {
  uint64_t end = TableEnd(num_sections);
  for (size_t i = 0; i < num_sections; ++i) {
    const FileSection& section = sections[i];
    if (section.pieces == nullptr && section.num_pieces > 0) {
      return Status::Error(StatusCode::kInvalidArgument, "sections[%zu].pieces is null", i);
    }
    uint64_t bytes = 0;
    for (size_t p = 0; p < section.num_pieces; ++p) {
      const FilePiece& piece = section.pieces[p];
      if (piece.data == nullptr && piece.bytes > 0) {
        return Status::Error(StatusCode::kInvalidArgument,
                             "sections[%zu].pieces[%zu].data is null, bytes is %zu", i, p,
                             piece.bytes);
      }
      if (piece.bytes > kMaxFileBytes - bytes) {
        return Status::Error(StatusCode::kInvalidArgument,
                             "sections[%zu] has more than 2^63 - 1 bytes", i);
      }
      bytes += piece.bytes;
    }
    for (size_t other = 0; other < i; ++other) {
      if (sections[other].id == section.id) {
        return Status::Error(StatusCode::kInvalidArgument,
                             "sections[%zu] and sections[%zu] have the same id %lu", other, i,
                             static_cast<unsigned long>(section.id));
      }
    }
    TableEntry& entry = table[i];
    if (!PlaceSection(end, bytes, kMaxFileBytes, &entry.offset)) {
      return Status::Error(StatusCode::kInvalidArgument,
                           "sections up to sections[%zu] have more than 2^63 - 1 bytes", i);
    }
    entry.bytes = bytes;
    entry.id = section.id;
    end = entry.offset + bytes;
  }
  *file_bytes = end;
  return Status();
}

}  // namespace

Status SaveFile(const char* path, uint32_t kind, const FileSection* sections, size_t num_sections) {
  if (Status status = CheckPath(path); !status.ok()) return status;
  if (!IsLittleEndian()) {
    return Status::Error(StatusCode::kUnsupported, "files are not written on big-endian machines");
  }
  if (sections == nullptr && num_sections > 0) {
    return Status::Error(StatusCode::kInvalidArgument, "sections is null, num_sections is %zu",
                         num_sections);
  }
  if (num_sections > kMaxFileSections) {
    return Status::Error(StatusCode::kInvalidArgument,
                         "num_sections is %zu, at most %zu are allowed", num_sections,
                         kMaxFileSections);
  }

  Header header = {};
  TableEntry table[kMaxFileSections] = {};
  memcpy(header.magic, kMagic, sizeof(kMagic));
  header.byte_order = kByteOrder;
  header.version = kFileVersion;
  header.kind = kind;
  header.num_sections = static_cast<uint32_t>(num_sections);
  if (Status status = PlaceSections(sections, num_sections, table, &header.file_bytes);
      !status.ok()) {
    return status;
  }

  NewFile file;
  if (Status status = file.Create(path); !status.ok()) return status;
  SectionWriter writer(&file);
  if (!writer.has_memory()) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes to write %s", kTurnBytes,
                         ShownPath(path).text);
  }
  // Zeros where header and table will be, once the checksums are known.
  if (Status status = writer.Pad(TableEnd(num_sections)); !status.ok()) return status;
  for (size_t i = 0; i < num_sections; ++i) {
    if (Status status = writer.Pad(table[i].offset); !status.ok()) return status;
    for (size_t p = 0; p < sections[i].num_pieces; ++p) {
      if (Status status = writer.Append(sections[i].pieces[p], &table[i].crc); !status.ok()) {
        return status;
      }
    }
  }
  if (Status status = writer.Flush(); !status.ok()) return status;
  header.crc = HeadCrc(header, table);
  if (Status status = file.Rewind(); !status.ok()) return status;
  if (Status status = file.Write(&header, sizeof(header)); !status.ok()) return status;
  if (Status status = file.Write(table, num_sections * sizeof(TableEntry)); !status.ok()) {
    return status;
  }
  return file.Commit();
}

// ---- Reading ------------------------------------------------------------------------------------

Status MappedFile::New(const char* name, std::shared_ptr<MappedFile>* file) {
  *file = ShareOrNull(new (std::nothrow) MappedFile());
  if (*file == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes to open %s", sizeof(MappedFile),
                         ShownPath(name).text);
  }
  const ShownPath shown(name);
  static_assert(sizeof((*file)->name_) == sizeof(shown.text));
  memcpy((*file)->name_, shown.text, sizeof(shown.text));
  return Status();
}

MappedFile::~MappedFile() {
#if !defined(_WIN32)
  if (storage_ == Storage::kMapping) munmap(const_cast<unsigned char*>(base_), bytes_);
#endif
  if (storage_ == Storage::kBlock) FreeAligned(const_cast<unsigned char*>(base_));
}

// `head`: the first bytes of a file of `file_bytes`, all of them or kFilePageBytes. What says what
// the file is comes first, without a checksum, so that a file of another version is called that.
Status MappedFile::Parse(const unsigned char* head, size_t head_bytes, uint64_t file_bytes,
                         uint32_t kind) {
  Header header;
  if (head_bytes >= sizeof(kMagic) && memcmp(head, kMagic, sizeof(kMagic)) != 0) {
    return Status::Error(StatusCode::kInvalidArgument, "%s is not a Sightline file", name_);
  }
  if (head_bytes < sizeof(header)) {
    return Status::Error(StatusCode::kCorrupt, "%s is cut off: it has %llu bytes, a header has %zu",
                         name_, Number(file_bytes), sizeof(header));
  }
  memcpy(&header, head, sizeof(header));
  if (header.byte_order != kByteOrder) {
    return Status::Error(StatusCode::kUnsupported, "%s has another byte order than this machine",
                         name_);
  }
  if (header.version != kFileVersion) {
    return Status::Error(StatusCode::kUnsupported,
                         "%s has version %lu of the file format, this library reads %lu", name_,
                         static_cast<unsigned long>(header.version),
                         static_cast<unsigned long>(kFileVersion));
  }
  if (header.num_sections > kMaxFileSections) {
    return Status::Error(StatusCode::kCorrupt, "%s has %lu sections, at most %zu are allowed",
                         name_, static_cast<unsigned long>(header.num_sections), kMaxFileSections);
  }
  if (head_bytes < TableEnd(header.num_sections)) {
    return Status::Error(StatusCode::kCorrupt,
                         "%s is cut off: it has %llu bytes, its table ends at %llu", name_,
                         Number(file_bytes), Number(TableEnd(header.num_sections)));
  }
  TableEntry table[kMaxFileSections];
  memcpy(table, head + sizeof(header), header.num_sections * sizeof(TableEntry));
  if (HeadCrc(header, table) != header.crc) {
    return Status::Error(StatusCode::kCorrupt,
                         "%s: header or table are not what their checksum says", name_);
  }
  // From here on only a writer that is wrong, or means harm, can fail.
  if (header.kind != kind) {
    return Status::Error(StatusCode::kInvalidArgument, "%s is of kind %lu, expected %lu", name_,
                         static_cast<unsigned long>(header.kind), static_cast<unsigned long>(kind));
  }
  if (header.file_bytes != file_bytes) {
    return Status::Error(StatusCode::kCorrupt, "%s has %llu bytes, its header says %llu", name_,
                         Number(file_bytes), Number(header.file_bytes));
  }
  static constexpr unsigned char kZeros[sizeof(header.reserved)] = {};
  if (memcmp(header.reserved, kZeros, sizeof(kZeros)) != 0) {
    return Status::Error(StatusCode::kCorrupt, "%s: reserved bytes of the header are not 0", name_);
  }

  uint64_t end = TableEnd(header.num_sections);
  for (uint32_t i = 0; i < header.num_sections; ++i) {
    const TableEntry& entry = table[i];
    uint64_t offset;
    if (!PlaceSection(end, entry.bytes, file_bytes, &offset) || entry.offset != offset) {
      return Status::Error(
          StatusCode::kCorrupt, "%s: section %lu cannot be at byte %llu, %llu long", name_,
          static_cast<unsigned long>(entry.id), Number(entry.offset), Number(entry.bytes));
    }
    if (entry.reserved != 0) {
      return Status::Error(StatusCode::kCorrupt, "%s: reserved bytes of section %lu are not 0",
                           name_, static_cast<unsigned long>(entry.id));
    }
    for (uint32_t other = 0; other < i; ++other) {
      if (table[other].id == entry.id) {
        return Status::Error(StatusCode::kCorrupt, "%s has two sections %lu", name_,
                             static_cast<unsigned long>(entry.id));
      }
    }
    entries_[i] = {entry.offset, entry.bytes, entry.id, entry.crc};
    end = offset + entry.bytes;
  }
  if (end != file_bytes) {
    return Status::Error(StatusCode::kCorrupt, "%s has %llu bytes, its sections end at %llu", name_,
                         Number(file_bytes), Number(end));
  }
  if (file_bytes > SIZE_MAX) {
    return Status::Error(StatusCode::kUnsupported, "%s has %llu bytes, more than can be addressed",
                         name_, Number(file_bytes));
  }
  num_sections_ = header.num_sections;
  bytes_ = static_cast<size_t>(file_bytes);
  return Status();
}

Status MappedFile::Open(const char* path, uint32_t kind, const FileOptions& options,
                        std::shared_ptr<const MappedFile>* file) {
  if (Status status = CheckPath(path); !status.ok()) return status;
  if (file == nullptr) return Status::Error(StatusCode::kInvalidArgument, "file is null");
  std::shared_ptr<MappedFile> opened;
  if (Status status = New(path, &opened); !status.ok()) return status;
  OldFile old;
  if (Status status = old.Open(path); !status.ok()) return status;

  // Read, not mapped: what is checked is a copy that nobody can change afterwards, and the table in
  // entries_ is all that is used later.
  unsigned char head[kFilePageBytes];
  size_t head_bytes = 0;
  if (Status status = old.Read(head, sizeof(head), &head_bytes); !status.ok()) return status;
  if (Status status = opened->Parse(head, head_bytes, old.bytes(), kind); !status.ok()) {
    return status;
  }

#if !defined(_WIN32)
  if (options.access == FileAccess::kMap) {
    if (Status status = old.Map(opened->bytes_, &opened->base_); !status.ok()) return status;
    opened->storage_ = Storage::kMapping;
  }
#endif
  if (opened->storage_ == Storage::kNone) {
    unsigned char* block = AllocateAligned(opened->bytes_);
    if (block == nullptr) {
      return Status::Error(StatusCode::kOutOfMemory, "%zu bytes to read %s", opened->bytes_,
                           opened->name_);
    }
    opened->base_ = block;
    opened->storage_ = Storage::kBlock;
    size_t count = 0;
    if (Status status = old.Read(block, opened->bytes_, &count); !status.ok()) return status;
    if (count != opened->bytes_) {
      return Status::Error(StatusCode::kCorrupt, "%s was cut off at byte %zu while it was read",
                           opened->name_, count);
    }
  }
  if (options.check == FileCheck::kSections) {
    if (Status status = opened->Verify(); !status.ok()) return status;
  }
  *file = std::move(opened);
  return Status();
}

Status MappedFile::Wrap(const void* data, size_t bytes, uint32_t kind, FileCheck check,
                        std::shared_ptr<const MappedFile>* file) {
  if (file == nullptr) return Status::Error(StatusCode::kInvalidArgument, "file is null");
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % kFileAlignBytes != 0) {
    return Status::Error(StatusCode::kInvalidArgument, "data is %p, must be aligned to %zu bytes",
                         data, kFileAlignBytes);
  }
  std::shared_ptr<MappedFile> opened;
  if (Status status = New("the file in memory", &opened); !status.ok()) return status;
  const unsigned char* base = static_cast<const unsigned char*>(data);
  const size_t head_bytes = bytes < kFilePageBytes ? bytes : kFilePageBytes;
  if (Status status = opened->Parse(base, head_bytes, bytes, kind); !status.ok()) return status;
  opened->base_ = base;
  opened->storage_ = Storage::kCaller;
  if (check == FileCheck::kSections) {
    if (Status status = opened->Verify(); !status.ok()) return status;
  }
  *file = std::move(opened);
  return Status();
}

MappedFile::Section MappedFile::section(size_t index) const {
  const Entry& entry = entries_[index];
  return {entry.id, base_ + entry.offset, static_cast<size_t>(entry.bytes)};
}

MappedFile::Section MappedFile::Find(uint32_t id) const {
  for (size_t i = 0; i < num_sections_; ++i) {
    if (entries_[i].id == id) return section(i);
  }
  return {id, nullptr, 0};
}

Status MappedFile::VerifyEntry(const Entry& entry) const {
  if (ExtendCrc(0, base_ + entry.offset, static_cast<size_t>(entry.bytes)) == entry.crc) {
    return Status();
  }
  return Status::Error(StatusCode::kCorrupt, "%s: section %lu is not what its checksum says", name_,
                       static_cast<unsigned long>(entry.id));
}

Status MappedFile::Verify() const {
  uint64_t end = TableEnd(num_sections_);
  for (size_t i = 0; i < num_sections_; ++i) {
    const Entry& entry = entries_[i];
    for (; end < entry.offset; ++end) {
      if (base_[end] != 0) {
        return Status::Error(StatusCode::kCorrupt, "%s: padding before section %lu is not 0", name_,
                             static_cast<unsigned long>(entry.id));
      }
    }
    if (Status status = VerifyEntry(entry); !status.ok()) return status;
    end = entry.offset + entry.bytes;
  }
  return Status();
}

Status MappedFile::Verify(uint32_t id) const {
  for (size_t i = 0; i < num_sections_; ++i) {
    if (entries_[i].id == id) return VerifyEntry(entries_[i]);
  }
  return Status::Error(StatusCode::kInvalidArgument, "%s has no section %lu", name_,
                       static_cast<unsigned long>(id));
}

}  // namespace internal
}  // namespace sightline
