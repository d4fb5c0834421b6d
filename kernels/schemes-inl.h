// What a precision means to the kernels: the form of its keys, that of its values, and the scheme
// that prefill makes of both. Kernels of K·Q are templates of the first, those of P·V of the
// second, so that precisions with the same K or V share them.
#ifndef SIGHTLINE_KERNELS_SCHEMES_INL_H_
#define SIGHTLINE_KERNELS_SCHEMES_INL_H_

#include "kernels/block_product-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// ---- Keys: how K is stored and multiplied
//
// kQuantized: integers, with a scale for each key and for each row of Q; the scores of floats need
// none, as Q carries the softmax scale. kQueryVectors x kStep: prefill's register block.

struct F32Keys {
  static constexpr bool kQuantized = false;
  static constexpr size_t kQueryVectors = F32Ops::kQueryVectors;
  static constexpr size_t kStep = F32Ops::kStep;
  using Stored = float;
  using Product = F32Product;
};

// Widened as they are loaded: where few rows share each load.
struct F16Keys : F32Keys {
  using Stored = hwy::float16_t;
};

// Multiplied as they are where there is a dot product of bf16, else the same.
struct BF16Keys : F32Keys {
  using Stored = hwy::bfloat16_t;
  using Product = hwy::If<BF16Ops::kNative, BF16Product, F32Product>;
};

struct I8Keys {
  static constexpr bool kQuantized = true;
  static constexpr size_t kQueryVectors = I8Ops::kQueryVectors;
  static constexpr size_t kStep = I8Ops::kStep;
  static constexpr int kAdded = I8Ops::kBiasedV ? 0 : kBias;  // to the quanta of K
  using Stored = int8_t;
  using Product = I8QkProduct<I8Ops>;

  static HWY_INLINE int MaxQ(size_t) { return I8Ops::kMaxQ; }
  static HWY_INLINE int MaxK(size_t) { return static_cast<int>(kMaxQuantum); }
};

// Q as well: scores as exact as those of f16, for twice the multiplications of int8.
struct I16Keys : I8Keys {
  static constexpr int kAdded = 0;
  using Stored = int16_t;
  using Product = I16QkProduct<I16Ops>;

  static HWY_INLINE int MaxQ(size_t head_dim) { return MaxWideQuantum(head_dim); }
  static HWY_INLINE int MaxK(size_t head_dim) { return MaxWideQuantum(head_dim); }
};

// ---- Values: the same of V and P
//
// kQuantized: integers, with a scale for each tile and channel; softmax is in 16-bit fixed point,
// and P in bytes. Else P is of the product's type.

struct F32Values {
  static constexpr bool kQuantized = false;
  using Stored = float;
  using Product = F32Product;
};
struct F16Values : F32Values {
  using Stored = hwy::float16_t;
};
struct BF16Values : F32Values {
  using Stored = hwy::bfloat16_t;
  using Product = hwy::If<BF16Ops::kNative, BF16Product, F32Product>;
};

// kTileKeys: keys over which P is relative to one maximum.
template <class Ops, size_t kTileKeys>
struct I8Values {
  static constexpr bool kQuantized = true;
  static constexpr bool kBiased = I8Ops::kBiasedV;
  static constexpr size_t kPTileKeys = kTileKeys;
  static constexpr int kMaxP = Ops::kMaxP;
  using Stored = int8_t;
  using Product = I8PvProduct<Ops>;
};

// ---- Forms: what packing writes and decode reads

template <LayoutId kLayoutId, class KeysOfForm, class ValuesOfForm>
struct Form {
  static constexpr LayoutId kLayout = kLayoutId;
  using Keys = KeysOfForm;
  using Values = ValuesOfForm;
};

using F32Form = Form<LayoutId::kF32, F32Keys, F32Values>;
using F16Form = Form<LayoutId::kF16, F16Keys, F16Values>;
using BF16Form = Form<LayoutId::kBF16, BF16Keys, BF16Values>;
using I8Form = Form<I8Ops::kBiasedV ? LayoutId::kI8BiasedV : LayoutId::kI8BiasedK, I8Keys,
                    I8Values<I8Ops, kKvTile>>;
