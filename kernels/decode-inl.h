// The driver for few rows: one decoding step, times the heads and beams that share K and V.
//
//   for each chunk of keys, of one part or of several
//     for each block of up to six rows
//       for each tile of 128 keys
//         S = K·Q     lanes are keys: a vector of K is loaded once and multiplied for each row
//         P           of the tile before, row by row
//       O += P·V    lanes are channels: a vector of V is loaded once, likewise
//
// Traffic: K and V come from memory once for all rows, from cache once for each block; with one row
// it is what bounds the time. Work per score: (head_dim + v_head_dim) / kLanes vector products,
// against one for each query vector in prefill, most of whose lanes would be empty here. Beyond
// kDecodeRows prefill takes over. Model and measurements: docs/kernels/int8.md.
#ifndef SIGHTLINE_KERNELS_DECODE_INL_H_
#define SIGHTLINE_KERNELS_DECODE_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/load_queries-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/scratch-inl.h"
#include "kernels/store_output-inl.h"
#include "kernels/store_weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Rows that share one load. Of 32 registers 6 x 4 accumulators, 4 vectors of K or V and a broadcast
// are 29; 5 x 4 leave room for 4 vectors before and after they are widened or taken apart, 3 x 4
// for operands of two registers, and 2 x 4 where Clang takes all of them apart before it multiplies
// any: 3 x 4 would spill one. Of 16 registers 5 x 2, 2 and 1 leave three to that, or to products of
// several instructions; 4 x 2 leave room for bf16 as ARM widens it, to two other vectors.
constexpr size_t kMaxRowBlock = kNumRegisters == 32 ? 6 : 5;
template <class KeysOrValues>
constexpr size_t RowBlock() {
  constexpr size_t kDepth = kDepthOf<KeysOrValues>;
  if (kOperandRegisters<kDepth> > 1) return HWY_COMPILER_CLANG ? 2 : 3;
  if (kLaneDepthOf<KeysOrValues> != kDepth) return HWY_ARCH_ARM_V7 ? 4 : 5;
  return HWY_ARCH_ARM && kDepth == 2 ? 5 : kMaxRowBlock;
}
template <class KeysOrValues>
constexpr size_t kRowBlock = RowBlock<KeysOrValues>();

// Rows that decode takes: its lanes are full however few they are. Beyond, prefill's query tiles
// are at least half full.
constexpr size_t kDecodeRows = MaxOf(kMaxRowBlock, kLanes / 2 * F32Ops::kQueryVectors);

// Vectors of keys or channels side by side: as many as fit beside the accumulators. On ARMv7 half
// as many where one vector becomes two operands (bf16) or one of two registers (bytes).
template <class KeysOrValues>
constexpr size_t VectorsPerBlock(size_t rows) {
  constexpr size_t kDepth = kDepthOf<KeysOrValues>;
  constexpr bool kStaysOne = kOperandRegisters<kDepth> == 1 && kLaneDepthOf<KeysOrValues> == kDepth;
  if (HWY_ARCH_ARM_V7 && !kStaysOne) return 2;
  return kNumRegisters == 32 || rows <= 2 ? 4 : 2;
}

// Latency of today's dot products and multiply-adds times two of them a cycle: fewer sums would
// wait for each other.
constexpr size_t kMinSums = 8;

// Every other step has sums of its own where that is too few of them. On ARMv7, of few rows alone:
// broadcasts of more would leave no room for twice the sums.
template <size_t kRegistersPerOperand>
constexpr bool GoesByTwos(size_t rows, size_t vectors) {
  if (HWY_ARCH_ARM_V7 && rows > 2) return false;
  return rows * vectors * kRegistersPerOperand < kMinSums;
}

// K and V are read by turns. Each turn costs the latency of memory, since the CPU's prefetchers
// have lost the thread: so they are long, at 64 dimensions 256 KiB (of f32 512). The scores of a
// turn of floats wait in L2.
constexpr size_t kMaxChunkKeys = 4096;
constexpr size_t kMaxChunkTiles = kMaxChunkKeys / kKvTile;
template <class Values>
constexpr size_t kChunkKeys = Values::kQuantized ? kMaxChunkKeys : kMaxChunkKeys / 2;

// Keys whose bytes of P fill a vector.
constexpr size_t kSoftmaxKeys = 4 * kLanes;
static_assert(kKeyBlock % kSoftmaxKeys == 0, "packed K reaches to the end of a vector of bytes");

// What scores are to be raised by, in octaves: what they lack, and their segment's bias. Added to
// each other or to a score, they would lose bits to a large bias; their differences do not.
struct ScoreOffset {
  float lack;
  float bias;
};
HWY_INLINE float Distance(const ScoreOffset& a, const ScoreOffset& b) {
  return (a.lack - b.lack) + (a.bias - b.bias);
}

// What a row keeps while the chunks pass by, and from call to call of parts.
struct DecodeRow {
  float* query;      // Q in f32: as such it meets the mean of a part's keys
  uint8_t* q;        // head_dim / depth 32-bit lanes
  float* s;          // scores of num_tiles tiles, by turns, then P if that is in floats
  uint8_t* p;        // bytes: [kChunkKeys]
  float* o;          // [PaddedVHeadDim]
  float* d;          // [kLanes]: the running denominator is their sum
  float* weight;     // [kMaxChunkTiles]: of the chunk's tiles, what one unit of P is worth
  float* mass;       // [kMaxChunkTiles]: and the sum of P in such units; quantised V of parts
  size_t num_tiles;  // a power of two
  float row_scale;   // quantised K, as in QueryTile
  int32_t acc_init;  // int8
  size_t index;      // in the task
  // Reference: near the running maximum, as a score and what that is to be raised by.
  float m;
  ScoreOffset m_offset;
  // Of the tile whose P is due: maximum of the visible scores, and the same.
  float tile_m;
  ScoreOffset tile_offset;
  int32_t p_init[kMaxChunkTiles];  // biased V: where the accumulators of P·V start
  // Of the part whose scores come next, null before the first:
  const AttendTask* part;
  float lack;          // as in QueryTile
  ScoreOffset offset;  // of several parts
};

// Neighbouring keys of one part that are read in one go: whole tiles, but for the part's last one.
// They follow one another in K and in V.
struct KeyRun {
  const AttendTask* part;
  size_t key;
  size_t num_keys;
  size_t first_tile;  // of the chunk
  KvTile tile;        // the run's first one
};

