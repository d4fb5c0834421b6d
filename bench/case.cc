#include "bench/case.h"

#include <math.h>

#include <algorithm>
#include <set>

namespace sightline {
namespace bench {
namespace {

// The shortest of ragged sequences is the longest's sixteenth, of continuous batches its 32nd:
// caches of answers that have just begun stand beside those of long ones.
constexpr double kRaggedRange = 16.0;
constexpr double kContinuousRange = 32.0;

// Scrambles a place, so that what lies there looks random (the finaliser of SplitMix64).
uint64_t Hash(int64_t a, int64_t b, int64_t c) {
  uint64_t x = (static_cast<uint64_t>(a) << 42) ^ (static_cast<uint64_t>(b) << 21) ^
               static_cast<uint64_t>(c);
  x = (x + 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Of sequence s of `batch`: from `longest` down to its `range`th, long and short ones in turn.
int64_t MixedLength(int64_t s, int64_t batch, int64_t longest, double range) {
  if (batch == 1) return longest;
  const int64_t step = s % 2 == 0 ? s / 2 : batch - 1 - s / 2;
  const double exponent = static_cast<double>(step) / static_cast<double>(batch - 1);
  const double length = static_cast<double>(longest) * pow(range, -exponent);
  return std::max<int64_t>(1, llround(length));
}

// Keys [begin, end).
struct Span {
  int64_t begin, end;
};

// What causal and window show to the query at `position`; empty if begin >= end.
Span InWindow(const Case& c, int64_t position, int64_t kv_len) {
  Span keys = {0, kv_len};
  if (c.WindowLeft() >= 0) keys.begin = std::max(keys.begin, position - c.WindowLeft());
  if (c.WindowRight() >= 0) keys.end = std::min(keys.end, position + c.WindowRight() + 1);
  if (c.causal()) keys.end = std::min(keys.end, position + 1);
  return keys;
}

}  // namespace

const char* Name(Op op) {
  switch (op) {
    case Op::kSelf:
      return "self";
    case Op::kSelfCausal:
      return "self_causal";
    case Op::kCross:
      return "cross";
    case Op::kDecodeSelf:
      return "decode_self";
    case Op::kDecodeCross:
      return "decode_cross";
    case Op::kPrepare:
      return "prepare";
    case Op::kAppend:
      return "append";
    case Op::kFork:
      return "fork";
    case Op::kReorder:
      return "reorder";
    case Op::kMap:
      return "map";
  }
  return "?";
}

bool Parse(const std::string& name, Op* op) {
  for (const Op candidate : kAllOps) {
    if (name == Name(candidate)) {
      *op = candidate;
      return true;
    }
  }
  return false;
}

bool IsDecode(Op op) { return op == Op::kDecodeSelf || op == Op::kDecodeCross; }
bool IsStore(Op op) { return op == Op::kPrepare || op == Op::kAppend; }
bool IsShare(Op op) { return op == Op::kFork || op == Op::kReorder || op == Op::kMap; }
bool IsAttention(Op op) { return !IsStore(op) && !IsShare(op); }

std::vector<int64_t> Spread(int64_t n, int64_t count) {
  std::set<int64_t> result;
  count = std::clamp<int64_t>(count, 1, n);
  for (int64_t i = 0; i < count; ++i) {
    result.insert(count == 1 ? n - 1 : i * (n - 1) / (count - 1));
  }
  return {result.begin(), result.end()};
}

bool Case::has_features() const { return OpName() != Name(op); }

std::vector<int32_t> Case::Indptr() const {
  std::vector<int32_t> indptr = {0};
  for (int64_t s = 0; s < batch; ++s) {
    indptr.push_back(indptr.back() + static_cast<int32_t>(QLen(s)));
  }
  return indptr;
}

int64_t Case::QLen(int64_t s) const {
  return ragged() ? MixedLength(s, batch, q_len, kRaggedRange) : q_len;
}

int64_t Case::KvLen(int64_t s) const {
  if (ragged()) return QLen(s);
  if (features.continuous != 0) return MixedLength(s, batch, kv_len, kContinuousRange);
  const int64_t percent = batch == 1 ? features.padding : 2 * features.padding * s / (batch - 1);
  return kv_len - kv_len * percent / 100;
}

int64_t Case::PositionOf(int64_t s, int64_t i) const {
  return (PadsQueries() ? kv_len - q_len : KvLen(s) - QLen(s)) + i;
}

int64_t Case::WindowLeft() const {
  if (features.window == 0) return -1;
  return op == Op::kSelf ? features.window / 2 : features.window - 1;
}

int64_t Case::WindowRight() const {
  return features.window != 0 && op == Op::kSelf ? features.window / 2 : -1;
}

RelativeBuckets Case::Buckets() const {
  RelativeBuckets buckets;
  buckets.num_buckets = features.t5;
  buckets.bidirectional = !causal() && op != Op::kDecodeSelf;
  return buckets;
}

int64_t Case::KeysInReach(int64_t s, int64_t i) const {
  const int64_t length = KvLen(s);
  const int64_t prefix = std::min(features.prefix, length);
  const Span keys = InWindow(*this, PositionOf(s, i), length);
  return prefix + std::max<int64_t>(0, keys.end - std::max(keys.begin, prefix));
}

bool Case::MaskShows(int64_t i, int64_t j) const { return Hash(0, i, j) % 8 != 0; }

bool Case::BlockMaskShows(int64_t head, int64_t q_block, int64_t kv_block) const {
  return kv_block == 0 || Hash(head + 1, q_block, kv_block) % 4 == 0;
}

double Case::Pairs() const {
  int64_t pairs = 0;  // of one beam
  for (int64_t s = 0; s < batch; ++s) {
    for (int64_t i = 0; i < QLen(s); ++i) {
      if (features.mask == 0 && features.block_mask == 0) {
        pairs += heads * KeysInReach(s, i);
        continue;
      }
      const Span keys = InWindow(*this, PositionOf(s, i), KvLen(s));
      for (int64_t j = 0; j < KvLen(s); ++j) {
        if (j >= features.prefix && (j < keys.begin || j >= keys.end)) continue;
        if (features.mask != 0 && !MaskShows(i, j)) continue;
        if (features.block_mask == 0) {
          pairs += heads;
          continue;
        }
        for (int64_t h = 0; h < heads; ++h) {
          pairs += BlockMaskShows(h, i / features.block_mask, j / features.block_mask) ? 1 : 0;
        }
      }
    }
  }
  return static_cast<double>(pairs * beams);
}

double Case::Operations() const {
  if (op == Op::kAppend) {
    return static_cast<double>(batch * q_len * kv_heads * (head_dim + v_head_dim));
  }
  if (IsShare(op)) return 1.0;
  if (op == Op::kPrepare) return static_cast<double>(KvElements());
  return 2.0 * Pairs() * static_cast<double>(head_dim + v_head_dim);
}

int64_t Case::KvElements() const {
  return kv_batch() * kv_length() * kv_heads * (head_dim + v_head_dim);
}

Case Case::Plain() const {
  Case plain = *this;
  if (features.ragged != 0) {
    plain.features.ragged = 0;
    plain.features.parts = 1;
  } else {
    plain.features = {};
  }
  return plain;
}

std::string Case::OpName() const {
  std::string name = Name(op);
  for (const FeatureWord& feature : kFeatureWords) {
    if (features.*feature.value != 0) name += std::string("_") + feature.word;
  }
  return name;
}

std::string Case::Shape() const {
  const auto part = [](const char* label, int64_t value) { return label + std::to_string(value); };
  std::string shape = part("b", batch) + part(".h", heads) + part(".kv", kv_heads) +
                      part(".d", head_dim) + part(".q", q_len) + part(".k", kv_len);
  if (v_head_dim != head_dim) shape += part(".dv", v_head_dim);
  if (beams != 1) shape += part(".beams", beams);
  for (const FeatureWord& feature : kFeatureWords) {
    const int64_t value = features.*feature.value;
    if (feature.label != nullptr && value != 0) shape += "." + part(feature.label, value);
  }
  return shape;
}

}  // namespace bench
}  // namespace sightline
