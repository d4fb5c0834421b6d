// One tier: this file is compiled once for each row of cmake/tiers.cmake, with that tier's ISA
// flags.
//
// Wide-ISA code must not reach the rest of the program, where the linker could keep its copy of an
// inline function for everybody and an older CPU would die of SIGILL. Hence: a Highway namespace of
// its own per tier (-Dhwy=hwy_<tier>), everything else in an anonymous namespace, no standard
// library, no libhwy, and a build step that fails when the object exports more than GetTable().
#include "kernels/simd-inl.h"

// The drivers, from which the call path goes down to the register blocks.
#include "kernels/decode-inl.h"
#include "kernels/prefill-inl.h"
#include "kernels/weights-inl.h"
#include "quant/pack-inl.h"

// Flags choose Highway's target silently; a wrong guess would only show as lost speed.
static_assert(HWY_TARGET == SIGHTLINE_TIER_TARGET, "the tier's flags give another Highway target");
static_assert(HWY_TARGETS == HWY_STATIC_TARGET, "tiers are compiled statically");

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A worker needs scratch for one driver at a time.
template <class PrefillScheme, class DecodeScheme>
size_t ScratchBytes(const PackedShape& shape) {
  return MaxOf(PrefillScratchBytes<PrefillScheme>(shape), DecodeScratchBytes<DecodeScheme>(shape));
}

template <class Scheme>
constexpr QuantizedScheme kSchemeNumbers = {I8Ops::kMaxQ, Scheme::PvOps::kMaxP, Scheme::kPTileKeys,
                                            kExp2Table<Scheme::PvOps::kMaxP>.entry};

template <class Scheme>
constexpr const QuantizedScheme* NumbersOf() {
  if constexpr (Scheme::kQuantizedV) return &kSchemeNumbers<Scheme>;
  return nullptr;
}

template <class Scheme>
constexpr PackFunction CenterFunctionOf() {
  if constexpr (Scheme::kQuantizedK) return &FindCenters<Scheme>;
  return nullptr;
}

// The precisions whose kernels this tier makes; see cmake/tiers.cmake.
constexpr Precision kOwned[] = {SIGHTLINE_TIER_OWNS};
constexpr bool Owns(Precision precision) {
  for (const Precision owned : kOwned) {
    if (owned == precision) return true;
  }
  return false;
}

// Both schemes read one layout. Nothing of a precision that is not owned.
template <Precision kPrecision, class PrefillScheme, class DecodeScheme>
constexpr PrecisionKernels KernelsOf() {
  static_assert(PrefillScheme::kLayout == DecodeScheme::kLayout, "one packed form serves both");
  if constexpr (!Owns(kPrecision)) {
    return {};
  } else {
    return {PrefillScheme::kLayout,
            NumbersOf<PrefillScheme>(),
            kHasBF16P<PrefillScheme>,
            &ScratchBytes<PrefillScheme, DecodeScheme>,
            &Prefill<PrefillScheme>,
            &Decode<DecodeScheme>,
            kDecodeRows,
            &WeighMany<PrefillScheme>,
            &WeighFew<DecodeScheme>,
            CenterFunctionOf<PrefillScheme>(),
            &Pack<PrefillScheme>};
  }
}

}  // namespace

const internal::KernelTable& GetTable();  // dispatch/tiers.cc declares it for every tier

const internal::KernelTable& GetTable() {
  static constexpr internal::KernelTable kTable = {
      HWY_STR(SIGHTLINE_TIER),
      {
          KernelsOf<Precision::kF32, F32Scheme, F32Scheme>(),
          KernelsOf<Precision::kF16, F16Scheme, F16LoadScheme>(),
          KernelsOf<Precision::kI8, I8Scheme, I8Scheme>(),
          KernelsOf<Precision::kI8Fine, I8FineScheme, I8FineScheme>(),
          KernelsOf<Precision::kBF16, BF16PrefillScheme, BF16DecodeScheme>(),
          KernelsOf<Precision::kMixed16, Mixed16PrefillScheme, Mixed16DecodeScheme>(),
      }};
  return kTable;
}

}  // namespace SIGHTLINE_TIER
}  // namespace sightline
