// Softmax where V is quantised, in 16-bit integers: half as many vectors as f32, no conversions,
// and the same bits on every CPU whose tables agree.
//
// Scores are fixed point in 1/64 octave (an octave is a factor of two of the weight), so that int16
// spans +-512 octaves. P is 2^-y with y = maximum - score >= 0, relative to the tile's maximum,
// with seven or eight fraction bits; rounded to a byte it is what P·V multiplies, unrounded it is
// summed for the denominator, so that thousands of keys too faint for a step of their own still
// count.
//
// Words: a lane of 32 bits belongs to one row and holds two keys. Four keys k, k+1, k+2, k+3 make
// two vectors, (k, k+2) and (k+1, k+3), whose bytes then interleave to k, k+1, k+2, k+3, the order
// of V.
//
// Cost of 2^-y per vector of words: a subtraction, two shifts and a table lookup with AVX-512, with
// ARM's dotprod 7 instructions, of which the lookup is one of 64 bytes; 12 or 13 elsewhere. Half as
// much again for the sum and the bytes.
#ifndef SIGHTLINE_KERNELS_FIXED_POINT_INL_H_
#define SIGHTLINE_KERNELS_FIXED_POINT_INL_H_

#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Fraction bits of a score: steps of 1/64 octave change P by 1.1 %, whose rounding adds 0.3 % to
// the error of P in quadrature; steps of 1/32 would save an instruction or two and add 0.6 %.
constexpr int kScoreBits = 6;
constexpr size_t kFractions = size_t{1} << kScoreBits;

// Fraction bits of P: 255 * 2^7 fits int16, and so does 127 * 2^8.
template <int kMaxP>
constexpr int kPBits = kMaxP > 127 ? 7 : 8;
template <int kMaxP>
constexpr int kOneP = kMaxP << kPBits<kMaxP>;

// 2^(-1 / 64)
constexpr double kStepDown = 0.98922801319397548;

// The score of a hidden key: farther below any other than 2^-y can tell from 0.
constexpr int16_t kHiddenScore = -32768;

// Weights of the fractions of an octave, kOneP * 2^(-i / 64).
struct Exp2Table {
  uint16_t entry[kFractions];
};

// What MulFixedPoint15 does.
constexpr int MulQ15(int a, int b) { return (a * b + (1 << 14)) >> 15; }

// Exp2Fixed<kMaxP>, which turns scores s <= m in 1/64 octave to kOneP * 2^(s - m), all of some
// vectors.

#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || defined(__ARM_FEATURE_DOTPROD)

template <int kMaxP>
constexpr Exp2Table MakeExp2Table() {
  Exp2Table table = {};
  double weight = kOneP<kMaxP>;
  for (uint16_t& entry : table.entry) {
    entry = static_cast<uint16_t>(weight + 0.5);
    weight *= kStepDown;
  }
  return table;
}
template <int kMaxP>
alignas(64) constexpr Exp2Table kExp2Table = MakeExp2Table<kMaxP>();

#if HWY_ARCH_X86
template <int kMaxP>
struct Exp2Fixed {
  VU16 low = hn::Load(du16, kExp2Table<kMaxP>.entry);
  VU16 high = hn::Load(du16, kExp2Table<kMaxP>.entry + kFractions / 2);

  template <size_t kCount>
  HWY_INLINE void operator()(VI16 m, VI16 (&s)[kCount]) const {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) {
      const VI16 y = hn::SaturatedSub(m, s[i]);
      // The lookup takes the index from the low six bits. Indices are built without
      // IndicesFromVec, which asserts in debug builds that the others are 0.
      const VU16 fraction = hn::TwoTablesLookupLanes(low, high, hn::Indices512<uint16_t>{y.raw});
      s[i] = hn::BitCast(di16, hn::Shr(fraction, hn::ShiftRight<kScoreBits>(hn::BitCast(du16, y))));
    }
  }
};
#else

// The same by i = -y modulo 64, in bytes: a shift right by -floor(-y / 64) of these, of which all
// but the first are twice the table's, makes what a shift of the table's would.
struct Exp2Bytes {
  uint8_t low[kFractions];
  uint8_t high[kFractions];
};
template <int kMaxP>
constexpr Exp2Bytes MakeExp2Bytes() {
  Exp2Bytes bytes = {};
  for (size_t i = 0; i < kFractions; ++i) {
    const int weight = i == 0 ? kOneP<kMaxP> : 2 * int{kExp2Table<kMaxP>.entry[kFractions - i]};
    bytes.low[i] = static_cast<uint8_t>(weight & 0xff);
    bytes.high[i] = static_cast<uint8_t>(weight >> 8);
  }
  return bytes;
}
template <int kMaxP>
alignas(64) constexpr Exp2Bytes kExp2Bytes = MakeExp2Bytes<kMaxP>();

