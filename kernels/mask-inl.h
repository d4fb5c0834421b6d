// Which keys of a tile rows see, as bits: position (causal, windows, prefix, padding), masks of
// single keys and of blocks all become one form, so that kernels know one.
//
// Most pairs of tiles are seen whole or not at all, which bounds of the query tile tell: those pay
// two comparisons. For the others bits are made, row by row where there are masks, otherwise for
// kLanes rows at once in 20 instructions for 32 keys. Kernels then test one bit for each score, but
// where all rows see a step's keys, and skip what no row of a vector sees at either end of the
// tile.
#ifndef SIGHTLINE_KERNELS_MASK_INL_H_
#define SIGHTLINE_KERNELS_MASK_INL_H_

#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Keys [0, n), n <= 32, of a word of the mask.
HWY_INLINE uint32_t BitsBelow(size_t n) {
  return static_cast<uint32_t>((uint64_t{1} << MinOf(n, kMaskBits)) - 1);
}

// What is left of keys below `limit`, counted from `begin` on.
HWY_INLINE size_t KeysFrom(size_t begin, size_t limit) { return limit > begin ? limit - begin : 0; }

// The bits of elements [0, n) that are not 0, n <= kKvTile. In place: a copy would be read before
// what it is made of has left the store buffer.
HWY_INLINE void BitsOfBytes(const uint8_t* HWY_RESTRICT bytes, size_t n, RowMask& mask) {
  constexpr size_t kBytes = hn::MaxLanes(DU8());
  uint8_t* words = reinterpret_cast<uint8_t*>(mask.words);  // little-endian, as all our CPUs are
  for (size_t i = 0; i < n; i += kBytes) {
    const VU8 x = i + kBytes <= n ? hn::LoadU(du8, bytes + i) : hn::LoadN(du8, bytes + i, n - i);
    uint8_t bits[8];  // as many may be written
    hn::StoreMaskBits(du8, hn::Ne(x, hn::Zero(du8)), bits);
    __builtin_memcpy(words + i / 8, bits, kBytes / 8);
  }
}

// What one mask says of keys [key, key + n) for a row.
HWY_INLINE void BitsOfMask(const MaskRows& rows, const RowIndex& index, size_t key, size_t n,
                           RowMask& mask) {
  const uint8_t* from = MaskOf(rows, index, key);
  HWY_UNROLL(4)
  for (size_t w = 0; w < kMaskWords; ++w) mask.words[w] = 0;
  if (rows.kv_block == 1 && rows.key_stride == 1) return BitsOfBytes(from, n, mask);
  for (size_t i = 0; i < n;) {
    const size_t in_block = (rows.first_key + key + i) % rows.kv_block;
    const size_t end = MinOf(n, i + rows.kv_block - in_block);
    if (*MaskOf(rows, index, key + i) != 0) {
      for (; i < end; ++i) mask.words[i / kMaskBits] |= uint32_t{1} << i % kMaskBits;
    }
    i = end;
  }
}

// Keys that are there, of n from `key` on, which begins a tile: bits of its word w.
HWY_INLINE uint32_t PresentBits(const AttendTask& task, size_t key, size_t n, size_t w) {
  const uint32_t bits = BitsBelow(KeysFrom(w * kMaskBits, n));
  const TileKeys keys = KeysOfTile(task, key);
  if (HWY_LIKELY(keys == TileKeys::kAll)) return bits;
  return keys == TileKeys::kNone ? 0 : bits & task.pages.kept[key / kMaskBits + w];
}

// Keys [begin, limit) and those of the prefix, of the word's that begins with `first`.
HWY_INLINE uint32_t RangeBits(const AttendTask& task, size_t begin, size_t limit, size_t first,
                              uint32_t present) {
  const uint32_t by_position =
      BitsBelow(KeysFrom(first, limit)) & ~BitsBelow(KeysFrom(first, begin));
  return (by_position | BitsBelow(KeysFrom(first, task.prefix_len))) & present;
}