// True if the run's keys are the next ones of the same part.
HWY_INLINE bool FollowsIn(const KeyRun& run, const KeyRun& before) {
  return run.part == before.part && run.key == before.key + before.num_keys;
}

HWY_INLINE size_t TilesOf(const KeyRun& run) { return (run.num_keys + kKvTile - 1) / kKvTile; }

// What is read in one go: up to a turn's keys.
struct Chunk {
  KeyRun runs[kMaxChunkTiles];
  size_t num_runs;
  size_t num_tiles;
  uint32_t seen;         // bits of tiles of which all rows see all there is to read
  const uint8_t* after;  // what the last block of rows reads after it; null: nobody knows
};
static_assert(kMaxChunkTiles <= 32, "bits of a chunk's tiles");

// A vector of packed K or V, widened where it is stored in fewer bits.
template <typename Stored>
HWY_INLINE VI32 LoadPacked(const uint8_t* p) {
  if constexpr (kStoredLaneBytes<Stored> == 2) {
    const hn::Rebind<Stored, DF> d;
    return hn::BitCast(di32, ToF32(hn::Load(d, reinterpret_cast<const Stored*>(p))));
  } else {
    return hn::BitCast(di32, hn::Load(du8, p));
  }
}

// acc[r][v] += B[v] * A[r]: a row of kVectors vectors of packed K or V times one broadcast lane of
// each row of Q or P, or two where bf16 has to be widened.
template <class Product, typename Stored, size_t kVectors, size_t kRows>
HWY_INLINE void VectorStep(const uint8_t* HWY_RESTRICT b, ptrdiff_t ahead,
                           const uint8_t* const (&a_rows)[kRows], size_t step,
                           typename Product::Acc (&acc)[kRows][kVectors]) {
  constexpr size_t kBytes = kLanes * kStoredLaneBytes<Stored>;
  constexpr size_t kParts = kLaneParts<Product, Stored>;
  VI32 bv[kVectors];
  HWY_UNROLL(4)
  for (size_t v = 0; v < kVectors; ++v) {
    if (v * kBytes % kPackedAlignBytes == 0) {  // a cache line
      __builtin_prefetch(b + static_cast<ptrdiff_t>(v * kBytes) + ahead);
    }
    bv[v] = LoadPacked<Stored>(b + v * kBytes);
  }
  HWY_UNROLL(2)
  for (size_t part = 0; part < kParts; ++part) {
    VI32 operand[kVectors];
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      operand[v] = hn::BitCast(di32, FloatOfLane<kParts>(bv[v], part));
    }
    HWY_UNROLL(8)
    for (size_t r = 0; r < kRows; ++r) {
      const size_t lane = step * kParts + part;
      const VU8 a = hn::BitCast(du8, Broadcast32(a_rows[r] + lane * kLaneBytes));
      HWY_UNROLL(4)
      for (size_t v = 0; v < kVectors; ++v) {
        acc[r][v] = Product::MulAcc(acc[r][v], operand[v], a);
      }
    }
  }
}

// Where sums begin: at `init`, which only integers have.
template <class Acc>
HWY_INLINE Acc InitialSum([[maybe_unused]] int32_t init) {
  if constexpr (hwy::IsSame<Acc, VI32>()) {
    return hn::Set(di32, init);
  } else {
    return hn::Zero(df);
  }
}

// The same for num_steps steps from b on, b_stride_bytes apart, which turn.from lies behind.
// a_rows[r] points to row r's lanes.
template <class Product, typename Stored, size_t kVectors, size_t kRows>
HWY_INLINE void VectorProduct(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                              const Turn& turn, const uint8_t* const (&a_rows)[kRows],
                              size_t num_steps, typename Product::Acc (&acc)[kRows][kVectors]) {
  size_t end = num_steps;  // of the steps that fetch what lies before the turn
  ptrdiff_t ahead = static_cast<ptrdiff_t>(turn.ahead);
  if (turn.to != nullptr) {
    const ptrdiff_t bytes = DistanceOf(b, turn.from) - ahead;
    if (bytes < static_cast<ptrdiff_t>(num_steps * b_stride_bytes)) {
      end = bytes < 0 ? 0 : static_cast<size_t>(bytes) / b_stride_bytes / 2 * 2;
    }
  }
  constexpr bool kByTwos = GoesByTwos<kOperandRegisters<Product::kDepth>>(kRows, kVectors);
  using Acc = typename Product::Acc;
  Acc odd[kRows][kVectors];
  if constexpr (kByTwos) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (size_t v = 0; v < kVectors; ++v) odd[r][v] = InitialSum<Acc>(0);
    }
  }
  for (size_t step = 0;; end = num_steps) {
#if HWY_COMPILER_GCC_ACTUAL
    asm("" : "+r"(end));  // as in BlockProduct; here, or g++ makes one loop of both
#endif
    if constexpr (kByTwos) {
      for (; step + 2 <= end; step += 2) {
        VectorStep<Product, Stored>(b, ahead, a_rows, step, acc);
        VectorStep<Product, Stored>(b + b_stride_bytes, ahead, a_rows, step + 1, odd);
        b += 2 * b_stride_bytes;
      }
    }
    for (; step < end; ++step) {
      VectorStep<Product, Stored>(b, ahead, a_rows, step, acc);
      b += b_stride_bytes;
    }
    if (step == num_steps) break;
    ahead += DistanceOf(turn.from, turn.to);
  }
  if constexpr (kByTwos) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (size_t v = 0; v < kVectors; ++v) acc[r][v] = hn::Add(acc[r][v], odd[r][v]);
    }
  }
}

// Tile t's scores of a row.
HWY_INLINE float* ScoresOf(const DecodeRow& row, size_t t) {
  return row.s + (t & (row.num_tiles - 1)) * kKvTile;
}

