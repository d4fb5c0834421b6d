// The driver for few rows: one decoding step, times the heads and beams that share K and V.
//
//   for each K/V tile of 128 keys
//     for each block of up to four rows
//       S = K·Q     lanes are keys: a vector of K is loaded once and multiplied for each row
//       softmax     row by row
//       O += P·V    lanes are channels: a vector of V is loaded once, likewise
//
// Traffic: K and V come from memory once for all rows, from cache once for each block; with one row
// it is what bounds the time. Work per score: (head_dim + v_head_dim) / kLanes vector products,
// against one for each query vector in prefill, most of whose lanes would be empty here. Beyond
// kDecodeRows prefill takes over.
#ifndef SIGHTLINE_KERNELS_DECODE_INL_H_
#define SIGHTLINE_KERNELS_DECODE_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/load_queries-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/scratch-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Rows that share one load: more accumulators would spill.
constexpr size_t kRowBlock = 4;

// Rows that decode takes; beyond, prefill's vectors of queries are at least half full.
constexpr size_t kDecodeRows = MaxOf(kRowBlock, kLanes / 2);

// Vectors of keys or channels side by side. With one row four chains hide the latency of the
// product; with four rows 16 registers hold no more than two.
constexpr size_t VectorsPerBlock(size_t rows) { return kNumRegisters == 32 || rows <= 2 ? 4 : 2; }

// What a row keeps while the tiles pass by.
struct DecodeRow {
  uint8_t* q;        // head_dim / depth 32-bit lanes
  float* s;          // [kKvTile] scores, then for f32 P
  uint8_t* p;        // quantised: [kKvTile]
  float* o;          // [PaddedVHeadDim]
  float row_scale;   // quantised, as in QueryTile
  int32_t acc_init;  // int8
  int32_t p_init;    // int8
  size_t limit;      // keys below it are visible
  float m;           // running maximum
  float d;           // running denominator
  float rescale;     // of the current tile, as in TileScratch
  float weight;      // int8, likewise
};

struct DecodeScratch {
  DecodeRow rows[kDecodeRows];
  float* query;  // one row of Q at a time
};

template <class Scheme>
HWY_INLINE size_t LayOutDecodeScratch(const PackedShape& shape, uint8_t* base,
                                      DecodeScratch& scratch) {
  const size_t dims = RowBufferElements(shape.head_dim);
  const size_t channels = PaddedVHeadDim(shape);
  ScratchArena arena(base);
  for (DecodeRow& row : scratch.rows) {
    row.q = arena.Take<uint8_t>(dims / kQkDepth<Scheme> * kLaneBytes);
    row.s = arena.Take<float>(kKvTile);
    row.p = arena.Take<uint8_t>(Scheme::kQuantized ? kKvTile : 0);
    row.o = arena.Take<float>(channels);
  }
  scratch.query = arena.Take<float>(dims);
  return arena.used();
}

// Bytes of a 32-bit lane in memory: floats may be stored in fewer bits.
template <typename Stored>
constexpr size_t kStoredLaneBytes = hwy::IsSame<Stored, hwy::float16_t>() ? 2 : kLaneBytes;

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

// acc[r][v] += B[step][v] * A[r][step]: vectors of packed K or V times one broadcast lane for each
// row. a_rows[r] points to row r's lanes.
template <class Product, typename Stored, size_t kVectors, size_t kRows>
HWY_INLINE void VectorProduct(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                              const uint8_t* const (&a_rows)[kRows], size_t num_steps,
                              typename Product::Acc (&acc)[kRows][kVectors]) {
#if HWY_COMPILER_GCC_ACTUAL
  asm("" : "+r"(num_steps));  // as in BlockProduct
#endif
  for (size_t step = 0; step < num_steps; ++step) {
    VI32 bv[kVectors];
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      bv[v] = LoadPacked<Stored>(b + v * kLanes * kStoredLaneBytes<Stored>);
    }
    HWY_UNROLL(4)
    for (size_t r = 0; r < kRows; ++r) {
      const VU8 a = hn::BitCast(du8, Broadcast32(a_rows[r] + step * kLaneBytes));
      HWY_UNROLL(4)
      for (size_t v = 0; v < kVectors; ++v) {
        acc[r][v] = Product::MulAcc(acc[r][v], bv[v], a);
        SIGHTLINE_PIN(acc[r][v]);
      }
    }
    b += b_stride_bytes;
  }
}