// What the task's masks say of keys [key, key + n), row by row. Rows that read the same booleans,
// as those of a block or of a broadcast mask do, find them done.
class MaskReader {
 public:
  MaskReader(const AttendTask& task, size_t key, size_t n) : task_(task), key_(key), n_(n) {}

  HWY_INLINE void Apply(size_t r, RowMask& mask) {
    const RowIndex index = IndexOf(r, task_.q.beams, task_.q.group);
    for (size_t i = 0; i < kNumMasks; ++i) {
      const MaskRows& rows = task_.masks[i];
      if (rows.data == nullptr) continue;
      const uint8_t* from = MaskOf(rows, index, key_);
      if (from != from_[i]) BitsOfMask(rows, index, key_, n_, bits_[i]);
      from_[i] = from;
      HWY_UNROLL(4)
      for (size_t w = 0; w < kMaskWords; ++w) mask.words[w] &= bits_[i].words[w];
    }
  }

 private:
  static constexpr size_t kNumMasks = 2;

  const AttendTask& task_;
  size_t key_;
  size_t n_;
  const uint8_t* from_[kNumMasks] = {};
  RowMask bits_[kNumMasks];
};

// Keys [key, key + n) that row r of the task sees; `key` begins a tile, n <= kKvTile.
HWY_NOINLINE RowMask MaskOfRow(const AttendTask& task, size_t r, const KeyRange& range, size_t key,
                               size_t n) {
  RowMask mask;
  for (size_t w = 0; w < kMaskWords; ++w) {
    mask.words[w] = RangeBits(task, range.begin, range.limit, key + w * kMaskBits,
                              PresentBits(task, key, n, w));
  }
  MaskReader(task, key, n).Apply(r, mask);
  return mask;
}

// True if rows whose ranges have these bounds see none of keys [key, end), or all of them, as far
// as position goes.
struct RangeBounds {
  size_t min_begin, max_begin;
  size_t min_limit, max_limit;
};
HWY_INLINE bool SeesNone(const AttendTask& task, const RangeBounds& rows, size_t key, size_t end) {
  return key >= task.prefix_len && (end <= rows.min_begin || key >= rows.max_limit);
}
HWY_INLINE bool SeesAll(const AttendTask& task, const RangeBounds& rows, size_t key, size_t end) {
  return end <= task.prefix_len || (rows.max_begin <= key && end <= rows.min_limit);
}

// Bits below lane n of each lane, n of any sign.
HWY_INLINE VI32 LaneBitsBelow(VI32 n) {
  const VI32 bits = hn::Set(di32, int32_t{kMaskBits});
  const VI32 shift = hn::Clamp(n, hn::Zero(di32), hn::Set(di32, int32_t{kMaskBits} - 1));
  const VI32 below = hn::Sub(hn::Shl(hn::Set(di32, 1), shift), hn::Set(di32, 1));
  return hn::IfThenElse(hn::Ge(n, bits), hn::Set(di32, -1), below);
}

// Keys of the tile that all rows see, and that any row of a vector sees, as bits.
struct CommonBits {
  uint32_t all[kMaskWords];
  uint32_t any[kMaxQueryVectors][kMaskWords];
};