// Scores of keys [key, key + kVectors * kLanes) of a tile, the chunk's t-th.
template <class Keys, size_t kVectors, size_t kRows>
HWY_INLINE void DecodeScores(const DecodeRow* rows, const KvTile& kv, size_t num_steps, size_t t,
                             size_t key) {
  using Acc = typename Keys::Product::Acc;
  Acc acc[kRows][kVectors];
  const uint8_t* q[kRows];
  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    q[r] = rows[r].q;
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) acc[r][v] = InitialSum<Acc>(rows[r].acc_init);
  }
  VectorProduct<typename Keys::Product, typename Keys::Stored, kVectors, kRows>(
      KeyColumns<Keys>(kv, key), kKeyBlock * kStoredLaneBytes<typename Keys::Stored>, kv.turn, q,
      num_steps, acc);

  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    float* HWY_RESTRICT s = ScoresOf(rows[r], t) + key;
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      if constexpr (Keys::kQuantized) {
        const VF product = hn::Mul(hn::ConvertTo(df, acc[r][v]), hn::Set(df, rows[r].row_scale));
        hn::Store(hn::Mul(product, hn::LoadU(df, kv.k_scale + key + v * kLanes)), df,
                  s + v * kLanes);
      } else {
        hn::Store(acc[r][v], df, s + v * kLanes);
      }
    }
  }
}

// Scores of the first num_scores keys of a tile; as many more as fill the last step.
template <class Keys, size_t kRows>
HWY_NOINLINE void DecodeTileScores(const DecodeRow* rows, const KvTile& kv, size_t num_steps,
                                   size_t t, size_t num_scores) {
  constexpr size_t kStepKeys = VectorsPerBlock<Keys>(kRows) * kLanes;
  static_assert(kSoftmaxKeys % kStepKeys == 0, "softmax finds every score it reads");
  for (size_t key = 0; key < num_scores; key += kStepKeys) {
    DecodeScores<Keys, VectorsPerBlock<Keys>(kRows), kRows>(rows, kv, num_steps, t, key);
  }
}

// Masks of a row's scores of keys [key, key + n), which are followed by what has no key, up to
// num_scores; n and num_scores are at most kKvTile. What is hidden becomes -inf.
HWY_NOINLINE void HideRowScores(const AttendTask& task, size_t row, size_t key, size_t n,
                                size_t num_scores, float* HWY_RESTRICT s) {
  const KeyRange range = RangeOf(task, row);
  const RangeBounds bounds = {range.begin, range.begin, range.limit, range.limit};
  if (!HasMasks(task) && KeysOfTile(task, key) == TileKeys::kAll &&
      SeesAll(task, bounds, key, key + num_scores)) {
    return;
  }
  const RowMask mask = MaskOfRow(task, row, range, key, n);
  HWY_ALIGN uint8_t bits[kKvTile / 8 + 8] = {};  // a mask of lanes is loaded as eight bytes
  __builtin_memcpy(bits, mask.words, sizeof(mask.words));
  for (size_t i = 0; i < num_scores; i += kLanes) {
    // kLanes may be 4, whose bits begin within a byte.
    const uint8_t lanes[8] = {static_cast<uint8_t>(bits[i / 8] >> i % 8), bits[i / 8 + 1]};
    const auto seen = hn::LoadMaskBits(df, lanes);
    hn::Store(hn::IfThenElse(seen, hn::Load(df, s + i), NegInf()), df, s + i);
  }
}

// Finished scores of num_rows rows, up to kRowBlock, of the first n keys of a tile, the chunk's
// t-th; what follows to a multiple of kSoftmaxKeys is hidden. Returns where that is. is_seen: all
// rows are known to see all keys up to there.
template <class Keys>
HWY_INLINE size_t ScoreRows(const AttendTask& task, const DecodeRow* rows, size_t num_rows,
                            const KvTile& kv, size_t t, size_t n, float* HWY_RESTRICT biases,
                            bool is_seen = false) {
  const size_t num_steps =
      RoundUp(task.head.shape.head_dim, kLaneDepthOf<Keys>) / kLaneDepthOf<Keys>;
  const size_t num_scores = RoundUp(n, kSoftmaxKeys);
  WithCount<kRowBlock<Keys>>(num_rows, [&](auto count) HWY_ATTR {
    DecodeTileScores<Keys, decltype(count)::value>(rows, kv, num_steps, t, num_scores);
  });
  if (HWY_LIKELY(is_seen && !ModifiesScores(task))) return num_scores;
  for (size_t r = 0; r < num_rows; ++r) {
    float* HWY_RESTRICT s = ScoresOf(rows[r], t);
    if (ModifiesScores(task)) {
      ModifyRow(task, rows[r].index, rows[r].lack, kv.key_begin, n, s, biases);
    }
    if (!is_seen) HideRowScores(task, rows[r].index, kv.key_begin, n, num_scores, s);
  }
  return num_scores;
}

// num_scores is a multiple of kSoftmaxKeys.
HWY_INLINE float LargestScore(const float* HWY_RESTRICT s, size_t num_scores) {
  VF m[4];
  HWY_UNROLL(4)
  for (size_t v = 0; v < 4; ++v) m[v] = hn::Load(df, s + v * kLanes);
  for (size_t i = kSoftmaxKeys; i < num_scores; i += kSoftmaxKeys) {
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) m[v] = hn::Max(m[v], hn::Load(df, s + i + v * kLanes));
  }
  return hn::ReduceMax(df, hn::Max(hn::Max(m[0], m[1]), hn::Max(m[2], m[3])));
}

// P of num_scores scores, relative to the reference, in place. Returns its sum, in parts.
HWY_INLINE VF ExpScores(float* HWY_RESTRICT s, size_t num_scores, VF reference) {
  VF sum = hn::Zero(df);
  for (size_t i = 0; i < num_scores; i += kSoftmaxKeys) {
    VF p[4];
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) p[v] = hn::Sub(hn::Load(df, s + i + v * kLanes), reference);
    Exp2Each(p);
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) hn::Store(p[v], df, s + i + v * kLanes);
    sum = hn::Add(sum, hn::Add(hn::Add(p[0], p[1]), hn::Add(p[2], p[3])));
  }
  return sum;
}

// The same in bf16, in order from the first score's place on; the sum is that of what was rounded.
HWY_INLINE VF ExpScoresToBF16(float* HWY_RESTRICT s, size_t num_scores, VF reference) {
  int32_t* HWY_RESTRICT pairs = reinterpret_cast<int32_t*>(s);
  VF sums[2] = {hn::Zero(df), hn::Zero(df)};
  for (size_t i = 0; i < num_scores; i += kSoftmaxKeys) {
    VF p[4];
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) p[v] = hn::Sub(hn::Load(df, s + i + v * kLanes), reference);
    Exp2Each(p);
    HWY_UNROLL(2)
    for (size_t v = 0; v < 2; ++v) {
      const VI32 pair = PairsOfNeighbors(p[2 * v], p[2 * v + 1]);
      sums[v] = BF16Ops::Dot(sums[v], pair, OnesOfPairs());
      hn::Store(pair, di32, pairs + i / 2 + v * kLanes);
    }
  }
  return hn::Add(sums[0], sums[1]);
}