// Scores of keys [key, key + kVectors * kLanes) of the tile.
template <class Scheme, size_t kVectors, size_t kRows>
HWY_INLINE void DecodeScores(const DecodeRow* rows, const KvTile& kv, size_t num_steps,
                             size_t key) {
  using Acc = typename Scheme::QkProduct::Acc;
  Acc acc[kRows][kVectors];
  const uint8_t* q[kRows];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) {
    q[r] = rows[r].q;
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      if constexpr (Scheme::kQuantized) {
        acc[r][v] = hn::Set(di32, rows[r].acc_init);
      } else {
        acc[r][v] = hn::Zero(df);
      }
    }
  }
  VectorProduct<typename Scheme::QkProduct, typename Scheme::KStored, kVectors, kRows>(
      KeyColumns<Scheme>(kv, key), kKeyBlock * kTileLaneBytes<Scheme>, q, num_steps, acc);

  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) {
    const VI32 limit = hn::Set(di32, static_cast<int32_t>(rows[r].limit));
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t first = key + v * kLanes;
      VF s;
      if constexpr (Scheme::kQuantized) {
        s = hn::Mul(hn::Mul(hn::ConvertTo(df, acc[r][v]), hn::Set(df, rows[r].row_scale)),
                    hn::LoadU(df, kv.k_scale + first));
      } else {
        s = acc[r][v];
      }
      const VI32 index = hn::Iota(di32, static_cast<int32_t>(kv.key_begin + first));
      hn::Store(Hide(s, index, limit), df, rows[r].s + first);
    }
  }
}

// The online softmax of one row over the tile; see SoftmaxTile. num_keys is a multiple of kLanes.
template <class Scheme>
HWY_INLINE void DecodeSoftmax(DecodeRow& row, size_t num_keys) {
  VF tile_max = NegInf();
  for (size_t key = 0; key < num_keys; key += kLanes) {
    tile_max = hn::Max(tile_max, hn::Load(df, row.s + key));
  }
  const VF tile_m = hn::MaxOfLanes(df, tile_max);
  const VF old_m = hn::Set(df, row.m);
  const VF new_m = hn::Max(old_m, tile_m);
  const VF reference = FiniteReference(new_m);
  const VF tile_reference = Scheme::kQuantized ? FiniteReference(tile_m) : reference;
  row.m = hn::GetLane(new_m);
  row.rescale = hn::GetLane(Exp2(hn::Sub(old_m, reference)));

  VF sum = hn::Zero(df);
  [[maybe_unused]] VI32 sum_of_p = hn::Zero(di32);
  for (size_t key = 0; key < num_keys; key += kLanes) {
    const VF p = Exp2(hn::Sub(hn::Load(df, row.s + key), tile_reference));
    sum = hn::Add(sum, p);
    if constexpr (Scheme::kQuantized) {
      const VI32 rounded = hn::NearestInt(hn::Mul(p, hn::Set(df, float{I8Ops::kMaxP})));
      sum_of_p = hn::Add(sum_of_p, rounded);
      const hn::Rebind<uint8_t, DF> d8;
      hn::StoreU(hn::DemoteTo(d8, rounded), d8, row.p + key);
    } else {
      hn::Store(p, df, row.s + key);
    }
  }
  float tile_d = hn::ReduceSum(df, sum);
  if constexpr (Scheme::kQuantized) {
    const float weight = hn::GetLane(Exp2(hn::Sub(tile_m, reference)));
    tile_d *= weight;
    row.weight = weight * (1.0f / I8Ops::kMaxP);
    row.p_init = I8Ops::kBiasedV ? -kBias * hn::ReduceSum(di32, sum_of_p) : 0;
  }
  row.d = row.d * row.rescale + tile_d;
}