template <int kMaxP>
struct Exp2Fixed {
  ByteTable low = ByteTable(kExp2Bytes<kMaxP>.low);
  ByteTable high = ByteTable(kExp2Bytes<kMaxP>.high);

  // Step by step, for cores that work in order.
  template <size_t kCount>
  HWY_INLINE void operator()(VI16 m, VI16 (&s)[kCount]) const {
    VU8 fraction[kCount / 2];
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) s[i] = hn::SaturatedSub(s[i], m);
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) {
      s[i] = hn::Max(s[i], hn::Set(di16, -(16 << kScoreBits)));  // from 2^-15 down P is 0
    }
    HWY_UNROLL(2)
    for (size_t i = 0; i < kCount / 2; ++i) {
      fraction[i] = hn::ConcatEven(du8, hn::BitCast(du8, s[2 * i + 1]), hn::BitCast(du8, s[2 * i]));
    }
    HWY_UNROLL(2)
    for (size_t i = 0; i < kCount / 2; ++i) {
      fraction[i] = hn::And(fraction[i], hn::Set(du8, kFractions - 1));
    }
    HWY_UNROLL(2)
    for (size_t i = 0; i < kCount / 2; ++i) {
      const VU8 low_bytes = low[fraction[i]];
      const VU8 high_bytes = high[fraction[i]];
      s[2 * i] = Shifted(hn::InterleaveLower(du8, low_bytes, high_bytes), s[2 * i]);
      s[2 * i + 1] = Shifted(hn::InterleaveUpper(du8, low_bytes, high_bytes), s[2 * i + 1]);
    }
  }

 private:
  // By the octaves of s, which is not positive.
  static HWY_INLINE VI16 Shifted(VU8 weights, VI16 s) {
    return ShiftBy(hn::BitCast(du16, weights), hn::ShiftRight<kScoreBits>(s));
  }
};
#endif

#else

// 2^-f on [0, 1) as 1 - a f + b f², at most 0.33 % off, exact at both ends.
template <int kMaxP>
constexpr int kExp2A = static_cast<int>(0.672 * kOneP<kMaxP> + 0.5);
template <int kMaxP>
constexpr int kExp2B = static_cast<int>(0.172 * kOneP<kMaxP> + 0.5);

// What the polynomial gives, for who reads along; kernels compute it.
template <int kMaxP>
constexpr Exp2Table MakeExp2Table() {
  Exp2Table table = {};
  for (int i = 0; i < static_cast<int>(kFractions); ++i) {
    const int f = i << (15 - kScoreBits);
    table.entry[i] =
        static_cast<uint16_t>(kOneP<kMaxP> - MulQ15(f, kExp2A<kMaxP> - MulQ15(f, kExp2B<kMaxP>)));
  }
  return table;
}
template <int kMaxP>
constexpr Exp2Table kExp2Table = MakeExp2Table<kMaxP>();

template <int kMaxP>
struct Exp2Fixed {
  template <size_t kCount>
  HWY_INLINE void operator()(VI16 m, VI16 (&s)[kCount]) const {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) s[i] = Weight(hn::SaturatedSub(m, s[i]));
  }

 private:
  static HWY_INLINE VI16 Weight(VI16 y) {
    y = hn::Min(y, hn::Set(di16, (16 << kScoreBits) - 1));  // from 2^-15 down P is 0 all the same
    const VI16 f = hn::And(hn::ShiftLeft<15 - kScoreBits>(y), hn::Set(di16, 0x7fff));
    const VI16 slope =
        hn::Sub(hn::Set(di16, static_cast<int16_t>(kExp2A<kMaxP>)),
                hn::MulFixedPoint15(f, hn::Set(di16, static_cast<int16_t>(kExp2B<kMaxP>))));
    const VI16 fraction =
        hn::Sub(hn::Set(di16, static_cast<int16_t>(kOneP<kMaxP>)), hn::MulFixedPoint15(f, slope));
#if HWY_ARCH_X86
    // No shift by lane: a multiplication by 2^(15 - n), n = 0 to 15, whose 16 bits are looked up as
    // bytes. The high byte is 2^(7 - n) for n < 8, the low one 2^(15 - n) for n >= 8; a negative
    // index gives 0.
    const VU8 powers =
        hn::Dup128VecFromValues(du8, 128, 64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const VU16 n = hn::ShiftRight<kScoreBits>(hn::BitCast(du16, y));
    const VU8 both = hn::BitCast(du8, hn::Or(n, hn::ShiftLeft<8>(n)));
    const VU8 index = hn::Sub(both, hn::BitCast(du8, hn::Set(du16, 8)));
    const VU16 power = hn::BitCast(du16, hn::TableLookupBytesOr0(powers, index));
    const VU16 doubled = hn::BitCast(du16, hn::Add(fraction, fraction));
    return hn::BitCast(di16, hn::MulHigh(doubled, power));
#else
    const VU16 n = hn::ShiftRight<kScoreBits>(hn::BitCast(du16, y));
    return hn::BitCast(di16, hn::Shr(hn::BitCast(du16, fraction), n));
#endif
  }
};