// The same in bytes; sum_of_bytes: of those, where V is biased.
template <int kMaxP>
HWY_INLINE VF ExpScoresToBytes(const float* HWY_RESTRICT s, size_t num_scores, VF reference,
                               uint8_t* HWY_RESTRICT bytes, VI32& sum_of_bytes) {
  // The sum's low mantissa bits are the nearest integer: truncated, they are the byte.
  const VF magic = hn::Set(df, kMagic);
  const VF max_p = hn::Set(df, float{kMaxP});
  const hn::RebindToUnsigned<DF> du32;
  VF sum = hn::Zero(df);
  for (size_t i = 0; i < num_scores; i += kSoftmaxKeys) {
    VF p[4];
    hn::Vec<decltype(du32)> quantum[4];
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) p[v] = hn::Sub(hn::Load(df, s + i + v * kLanes), reference);
    Exp2Each(p);
    HWY_UNROLL(4)
    for (size_t v = 0; v < 4; ++v) {
      quantum[v] = hn::BitCast(du32, hn::MulAdd(p[v], max_p, magic));
    }
    sum = hn::Add(sum, hn::Add(hn::Add(p[0], p[1]), hn::Add(p[2], p[3])));
    const VU8 b = hn::OrderedTruncate2To(du8, hn::OrderedTruncate2To(du16, quantum[0], quantum[1]),
                                         hn::OrderedTruncate2To(du16, quantum[2], quantum[3]));
    if constexpr (I8Ops::kBiasedV) {
      sum_of_bytes = I8Ops::DotPV(sum_of_bytes, b, hn::Set(di8, 1));
    }
    hn::Store(b, du8, bytes + i);
  }
  return sum;
}

// Octaves from a row's reference to a tile's maximum; 0 stands for no reference, as in
// FiniteReference. Of scalars: Clang 14 for WebAssembly loads a vector of one number from memory
// only behind the store that changes the number (RaiseReference).
HWY_INLINE VF AboveReference(const DecodeRow& row) {
  const float m = row.m == kNegInf ? 0.0f : row.m;
  return hn::Set(df, row.tile_m - m + Distance(row.tile_offset, row.m_offset));
}

// Moves a row's reference to the tile's maximum, the first or one above it.
HWY_NOINLINE void RaiseReference(DecodeRow& row, size_t channels) {
  const bool is_first = row.m == kNegInf;
  const VF rescale = Exp2(hn::Neg(AboveReference(row)));
  row.m = row.tile_m;
  row.m_offset = row.tile_offset;
  if (is_first) return;  // nothing to rescale
  hn::Store(hn::Mul(hn::Load(df, row.d), rescale), df, row.d);
  for (size_t c = 0; c < channels; c += kLanes) {
    hn::Store(hn::Mul(hn::Load(df, row.o + c), rescale), df, row.o + c);
  }
  for (size_t t = 0; t < kMaxChunkTiles; t += kLanes) {  // those to come are overwritten
    hn::Store(hn::Mul(hn::Load(df, row.weight + t), rescale), df, row.weight + t);
  }
}

// The online softmax of one row over tile t, whose P has the form that Product multiplies; see
// online_softmax-inl.h. P of floats is relative to the tile's maximum as well, but their values
// have no bound that would leave room for slack. num_scores is a multiple of kSoftmaxKeys.
template <class Values>
HWY_NOINLINE void DecodeSoftmax(DecodeRow& row, size_t channels, size_t t, size_t num_scores) {
  constexpr float kSlack = Values::kQuantized ? kReferenceSlack : 0.0f;
  float* HWY_RESTRICT s = ScoresOf(row, t);
  if (HWY_UNLIKELY(row.tile_m - row.m + Distance(row.tile_offset, row.m_offset) > kSlack)) {
    RaiseReference(row, channels);
  }
  const VF tile_m = hn::Set(df, row.tile_m);
  const VF tile_reference = FiniteReference(tile_m);
  const VF weight = Exp2(AboveReference(row));
  float unit = hn::GetLane(weight);
  VF sum;
  if constexpr (Values::kQuantized) {
    VI32 sum_of_bytes = hn::Zero(di32);
    sum = ExpScoresToBytes<Values::kMaxP>(s, num_scores, tile_reference, row.p + t * kKvTile,
                                          sum_of_bytes);
    if (I8Ops::kBiasedV) row.p_init[t] = -kBias * hn::ReduceSum(di32, sum_of_bytes);
    unit *= 1.0f / Values::kMaxP;
    if (HWY_UNLIKELY(IsPart(*row.part))) {
      row.mass[t] = hn::ReduceSum(df, sum) * static_cast<float>(Values::kMaxP);
    }
  } else if constexpr (kHasBF16P<Values>) {
    sum = ExpScoresToBF16(s, num_scores, tile_reference);
  } else {
    sum = ExpScores(s, num_scores, tile_reference);
  }
  row.weight[t] = unit;
  hn::Store(hn::MulAdd(weight, sum, hn::Load(df, row.d)), df, row.d);
}

// Values whose P is made by the same code.
template <class Values>
using SoftmaxOf = hwy::If<hwy::IsSame<typename Values::Product, F32Product>(), F32Values, Values>;

// A row begins to see a part, whose scores lack `lack`. Those of several parts are to be compared;
// a row that sees no other does without.
HWY_INLINE void SetPartOfRow(const AttendTask& part, float lack, DecodeRow& row) {
  row.part = &part;
  row.lack = lack;
  row.offset = {0.0f, 0.0f};
  if (HWY_UNLIKELY(IsPart(part))) {
    row.offset = {LackAtEnd(part, lack),
                  SegmentBias(part, IndexOf(row.index, part.q.beams, part.q.group))};
  }
}

// A row's Q, and its first part.
template <class Keys>
HWY_NOINLINE void LoadDecodeRow(const AttendTask& part, size_t r, DecodeRow& row) {
  row.index = r;
  const QueryScale scale = LoadQuery<Keys>(part, r, row.query, row.q);
  row.row_scale = scale.row_scale;
  row.acc_init = scale.acc_init;
  SetPartOfRow(part, scale.lack, row);
}