// Bits of all rows of a query tile by position.
HWY_INLINE void FillByPosition(const AttendTask& task, const QueryTile& q, size_t key, size_t n,
                               CommonBits& common) {
  const size_t rows = q.num_vectors * kLanes;
  for (size_t w = 0; w < kMaskWords; ++w) {
    const size_t first = key + w * kMaskBits;
    const uint32_t present = PresentBits(task, key, n, w);
    common.all[w] = RangeBits(task, q.max_begin, q.min_limit, first, present);
    const VI32 origin = hn::Set(di32, static_cast<int32_t>(first));
    const VI32 prefix =
        hn::Set(di32, static_cast<int32_t>(BitsBelow(KeysFrom(first, task.prefix_len))));
    const VI32 present_bits = hn::Set(di32, static_cast<int32_t>(present));
    for (size_t v = 0; v < q.num_vectors; ++v) {
      const size_t row = v * kLanes;
      common.any[v][w] = RangeBits(task, static_cast<size_t>(q.begin[row]),
                                   static_cast<size_t>(q.limit[row + kLanes - 1]), first, present);
      const VI32 below_limit = LaneBitsBelow(hn::Sub(hn::Load(di32, q.limit + row), origin));
      const VI32 below_begin = LaneBitsBelow(hn::Sub(hn::Load(di32, q.begin + row), origin));
      const VI32 seen = hn::Or(hn::AndNot(below_begin, below_limit), prefix);
      hn::Store(hn::And(seen, present_bits), di32, q.mask + w * rows + row);
    }
  }
}

// Takes from these bits what masks hide. Rows that are not real see what the last one does.
HWY_NOINLINE void ApplyMasks(const AttendTask& task, const QueryTile& q, size_t key, size_t n,
                             CommonBits& common) {
  const size_t rows = q.num_vectors * kLanes;
  for (size_t w = 0; w < kMaskWords; ++w) {
    common.all[w] = ~uint32_t{0};
    for (size_t v = 0; v < q.num_vectors; ++v) common.any[v][w] = 0;
  }
  MaskReader reader(task, key, n);
  RowMask mask = {};
  for (size_t r = 0; r < rows; ++r) {
    if (r < q.num_rows) {
      HWY_UNROLL(4)
      for (size_t w = 0; w < kMaskWords; ++w) {
        mask.words[w] = static_cast<uint32_t>(q.mask[w * rows + r]);
      }
      reader.Apply(q.first_row + r, mask);
    }
    HWY_UNROLL(4)
    for (size_t w = 0; w < kMaskWords; ++w) {
      common.all[w] &= mask.words[w];
      common.any[r / kLanes][w] |= mask.words[w];
      q.mask[w * rows + r] = static_cast<int32_t>(mask.words[w]);
    }
  }
}

// From the first key to the last.
HWY_INLINE KeySpan SpanOf(const uint32_t (&bits)[kMaskWords]) {
  KeySpan span = {};
  for (size_t w = kMaskWords; w-- > 0;) {
    if (bits[w] == 0) continue;
    const size_t lowest = static_cast<size_t>(__builtin_ctz(bits[w]));
    const size_t highest = kMaskBits - 1 - static_cast<size_t>(__builtin_clz(bits[w]));
    if (span.end == 0) span.end = w * kMaskBits + highest + 1;
    span.first = w * kMaskBits + lowest / kMaskAlign * kMaskAlign;
  }
  return span;
}

// Sets what follows from the spans of num_vectors vectors.
HWY_INLINE void JoinSpans(size_t num_vectors, TileMask& mask) {
  mask.any = mask.common = mask.seen[0];
  for (size_t v = 1; v < num_vectors; ++v) {
    const KeySpan& span = mask.seen[v];
    mask.common.first = MaxOf(mask.common.first, span.first);
    mask.common.end = MinOf(mask.common.end, span.end);
    if (span.end == 0) continue;
    mask.any.first = mask.any.end == 0 ? span.first : MinOf(mask.any.first, span.first);
    mask.any.end = MaxOf(mask.any.end, span.end);
  }
  if (mask.common.first >= mask.common.end) mask.common = {};
}

// What the query tile sees of keys [key, key + n) that it sees in part.
HWY_NOINLINE void LookCloser(const AttendTask& task, const QueryTile& q, size_t key, size_t n,
                             TileMask& mask) {
  CommonBits common;
  FillByPosition(task, q, key, n, common);
  if (HasMasks(task)) ApplyMasks(task, q, key, n, common);
  for (size_t w = 0; w < kMaskWords; ++w) mask.all[w] = common.all[w];
  for (size_t v = 0; v < q.num_vectors; ++v) mask.seen[v] = SpanOf(common.any[v]);
  JoinSpans(q.num_vectors, mask);
}

