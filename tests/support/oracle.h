// Attention in double precision, straight from the definition:
//
//   s[i][j] = scale * sum_d q[i][d] * k[j][d]          for the keys j that query i sees
//   out[i][c] = sum_j exp(s[i][j]) * v[j][c] / sum_j exp(s[i][j]);   0 if query i sees no key
//
// Shares no code with the library. Inputs are what the element type or the K/V precision left of
// the caller's numbers, so that the only difference to a kernel is its arithmetic.
#ifndef SIGHTLINE_TESTS_SUPPORT_ORACLE_H_
#define SIGHTLINE_TESTS_SUPPORT_ORACLE_H_

#include <stdint.h>

#include <vector>

#include "sightline/attention.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

struct OracleInput {
  Dims q_dims;                  // [batch, q_len, heads, head_dim]
  Dims k_dims;                  // [batch / beams, kv_len, kv_heads, head_dim]
  Dims v_dims;                  // [batch / beams, kv_len, kv_heads, v_head_dim]
  std::vector<double> q, k, v;  // in the order of Dims::Index
  Mask mask = Mask::kNone;
  double scale = 1.0;
  std::vector<int64_t> queries;  // positions to compute, the others stay 0; empty = all
};

struct OracleOutput {
  Dims dims;                        // [batch, q_len, heads, v_head_dim]
  std::vector<double> out;          // [dims]
  std::vector<double> abs_out;      // [dims]: sum_j p[i][j] * |v[j][c]|
  std::vector<double> score_bound;  // [batch][q_len][heads]: max_j |scale| * sum_d |q[d]| |k[j][d]|
  std::vector<int64_t> visible;     // [q_len]: keys seen by query i
  double max_abs_v = 0.0;
};

// Keys 0 ... result - 1 are seen by query i.
int64_t VisibleKeys(Mask mask, int64_t q_len, int64_t kv_len, int64_t i);

// The softmax scale that `scale` in an AttentionDesc stands for.
double EffectiveScale(float scale, int64_t head_dim);

OracleOutput ComputeOracle(const OracleInput& input);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_ORACLE_H_