// The same with the Q of the part before, where parts have no rotations of their own.
template <class Keys>
HWY_NOINLINE void MeetPart(const AttendTask& part, DecodeRow& row) {
  if (IsRotated(part.head.shape.layout)) {
    LoadDecodeRow<Keys>(part, row.index, row);
  } else {
    SetPartOfRow(part, Keys::kQuantized ? ScoreLack(part, row.query) : 0.0f, row);
  }
}

// Channels of V, from tile to tile of a run.
struct VCursor {
  const uint8_t* data;
  size_t stride_bytes;
  const float* v_scale;
  Turn turn;
};

template <class Values>
HWY_INLINE VCursor VCursorAt(const KeyRun& run, size_t channel) {
  const AttendTask& part = *run.part;
  const VColumns columns = VColumnsAt<Values>(run.tile, PaddedVHeadDim(part.head.shape), channel);
  return {columns.data,
          columns.stride_bytes,
          Values::kQuantized ? run.tile.v_scale + channel : nullptr,
          {nullptr, nullptr, part.fetch_ahead}};
}

// A row's scores of the first n keys of tile t, which begins at `key`, to where they wait for their
// weights.
HWY_NOINLINE void StoreRowScores(const AttendTask& task, const DecodeRow& row, size_t t, size_t key,
                                 size_t n) {
  const float* HWY_RESTRICT from = ScoresOf(row, t);
  float* HWY_RESTRICT to = WaitingRow<float>(task, row.index) + key;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::Load(df, from + i), df, to + i);
  if (i < n) hn::StoreN(hn::Load(df, from + i), df, to + i, n - i);
}

// P of num_rows rows and all tiles of the chunk. It follows a tile behind the scores: then their
// maximum is known, and K goes on streaming.
template <class AnyForm>
HWY_INLINE void DecodeProbabilities(const Chunk& chunk, DecodeRow* rows, size_t num_rows,
                                    float* HWY_RESTRICT biases) {
  using Keys = typename AnyForm::Keys;
  using Softmax = SoftmaxOf<typename AnyForm::Values>;
  const size_t channels = PaddedVHeadDim(chunk.runs[0].part->head.shape);
  size_t num_scores = 0;
  size_t t = 0;
  const KeyRun* const end = chunk.runs + chunk.num_runs;
  for (const KeyRun* run = chunk.runs; run != end; ++run) {
    const AttendTask& part = *run->part;
    for (size_t r = 0; r < num_rows; ++r) {
      if (rows[r].part != &part) MeetPart<Keys>(part, rows[r]);
    }
    KvTile kv = run->tile;
    kv.turn.from = kv.k + (run->num_keys + kKeyBlock - 1) / kKeyBlock * kv.k_block_bytes;
    kv.turn.to =
        run + 1 != end ? run[1].tile.k : VCursorAt<typename AnyForm::Values>(chunk.runs[0], 0).data;
    for (size_t key = 0; key < run->num_keys; ++t, key += kKvTile) {
      const size_t scores_before = num_scores;
      const size_t num_keys = MinOf(kKvTile, run->num_keys - key);
      num_scores = ScoreRows<Keys>(part, rows, num_rows, kv, t, num_keys, biases,
                                   (chunk.seen >> t & 1) != 0);
      for (size_t r = 0; r < num_rows; ++r) {
        if (HWY_UNLIKELY(WeighsOnTheWay(part))) {
          StoreRowScores(part, rows[r], t, run->key + key, num_keys);
        }
        const float tile_m = LargestScore(ScoresOf(rows[r], t), num_scores);
        if (t > 0) DecodeSoftmax<Softmax>(rows[r], channels, t - 1, scores_before);
        rows[r].tile_m = tile_m;
        rows[r].tile_offset = rows[r].offset;
      }
      NextKTile(kv);
    }
  }
  for (size_t r = 0; r < num_rows; ++r) {
    DecodeSoftmax<Softmax>(rows[r], channels, t - 1, num_scores);
  }
}

// O of channels [channel, channel + kVectors * kLanes), by tile t.
template <class Values, size_t kVectors, size_t kRows>
HWY_INLINE void DecodeOutput(const DecodeRow* rows, const VCursor& v, size_t t, size_t channel,
                             size_t num_keys) {
  using Acc = typename Values::Product::Acc;
  Acc acc[kRows][kVectors];
  const uint8_t* p[kRows];
  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    p[r] = Values::kQuantized ? rows[r].p + t * kKvTile
                              : reinterpret_cast<const uint8_t*>(ScoresOf(rows[r], t));
    HWY_UNROLL(4)
    for (size_t i = 0; i < kVectors; ++i) {
      acc[r][i] = InitialSum<Acc>(I8Ops::kBiasedV ? rows[r].p_init[t] : 0);
    }
  }
  VectorProduct<typename Values::Product, typename Values::Stored, kVectors, kRows>(
      v.data, v.stride_bytes, v.turn, p,
      RoundUp(num_keys, kLaneDepthOf<Values>) / kLaneDepthOf<Values>, acc);

  HWY_UNROLL(8)
  for (size_t r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kVectors; ++i) {
      float* o = rows[r].o + channel + i * kLanes;
      VF unit = hn::Set(df, rows[r].weight[t]);
      VF product;
      if constexpr (Values::kQuantized) {
        unit = hn::Mul(unit, hn::Load(df, v.v_scale + i * kLanes));
        product = hn::ConvertTo(df, acc[r][i]);
      } else {
        product = acc[r][i];
      }
      hn::Store(hn::MulAdd(product, unit, hn::Load(df, o)), df, o);
    }
  }
}