#endif

// Weights in f32 of words of a row, from a reference in octaves; 0 of hidden ones.
class ConvertedWeights {
 public:
  explicit ConvertedWeights(float reference) : reference_(hn::Set(df, reference)) {}

  HWY_INLINE void operator()(VI16 words, VF (&weights)[2]) const {
    weights[0] = Weight(hn::PromoteLowerTo(di32, words));
    weights[1] = Weight(hn::PromoteUpperTo(di32, words));
  }

 private:
  HWY_INLINE VF Weight(VI32 s) const {
    const VF unit = hn::Set(df, 1.0f / float{kFractions});
    const auto hidden = hn::RebindMask(df, hn::Eq(s, hn::Set(di32, int32_t{kHiddenScore})));
    return hn::IfThenZeroElse(hidden, Exp2(hn::MulSub(hn::ConvertTo(df, s), unit, reference_)));
  }

  VF reference_;
};

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3

// Halves of the bits of 2^(-i / 64) in f32.
struct PowerBits {
  uint16_t low[kFractions];
  uint16_t high[kFractions];
};
constexpr PowerBits MakePowerBits() {
  PowerBits bits = {};
  double power = 1.0;
  for (size_t i = 0; i < kFractions; ++i) {
    // From 1/2 on, but for the first: 2^23 steps of an octave.
    const double steps = (i == 0 ? power - 1.0 : 2.0 * power - 1.0) * 0x1p23 + 0.5;
    const uint32_t word = (i == 0 ? 127u : 126u) << 23 | static_cast<uint32_t>(steps);
    bits.low[i] = static_cast<uint16_t>(word & 0xffff);
    bits.high[i] = static_cast<uint16_t>(word >> 16);
    power *= kStepDown;
  }
  return bits;
}
alignas(64) constexpr PowerBits kPowerBits = MakePowerBits();

// The same without a conversion or a polynomial: two lookups are the halves of a power's bits, from
// whose exponent octaves are taken away, times what the reference in fixed point rounds off.
class LookedUpWeights {
 public:
  explicit LookedUpWeights(float reference)
      : converted_(reference), fits_(reference > kLowest && reference < kHighest) {
    if (!fits_) return;
    const VF octaves = hn::Set(df, reference);
    const VF steps = hn::Round(hn::Mul(octaves, hn::Set(df, float{kFractions})));
    fixed_ = hn::Set(di16, static_cast<int16_t>(hn::GetLane(hn::ConvertTo(di32, steps))));
    factor_ = Exp2(hn::MulSub(steps, hn::Set(df, 1.0f / float{kFractions}), octaves));
  }

  HWY_INLINE void operator()(VI16 words, VF (&weights)[2]) const {
    if (HWY_UNLIKELY(!fits_)) return converted_(words, weights);
    const VI16 y = hn::SaturatedSub(fixed_, words);
    const auto vanishes =
        hn::RebindMask(du16, hn::Ge(y, hn::Set(di16, kOctaves * int{kFractions})));
    // The lookup takes the index from the low six bits.
    const auto index = hn::Indices512<uint16_t>{y.raw};
    const VU16 low = hn::TwoTablesLookupLanes(low_[0], low_[1], index);
    const VU16 fraction = hn::TwoTablesLookupLanes(high_[0], high_[1], index);
    const VI16 exponent = hn::AndNot(hn::Set(di16, 0x7f), hn::Add(y, y));
    const VU16 high = hn::BitCast(du16, hn::Sub(hn::BitCast(di16, fraction), exponent));
    const VU16 low_bits = hn::IfThenZeroElse(vanishes, low);
    const VU16 high_bits = hn::IfThenZeroElse(vanishes, high);
    const VU16 first = hn::InterleaveWholeLower(du16, low_bits, high_bits);
    const VU16 second = hn::InterleaveWholeUpper(du16, low_bits, high_bits);
    weights[0] = hn::Mul(hn::BitCast(df, first), factor_);
    weights[1] = hn::Mul(hn::BitCast(df, second), factor_);
  }