// Channels [channel, channel + kVectors * kLanes).
template <class Scheme, size_t kVectors, size_t kRows>
HWY_INLINE void DecodeOutput(const DecodeRow* rows, const KvTile& kv, size_t padded_channels,
                             size_t channel, size_t num_keys) {
  using Acc = typename Scheme::PvProduct::Acc;
  Acc acc[kRows][kVectors];
  const uint8_t* p[kRows];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) {
    p[r] = Scheme::kQuantized ? rows[r].p : reinterpret_cast<const uint8_t*>(rows[r].s);
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      if constexpr (Scheme::kQuantized) {
        acc[r][v] = hn::Set(di32, rows[r].p_init);
      } else {
        acc[r][v] = hn::Zero(df);
      }
    }
  }
  const VColumns columns = VColumnsAt<Scheme>(kv, padded_channels, channel);
  VectorProduct<typename Scheme::PvProduct, typename Scheme::VStored, kVectors, kRows>(
      columns.data, columns.stride_bytes, p, RoundUp(num_keys, kPvDepth<Scheme>) / kPvDepth<Scheme>,
      acc);

  HWY_UNROLL(4)
  for (size_t r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (size_t v = 0; v < kVectors; ++v) {
      float* o = rows[r].o + channel + v * kLanes;
      const VF old_o = hn::Load(df, o);
      const VF rescale = hn::Set(df, rows[r].rescale);
      if constexpr (Scheme::kQuantized) {
        const VF unit =
            hn::Mul(hn::Set(df, rows[r].weight), hn::Load(df, kv.v_scale + channel + v * kLanes));
        const VF product = hn::Mul(hn::ConvertTo(df, acc[r][v]), unit);
        hn::Store(hn::MulAdd(old_o, rescale, product), df, o);
      } else {
        hn::Store(hn::MulAdd(old_o, rescale, acc[r][v]), df, o);
      }
    }
  }
}

template <class Scheme, size_t kRows>
HWY_INLINE void DecodeOutputs(const DecodeRow* rows, const KvTile& kv, size_t padded_channels,
                              size_t num_keys) {
  constexpr size_t kVectors = VectorsPerBlock(kRows);
  for (size_t channel = 0; channel < padded_channels;) {
    const size_t panel_end = MinOf(RoundUp(channel + 1, kPanelWidth), padded_channels);
    if (channel + kVectors * kLanes <= panel_end) {
      DecodeOutput<Scheme, kVectors, kRows>(rows, kv, padded_channels, channel, num_keys);
      channel += kVectors * kLanes;
    } else {
      DecodeOutput<Scheme, 1, kRows>(rows, kv, padded_channels, channel, num_keys);
      channel += kLanes;
    }
  }
}

// One tile for num_rows <= kRows rows, whose keys from num_keys on are hidden from all of them.
template <class Scheme, size_t kRows>
HWY_INLINE void DecodeTile(const PackedShape& shape, DecodeRow* rows, size_t num_rows,
                           const KvTile& kv, size_t num_keys) {
  if (num_rows == kRows) {
    constexpr size_t kBlockLanes = VectorsPerBlock(kRows) * kLanes;
    static_assert(kKeyBlock % kBlockLanes == 0, "a block of keys is whole vectors");
    const size_t num_steps = PaddedHeadDim(shape) / kQkDepth<Scheme>;
    for (size_t key = 0; key < num_keys; key += kBlockLanes) {
      DecodeScores<Scheme, VectorsPerBlock(kRows), kRows>(rows, kv, num_steps, key);
    }
    for (size_t r = 0; r < kRows; ++r) {
      DecodeSoftmax<Scheme>(rows[r], RoundUp(num_keys, kBlockLanes));
    }
    const size_t channels = PaddedVHeadDim(shape);
    if (HWY_UNLIKELY(kv.v_special)) {
      // 0 * NaN is NaN: each row stops at the last key it sees.
      for (size_t r = 0; r < kRows; ++r) {
        const size_t seen = rows[r].limit - MinOf(rows[r].limit, kv.key_begin);
        DecodeOutputs<Scheme, 1>(rows + r, kv, channels, MinOf(num_keys, seen));
      }
    } else {
      DecodeOutputs<Scheme, kRows>(rows, kv, channels, num_keys);
    }
  } else if constexpr (kRows > 1) {
    DecodeTile<Scheme, kRows - 1>(shape, rows, num_rows, kv, num_keys);
  }
}