// The same key by key, as far as rows see them: 0 * NaN is NaN. Floats only, for the rare tile that
// holds a NaN or an infinity and begins at `key`.
template <class Values>
HWY_NOINLINE void DecodeVisible(const AttendTask& task, const DecodeRow* rows, size_t num_rows,
                                const VCursor& v, size_t t, size_t channel, size_t num_channels,
                                size_t key, size_t num_keys) {
  constexpr size_t kPDepth = kDepthOf<Values>;
  constexpr size_t kVDepth = kLaneDepthOf<Values>;
  for (const DecodeRow* row = rows; row != rows + num_rows; ++row) {
    const RowMask mask = MaskOfRow(task, row->index, RangeOf(task, row->index), key, num_keys);
    const uint8_t* p = reinterpret_cast<const uint8_t*>(ScoresOf(*row, t));
    for (size_t c = 0; c < num_channels; c += kLanes) {
      const uint8_t* data = v.data + c * kStoredLaneBytes<typename Values::Stored>;
      VF acc = hn::Zero(df);
      for (size_t i = 0; i < kKvTile; ++i) {
        if ((mask.words[i / kMaskBits] >> i % kMaskBits & 1) == 0) continue;
        const VI32 values =
            LoadPacked<typename Values::Stored>(data + i / kVDepth * v.stride_bytes);
        const VI32 weights = Broadcast32(p + i / kPDepth * kLaneBytes);
        acc = hn::MulAdd(FloatOfLane<kPDepth>(weights, i % kPDepth),
                         FloatOfLane<kVDepth>(values, i % kVDepth), acc);
      }
      float* o = row->o + channel + c;
      hn::Store(hn::MulAdd(acc, hn::Set(df, row->weight[t]), hn::Load(df, o)), df, o);
    }
  }
}

// O of these channels by the keys of a run, where v is.
template <class Values, size_t kVectors, size_t kRows>
HWY_NOINLINE void DecodeOutputs(const KeyRun& run, const DecodeRow* rows, const VCursor& begin,
                                size_t channel) {
  const AttendTask& part = *run.part;
  VCursor v = begin;
  const size_t tile_bytes = kKvTile / kLaneDepthOf<Values> * v.stride_bytes;
  size_t t = run.first_tile;
  for (size_t key = 0; key < run.num_keys; ++t, key += kKvTile) {
    const size_t num_keys = MinOf(kKvTile, run.num_keys - key);
    bool is_special = false;
    if constexpr (!Values::kQuantized) {
      is_special = HasSpecialV(part, run.key + key);
      if (HWY_UNLIKELY(is_special)) {
        DecodeVisible<Values>(part, rows, kRows, v, t, channel, kVectors * kLanes, run.key + key,
                              num_keys);
      }
    }
    if (HWY_LIKELY(!is_special)) {
      DecodeOutput<Values, kVectors, kRows>(rows, v, t, channel, num_keys);
    }
    v.data += tile_bytes;
    if (Values::kQuantized) v.v_scale += PaddedVHeadDim(part.head.shape);
  }
}

// The mean of V of a part, with the weight of its keys in tiles [begin, end) of the chunk.
HWY_NOINLINE void AddCenter(const float* HWY_RESTRICT v_center, size_t channels, size_t begin,
                            size_t end, DecodeRow& row) {
  float weight = 0.0f;
  for (size_t t = begin; t < end; ++t) weight += row.weight[t] * row.mass[t];
  for (size_t c = 0; c < channels; c += kLanes) {
    const VF center = hn::Load(df, v_center + c);
    hn::Store(hn::MulAdd(hn::Set(df, weight), center, hn::Load(df, row.o + c)), df, row.o + c);
  }
}

// O of num_rows rows, up to kBlock, and all channels, in the order in which V lies in memory.
template <class Values, size_t kBlock>
HWY_INLINE void DecodeChunkOutputs(const Chunk& chunk, DecodeRow* rows, size_t num_rows) {
  const size_t channels = PaddedVHeadDim(chunk.runs[0].part->head.shape);
  const size_t block_channels = VectorsPerBlock<Values>(num_rows) * kLanes;
  const KeyRun* const end = chunk.runs + chunk.num_runs;
  size_t part_tile = 0;  // from which on the mean of V is still to be added
  for (const KeyRun* run = chunk.runs; run != end; ++run) {
    for (size_t channel = 0, channel_end = 0; channel < channels; channel = channel_end) {
      const size_t panel_end = MinOf(RoundUp(channel + 1, kPanelWidth), channels);
      const bool is_block = channel + block_channels <= panel_end;
      channel_end = channel + (is_block ? block_channels : kLanes);
      VCursor v = VCursorAt<Values>(*run, channel);
      const size_t v_rows = (run->num_keys + kLaneDepthOf<Values> - 1) / kLaneDepthOf<Values>;
      v.turn.from = v.data + v_rows * v.stride_bytes;
      v.turn.to = channel_end < channels ? VCursorAt<Values>(*run, channel_end).data
                  : run + 1 != end       ? VCursorAt<Values>(run[1], 0).data
                                         : chunk.after;
      WithCount<kBlock>(num_rows, [&](auto count) HWY_ATTR {
        constexpr size_t kRows = decltype(count)::value;
        if (is_block) {
          DecodeOutputs<Values, VectorsPerBlock<Values>(kRows), kRows>(*run, rows, v, channel);
        } else {
          DecodeOutputs<Values, 1, kRows>(*run, rows, v, channel);
        }
      });
    }
    if (!Values::kQuantized || HWY_LIKELY(!IsPart(*run->part))) continue;
    if (run + 1 != end && FollowsIn(run[1], *run)) continue;
    const size_t tiles_end = run->first_tile + TilesOf(*run);
    const float* v_center = VCenter(*run->part);
    for (size_t r = 0; v_center != nullptr && r < num_rows; ++r) {
      AddCenter(v_center, channels, part_tile, tiles_end, rows[r]);
    }
    part_tile = tiles_end;
  }
}

// What rows see of the keys of one part.
class SeenKeys {
 public:
  SeenKeys(const AttendTask& part, const DecodeRow* rows, size_t num_rows)
      : part_(&part), rows_(rows), num_rows_(num_rows) {
    const KeyRange first = RangeOf(part, rows[0].index);  // ranges never fall from row to row
    const KeyRange last = RangeOf(part, rows[num_rows - 1].index);
    bounds_ = {first.begin, last.begin, first.limit, last.limit};
    end_ = MaxOf(last.limit, part.prefix_len);
  }