// What the query tile sees of keys [key, key + n); `key` begins a tile, n <= kKvTile.
HWY_INLINE TileMask LookAtTile(const AttendTask& task, const QueryTile& q, size_t key, size_t n) {
  const RangeBounds rows = {q.min_begin, q.max_begin, q.min_limit, q.max_limit};
  TileMask mask = {};
  mask.words = q.mask;
  if (SeesNone(task, rows, key, key + n)) return mask;  // of no keys as well, which have no page
  const TileKeys keys = KeysOfTile(task, key);
  if (keys == TileKeys::kNone) return mask;
  if (HasMasks(task) || keys != TileKeys::kAll || n % kMaskAlign != 0 ||
      !SeesAll(task, rows, key, key + n)) {
    LookCloser(task, q, key, n, mask);
    return mask;
  }
  for (size_t w = 0; w < kMaskWords; ++w) mask.all[w] = BitsBelow(KeysFrom(w * kMaskBits, n));
  mask.any = mask.common = {0, n};
  for (KeySpan& span : mask.seen) span = {0, n};
  return mask;
}

// The same of the tile's keys from `part` on, a multiple of kMaskBits, of which there are n.
HWY_NOINLINE TileMask MaskFrom(const TileMask& mask, size_t num_vectors, size_t part, size_t n) {
  TileMask rest = {};
  rest.words = mask.words + part / kMaskBits * num_vectors * kLanes;
  for (size_t v = 0; v < num_vectors; ++v) {
    const KeySpan span = {KeysFrom(part, mask.seen[v].first),
                          MinOf(KeysFrom(part, mask.seen[v].end), n)};
    if (span.first < span.end) rest.seen[v] = span;
  }
  JoinSpans(num_vectors, rest);
  for (size_t w = part / kMaskBits; w < kMaskWords; ++w) {
    rest.all[w - part / kMaskBits] = mask.all[w];
  }
  return rest;
}

// True if all rows see keys [key, key + n) of the tile, which are part of one word.
HWY_INLINE bool AllSee(const TileMask& mask, size_t key, size_t n) {
  const uint32_t bits = BitsBelow(n) << key % kMaskBits;
  return (mask.all[key / kMaskBits] & bits) == bits;
}
// And if they see all that there are to see, with whole lanes of `depth` keys.
HWY_INLINE bool AllSeeAll(const TileMask& mask, size_t depth) {
  for (size_t key = mask.any.first; key < RoundUp(mask.any.end, depth); key += depth) {
    if (!AllSee(mask, key, depth)) return false;
  }
  return true;
}
// True if `span` has some of keys [key, key + kMaskAlign).
HWY_INLINE bool HasSome(const KeySpan& span, size_t key) {
  return span.first <= key && key < span.end;
}

// Lanes of vector v of the rows that see key `key` of the tile.
template <size_t kQV>
HWY_INLINE hn::Mask<DI32> SeenBy(const TileMask& mask, size_t key, size_t v) {
  const VI32 word = hn::Load(di32, mask.words + (key / kMaskBits * kQV + v) * kLanes);
  const uint32_t bit = uint32_t{1} << key % kMaskBits;
  return hn::TestBit(word, hn::Set(di32, static_cast<int32_t>(bit)));
}

// Hidden scores become -inf, whatever the product was (NaN included).
template <size_t kQV>
HWY_INLINE VF Hide(VF s, const TileMask& mask, size_t key, size_t v) {
  return hn::IfThenElse(hn::RebindMask(df, SeenBy<kQV>(mask, key, v)), s, NegInf());
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_MASK_INL_H_
