#include "bench/case.h"

#include <algorithm>

namespace sightline {
namespace bench {

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

double Case::Pairs() const {
  const double q = static_cast<double>(q_len);
  const double k = static_cast<double>(kv_len);
  double pairs = q * k;
  if (mask() == Mask::kCausal) {
    // Query i sees kv_len - q_len + i + 1 keys; queries before the first key see none.
    const double seen = std::min(q, k);
    pairs = seen * k - seen * (seen - 1) / 2;
  }
  return pairs * static_cast<double>(q_batch() * heads);
}

double Case::Operations() const {
  if (op == Op::kAppend) {
    return static_cast<double>(batch * kv_heads * (head_dim + v_head_dim));
  }
  if (op == Op::kPrepare) return static_cast<double>(KvElements());
  return 2.0 * Pairs() * static_cast<double>(head_dim + v_head_dim);
}

int64_t Case::KvElements() const { return batch * kv_len * kv_heads * (head_dim + v_head_dim); }

std::string Case::Shape() const {
  const auto part = [](const char* label, int64_t value) { return label + std::to_string(value); };
  std::string shape = part("b", batch) + part(".h", heads) + part(".kv", kv_heads) +
                      part(".d", head_dim) + part(".q", q_len) + part(".k", kv_len);
  if (v_head_dim != head_dim) shape += part(".dv", v_head_dim);
  if (beams != 1) shape += part(".beams", beams);
  return shape;
}

}  // namespace bench
}  // namespace sightline