  // Adds the next run from *key on, which it is moved beyond, to the chunk: at most max_keys, and
  // none beyond what anybody sees. False if there is none.
  HWY_NOINLINE bool AddRun(size_t max_keys, size_t* key, Chunk* chunk) const {
    if (*key >= part_->prefix_len) *key = MaxOf(*key, bounds_.min_begin / kKvTile * kKvTile);
    TileKeys seen = TileKeys::kNone;
    for (; *key < end_; *key += kKvTile) {
      seen = Seen(*key);
      if (seen != TileKeys::kNone) break;
    }
    if (*key >= end_) return false;
    KeyRun& run = chunk->runs[chunk->num_runs++];
    run.part = part_;
    run.key = *key;
    run.first_tile = chunk->num_tiles;
    run.tile = KTileAt(*part_, *key);
    SetVOfTile(*part_, *key, run.tile);
    const size_t end = MinOf(end_, *key + MinOf(max_keys, KeysInVTile(*part_, *key)));
    do {
      chunk->seen |= uint32_t{seen == TileKeys::kAll} << chunk->num_tiles++;
      *key += kKvTile;
      if (*key >= end) break;
      seen = Seen(*key);
    } while (seen != TileKeys::kNone);
    run.num_keys = MinOf(*key, end_) - run.key;
    return true;
  }

  // Whether any row sees some of the tile.
  HWY_INLINE bool IsSeen(size_t key) const { return Seen(key) != TileKeys::kNone; }
  // Whether nobody sees anything from there on.
  HWY_INLINE bool IsEnd(size_t key) const { return key >= end_; }

 private:
  // How much of the tile: kAll if all rows see all of it, and as much beyond as a step of softmax
  // takes; kNone if no row sees any.
  HWY_INLINE TileKeys Seen(size_t key) const {
    const size_t n = MinOf(kKvTile, part_->kv_len - key);
    const TileKeys keys = KeysOfTile(*part_, key);
    if (keys == TileKeys::kNone || SeesNone(*part_, bounds_, key, key + n)) return TileKeys::kNone;
    if (HWY_UNLIKELY(keys == TileKeys::kSome || HasMasks(*part_))) return SeenByRows(key, n);
    const bool all = SeesAll(*part_, bounds_, key, key + RoundUp(n, kSoftmaxKeys));
    return all ? TileKeys::kAll : TileKeys::kSome;
  }

  HWY_NOINLINE TileKeys SeenByRows(size_t key, size_t n) const {
    for (size_t r = 0; r < num_rows_; ++r) {
      const size_t row = rows_[r].index;
      const RowMask mask = MaskOfRow(*part_, row, RangeOf(*part_, row), key, n);
      for (const uint32_t word : mask.words) {
        if (word != 0) return TileKeys::kSome;
      }
    }
    return TileKeys::kNone;
  }

  const AttendTask* part_;
  const DecodeRow* rows_;
  size_t num_rows_;
  RangeBounds bounds_;
  size_t end_;
};

// Goes through what rows see of a task and of those that follow it, by chunks. Lies in the task's
// scratch, where the task of the next head finds it.
class Chunks {
 public:
  // Starts with the first chunk. If that was all of the head before, it is there already.
  template <class AnyForm>
  HWY_INLINE void Start(const AttendTask& first, const DecodeRow* rows, size_t num_rows) {
    is_found_ = first.is_next_head && is_all_ && !HasMasks(first);
    if (is_found_) return MoveToNextHead<AnyForm>();
    part_ = &first;
    seen_ = SeenKeys(first, rows, num_rows);
    rows_ = rows;
    num_rows_ = num_rows;
    key_ = 0;
    is_first_ = true;
    is_all_ = false;
  }

  // The next one, of at most max_keys keys; null if there is none.
  HWY_NOINLINE const Chunk* Next(size_t max_keys) {
    if (is_found_) {
      is_found_ = false;
      return &chunk_;
    }
    if (IsAtEnd()) return nullptr;
    chunk_.num_runs = 0;
    chunk_.num_tiles = 0;
    chunk_.seen = 0;
    while (chunk_.num_tiles * kKvTile < max_keys) {
      if (seen_.AddRun(max_keys - chunk_.num_tiles * kKvTile, &key_, &chunk_)) continue;
      if (part_->next == nullptr) break;
      part_ = part_->next;
      key_ = 0;
      seen_ = SeenKeys(*part_, rows_, num_rows_);
    }
    chunk_.after = IsAtEnd() ? nullptr : After();
    if (chunk_.num_runs == 0) return nullptr;
    is_all_ = is_first_ && IsAtEnd();
    is_first_ = false;
    return &chunk_;
  }

 private:
  bool IsAtEnd() const { return part_->next == nullptr && seen_.IsEnd(key_); }

  // K of what comes next, if all goes well.
  const uint8_t* After() const {
    const AttendTask* part = part_;
    size_t key = key_;
    if (key >= part->kv_len) {
      part = part->next;
      key = 0;
    }
    if (part == nullptr || part->kv_len == 0 || KeysOfTile(*part, key) == TileKeys::kNone) {
      return nullptr;
    }
    return KTileAt(*part, key).k;
  }

  // Of the only chunk.
  template <class AnyForm>
  HWY_INLINE void MoveToNextHead() {
    for (KeyRun* run = chunk_.runs; run != chunk_.runs + chunk_.num_runs; ++run) {
      const size_t bytes = run->part->head.offsets.bytes;
      run->tile.k += bytes;
      run->tile.v += bytes;
      if (AnyForm::Keys::kQuantized) run->tile.k_scale += bytes / sizeof(float);
      if (AnyForm::Values::kQuantized) run->tile.v_scale += bytes / sizeof(float);
    }
  }

  const AttendTask* part_;
  SeenKeys seen_;
  const DecodeRow* rows_;
  size_t num_rows_;
  size_t key_;  // of the part
  bool is_first_;
  bool is_all_;    // the first chunk has all keys
  bool is_found_;  // and moved to this head
  Chunk chunk_;
};

struct DecodeScratch {
  DecodeRow* rows;
  float* biases;  // of a row for a tile
  Chunks* chunks;
};