// A maximum over fewer keys is closer to them: rounding of P then costs 0.45 % instead of 0.57.
using I8FineForm = Form<I8Ops::kBiasedV ? LayoutId::kI8FineBiasedV : LayoutId::kI8Fine, I16Keys,
                        I8Values<ExactPvOps, kKvTile / 2>>;
using Mixed16Form = Form<LayoutId::kMixed16, I16Keys, BF16Values>;

// ---- Schemes: what prefill multiplies

// The register block of both products is that of the keys.
template <class KeysOfScheme, class ValuesOfScheme>
struct Scheme {
  using Keys = KeysOfScheme;
  using Values = ValuesOfScheme;
};

// The matrix product that does what a product does; none but for these.
template <class Product>
struct MatrixProductOf {
  static constexpr bool kExists = false;
};
template <class Ops>
struct MatrixProductOf<I8QkProduct<Ops>> {
  static constexpr bool kExists = MatrixOps::kNative;
  using Type = I8QkMatrixProduct<MatrixOps>;
};
template <class Ops>
struct MatrixProductOf<I16QkProduct<Ops>> {
  static constexpr bool kExists = MatrixOps::kNative;
  using Type = I16QkMatrixProduct<MatrixOps>;
};
template <class Ops>
struct MatrixProductOf<I8PvProduct<Ops>> {
  static constexpr bool kExists = MatrixOps::kNative;
  using Type = I8PvMatrixProduct<MatrixOps>;
};
template <>
struct MatrixProductOf<BF16Product> {
  static constexpr bool kExists = MatrixOps::kNative;
  using Type = BF16MatrixProduct<MatrixOps>;
};

// Keys or values with it. Their tiles are interleaved, once for all rows of a task, and lose V's
// bias on the way: see LoadKvTile.
template <class KeysOrValues, class Ops = MatrixOps>
struct Interleaved : KeysOrValues {
  static constexpr size_t kQueryVectors = Ops::kQueryVectors;
  static constexpr size_t kStep = Ops::kStep;
  static constexpr bool kBiased = false;
  using Product = typename MatrixProductOf<typename KeysOrValues::Product>::Type;
};

// Floats that have no product of their own are widened to f32, tile by tile as well.
template <class KeysOrValues>
constexpr bool kIsWidened = !hwy::IsSame<typename KeysOrValues::Stored, float>() &&
                            hwy::IsSame<typename KeysOrValues::Product, F32Product>();

// What becomes of the keys or values of a form.
template <class KeysOrValues, class Wide>
using InScheme =
    hwy::If<MatrixProductOf<typename KeysOrValues::Product>::kExists, Interleaved<KeysOrValues>,
            hwy::If<kIsWidened<KeysOrValues>, Wide, KeysOrValues>>;
template <class AnyForm>
using SchemeOf = Scheme<InScheme<typename AnyForm::Keys, F32Keys>,
                        InScheme<typename AnyForm::Values, F32Values>>;

// Elements of a 32-bit lane of Q or P,
template <class KeysOrValues>
constexpr size_t kDepthOf = KeysOrValues::Product::kDepth;
// of as many as are multiplied together,
template <class KeysOrValues>
constexpr size_t kFullDepthOf = KeysOrValues::Product::kDepth * KeysOrValues::Product::kSteps;

// and of one of K or V in memory: the same, but for pairs of bf16 that become f32 as they are
// loaded.
template <class Product, typename Stored>
constexpr size_t kLaneParts =
    hwy::IsSame<Product, F32Product>() && hwy::IsSame<Stored, hwy::bfloat16_t>() ? 2 : 1;
template <class KeysOrValues>
constexpr size_t kLaneDepthOf =
    kDepthOf<KeysOrValues> *
    kLaneParts<typename KeysOrValues::Product, typename KeysOrValues::Stored>;

