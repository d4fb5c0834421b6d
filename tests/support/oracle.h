// Attention in double precision, straight from the definition:
//
//   s[i][j] = softcap(scale * sum_d q[i][d] * k[j][d]) + biases   for the keys j that query i sees
//   out[i][c] = sum_j exp(s[i][j]) * v[j][c] / (sum_j exp(s[i][j]) + exp(sink))
//   lse[i] = log of that denominator
//
// A query that sees no key, or only scores of -inf, gets 0 and lse = -inf, or its sink.
//
// Shares no code with the library. Inputs are what the element type or the K/V precision left of
// the caller's numbers, so that the only difference to a kernel is its arithmetic.
//
// Without masks a pass over head_dim for each query and key is nearly all of the cost: what hides a
// key is asked once per query, head and key.
#ifndef SIGHTLINE_TESTS_SUPPORT_ORACLE_H_
#define SIGHTLINE_TESTS_SUPPORT_ORACLE_H_

#include <stdint.h>

#include <functional>
#include <vector>

#include "sightline/attention.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

// Queries that attend to the same keys: a batch entry, or a sequence of a ragged batch.
struct Sequence {
  int64_t q_batch = 0;
  int64_t q_begin = 0;
  int64_t q_len = 0;
  int64_t kv_batch = 0;
  int64_t kv_begin = 0;
  int64_t kv_len = 0;        // keys in use, counted from kv_begin
  int64_t prefix_len = 0;    // of these, seen whatever causal and the windows say
  int64_t tile_keys = 0;     // see OracleOutput::tile_abs_out; 0 = not asked for
  int64_t blocks_batch = 0;  // its entry of Masks::blocks
};

// What hides keys.
struct Masks {
  bool causal = false;
  int64_t window_left = -1;
  int64_t window_right = -1;
  int64_t q_start = AttentionArgs::kBottomRight;
  // True = seen; null = all are. Of q's batch and length, a head, and the key's number in its
  // sequence.
  std::function<bool(int64_t b, int64_t l, int64_t h, int64_t j)> mask;
  // The same of Sequence::blocks_batch and the numbers of blocks in the sequence.
  std::function<bool(int64_t b, int64_t q_block, int64_t h, int64_t kv_block)> blocks;
  int64_t q_block = 1;
  int64_t kv_block = 1;
};

// Of query i of the sequence.
int64_t PositionOf(const Masks& masks, const Sequence& sequence, int64_t i);
// Whether query i and head h see key j of the sequence.
bool Sees(const Masks& masks, const Sequence& sequence, int64_t i, int64_t h, int64_t j);

struct OracleInput : Masks {
  Dims q_dims;                  // [batch, q_len, heads, head_dim]
  Dims k_dims;                  // [batch / beams, kv_len, kv_heads, head_dim]
  Dims v_dims;                  // [batch / beams, kv_len, kv_heads, v_head_dim]
  std::vector<double> q, k, v;  // in the order of Dims::Index
  double scale = 1.0;
  std::vector<int64_t> queries;     // of each sequence, to compute: others stay 0; empty = all
  std::vector<Sequence> sequences;  // empty: one for each batch entry, of all keys

  // Scores.
  // [batch][q_len][heads]: added before softcap, and the magnitudes of which it is the sum; empty =
  // 0.
  std::vector<double> score_offset, score_offset_bound;
  double score_unit = 0.0;    // relative error of a kernel's scores, see OracleOutput::score_error
  bool keeps_scores = false;  // see OracleOutput::scores
  double softcap = 0.0;
  std::function<double(int64_t b, int64_t l, int64_t h, int64_t j)> bias;
  RelativeBuckets relative_buckets;
  std::vector<double> relative_bias;  // [num_buckets][heads]
  std::vector<double> alibi_slopes;   // [heads]
  std::vector<double> sinks;          // [heads]
};

struct OracleOutput {
  Dims dims;                    // [batch, q_len, heads, v_head_dim]
  std::vector<double> out;      // [dims]
  std::vector<double> abs_out;  // [dims]: sum_j p[i][j] * |v[j][c]|
  // [dims]: the same, where keys have the largest p of their tile of Sequence::tile_keys.
  std::vector<double> tile_abs_out;

  // [batch][q_len][heads]
  std::vector<double> lse;
  std::vector<double> key_share;        // of the denominator: 1 without sinks, 0 in an empty row
  std::vector<double> tile_share;       // the sum of p, where keys have the largest p of their tile
  std::vector<double> score_bound;      // max_j |scale| * sum_d |q[d]| |k[j][d]| + the offset's
  std::vector<double> score_error;      // score_unit of that, as softcap leaves it
  std::vector<double> magnitude_bound;  // max_j |capped score| + the finite biases' magnitudes
  std::vector<int64_t> visible;         // number of keys seen
  double max_abs_v = 0.0;

  // Only if asked for, [batch][q_len][heads][k_dims.length]: by the key's number in its sequence,
  // -inf where it is not seen.
  std::vector<double> scores;
};

// T5's bucket of key position - query position, in f32 as its reference computes it.
int64_t RelativeBucket(const RelativeBuckets& buckets, int64_t relative);

// The softmax scale that `scale` in an AttentionDesc stands for.
double EffectiveScale(float scale, int64_t head_dim);

OracleOutput ComputeOracle(const OracleInput& input);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_ORACLE_H_
