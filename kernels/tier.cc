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
template <class AnyForm>
size_t ScratchBytes(const PackedShape& shape) {
  const size_t attends =
      MaxOf(PrefillScratchBytes<SchemeOf<AnyForm>>(shape), DecodeScratchBytes<AnyForm>(shape));
  const size_t weighs = MaxOf(WeighManyScratchBytes<typename SchemeOf<AnyForm>::Keys>(shape),
                              WeighFewScratchBytes<typename AnyForm::Keys>(shape));
  return MaxOf(attends, weighs);
}

template <class Values>
constexpr QuantizedScheme kSchemeNumbers = {I8Ops::kMaxQ, Values::kMaxP, Values::kPTileKeys,
                                            kExp2Table<Values::kMaxP>.entry};

template <class Values>
constexpr const QuantizedScheme* NumbersOf() {
  if constexpr (Values::kQuantized) return &kSchemeNumbers<Values>;
  return nullptr;
}

template <class AnyForm>
constexpr PackFunction CenterFunctionOf() {
  if constexpr (AnyForm::Keys::kQuantized) return &FindCenters<AnyForm>;
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

// Nothing of a precision that is not owned.
template <Precision kPrecision, class AnyForm>
constexpr PrecisionKernels KernelsOf() {
  if constexpr (!Owns(kPrecision)) {
    return {};
  } else {
    using OfPrefill = SchemeOf<AnyForm>;
    return {AnyForm::kLayout,
            NumbersOf<typename AnyForm::Values>(),
            kHasBF16P<typename AnyForm::Values>,
            &ScratchBytes<AnyForm>,
            &Prefill<OfPrefill>,
            &Decode<AnyForm>,
            kDecodeRows,
            true,
            &WeighMany<typename OfPrefill::Keys>,
            &WeighFew<typename AnyForm::Keys>,
            CenterFunctionOf<AnyForm>(),
            &Pack<AnyForm>};
  }
}

}  // namespace

const internal::KernelTable& GetTable();  // dispatch/tiers.cc declares it for every tier

const internal::KernelTable& GetTable() {
  static constexpr internal::KernelTable kTable = {
      HWY_STR(SIGHTLINE_TIER),
      {
          KernelsOf<Precision::kF32, F32Form>(),
          KernelsOf<Precision::kF16, F16Form>(),
          KernelsOf<Precision::kI8, I8Form>(),
          KernelsOf<Precision::kI8Fine, I8FineForm>(),
          KernelsOf<Precision::kBF16, BF16Form>(),
          KernelsOf<Precision::kMixed16, Mixed16Form>(),
      }};
  return kTable;
}

}  // namespace SIGHTLINE_TIER
}  // namespace sightline
