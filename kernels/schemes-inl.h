// The schemes: what a precision means to the kernels. One driver serves all; a scheme says how Q,
// K, P and V are represented, which multiplication joins them, and over how many keys
// (kPTileKeys) scores are turned into P and multiplied by V at once.
#ifndef SIGHTLINE_KERNELS_SCHEMES_INL_H_
#define SIGHTLINE_KERNELS_SCHEMES_INL_H_

#include "kernels/block_product-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Everything in f32. Q carries the softmax scale, P replaces S in place.
struct F32Scheme {
  static constexpr LayoutId kLayout = LayoutId::kF32;
  // Integers and their scales: Q and K with one for each row; P and V, whose softmax is in 16-bit
  // fixed point.
  static constexpr bool kQuantizedK = false;
  static constexpr bool kQuantizedV = false;
  // Tiles of K, of V become f32 before they are multiplied.
  static constexpr bool kWidensK = false;
  static constexpr bool kWidensV = false;
  static constexpr size_t kQueryVectors = F32Ops::kQueryVectors;
  static constexpr size_t kStep = F32Ops::kStep;
  using KStored = float;
  using VStored = float;
  static constexpr size_t kPTileKeys = kKvTile;
  using QkProduct = F32Product;
  using PvProduct = F32Product;
};

// K and V stored as f16; a tile is widened once for all rows of a task, then it is F32Scheme.
struct F16Scheme : F32Scheme {
  static constexpr LayoutId kLayout = LayoutId::kF16;
  static constexpr bool kWidensK = true;
  static constexpr bool kWidensV = true;
  using KStored = hwy::float16_t;
  using VStored = hwy::float16_t;
};

// The same K and V, widened as they are loaded: where few rows share each load.
struct F16LoadScheme : F16Scheme {
  static constexpr bool kWidensK = false;
  static constexpr bool kWidensV = false;
};

// Q, K, P and V in bf16, sums in f32.
struct BF16Scheme : F32Scheme {
  static constexpr LayoutId kLayout = LayoutId::kBF16;
  using KStored = hwy::bfloat16_t;
  using VStored = hwy::bfloat16_t;
  using QkProduct = BF16Product;
  using PvProduct = BF16Product;
};

// Where there is no dot product of bf16: the same K and V, widened as those of f16.
struct BF16WideScheme : F16Scheme {
  static constexpr LayoutId kLayout = LayoutId::kBF16;
  using KStored = hwy::bfloat16_t;
  using VStored = hwy::bfloat16_t;
};
struct BF16LoadScheme : BF16WideScheme {
  static constexpr bool kWidensK = false;
  static constexpr bool kWidensV = false;
};

// Q per row, K per token, V per channel and tile in int8; P in u8 relative to the tile's maximum.
struct I8Scheme {
  static constexpr LayoutId kLayout = I8Ops::kBiasedV ? LayoutId::kI8BiasedV : LayoutId::kI8BiasedK;
  static constexpr bool kQuantizedK = true;
  static constexpr bool kQuantizedV = true;
  static constexpr bool kWidensK = false;
  static constexpr bool kWidensV = false;
  static constexpr size_t kQueryVectors = I8Ops::kQueryVectors;
  static constexpr size_t kStep = I8Ops::kStep;
  static constexpr int kKBias = I8Ops::kBiasedV ? 0 : kBias;
  static constexpr size_t kPTileKeys = kKvTile;  // whose P is relative to one maximum
  using KStored = int8_t;
  using VStored = int8_t;
  using QkProduct = I8QkProduct;
  using PvOps = I8Ops;
  using PvProduct = I8PvProduct<PvOps>;

  static HWY_INLINE int MaxQ(size_t) { return I8Ops::kMaxQ; }
  static HWY_INLINE int MaxK(size_t) { return static_cast<int>(kMaxQuantum); }
};

// The same with Q and K in int16: scores as exact as those of f16, for twice their multiplications.
struct I8FineScheme : I8Scheme {
  static constexpr LayoutId kLayout =
      I8Ops::kBiasedV ? LayoutId::kI8FineBiasedV : LayoutId::kI8Fine;
  static constexpr int kKBias = 0;
  // A maximum over fewer keys is closer to them: rounding of P then costs 0.45 % instead of 0.57.
  static constexpr size_t kPTileKeys = kKvTile / 2;
  using KStored = int16_t;
  using QkProduct = I16QkProduct;
  using PvOps = ExactPvOps;
  using PvProduct = I8PvProduct<PvOps>;

  static HWY_INLINE int MaxQ(size_t head_dim) { return MaxWideQuantum(head_dim); }
  static HWY_INLINE int MaxK(size_t head_dim) { return MaxWideQuantum(head_dim); }
};

// Q and K as I8FineScheme has them, P and V in bf16.
struct Mixed16Scheme : I8FineScheme {
  static constexpr LayoutId kLayout = LayoutId::kMixed16;
  static constexpr bool kQuantizedV = false;
  static constexpr size_t kPTileKeys = kKvTile;
  using VStored = hwy::bfloat16_t;
  using PvProduct = BF16Product;
};

// Where there is no dot product of bf16: P and V in f32, V widened as that of f16.
struct Mixed16WideScheme : Mixed16Scheme {
  static constexpr bool kWidensV = true;
  using PvProduct = F32Product;
};
struct Mixed16LoadScheme : Mixed16WideScheme {
  static constexpr bool kWidensV = false;
};

