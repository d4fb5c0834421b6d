// File: sightline/kv_file.h
// K and V in files: Save, Map, Load, and Convert between layouts.
//
//   status = Save(memory, "passage.slkv");          // once
//   CrossMemory memory;                             // in any process that needs it
//   status = Map("passage.slkv", &memory);          // no copy, whatever the size (but on Windows)
//   args.memory = &memory;
//
//   status = Save(cache, "session.slkv");           // a cache as it is
//   status = Load("session.slkv", desc, &cache);    // and on it goes, bit for bit
//
// What is in a file, what is checked when, and what to think of files of others: docs/files.md.
#ifndef SIGHTLINE_KV_FILE_H_
#define SIGHTLINE_KV_FILE_H_

#include "sightline/kv.h"
#include "sightline/parallel.h"
#include "sightline/status.h"

namespace sightline {

// What Map verifies. What decides where K and V are (sizes, lengths, tables) is verified in any
// case, so that neither a damaged nor a forged file is read out of bounds.
enum class KvCheck {
  kLazy,  // not K and V themselves, which are not even read; see Verify
  kFull,  // all checksums: reads the whole file
};

struct KvMapOptions {
  KvCheck check = KvCheck::kLazy;
  // Reads the file into memory instead of mapping it: for files that somebody may shorten or
  // overwrite in place, which ends or confuses a process that has them mapped.
  bool copy = false;
};

// Writes what a memory or cache holds to a file of its own, which `path` becomes in one step: a
// crash leaves the old file or the new one. Evicted and truncated tokens are not written; see
// docs/files.md for what the others keep of them. Pages with such tokens are copied first.
// kInvalidArgument, kOutOfMemory, kIoError; kCorrupt: `memory` is mapped from a damaged file.
Status Save(const CrossMemory& memory, const char* path);
// The cache is not changed meanwhile.
Status Save(const KvCache& cache, const char* path);

// A memory that reads what `path` holds, a memory or a cache, where it is: in constant time but for
// the lengths and tables. The file stays open as long as a copy of the memory lives, and may be
// removed or replaced by Save meanwhile. Any layout is mapped; Run refuses those that its tier does
// not read (kUnsupported): Convert them. On error *memory is unchanged. kInvalidArgument: a file of
// another kind; kUnsupported: of another version or an unknown layout; kCorrupt: damaged, or made
// up; kIoError, kOutOfMemory.
Status Map(const char* path, CrossMemory* memory, const KvMapOptions& options = {});

// Makes *cache what was saved: later appends, truncations and forks give the bits that they would
// have given without the file. Pages are copied into desc.pool, or into the cache's own, and all
// checksums verified. Of `desc` everything may be left out (capacity too), and is then the file's;
// what is given, and not its default, has to be the same, but for capacity and format.tier. On
// error *cache is unchanged: as Map; kInvalidArgument also if `desc` or its pool differ;
// kUnsupported if the tier has no kernels for the layout; kCapacityExceeded.
Status Load(const char* path, const KvCacheDesc& desc, KvCache* cache);

// Verifies what Map with kLazy did not; ok for memories that are not of a file. kCorrupt.
Status Verify(const CrossMemory& memory);

// From any layout to that of `format`: what a file of a tier that this machine lacks, or a plan of
// another precision, needs. Exact between the layouts of one precision, but for rotate_k; all else
// is packed anew from what `memory` makes of the numbers, which are rounded once more
// (docs/files.md has the errors). Positions, lengths and evicted tokens stay. Shares the storage of
// `memory` if that has the layout already. Takes the room of one head in f32 meanwhile. On error
// *converted is unchanged: kInvalidArgument, kUnsupported (tier), kOutOfMemory.
Status Convert(const CrossMemory& memory, const KvFormat& format, CrossMemory* converted,
               const ParallelFor& parallel = {});

}  // namespace sightline

#endif  // SIGHTLINE_KV_FILE_H_
