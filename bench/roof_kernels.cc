// What a tier's instructions can do at best: compiled once for each row of cmake/tiers.cmake with
// that tier's flags, like kernels/tier.cc and under the same rules.
//
// A peak kernel keeps kSums accumulators busy and touches no memory, so that its time is the
// throughput of the instruction and nothing else. An attention kernel that multiplies with it
// cannot be faster: it has to do the same multiply-adds, and more.
#include "bench/roof_kernels.h"

#include "kernels/simd-inl.h"
#include "kernels/tier_ops-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

using bench::PeakKernel;
using bench::RoofKernels;

// Latency times throughput of today's multiply-adds is at most 4 x 2 (x86) or 4 x 4 (large ARM
// cores); 12 sums and three operands fit 16 registers, 8 where a product needs one of its own.
constexpr size_t kSums = kNumRegisters == 32 ? 24 : HWY_NATIVE_FMA ? 12 : 8;

// The value of `v` becomes unknown to the compiler, in a register: loops can neither be folded nor
// dropped.
template <class V>
HWY_INLINE void Hide(V& v) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  asm volatile("" : "+v"(v.raw));
#elif HWY_ARCH_X86
  asm volatile("" : "+x"(v.raw));
#elif HWY_ARCH_ARM
  asm volatile("" : "+w"(v.raw));
#else
#error "Say in which registers this architecture keeps vectors."
#endif
}

// N sums, each a member of its own: g++ leaves an array in memory when its elements are hidden one
// by one.
template <class V, size_t N>
struct Sums {
  explicit HWY_INLINE Sums(V zero) : sum(zero), others(zero) {}
  template <class Step>
  HWY_INLINE void Add(const Step& step) {
    sum = step(sum);
    Hide(sum);
    others.Add(step);
  }
  V sum;
  Sums<V, N - 1> others;
};
template <class V>
struct Sums<V, 0> {
  explicit HWY_INLINE Sums(V) {}
  template <class Step>
  HWY_INLINE void Add(const Step&) {}
};

// Step(sum, a, b) adds products of a and b to a sum.
template <class Step, class VSum, class V>
HWY_INLINE void Peak(size_t rounds, VSum zero, V a, V b, const Step& step) {
  Sums<VSum, kSums> sums(zero);
  Hide(b);
  for (size_t round = 0; round < rounds; ++round) {
    sums.Add([&](VSum sum) HWY_ATTR {
      Hide(a);  // or the part of a step that does not depend on the sum would be done once
      return step(sum, a, b);
    });
  }
}

template <class D>
constexpr double OperationsPerRound(D) {
  return 2.0 * static_cast<double>(hn::MaxLanes(D()) * kSums);
}

HWY_INLINE VF AddProduct(VF sum, VF a, VF b) {
#if HWY_ARCH_X86 && !HWY_NATIVE_FMA
  // Left to themselves compilers add the sum to the product and copy that back, and a copy takes
  // the place of an addition.
  asm volatile("addps %1, %0" : "+x"(sum.raw) : "x"(hn::Mul(a, b).raw));
  return sum;
#else
  return hn::MulAdd(a, b, sum);
#endif
}

void Fp32Fma(size_t rounds) {
  Peak(rounds, hn::Zero(df), hn::Set(df, 0.5f), hn::Set(df, 0.5f),
       [](VF sum, VF a, VF b) HWY_ATTR { return AddProduct(sum, a, b); });
}

// A matrix product multiplies two rows with two, in as many bytes as a dot product two of four.
constexpr double kMatrixRows = MatrixOps::kNative ? 2.0 : 1.0;

// What the kernels multiply bytes with: one instruction, or three without dot products.
template <class Matrix>
void Int8Dot(size_t rounds) {
  Peak(rounds, hn::Zero(di32), hn::Set(di8, 1), hn::Set(di8, 1),
       [](VI32 sum, VI8 a, VI8 b) HWY_ATTR {
         if constexpr (Matrix::kNative) {
           return Matrix::MulI8(sum, a, b);
         } else {
           return I8Ops::DotPV(sum, hn::BitCast(du8, a), b);
         }
       });
}

void Int16Dot(size_t rounds) {
  Peak(rounds, hn::Zero(di32), hn::Set(di16, 1), hn::Set(di16, 1),
       [](VI32 sum, VI16 a, VI16 b) HWY_ATTR { return I16Ops::Dot(sum, a, b); });
}

template <class Matrix>
void BF16Dot(size_t rounds) {
  const VI32 half = hn::BitCast(di32, hn::Set(df, 0.5f));
  Peak(rounds, hn::Zero(df), half, half, [](VF sum, VI32 a, VI32 b) HWY_ATTR {
    if constexpr (Matrix::kNative) {
      return Matrix::MulBF16(sum, a, b);
    } else {
      return BF16Ops::Dot(sum, a, b);
    }
  });
}
constexpr PeakKernel kBF16Dot =
    BF16Ops::kNative ? PeakKernel{&BF16Dot<MatrixOps>, kMatrixRows* OperationsPerRound(di16)}
                     : PeakKernel{};

void Read(const void* data, size_t bytes, size_t passes) {
  constexpr size_t kBytes = kLanes * sizeof(int32_t);
  // Four sums, so that no addition waits for the one before.
  VI32 a = hn::Zero(di32);
  VI32 b = a;
  VI32 c = a;
  VI32 d = a;
  for (size_t pass = 0; pass < passes; ++pass) {
    const int32_t* HWY_RESTRICT p = static_cast<const int32_t*>(data);
    for (size_t done = 0; done < bytes; done += bench::kReadBytes) {
      HWY_UNROLL(4)
      for (size_t i = 0; i < bench::kReadBytes / kBytes; i += 4) {
        a = hn::Add(a, hn::Load(di32, p + (i + 0) * kLanes));
        b = hn::Add(b, hn::Load(di32, p + (i + 1) * kLanes));
        c = hn::Add(c, hn::Load(di32, p + (i + 2) * kLanes));
        d = hn::Add(d, hn::Load(di32, p + (i + 3) * kLanes));
      }
      p += bench::kReadBytes / sizeof(int32_t);
    }
    Hide(a);
    Hide(b);
    Hide(c);
    Hide(d);
  }
}

}  // namespace

const bench::RoofKernels& GetRoofKernels();  // bench/roofs.cc declares it for every tier

const bench::RoofKernels& GetRoofKernels() {
  static constexpr RoofKernels kKernels = {
      {&Fp32Fma, OperationsPerRound(df)},
      {&Int8Dot<MatrixOps>, kMatrixRows * OperationsPerRound(di8)},
      {&Int16Dot, OperationsPerRound(di16)},
      kBF16Dot,
      &Read};
  return kKernels;
}

}  // namespace SIGHTLINE_TIER
}  // namespace sightline
