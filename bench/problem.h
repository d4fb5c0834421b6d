// The numbers that every contender gets for a case, and how far its output is from the exact
// result.
#ifndef SIGHTLINE_BENCH_PROBLEM_H_
#define SIGHTLINE_BENCH_PROBLEM_H_

#include <vector>

#include "bench/case.h"

namespace sightline {
namespace bench {

// Normal numbers, rounded to f16 so that f32 and f16 contenders compute with the same inputs;
// scores have a variance of 1. Dense:
//   q [batch * beams, q_len, heads, head_dim]
//   k [batch, kv_len, kv_heads, head_dim]
//   v [batch, kv_len, kv_heads, v_head_dim]
struct Problem {
  explicit Problem(const Case& description);

  float scale() const;  // the softmax scale, with the default worked out

  Case c;
  std::vector<float> q, k, v;

  // The exact result of some rows of the output, spread over it: of at most two sequences, four
  // heads and 64 queries, the first and the last of each among them; fewer queries in large cases.
  struct Row {
    int64_t batch, query, head;
    std::vector<double> value;  // [v_head_dim]
  };
  std::vector<Row> exact;
};

// Relative L2 distance of `out` ([batch * beams, q_len, heads, v_head_dim]) to attention in double
// precision, over the rows of `exact`. NaN if any element of `out` is not finite.
double RelativeL2(const Problem& problem, const std::vector<float>& out);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_PROBLEM_H_
