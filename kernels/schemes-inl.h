// The schemes: what a precision means to the kernels. One driver serves all; a scheme says how Q,
// K, P and V are represented and which multiplication joins them.
#ifndef SIGHTLINE_KERNELS_SCHEMES_INL_H_
#define SIGHTLINE_KERNELS_SCHEMES_INL_H_

#include "kernels/block_product-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Everything in f32. Q carries the softmax scale, P replaces S in place.
struct F32Scheme {
  static constexpr LayoutId kLayout = LayoutId::kF32;
  static constexpr bool kI8 = false;
  static constexpr bool kWidensKv = false;
  static constexpr size_t kQueryVectors = F32Ops::kQueryVectors;
  static constexpr size_t kStep = F32Ops::kStep;
  using Stored = float;
  using QkProduct = F32Product;
  using PvProduct = F32Product;
};

// K and V stored as f16; a tile is widened once for all rows of a task, then it is F32Scheme.
struct F16Scheme : F32Scheme {
  static constexpr LayoutId kLayout = LayoutId::kF16;
  static constexpr bool kWidensKv = true;
  using Stored = hwy::float16_t;
};

// The same K and V, widened as they are loaded: where few rows share each load.
struct F16LoadScheme : F16Scheme {
  static constexpr bool kWidensKv = false;
};

// Q per row, K per token, V per channel and tile in int8; P in u8, 255 at the tile's own maximum.
struct I8Scheme {
  static constexpr LayoutId kLayout = I8Ops::kLayout;
  static constexpr bool kI8 = true;
  static constexpr bool kWidensKv = false;
  static constexpr size_t kQueryVectors = I8Ops::kQueryVectors;
  static constexpr size_t kStep = I8Ops::kStep;
  using Stored = int8_t;
  using QkProduct = I8QkProduct;
  using PvProduct = I8PvProduct;
};

// Elements of a 32-bit lane.
template <class Scheme>
constexpr size_t kDepth = Scheme::kI8 ? 4 : 1;

// Bytes in memory of what becomes one 32-bit lane, in the tile that the products read.
template <class Scheme>
constexpr size_t kTileLaneBytes =
    Scheme::kWidensKv ? kLaneBytes : kDepth<Scheme> * sizeof(typename Scheme::Stored);

// A query tile: up to kQueryVectors * kLanes rows that pass through the kernels together. Arrays
// are per row unless said otherwise; rows past the last real one are zero queries, computed and
// dropped.
struct QueryTile {
  uint8_t* panel;     // Q: [RoundUp(head_dim, 16) / depth][rows] 32-bit lanes
  float* row_scale;   // int8: what one unit of a score's integer part is worth, scales included
  int32_t* acc_init;  // int8: where the accumulators of Q·K start
  int32_t* limit;     // keys below it are visible
  float* m;           // running maximum of the scores, in units of log2
  float* d;           // running denominator
  float* o;           // [PaddedVHeadDim][rows]: running numerator
  size_t first_row;
  size_t num_rows;     // real ones
  size_t num_vectors;  // RoundUp(num_rows, kLanes) / kLanes
  // Bounds of limit over the tile: keys below min_limit are visible to every row, those from
  // max_limit on to none.
  size_t min_limit;
  size_t max_limit;
};

// What one pair of tiles leaves between its steps.
struct TileScratch {
  float* s;         // [kKvTile][rows]: scores, then for f32 P itself
  uint8_t* p;       // int8: [kKvTile / 4][rows][4]
  float* tile_m;    // maximum of the tile's visible scores
  float* rescale;   // 2^(old m - new m): what O and d have to be multiplied by
  float* weight;    // int8: 2^(tile m - new m) / 255, the worth of one unit of P
  int32_t* p_init;  // int8: where the accumulators of P·V start
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCHEMES_INL_H_