 private:
  // What is farther below the reference has weight 0, and with it what is hidden.
  static constexpr int kOctaves = 126;
  static constexpr float kLowest = -512.0f + kOctaves + 1.0f;
  static constexpr float kHighest = 511.0f;

  ConvertedWeights converted_;
  bool fits_;  // NaN does not
  VI16 fixed_ = hn::Zero(di16);
  VF factor_ = hn::Zero(df);
  VU16 low_[2] = {hn::Load(du16, kPowerBits.low), hn::Load(du16, kPowerBits.low + 32)};
  VU16 high_[2] = {hn::Load(du16, kPowerBits.high), hn::Load(du16, kPowerBits.high + 32)};
};
using WordWeights = LookedUpWeights;

#else
using WordWeights = ConvertedWeights;
#endif

// Bits by which a sum of head_dim products is shifted to fit int16. Half of what is shifted out is
// added before, and does not carry beyond int16 for any head_dim.
template <class Keys>
HWY_INLINE int SumShift(size_t head_dim) {
  const uint64_t largest = head_dim * static_cast<uint64_t>(Keys::MaxK(head_dim)) *
                           static_cast<uint64_t>(Keys::MaxQ(head_dim));
  const int bits = 64 - __builtin_clzll(largest | 1);
  return bits > 15 ? bits - 15 : 0;
}

// Sums of two keys, shifted right to words.
HWY_INLINE VI16 WordsOfSums(VI32 lower, VI32 upper, VI32 shift) {
#if HWY_ARCH_ARM
  // One instruction takes the lower words of two vectors.
  return hn::InterleaveEven(di16, hn::BitCast(di16, hn::Shr(lower, shift)),
                            hn::BitCast(di16, hn::Shr(upper, shift)));
#else
  // The sum of the upper word is shifted up instead of down and up again.
  const VI32 shift_up = hn::Sub(hn::Set(di32, 16), shift);
  const VI16 low = hn::BitCast(di16, hn::Shr(lower, shift));
  const VI16 high = hn::BitCast(di16, hn::Shl(upper, shift_up));
  return hn::OddEven(high, low);
#endif
}

// Adds P of four keys to two sums, so that one addition need not wait for the other.
HWY_INLINE void AddP(VI16 p02, VI16 p13, VI32& sum02, [[maybe_unused]] VI32& sum13) {
#if HWY_ARCH_ARM
  // Two fit 16 bits, and one instruction adds pairs of those.
  const VU16 both = hn::Add(hn::BitCast(du16, p02), hn::BitCast(du16, p13));
  sum02 = hn::Add(sum02, hn::BitCast(di32, hn::SumsOf2(both)));
#else
  const VI16 one = hn::Set(di16, 1);
  sum02 = I16Ops::Dot(sum02, p02, one);
  sum13 = I16Ops::Dot(sum13, p13, one);
#endif
}

// P of four keys, rounded to bytes in the order of V.
template <int kMaxP>
HWY_INLINE VU8 BytesOfP(VI16 p02, VI16 p13) {
#if HWY_ARCH_ARM
  // Other pipes than those of multiplications.
  const VI16 first = hn::RoundingShiftRight<kPBits<kMaxP>>(p02);
  const VI16 second = hn::RoundingShiftRight<kPBits<kMaxP>>(p13);
  return hn::InterleaveEven(du8, hn::BitCast(du8, first), hn::BitCast(du8, second));
#else
  // A product with it is p / 2^kPBits, rounded.
  const VI16 round = hn::Set(di16, 1 << (15 - kPBits<kMaxP>));
  const VI16 even = hn::MulFixedPoint15(p02, round);
  const VI16 odd = hn::MulFixedPoint15(p13, round);
  return hn::BitCast(du8, hn::Or(even, hn::ShiftLeft<8>(odd)));
#endif
}

// Where sums of P·V start instead of at `start`, and what they are then. A tile's sum has 23 bits:
// it fits the mantissa of kMagic, and a subtraction converts it, which ARM's cores do several times
// as fast as a conversion.
static_assert(kKvTile * 255 * 128 < (1 << 22), "sums of P·V stay in kMagic's octave");
HWY_INLINE VI32 StartOfValues(VI32 start) {
  return HWY_ARCH_ARM ? hn::Add(start, hn::Set(di32, kMagicBits)) : start;
}
HWY_INLINE VF SumOfValues(VI32 sum) {
  if constexpr (HWY_ARCH_ARM) return hn::Sub(hn::BitCast(df, sum), hn::Set(df, kMagic));
  return hn::ConvertTo(df, sum);
}

// The same value in both words of each lane.
HWY_INLINE VI16 WordsOf(VI32 x) {
  return hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(x)), hn::BitCast(di16, x));
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_FIXED_POINT_INL_H_
