// Maps, attends to, converts and loads files that libFuzzer makes up. It would take long to guess
// sizes that fit: the input says what the file is to be, then what its sections hold. Numbers are
// changed afterwards, under right checksums. With --write-seeds=FOLDER it writes inputs to begin
// with.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "fuzz/seeds.h"
#include "kv/stored_kv.h"
#include "sightline/attention.h"
#include "sightline/kv_file.h"
#include "support/file_bytes.h"

using namespace sightline;
using namespace sightline::internal;
using namespace sightline::testing;

namespace {

// The bytes of an input, one after the other; zeros behind them.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int64_t Below(int64_t end) { return Next() % end; }
  uint8_t Next() { return size_ == 0 ? uint8_t{0} : (--size_, *data_++); }
  std::vector<unsigned char> Bytes(size_t count) {
    std::vector<unsigned char> bytes(count);
    for (unsigned char& byte : bytes) byte = Next();
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

Precision PrecisionOf(LayoutId layout) {
  constexpr Precision kPrecisions[] = {Precision::kF32,  Precision::kF32,     Precision::kF16,
                                       Precision::kBF16, Precision::kMixed16, Precision::kI8,
                                       Precision::kI8,   Precision::kI8Fine,  Precision::kI8Fine,
                                       Precision::kI8,   Precision::kI8};
  return kPrecisions[static_cast<size_t>(layout)];
}

std::vector<FilePart> PartsFor(Input* input) {
  KvMeta meta = {};
  meta.version = kKvFileVersion;
  meta.content = static_cast<KvContent>(1 + input->Below(3));
  meta.layout_version = kLayoutVersion;
  meta.layout = static_cast<LayoutId>(1 + input->Below(10));
  meta.precision = static_cast<uint32_t>(PrecisionOf(meta.layout));
  const bool has_pages = meta.content != KvContent::kBlock;
  const bool is_cache = meta.content == KvContent::kCache;
  meta.batch = is_cache + input->Below(3);
  meta.num_kv_heads = 1 + input->Below(2);
  meta.head_dim = 1 + input->Below(20);
  meta.v_head_dim = 1 + input->Below(20);
  meta.length = input->Below(200) + input->Below(200);
  if (has_pages) {
    meta.page_tokens = 128 * (1 + input->Below(2));
    const auto pages = static_cast<int64_t>(PagesOf(meta.length, meta.page_tokens));
    meta.num_pages = std::min<int64_t>(input->Below(8), meta.batch * pages);
  }
  if (is_cache) {
    meta.is_settled = meta.length >= 128 || input->Below(2) != 0;
    meta.capacity = input->Below(256) * 4;
    meta.window_left = input->Below(256) - 1;
    if (meta.window_left >= 0) meta.num_sinks = input->Below(200);
    meta.forgotten_pages = input->Below(4);
  }
  const auto batch = static_cast<size_t>(meta.batch);
  const auto heads = static_cast<size_t>(meta.num_kv_heads);
  const PackedShape shape =
      ShapeOf(meta.layout, static_cast<size_t>(meta.head_dim), static_cast<size_t>(meta.v_head_dim),
              static_cast<size_t>(has_pages ? meta.page_tokens : meta.length));
  const PackedOffsets offsets = OffsetsOf(shape);

  std::vector<FilePart> parts = {{kMetaSection, std::vector<unsigned char>(sizeof(meta))},
                                 {kLensSection, std::vector<unsigned char>(batch * 4)}};
  memcpy(parts[0].bytes.data(), &meta, sizeof(meta));
  for (size_t b = 0; b < batch; ++b) {
    const int64_t length = has_pages ? meta.length : std::min(input->Below(256), meta.length);
    PutNumber(static_cast<uint64_t>(length), parts[1].bytes.data() + 4 * b, 4);
  }
  if (has_pages) {
    const size_t tiles = TilesOf(meta.length);
    parts.push_back({kTableSection, {}});
    parts[2].bytes.resize(4 * batch * PagesOf(meta.length, meta.page_tokens));
    for (size_t i = 0; i < parts[2].bytes.size(); i += 4) {
      parts[2].bytes[i] = static_cast<unsigned char>(input->Below(meta.num_pages + 1));
    }
    if (input->Below(2) != 0) {
      std::vector<unsigned char> kept = input->Bytes(batch * tiles * (kKvTile / 8));
      for (size_t bit = 0; bit < kept.size() * 8; ++bit) {
        if (bit % (tiles * kKvTile) < static_cast<size_t>(meta.length)) continue;
        kept[bit / 8] = static_cast<unsigned char>(kept[bit / 8] & ~(1 << bit % 8));
      }
      parts.push_back({kKeptSection, kept});
    }
  }
  if (is_cache && HasQuantizedK(meta.layout) && meta.length > 0) {
    parts.push_back({kTailsSection, input->Bytes(batch * heads * TailHeadBytes(shape, offsets))});
  }
  const size_t count = has_pages ? static_cast<size_t>(meta.num_pages) : batch;
  parts.push_back({kDataSection, input->Bytes(count * heads * offsets.bytes)});
  return parts;
}

// Queries of zeros, few and many, on this CPU's tier if it reads the layout.
void AttendTo(const CrossMemory& memory) {
  constexpr int64_t kQueries[] = {1, 40};
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = memory.num_kv_heads();
  desc.head_dim = memory.head_dim();
  desc.v_head_dim = memory.v_head_dim();
  desc.precision = memory.precision();
  desc.rotate_k = memory.rotate_k();
  desc.max_batch = std::max<int64_t>(memory.batch(), 1);
  desc.max_q_len = kQueries[1];
  desc.max_kv_len = memory.kv_len();
  desc.owns_workspace = true;
  Plan plan;
  if (!Plan::Create(desc, &plan).ok()) abort();
  for (const int64_t count : kQueries) {
    const auto rows = static_cast<size_t>(memory.batch() * count * desc.num_heads);
    // One more, so that there is an address where there are no rows.
    const std::vector<float> q(rows * static_cast<size_t>(desc.head_dim) + 1);
    std::vector<float> out(rows * static_cast<size_t>(desc.v_head_dim) + 1);
    AttentionArgs args;
    args.q = ConstTensorView::Dense(q.data(), DType::kF32, memory.batch(), count, desc.num_heads,
                                    desc.head_dim);
    args.out = TensorView::Dense(out.data(), DType::kF32, memory.batch(), count, desc.num_heads,
                                 desc.v_head_dim);
    args.memory = &memory;
    const Status status = Run(plan, args);
    if (!status.ok() && status.code() != StatusCode::kUnsupported) abort();
  }
}

void UseMemory(const CrossMemory& memory) {
  const PackedKv& packed = *KvAccess::Get(memory);
  // Of no tokens there may be any number of heads, and of tokens that are forgotten any number.
  if (memory.batch() > 64 || memory.num_kv_heads() > 64 || memory.kv_len() > 4096) return;
  AttendTo(memory);
  for (const Precision precision : {Precision::kF32, Precision::kI8, Precision::kMixed16}) {
    CrossMemory converted;
    if (!Convert(memory, {precision, "scalar", precision == Precision::kI8}, &converted).ok()) {
      abort();
    }
    if (converted.kv_len() != packed.length()) abort();
  }
}

void UseCache(const StoredKv& stored) {
  const KvMeta& meta = stored.meta();
  if (meta.batch > 64 || meta.num_kv_heads > 64) return;
  KvCacheDesc desc;
  desc.batch = meta.batch;
  desc.num_kv_heads = meta.num_kv_heads;
  desc.head_dim = meta.head_dim;
  desc.v_head_dim = meta.v_head_dim;
  desc.capacity = 4096;
  desc.window_left = meta.window_left;
  desc.num_sinks = meta.num_sinks;
  desc.page_tokens = meta.page_tokens;
  desc.format = {static_cast<Precision>(meta.precision), "scalar", IsRotated(meta.layout)};
  KvCache cache, fork;
  if (!KvCache::Create(desc, &cache).ok()) return;
  PagedKv& packed = *KvAccess::GetPaged(cache);
  if (packed.geometry().layout != meta.layout || !packed.Restore(stored.snapshot()).ok()) return;
  const std::vector<float> zeros(140 * kMaxHeadDim);
  for (const int64_t count : {1, 139}) {
    ConstTensorView k = {};
    k.data = zeros.data();
    k.dtype = DType::kF32;
    k.batch = meta.batch;
    k.length = count;
    k.heads = meta.num_kv_heads;
    k.dim = meta.head_dim;
    k.dim_stride = 4;
    k.length_stride = 4 * k.dim;
    ConstTensorView v = k;
    v.dim = meta.v_head_dim;
    if (!cache.Fork(&fork).ok()) abort();
    (void)cache.Append(k, v);
    (void)fork.Truncate(fork.length() / 2);
    (void)fork.Append(k, v);
  }
}

}  // namespace

// Files of every content and layout that are right, of one tile and of several pages: the bytes
// that PartsFor asks for, one after the other.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  std::vector<std::vector<unsigned char>> seeds;
  for (const KvContent content : {KvContent::kBlock, KvContent::kPages, KvContent::kCache}) {
    for (uint8_t layout = 0; layout < 10; ++layout) {
      for (const bool is_long : {false, true}) {
        std::vector<unsigned char> seed = {0};  // changes
        const auto add = [&](std::initializer_list<uint8_t> bytes) {
          seed.insert(seed.end(), bytes);
        };
        const bool is_cache = content == KvContent::kCache;
        add({static_cast<uint8_t>(static_cast<int>(content) - 1), layout});
        add({static_cast<uint8_t>(is_cache ? 0 : 1), 1, 7, 11});  // one sequence, two heads
        const uint8_t half = is_long ? 199 : 40;
        add({half, half});
        if (content == KvContent::kBlock) {
          add({255});  // the sequence has all of it
        } else {
          add({0, 7});                         // pages of 128, as many as it takes
          if (is_cache && !is_long) add({0});  // has not settled
          if (is_cache) add({250, 0, 0});      // capacity; no window, which forgot nothing
          add({1});
          if (is_long) add({2, 3, 4});
          add({0});  // all tokens are there
        }
        for (uint8_t i = 0; i < 200; ++i) seed.push_back(i);
        seeds.push_back(std::move(seed));
      }
    }
  }
  WriteSeeds(seeds, *argc, *argv);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  struct Change {
    size_t part, at, size;
    uint32_t value;
  };
  std::vector<Change> changes(static_cast<size_t>(std::max<int64_t>(input.Below(6) - 2, 0)));
  for (Change& change : changes) {
    const auto number = [&] { return uint32_t{input.Next()} << 8 | input.Next(); };
    change = {input.Next(), number(), input.Below(8) == 0 ? number() : SIZE_MAX, 0};
    change.value = number() << 16;
    change.value |= number();
  }
  std::vector<FilePart> parts = PartsFor(&input);
  for (const Change& change : changes) {
    std::vector<unsigned char>& bytes = parts[change.part % parts.size()].bytes;
    if (change.size != SIZE_MAX) bytes.resize(change.size);
    if (bytes.size() < 4) continue;
    PutNumber(change.value, bytes.data() + change.at % (bytes.size() / 4) * 4, 4);
  }
  const std::vector<unsigned char> file_bytes = Assemble(parts, kKvFileKind, kDataSection);
  // Of its exact size, so that AddressSanitizer sees the first byte beyond.
  constexpr std::align_val_t kAlignment{kFileAlignBytes};
  auto* const image = static_cast<unsigned char*>(::operator new(file_bytes.size(), kAlignment));
  std::copy(file_bytes.begin(), file_bytes.end(), image);
  std::shared_ptr<const MappedFile> file;
  if (!MappedFile::Wrap(image, file_bytes.size(), kKvFileKind, FileCheck::kHeader, &file).ok()) {
    abort();
  }
  std::shared_ptr<StoredKv> stored;
  if (StoredKv::Open(file, &stored).ok()) {
    if (stored->meta().content == KvContent::kCache) UseCache(*stored);
    CrossMemory memory;
    KvAccess::Set(stored, &memory);
    UseMemory(memory);
  }
  stored.reset();
  file.reset();
  ::operator delete(image, kAlignment);
  return 0;
}
