// What floats store, bit for bit: K and V of memories, read where kv/layout.h says they are.
#include <stdint.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <vector>

#include "kv/layout.h"
#include "kv/packed_kv.h"
#include "sightline/kv.h"
#include "support/check.h"
#include "support/numeric.h"
#include "support/packed.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr int64_t kHeads = 2;

// A precision and the type that it stores.
struct Stored {
  Precision precision;
  DType type;
  size_t bytes;
};

// [token][head][dim] of a tensor whose elements are every pattern of 16 bits in turn: f16 or bf16,
// or the upper half of an f32.
class Patterns {
 public:
  Patterns(const Stored& stored, int64_t kv_len, int64_t dim, uint32_t first, bool has_specials)
      : stored_(stored),
        kv_len_(kv_len),
        dim_(dim),
        data_(static_cast<size_t>(kv_len * kHeads * dim) * stored.bytes) {
    uint16_t pattern = static_cast<uint16_t>(first);
    for (size_t i = 0; i < data_.size(); i += stored.bytes, ++pattern) {
      const uint32_t bits = stored.bytes == 4 ? uint32_t{pattern} << 16 | 0x1234 : pattern;
      memcpy(&data_[i], &bits, stored.bytes);
      const bool is_special = !std::isfinite(LoadElement(stored.type, &data_[i]));
      if (is_special && !has_specials) memset(&data_[i], 0, stored.bytes);
    }
  }

  ConstTensorView view() const {
    return ConstTensorView::Dense(data_.data(), stored_.type, 1, kv_len_, kHeads, dim_);
  }
  const unsigned char* at(int64_t key, int64_t head, int64_t d) const {
    return &data_[static_cast<size_t>((key * kHeads + head) * dim_ + d) * stored_.bytes];
  }

  // True if `packed` has the same bits, or is any NaN for one: conversions may make it quiet.
  bool IsStoredAs(const unsigned char* packed, int64_t key, int64_t head, int64_t d) const {
    const unsigned char* element = at(key, head, d);
    if (stored_.bytes == 4 || !std::isnan(LoadElement(stored_.type, element))) {
      return memcmp(packed, element, stored_.bytes) == 0;
    }
    return std::isnan(LoadElement(stored_.type, packed));
  }

  bool IsSpecial(int64_t first_key, int64_t end_key, int64_t head) const {
    for (int64_t key = first_key; key < end_key; ++key) {
      for (int64_t d = 0; d < dim_; ++d) {
        if (!std::isfinite(LoadElement(stored_.type, at(key, head, d)))) return true;
      }
    }
    return false;
  }

 private:
  Stored stored_;
  int64_t kv_len_;
  int64_t dim_;
  std::vector<unsigned char> data_;
};

TEST_CASE("floats of the type that is stored keep their bits", "[conversion][packing]") {
  const Stored stored =
      GENERATE(Stored{Precision::kF32, DType::kF32, 4}, Stored{Precision::kF16, DType::kF16, 2},
               Stored{Precision::kBF16, DType::kBF16, 2});
  const bool has_specials = GENERATE(true, false);
  const int64_t kv_len = GENERATE(1, 17, 133, 300);
  const int64_t head_dim = GENERATE(1, 41, 128);
  const int64_t v_head_dim = head_dim == 41 ? 83 : head_dim;
  const Patterns k(stored, kv_len, head_dim, 0, has_specials);
  const Patterns v(stored, kv_len, v_head_dim, 30000, has_specials);
  for (const char* tier : SupportedTiers()) {
    INFO(Name(stored.precision) << " on " << tier << ", " << kv_len << " x " << head_dim
                                << (has_specials ? " with NaN and infinities" : ""));
    KvFormat format;
    format.precision = stored.precision;
    format.tier = tier;
    CrossMemory memory;
    REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), format, &memory), IsOk());
    const internal::PackedKv* packed = KvAccess::Get(memory);
    REQUIRE(packed != nullptr);
    const internal::PackedShape& shape = packed->shape();
    const internal::PackedOffsets& offsets = packed->offsets();
    int wrong_k = 0;
    int wrong_v = 0;
    int wrong_special = 0;
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t i = 0; i < kv_len; ++i) {
        const PackedKey found =
            FindKey(*packed, 0, static_cast<size_t>(head), static_cast<size_t>(i));
        const unsigned char* base = found.head.base;
        for (int64_t d = 0; d < head_dim; ++d) {
          const size_t index = internal::KIndex(shape, found.key, static_cast<size_t>(d));
          if (!k.IsStoredAs(base + offsets.k + index * stored.bytes, i, head, d)) ++wrong_k;
        }
        for (int64_t d = 0; d < v_head_dim; ++d) {
          const size_t index = internal::VIndex(shape, found.key, static_cast<size_t>(d));
          if (!v.IsStoredAs(base + offsets.v + index * stored.bytes, i, head, d)) ++wrong_v;
        }
        const int64_t tile_keys = static_cast<int64_t>(internal::kKvTile);
        if (i % tile_keys != 0) continue;
        const bool is_special = base[offsets.v_special + found.key / internal::kKvTile] != 0;
        const int64_t end = i + tile_keys < kv_len ? i + tile_keys : kv_len;
        if (is_special != v.IsSpecial(i, end, head)) ++wrong_special;
      }
    }
    CHECK(wrong_k == 0);
    CHECK(wrong_v == 0);
    CHECK(wrong_special == 0);
    RecordTierRun(tier);
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
