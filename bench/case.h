// One thing to measure: an operation of a model with its shape. Everything a row's name says, apart
// from who runs it.
//
//   self_causal_window/gemma3_1b_local/i8/b1.h4.kv1.d256.q2048.k2048.w512/tier:avx2/threads:1
//   ^op                ^model          ^precision
//                                         ^shape
//
// An op is which calls are timed (enum Op: ten). What masks, score modifications, further outputs
// and other places of K and V add goes with most of them and with each other, so that it is a set
// beside it (Features) and no op of its own: the row's op is both, `self_causal` and `_window`,
// numbers stand at the end of the shape. Plain rows are called what they always were, and the row
// that a feature is compared with has the same name without it (Case::Plain).
#ifndef SIGHTLINE_BENCH_CASE_H_
#define SIGHTLINE_BENCH_CASE_H_

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

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
  kAppend,       // adding q_len tokens to a cache that holds kv_len
  kFork,         // a second cache with the same kv_len tokens
  kReorder,      // beam search: `batch` sequences of a cache become what others of them were
  kMap,          // opening a file that holds a memory
};
constexpr Op kAllOps[] = {
    Op::kSelf,    Op::kSelfCausal, Op::kCross, Op::kDecodeSelf, Op::kDecodeCross,
    Op::kPrepare, Op::kAppend,     Op::kFork,  Op::kReorder,    Op::kMap,
};

const char* Name(Op op);
bool Parse(const std::string& name, Op* op);
// Bound by memory rather than by arithmetic.
bool IsDecode(Op op);
// Makes K and V rather than attending to them.
bool IsStore(Op op);
// Passes K and V on without a copy: neither arithmetic nor bandwidth says how fast that should be.
bool IsShare(Op op);
// Has queries of its own, and not just to look at what was stored.
bool IsAttention(Op op);

// What a case adds to plain attention; 0 = it does not. Those that are no count are 0 or 1.
struct Features {
  // Masks.
  int64_t window = 0;   // a query's own key and those before it, so many in all; without a causal
                        // mask half as many on either side of it
  int64_t prefix = 0;   // so many first keys are seen whatever causal and the window say
  int64_t padding = 0;  // percent of the keys; a batch has sequences of none to twice as much
  int64_t mask = 0;     // a tensor of booleans for all heads, of which one in eight is false
  int64_t block_mask = 0;  // blocks of so many queries and keys: the first of a row is seen, and of
                           // the others a quarter, another one in each head
  int64_t ragged = 0;      // lengths from q_len / 16 to q_len, in geometric steps and mixed order
  int64_t parts = 0;       // the same, each sequence by a call of its own

  // Score modifications.
  int64_t softcap = 0;
  int64_t bias = 0;  // a tensor [q_len, heads, kv_len], in the type of Q
  int64_t t5 = 0;    // buckets of T5's relative bias, up to a distance of 128
  int64_t alibi = 0;
  int64_t sinks = 0;

  // Further outputs.
  int64_t lse = 0;
  int64_t weights = 0;  // of so many heads, f32
  int64_t mass = 0;

  // Where K and V are.
  int64_t prepared = 0;  // in a memory that was prepared before, as `cross` has them
  // Rows of the next three are measured in turns with the same attention over one memory or, of
  // `continuous`, with a call for each sequence.
  int64_t segments = 0;    // so many memories, of equal length
  int64_t pages = 0;       // a cache with pages of so many tokens
  int64_t continuous = 0;  // caches of kv_len / 32 to kv_len tokens, in geometric steps and mixed
                           // order, in one call

  // Of shares.
  int64_t append = 0;  // and then a token more, so that what is written to is copied
  int64_t full = 0;    // all checksums of the file are verified
};