using BF16PrefillScheme = hwy::If<BF16Ops::kNative, BF16Scheme, BF16WideScheme>;
using BF16DecodeScheme = hwy::If<BF16Ops::kNative, BF16Scheme, BF16LoadScheme>;
using Mixed16PrefillScheme = hwy::If<BF16Ops::kNative, Mixed16Scheme, Mixed16WideScheme>;
using Mixed16DecodeScheme = hwy::If<BF16Ops::kNative, Mixed16Scheme, Mixed16LoadScheme>;

// Elements of a 32-bit lane of Q and P,
template <class Scheme>
constexpr size_t kQkDepth = Scheme::QkProduct::kDepth;
template <class Scheme>
constexpr size_t kPvDepth = Scheme::PvProduct::kDepth;

// and of one of K and V where products read them: the same, but for pairs of bf16 that become f32
// as they are loaded.
template <class Product, typename Stored>
constexpr size_t kLaneParts =
    hwy::IsSame<Product, F32Product>() && hwy::IsSame<Stored, hwy::bfloat16_t>() ? 2 : 1;
template <class Scheme>
constexpr size_t kKLaneDepth =
    kQkDepth<Scheme> *
    (Scheme::kWidensK ? 1 : kLaneParts<typename Scheme::QkProduct, typename Scheme::KStored>);
template <class Scheme>
constexpr size_t kVLaneDepth =
    kPvDepth<Scheme> *
    (Scheme::kWidensV ? 1 : kLaneParts<typename Scheme::PvProduct, typename Scheme::VStored>);

// True if P is pairs of bf16.
template <class Scheme>
constexpr bool kHasBF16P = hwy::IsSame<typename Scheme::PvProduct, BF16Product>();

// Bytes in memory of what becomes one 32-bit lane, of K or V, in the tile that the products read:
// f16 that is not widened yet has lanes of its own size.
template <class Scheme>
constexpr size_t kTileLaneBytes =
    hwy::IsSame<typename Scheme::KStored, hwy::float16_t>() && !Scheme::kWidensK
        ? sizeof(hwy::float16_t)
        : kLaneBytes;

// What rows see of a tile of keys, as bits: key % 32 of word key / 32. See mask-inl.h.
constexpr size_t kMaskBits = 32;
constexpr size_t kMaskWords = kKvTile / kMaskBits;
// Keys that are looked at together: every scheme's kStep divides it.
constexpr size_t kMaskAlign = 8;

// Of one row,
struct RowMask {
  uint32_t words[kMaskWords];
};
// and of a query tile.
struct TileMask {
  const int32_t* words;      // [kMaskWords][rows]; only where `all` says that some do not see a key
  size_t first;              // no row sees a key before it, a multiple of kMaskAlign,
  size_t end;                // or from it on; 0: none at all
  uint32_t all[kMaskWords];  // keys that all rows see
};

// A query tile: up to kQueryVectors * kLanes rows that pass through the kernels together. Arrays
// are per row unless said otherwise; rows past the last real one are zero queries, computed and
// dropped.
struct QueryTile {
  uint8_t* panel;     // Q: [RoundUp(head_dim, 16) / depth][rows] 32-bit lanes
  float* row_scale;   // quantised K: what one unit of q·k is worth but for K's scale
  int32_t* acc_init;  // quantised V: where the accumulators of Q·K start
  float* lack;        // what scores lack, in octaves; see NeedsScores
  int32_t* begin;     // keys from it on
  int32_t* limit;     // and below it may be seen
  int32_t* mask;      // [kMaskWords][rows]: what they see of the tile of keys at hand
  float* m;           // P in f32: running maximum of the scores; else a reference near it
  float* d;           // running denominator
  float* o;           // [PaddedVHeadDim][rows]: running numerator
  size_t first_row;
  size_t num_rows;     // real ones
  size_t num_vectors;  // RoundUp(num_rows, kLanes) / kLanes
  // Bounds of begin and limit over the tile.
  size_t min_begin;
  size_t max_begin;
  size_t min_limit;
  size_t max_limit;
};

// What one pair of tiles leaves between its steps: where V is quantised, of what has no fixed
// point. Scores are in octaves: units of log2, so that softmax is a power of two.
struct TileScratch {
  float* s;       // [kKvTile][rows]: scores, then P itself; P of bf16: [kKvTile / 2][rows][2]
  float* tile_m;  // maximum of the tile's visible scores
  // Only where V is in floats:
  float* rescale;  // 2^(old m - new m): what O and d have to be multiplied by
  // Only where P is bf16:
  float* start;   // what scores are added to, for their distances from the reference
  int32_t* bits;  // of all these, or'ed
  float* sum;     // of P
};

// The same where V is quantised. Lanes hold two keys of one row as 16-bit words: see
// fixed_point-inl.h for "words" and their order.
struct FixedScratch {
  int16_t* s;           // [kKvTile / 2][rows] words: scores
  uint8_t* p;           // [kKvTile / 4][rows][4]
  int16_t* row_factor;  // words: what turns sums times key factors into fixed point
  int16_t* gain;        // words: and by which power of two the result is multiplied
  int16_t* bound;       // words: and up to which magnitude that fits
  int16_t* tile_m;      // words: maximum of the tile's visible scores
  int32_t* wide;        // -1 in rows whose scores do not fit fixed point
  float* tile_max;      // maximum of the tile's visible scores, in octaves
  float* weight;        // what one unit of P is worth
  int32_t* p_init;      // where the accumulators of P·V start
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCHEMES_INL_H_