template <class Scheme>
HWY_INLINE void BeginDecodeRow(const AttendTask& task, size_t r, float* HWY_RESTRICT scratch_row,
                               DecodeRow& row) {
  const QueryScale scale = LoadQuery<Scheme>(task, r, scratch_row);
  const size_t lanes = QueryLanes<Scheme>(task.head.shape.head_dim);
  __builtin_memcpy(row.q, scratch_row, lanes * kLaneBytes);
  row.row_scale = scale.row_scale;
  row.acc_init = scale.acc_init;
  row.limit = KeyLimit(task, r);
  row.m = kNegInf;
  row.d = 0.0f;
  for (size_t c = 0; c < PaddedVHeadDim(task.head.shape); c += kLanes) {
    hn::Store(hn::Zero(df), df, row.o + c);
  }
}

// O / d and V's centre, to the caller's row; see StoreOutput.
HWY_INLINE void EndDecodeRow(const AttendTask& task, size_t r, const float* v_center,
                             const DecodeRow& row) {
  const bool empty = row.d == 0.0f;
  const VF inverse = hn::Set(df, empty ? 0.0f : 1.0f / row.d);
  for (size_t c = 0; c < PaddedVHeadDim(task.head.shape); c += kLanes) {
    VF y = hn::Mul(hn::Load(df, row.o + c), inverse);
    if (v_center != nullptr && !empty) y = hn::Add(y, hn::Load(df, v_center + c));
    hn::Store(y, df, row.o + c);
  }
  StoreRow(row.o, task.head.shape.v_head_dim, RowAt(task.out, r));
}

template <class Scheme>
size_t DecodeScratchBytes(const PackedShape& shape) {
  DecodeScratch scratch;
  return LayOutDecodeScratch<Scheme>(shape, nullptr, scratch);
}

// The task has at most kDecodeRows rows.
template <class Scheme>
void Decode(const AttendTask& task, unsigned char* scratch_bytes) {
  DecodeScratch scratch;
  LayOutDecodeScratch<Scheme>(task.head.shape, scratch_bytes, scratch);
  const size_t num_rows = task.row_end - task.row_begin;
  for (size_t r = 0; r < num_rows; ++r) {
    BeginDecodeRow<Scheme>(task, task.row_begin + r, scratch.query, scratch.rows[r]);
  }

  const size_t visible = scratch.rows[num_rows - 1].limit;  // limits never fall from row to row
  for (size_t key = 0; key < visible; key += kKvTile) {
    const size_t num_keys = MinOf(kKvTile, visible - key);
    const KvTile kv = BeginKvTile<Scheme>(task.head, key, num_keys, WideTile());
    for (size_t r = 0; r < num_rows; r += kRowBlock) {
      DecodeTile<Scheme, kRowBlock>(task.head.shape, scratch.rows + r,
                                    MinOf(kRowBlock, num_rows - r), kv, num_keys);
    }
  }

  const float* v_center = VCenter<Scheme>(task);
  for (size_t r = 0; r < num_rows; ++r) {
    EndDecodeRow(task, task.row_begin + r, v_center, scratch.rows[r]);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_DECODE_INL_H_
