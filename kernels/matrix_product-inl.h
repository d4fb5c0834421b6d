// The micro-kernel of block_product-inl.h where an instruction multiplies two rows of A with two of
// B: smmla and its kin on ARM, twice the multiplications of a dot product at its rate.
//
// It takes eight bytes of a row at once, two of the steps that everything else goes by, and wants
// their lanes side by side. They are, in the two vectors that they come from, which stay where they
// are:
//
//   step 2s      a0 a1 a2 a3  ->  a0 b0 a1 b1
//   step 2s + 1  b0 b1 b2 b3  ->  a2 b2 a3 b3
//
// so that the first vector is two rows, and the second the next two. Q and P are written that way,
// tiles of K and V are once for all rows of a task (LoadKvTile): memories, caches and files need no
// layout for it, and decode reads what is packed. Per two steps 2 * kVectors + kKeys / 2 loads feed
// kVectors * kKeys multiplications; in the end each vector of sums is blended from two.
#ifndef SIGHTLINE_KERNELS_MATRIX_PRODUCT_INL_H_
#define SIGHTLINE_KERNELS_MATRIX_PRODUCT_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// The multiplications, as MatrixOps has them: of two rows in b and two in a, kSteps lanes of each.
template <class Ops>
struct I8QkMatrixProduct {
  using Acc = VI32;
  static constexpr size_t kDepth = 4;
  static constexpr size_t kSteps = 2;
  using Matrix = Ops;
  static HWY_INLINE VI32 MulAcc(VI32 acc, VU8 b, VU8 a) {
    return Ops::MulI8(acc, hn::BitCast(di8, a), hn::BitCast(di8, b));
  }
};
// Of int16 as bytes: four products for one, at a quarter of what widening multiplications cost.
template <class Ops>
struct I16QkMatrixProduct : I8QkMatrixProduct<Ops> {
  static constexpr size_t kDepth = 2;
  static constexpr size_t kSteps = 4;
};
template <class Ops>
struct I8PvMatrixProduct {
  using Acc = VI32;
  static constexpr size_t kDepth = 4;
  static constexpr size_t kSteps = 2;
  using Matrix = Ops;
  static HWY_INLINE VI32 MulAcc(VI32 acc, VU8 b, VU8 a) {
    return Ops::MulU8I8(acc, a, hn::BitCast(di8, b));
  }
};
template <class Ops>
struct BF16MatrixProduct {
  using Acc = VF;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kSteps = 2;
  using Matrix = Ops;
  static HWY_INLINE VF MulAcc(VF acc, VU8 b, VU8 a) {
    return Ops::MulBF16(acc, hn::BitCast(di32, a), hn::BitCast(di32, b));
  }
};

// The same lanes of two neighbouring steps, side by side; see above. And back.
template <class V>
HWY_INLINE void InterleaveSteps(V& even, V& odd) {
  const hn::DFromV<V> d;
  const VI32 first = hn::BitCast(di32, even);
  const VI32 second = hn::BitCast(di32, odd);
  even = hn::BitCast(d, hn::InterleaveLower(di32, first, second));
  odd = hn::BitCast(d, hn::InterleaveUpper(di32, first, second));
}
template <class V>
HWY_INLINE void SeparateSteps(V& even, V& odd) {
  const hn::DFromV<V> d;
  const VI32 first = hn::BitCast(di32, even);
  const VI32 second = hn::BitCast(di32, odd);
  even = hn::BitCast(d, hn::ConcatEven(di32, second, first));
  odd = hn::BitCast(d, hn::ConcatOdd(di32, second, first));
}

// Neighbouring steps of int16 likewise, four of them, as bytes: the first two vectors are upper
// parts and the others lower ones, x = 128 * upper + lower. Within a lane elements are in another
// order, the same for Q and K.
constexpr int kPartBits = 7;
HWY_INLINE void ArrangeSteps(VI32 (&x)[4]) {
  VI16 upper[4];
  VI16 lower[4];
  const VI16 half = hn::Set(di16, 1 << (kPartBits - 1));
  HWY_UNROLL(4)
  for (size_t i = 0; i < 4; ++i) {
    const VI16 words = hn::BitCast(di16, x[i]);
    upper[i] = hn::ShiftRight<kPartBits>(hn::Add(words, half));
    lower[i] = hn::Sub(words, hn::ShiftLeft<kPartBits>(upper[i]));
  }
  const auto bytes = [](VI16 even, VI16 odd) HWY_ATTR {
    const VU8 shifted = hn::BitCast(du8, hn::ShiftLeft<8>(odd));
    return hn::BitCast(di32, hn::OddEven(shifted, hn::BitCast(du8, even)));
  };
  x[0] = bytes(upper[0], upper[1]);
  x[1] = bytes(upper[2], upper[3]);
  x[2] = bytes(lower[0], lower[1]);
  x[3] = bytes(lower[2], lower[3]);
  InterleaveSteps(x[0], x[1]);
  InterleaveSteps(x[2], x[3]);
}
HWY_INLINE void ArrangeSteps(VI32 (&x)[2]) { InterleaveSteps(x[0], x[1]); }

