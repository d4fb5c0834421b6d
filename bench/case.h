// One thing to measure: an operation of a model with its shape. Everything a row's name says, apart
// from who runs it.
//
//   self_causal/gpt2/i8/b1.h12.kv12.d64.q1024.k1024/tier:avx2/threads:1
//   ^op         ^model  ^shape
#ifndef SIGHTLINE_BENCH_CASE_H_
#define SIGHTLINE_BENCH_CASE_H_

#include <stdint.h>

#include <string>

#include "sightline/attention.h"

namespace sightline {
namespace bench {

enum class Op {
  kSelf,         // encoder self-attention: every query sees every key
  kSelfCausal,   // decoder self-attention over a prompt; Q is the end of the sequence if q_len <
                 // kv_len
  kCross,        // decoder queries over a memory that was prepared before
  kDecodeSelf,   // one query over the cache of the tokens so far
  kDecodeCross,  // one query for each beam over one memory that all beams share
  kPrepare,      // packing (and quantising) K and V into a memory
  kAppend,       // adding one token to a cache that holds kv_len
};
constexpr Op kAllOps[] = {Op::kSelf,        Op::kSelfCausal, Op::kCross, Op::kDecodeSelf,
                          Op::kDecodeCross, Op::kPrepare,    Op::kAppend};

const char* Name(Op op);
bool Parse(const std::string& name, Op* op);
// Bound by memory rather than by arithmetic.
bool IsDecode(Op op);
// Makes K and V rather than attending to them.
bool IsStore(Op op);

struct Case {
  Op op = Op::kSelf;
  std::string model;
  int64_t batch = 1;  // sequences of K and V
  int64_t beams = 1;  // Q has batch * beams rows, `beams` neighbours share one sequence
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t q_len = 1;
  int64_t kv_len = 0;
  float scale = 0.0f;  // 0 = 1 / sqrt(head_dim)
  // "bias", "window": what the model has and this benchmark does not compute yet.
  std::string left_out;
  bool quick = false;  // part of `./run bench --quick`

  Mask mask() const { return op == Op::kSelfCausal ? Mask::kCausal : Mask::kNone; }
  int64_t q_batch() const { return batch * beams; }

  // Query-key pairs that count, over all heads: with a causal mask half of the square plus half of
  // the diagonal.
  double Pairs() const;
  // Two operations, a multiplication and an addition, for each pair and channel of K and of V. For
  // a store, the elements of K and V that are stored.
  double Operations() const;
  // Elements of K and of V.
  int64_t KvElements() const;

  std::string Shape() const;  // "b1.h12.kv12.d64.q1024.k1024", then ".dv128" and ".beams5" where
                              // they differ from the plain
};

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_CASE_H_