// Bytes in memory of what becomes one 32-bit lane: f16 has lanes of its own size.
template <typename Stored>
constexpr size_t kStoredLaneBytes =
    hwy::IsSame<Stored, hwy::float16_t>() ? sizeof(hwy::float16_t) : kLaneBytes;

// True if P is pairs of bf16.
template <class Values>
constexpr bool kHasBF16P = !Values::kQuantized && kDepthOf<Values> == 2;

// Calls body(Count<n>()) for n of 1 to kMax: what has registers for so many rows or vectors.
template <size_t kCount>
struct Count {
  static constexpr size_t value = kCount;  // NOLINT: as std::integral_constant has it
};
template <size_t kMax, class Body>
HWY_INLINE void WithCount(size_t n, const Body& body) {
  if (n == kMax) {
    body(Count<kMax>());
  } else if constexpr (kMax > 1) {
    WithCount<kMax - 1>(n, body);
  }
}

// What rows see of a tile of keys, as bits: key % 32 of word key / 32. See mask-inl.h.
constexpr size_t kMaskBits = 32;
constexpr size_t kMaskWords = kKvTile / kMaskBits;
static_assert(kKvTile / 2 % kMaskBits == 0, "a half of a tile begins a word");
// Keys that are looked at together: every kStep divides it.
constexpr size_t kMaskAlign = 8;

// Of one row,
struct RowMask {
  uint32_t words[kMaskWords];
};
// and of a query tile, of which each vector of rows sees keys of a span of its own.
constexpr size_t kMaxQueryVectors = MaxOf(F32Ops::kQueryVectors, I8Ops::kQueryVectors);
struct KeySpan {
  size_t first;  // a multiple of kMaskAlign
  size_t end;    // 0: nothing is seen

  // To where the kernels compute; what is beyond `end` is hidden.
  HWY_INLINE size_t padded_end() const { return RoundUp(end, kMaskAlign); }
};
struct TileMask {
  const int32_t* words;  // [kMaskWords][rows]; only where `all` says that some do not see a key
  KeySpan any;           // of all rows together
  KeySpan seen[kMaxQueryVectors];  // of each vector of them
  KeySpan common;                  // keys that are part of each of these; may be empty
  uint32_t all[kMaskWords];        // keys that all rows see
};

// A query tile: up to kQueryVectors * kLanes rows that pass through the kernels together. Arrays
// are per row unless said otherwise; rows past the last real one are zero queries, computed and
// dropped.
struct QueryTile {
  uint8_t* panel;      // Q: [RoundUp(head_dim, 16) / depth][rows] 32-bit lanes
  float* row_scale;    // quantised K: what one unit of q·k is worth but for K's scale
  int32_t* acc_init;   // quantised V: where the accumulators of Q·K start
  float* lack;         // what scores lack, in octaves; see NeedsScores
  float* lacks;        // [kMostParts][num_vectors * kLanes]: of all tasks that lead to one another
  int32_t* begin;      // keys from it on
  int32_t* limit;      // and below it may be seen
  int32_t* mask;       // [kMaskWords][rows]: what they see of the tile of keys at hand
  float* m;            // P in f32: running maximum of the scores; else a reference near it
  float* d;            // running denominator
  float* offset;       // of parts (parts-inl.h): what their scores are to be raised by,
  float* before_m;     // reference and
  float* before_d;     // denominator when the part began; 0 where there are no parts
  float* kept_m;       // the reference behind the part if that leaves it where it was
  int32_t* unweighed;  // -1: their weights are left to a second pass; see WeighsOnTheWay
  float* o;            // [PaddedVHeadDim][rows]: running numerator
  int sum_shift;       // quantised K: bits by which sums of Q·K are shifted to fit int16,
  int32_t rounding;    // and half of what is shifted out; see SumShift
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

// Places that a table of biases may have to be made words of once for a task: T5 has 641.
constexpr size_t kMaxTablePlaces = 1024;

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
  int32_t* table;       // [kMaxTablePlaces]: a task's table of biases by distance, as words
  float table_middle;   // in octaves, to be added to them
  bool has_table;
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCHEMES_INL_H_