// Of num_rows rows. score_tiles: for how many tiles a row keeps scores; p_bytes: and for how many
// keys P in bytes.
HWY_NOINLINE size_t LayOutDecodeScratch(const PackedShape& shape, size_t num_rows, size_t q_depth,
                                        size_t score_tiles, size_t p_bytes, uint8_t* base,
                                        DecodeScratch& scratch) {
  const size_t dims = RowBufferElements(shape.head_dim);
  const size_t channels = PaddedVHeadDim(shape);
  ScratchArena arena(base);
  scratch.rows = arena.Take<DecodeRow>(num_rows);
  scratch.biases = arena.Take<float>(kKvTile);
  scratch.chunks = arena.Take<Chunks>(1);
  DecodeRow none;
  for (size_t r = 0; r < num_rows; ++r) {
    DecodeRow& row = base == nullptr ? none : scratch.rows[r];
    row.query = arena.Take<float>(dims);
    row.q = arena.Take<uint8_t>(dims / q_depth * kLaneBytes);
    row.s = arena.Take<float>(score_tiles * kKvTile);
    row.num_tiles = score_tiles;
    row.p = arena.Take<uint8_t>(p_bytes);
    row.o = arena.Take<float>(channels);
    row.d = arena.Take<float>(kLanes);
    row.weight = arena.Take<float>(kMaxChunkTiles);
    row.mass = arena.Take<float>(kMaxChunkTiles);
  }
  return arena.used();
}

HWY_NOINLINE void ClearDecodeRow(size_t channels, DecodeRow& row) {
  row.m = kNegInf;
  row.m_offset = {0.0f, 0.0f};
  hn::Store(hn::Zero(df), df, row.d);
  for (size_t t = 0; t < kMaxChunkTiles; t += kLanes) hn::Store(hn::Zero(df), df, row.weight + t);
  for (size_t c = 0; c < channels; c += kLanes) hn::Store(hn::Zero(df), df, row.o + c);
}

// O / d and V's centre, to the caller's row; see StoreOutput.
HWY_NOINLINE void EndDecodeRow(const AttendTask& task, const float* v_center,
                               const DecodeRow& row) {
  const float d = hn::ReduceSum(df, hn::Load(df, row.d));
  const float offset =
      IsPart(task) ? row.m_offset.lack + row.m_offset.bias : RaisedBy(task, row.index, row.lack);
  const RowEnd end = EndOfRow(task, row.index, row.m, d, offset);
  for (size_t c = 0; c < PaddedVHeadDim(task.head.shape); c += kLanes) {
    VF y = hn::Mul(hn::Load(df, row.o + c), hn::Set(df, end.o_factor));
    if (v_center != nullptr) {
      y = hn::MulAdd(hn::Load(df, v_center + c), hn::Set(df, end.center_factor), y);
    }
    hn::Store(end.o_factor == 0.0f ? hn::Zero(df) : y, df, row.o + c);
  }
  StoreRows(row.o, 0, 1, task.head.shape.v_head_dim, task.out, row.index);
}

// Hides scores of what a chunk has left out since `done`, the end of the one before it. Returns its
// own end.
HWY_NOINLINE size_t HideSkipped(const AttendTask& task, const Chunk& chunk, size_t done) {
  for (const KeyRun* run = chunk.runs; run != chunk.runs + chunk.num_runs; ++run) {
    StoreHidden<float>(task, task.row_begin, task.row_end - task.row_begin, done, run->key);
    done = run->key + run->num_keys;
  }
  return done;
}

template <class AnyForm>
HWY_INLINE size_t LayOutDecode(const PackedShape& shape, size_t num_rows, uint8_t* base,
                               DecodeScratch& scratch) {
  using Values = typename AnyForm::Values;
  constexpr size_t kKeys = kChunkKeys<Values>;
  return LayOutDecodeScratch(shape, num_rows, kDepthOf<typename AnyForm::Keys>,
                             Values::kQuantized ? 2 : kKeys / kKvTile,
                             Values::kQuantized ? kKeys : 0, base, scratch);
}

template <class AnyForm>
size_t DecodeScratchBytes(const PackedShape& shape) {
  DecodeScratch scratch;
  return LayOutDecode<AnyForm>(shape, kDecodeRows, nullptr, scratch);
}

// The task, and those that follow it, have at most kDecodeRows rows.
template <class AnyForm>
void Decode(const AttendTask& first, unsigned char* scratch_bytes) {
  using Keys = typename AnyForm::Keys;
  using Values = typename AnyForm::Values;
  constexpr size_t kBlock = MinOf(kRowBlock<Keys>, kRowBlock<Values>);
  DecodeScratch scratch;
  const size_t num_rows = first.row_end - first.row_begin;
  LayOutDecode<AnyForm>(first.head.shape, num_rows, scratch_bytes, scratch);
  for (size_t r = 0; r < num_rows; ++r) {
    DecodeRow& row = scratch.rows[r];
    if (first.continues) {
      row.part = nullptr;  // those of the call before are no more
    } else {
      LoadDecodeRow<Keys>(first, first.row_begin + r, row);
      ClearDecodeRow(PaddedVHeadDim(first.head.shape), row);
    }
  }

  const size_t num_blocks = (num_rows + kBlock - 1) / kBlock;
  const size_t block_rows = (num_rows + num_blocks - 1) / num_blocks;  // 8 are 4 + 4, not 6 + 2
  // Blocks after the first find a shorter chunk in L2.
  const size_t chunk_keys = num_blocks == 1 ? kChunkKeys<Values> : kVTileKeys;
  Chunks& chunks = *scratch.chunks;
  chunks.Start<AnyForm>(first, scratch.rows, num_rows);
  const bool weighs = WeighsOnTheWay(first);
  size_t done = 0;
  while (const Chunk* chunk = chunks.Next(chunk_keys)) {
    for (size_t r = 0; r < num_rows; r += block_rows) {
      DecodeRow* rows = scratch.rows + r;
      const size_t count = MinOf(block_rows, num_rows - r);
      DecodeProbabilities<AnyForm>(*chunk, rows, count, scratch.biases);
      DecodeChunkOutputs<Values, kBlock>(*chunk, rows, count);
    }
    if (HWY_UNLIKELY(weighs)) done = HideSkipped(first, *chunk, done);
  }

  const AttendTask* last = &first;
  while (last->next != nullptr) last = last->next;
  if (last->pauses) return;
  const float* v_center = IsPart(*last) ? nullptr : VCenter(*last);
  for (size_t r = 0; r < num_rows; ++r) EndDecodeRow(*last, v_center, scratch.rows[r]);
  if (HWY_LIKELY(!weighs)) return;
  StoreHidden<float>(first, first.row_begin, num_rows, done, first.weights.num_keys);
  for (size_t r = 0; r < num_rows; ++r) {
    WeighRow<float>(first, scratch.rows[r].index, scratch.rows[r].lack);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_DECODE_INL_H_
