// The numbers that every contender gets for a case, and how far its output is from the exact
// result.
#ifndef SIGHTLINE_BENCH_PROBLEM_H_
#define SIGHTLINE_BENCH_PROBLEM_H_

#include <vector>

#include "bench/case.h"

namespace sightline {
namespace bench {

// What a contender may give beside O; empty = it does not. f32, dense.
struct FurtherOutputs {
  std::vector<float> lse;      // [q_batch, q_length, heads]
  std::vector<float> weights;  // [q_batch, q_length, Features::weights, kv_len]
  std::vector<float> mass;     // [q_batch, heads, kv_len]
};

// Normal numbers, rounded to f16 so that f32 and f16 contenders compute with the same inputs;
// scores have a variance of 1. Dense:
//   q [q_batch, q_length, heads, head_dim]
//   k [kv_batch, kv_length, kv_heads, head_dim]
//   v [kv_batch, kv_length, kv_heads, v_head_dim]
// Masks are functions of the case.
struct Problem {
  explicit Problem(const Case& description);

  float scale() const;  // the softmax scale, with the default worked out
  // Whose weights are an output: [Features::weights].
  std::vector<int64_t> weight_heads() const;

  Case c;
  std::vector<float> q, k, v;
  // Score modifications; empty unless the case has them.
  std::vector<float> bias;           // [q_len, heads, kv_len]
  std::vector<float> relative_bias;  // [t5, heads]
  std::vector<float> alibi_slopes;   // [heads]: of 8 heads 1/2, 1/4 ... 1/256, as Press et al. 2022
  std::vector<float> sinks;          // [heads]

  // The exact result of some rows of the output, spread over it: of at most two sequences (of
  // different lengths, all), four heads and 64 queries, the first and the last of each among them;
  // fewer queries in large cases.
  struct Row {
    int64_t batch, query, head;  // query: along q_length
    std::vector<double> value;   // [v_head_dim]
    double lse;
  };
  std::vector<Row> exact;
};

// Relative L2 distance of `out` ([q_batch, q_length, heads, v_head_dim]) to attention in double
// precision, over the rows of `exact`. NaN if any element of `out` is not finite.
double RelativeL2(const Problem& problem, const std::vector<float>& out);

// The same for the further outputs that the case asks for, the largest of their errors; NaN if one
// is missing. The denominator behind lse is compared with the exact one; weights times V with the
// exact result, which no wrong weight meets by chance; mass times V with the sum of `out` over
// queries.
double FurtherRelativeL2(const Problem& problem, const std::vector<float>& out,
                         const FurtherOutputs& further);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_PROBLEM_H_