// Sums of two keys and two rows to a vector: [.][2 v] and [.][2 v + 1] are of the rows of vector v,
// and become, or come from, those of one key each as steps do.
template <class Product, size_t kKeys, size_t kVectors>
using MatrixSums = typename Product::Acc[kKeys / 2][2 * kVectors];

// num times two steps that lie one after the other, with all sums; step_bytes apart each time.
template <class Product, size_t kKeys, size_t kVectors>
HWY_INLINE void AddMatrixSteps(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                               size_t b_step_bytes, const uint8_t* HWY_RESTRICT a,
                               size_t a_stride_bytes, size_t a_step_bytes, size_t num,
                               MatrixSums<Product, kKeys, kVectors>& sums) {
#if HWY_COMPILER_GCC_ACTUAL
  asm("" : "+r"(num));  // as in BlockProduct
#endif
  for (size_t i = 0; i < num; ++i) {
    VU8 av[2 * kVectors];
    HWY_UNROLL(8)
    for (size_t v = 0; v < kVectors; ++v) {
      av[2 * v] = hn::Load(du8, a + v * kVectorBytes);
      av[2 * v + 1] = hn::Load(du8, a + a_stride_bytes + v * kVectorBytes);
    }
    VU8 next = hn::Load(du8, b);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kKeys / 2; ++n) {
      const VU8 bn = next;
      if (n + 1 < kKeys / 2) {
        next = hn::Load(du8, b + (n + 1) % 2 * b_stride_bytes + (n + 1) / 2 * kVectorBytes);
      }
      HWY_UNROLL(8)
      for (size_t v = 0; v < 2 * kVectors; ++v) {
        sums[n][v] = Product::MulAcc(sums[n][v], bn, av[v]);
        if constexpr (kVectors > 1) Product::Matrix::LoadAfter(b, sums[n][v]);
      }
    }
    a += a_step_bytes;
    b += b_step_bytes;
  }
}

// BlockProduct with matrix products. Where num_steps is not a multiple of kSteps, A has steps of 0.
template <class Product, size_t kKeys, size_t kVectors>
HWY_INLINE void MatrixBlockProduct(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                                   const uint8_t* HWY_RESTRICT a, size_t a_stride_bytes,
                                   size_t num_steps,
                                   typename Product::Acc (&acc)[kKeys][kVectors]) {
  static_assert(kLanes == 4 && kKeys % 4 == 0, "vectors of two rows, whole vectors of keys");
  constexpr size_t kSteps = Product::kSteps;
  const size_t num = (num_steps + kSteps - 1) / kSteps;
  const auto add = [&](size_t b_step, size_t a_step,
                       MatrixSums<Product, kKeys, kVectors>& sums) HWY_ATTR {
    AddMatrixSteps<Product, kKeys, kVectors>(b + b_step * b_stride_bytes, b_stride_bytes,
                                             kSteps * b_stride_bytes, a + a_step * a_stride_bytes,
                                             a_stride_bytes, kSteps * a_stride_bytes, num, sums);
  };
  MatrixSums<Product, kKeys, kVectors> sums;
  HWY_UNROLL(8)
  for (size_t n = 0; n < kKeys / 2; ++n) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < kVectors; ++v) {
      if constexpr (kSteps == 2) {
        sums[n][2 * v] = acc[2 * n][v];
        sums[n][2 * v + 1] = acc[2 * n + 1][v];
        InterleaveSteps(sums[n][2 * v], sums[n][2 * v + 1]);
      } else {
        sums[n][2 * v] = hn::Zero(di32);
        sums[n][2 * v + 1] = hn::Zero(di32);
      }
    }
  }
  if constexpr (kSteps == 2) {
    add(0, 0, sums);
  } else {
    // Upper parts with each other, either with the other, lower parts: (uu * 128 + ul + lu) * 128
    // + ll, modulo 2^32.
    for (size_t part = 0; part < 4; ++part) {
      if (part % 2 == 1) {
        HWY_UNROLL(8)
        for (size_t n = 0; n < kKeys / 2; ++n) {
          HWY_UNROLL(8)
          for (size_t v = 0; v < 2 * kVectors; ++v) {
            sums[n][v] = hn::ShiftLeft<kPartBits>(sums[n][v]);
          }
        }
      }
      add(part / 2 * 2, part % 2 * 2, sums);
    }
  }
  HWY_UNROLL(8)
  for (size_t n = 0; n < kKeys / 2; ++n) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < kVectors; ++v) {
      SeparateSteps(sums[n][2 * v], sums[n][2 * v + 1]);
      if constexpr (kSteps == 2) {
        acc[2 * n][v] = sums[n][2 * v];
        acc[2 * n + 1][v] = sums[n][2 * v + 1];
      } else {
        acc[2 * n][v] = hn::Add(acc[2 * n][v], sums[n][2 * v]);
        acc[2 * n + 1][v] = hn::Add(acc[2 * n + 1][v], sums[n][2 * v + 1]);
      }
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_MATRIX_PRODUCT_INL_H_