// How a feature is written in a row's name and in a model file.
struct FeatureWord {
  const char* word;
  const char* label;  // before its number in the shape; null for those without one
  int64_t Features::* value;
};
constexpr FeatureWord kFeatureWords[] = {
    {"window", "w", &Features::window},
    {"prefix", "p", &Features::prefix},
    {"padding", "pad", &Features::padding},
    {"mask", nullptr, &Features::mask},
    {"block_mask", "block", &Features::block_mask},
    {"ragged", nullptr, &Features::ragged},
    {"parts", nullptr, &Features::parts},
    {"softcap", "cap", &Features::softcap},
    {"bias", nullptr, &Features::bias},
    {"t5", "buckets", &Features::t5},
    {"alibi", nullptr, &Features::alibi},
    {"sinks", nullptr, &Features::sinks},
    {"lse", nullptr, &Features::lse},
    {"weights", "of", &Features::weights},
    {"mass", nullptr, &Features::mass},
    {"prepared", nullptr, &Features::prepared},
    {"segments", "seg", &Features::segments},
    {"pages", "page", &Features::pages},
    {"continuous", nullptr, &Features::continuous},
    {"append", nullptr, &Features::append},
    {"full", nullptr, &Features::full},
};

// `count` numbers of 0 ... n - 1, evenly spread, both ends included (of one, the last); all if
// there are no more.
std::vector<int64_t> Spread(int64_t n, int64_t count);

struct Case {
  Op op = Op::kSelf;
  Features features;
  std::string model;
  int64_t batch = 1;  // sequences of K and V
  int64_t beams = 1;  // Q has batch * beams rows, `beams` neighbours share one sequence
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t q_len = 1;  // ragged: the longest, which have as many keys as queries; append: tokens
  int64_t kv_len = 0;
  float scale = 0.0f;  // 0 = 1 / sqrt(head_dim)
  bool quick = false;  // part of `./run bench --quick`

  bool causal() const { return op == Op::kSelfCausal; }
  bool ragged() const { return features.ragged != 0 || features.parts != 0; }
  bool has_features() const;

  // Of the tensors: the sequences of a ragged batch lie one after the other in one batch entry.
  int64_t q_batch() const { return ragged() ? 1 : batch * beams; }
  int64_t kv_batch() const { return ragged() ? 1 : batch; }
  int64_t q_length() const { return ragged() ? Indptr().back() : q_len; }
  int64_t kv_length() const { return ragged() ? Indptr().back() : kv_len; }
  std::vector<int32_t> Indptr() const;  // where ragged sequences begin, and the last one ends

  // Sequences of several lengths.
  bool is_mixed() const { return ragged() || features.continuous != 0; }

  // Of sequence s of K and V.
  int64_t QLen(int64_t s) const;
  int64_t KvLen(int64_t s) const;  // keys in use
  // With padding, queries stand where they would without; else the last one at the last key.
  bool PadsQueries() const { return features.padding != 0 && !IsDecode(op); }
  int64_t PositionOf(int64_t s, int64_t i) const;
  int64_t WindowLeft() const;  // as in AttentionDesc
  int64_t WindowRight() const;
  RelativeBuckets Buckets() const;  // T5's: decoders look back only
  // Keys that causal, window, prefix and padding show to query i: what lies outside is never read.
  int64_t KeysInReach(int64_t s, int64_t i) const;
  // What the tensors say.
  bool MaskShows(int64_t i, int64_t j) const;
  bool BlockMaskShows(int64_t head, int64_t q_block, int64_t kv_block) const;

  // Query-key pairs that are seen, over all heads: with a causal mask half of the square plus half
  // of the diagonal.
  double Pairs() const;
  // Two operations, a multiplication and an addition, for each pair and channel of K and of V. For
  // a store, the elements of K and V that are stored. Features add none: what they cost shows in
  // the speed. A share is one.
  double Operations() const;
  // Elements of K and of V.
  int64_t KvElements() const;

  // What this case is compared with, unless it is measured in turns with something else: the same
  // without features, ragged sequences with their parts.
  Case Plain() const;

  std::string OpName() const;  // "self_causal_window"
  std::string Shape() const;   // "b1.h12.kv12.d64.q1024.k1024", then ".dv128" and ".beams5" where
                               // they differ from the plain, then the features' numbers: ".w256"
};

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_CASE_H_
