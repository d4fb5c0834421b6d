// Attention weights and their sums over queries: what a test asks for, what comes out, and what
// must.
//
//   ExpectedWeights expected(problem);  // of a case with lse
//   const Ask ask = OfHeads({1, 3}, /*average=*/false);
//   const Answer answer = AnswerOf(problem, setup, ask);
//   CHECK_THAT(answer.weights, IsClose(expected.Weights(setup, ask)));
//   CHECK_THAT(answer.mass, IsClose(expected.Mass(setup, ask)));
//
// They are exp(s - lse): expected is the oracle's s and the lse that the first pass is expected to
// leave, which for many rows of i8 is that of scores in fixed point. A weight is as good as both of
// these, see ToleranceOf in weights.cc. Weights of i8 and i8_fine that the first pass leaves are
// made of the scores in fixed point: where it may leave them, either will do.
#ifndef SIGHTLINE_TESTS_SUPPORT_WEIGHTS_H_
#define SIGHTLINE_TESTS_SUPPORT_WEIGHTS_H_

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "support/problem.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

struct Ask {
  bool weights = true;
  bool lists_heads = false;
  std::vector<int32_t> heads;
  bool lists_queries = false;
  std::vector<int32_t> queries;
  bool average = false;
  DType dtype = DType::kF32;
  Layout layout = Layout::kDense;
  int64_t extra_keys = 0;  // elements behind the longest sequence's keys

  bool mass = true;
  bool mass_by_kv_head = false;   // summed over groups,
  bool mass_by_kv_batch = false;  // over beams
  Layout mass_layout = Layout::kDense;
  int64_t mass_extra_keys = 0;

  std::string ToString() const;
};

Ask OfHeads(const std::vector<int32_t>& heads, bool average);
Ask OfQueries(const std::vector<int32_t>& queries);

Dims WeightsDims(const Case& c, const Ask& ask);
Dims MassDims(const Case& c, const Ask& ask);

class ExpectedWeights {
 public:
  // The problem has to outlive it.
  explicit ExpectedWeights(const Problem& problem) : problem_(problem), known_(problem) {}

  const Problem& problem() const { return problem_; }

  // What the first pass leaves.
  const Expected& Output(const Setup& setup) { return known_(setup); }
  Expected Weights(const Setup& setup, const Ask& ask);
  // What prefill leaves on the way: of the scores that softmax had in fixed point, but for rows
  // that this is too narrow for.
  Expected SoftmaxWeights(const Setup& setup, const Ask& ask);
  Expected Mass(const Setup& setup, const Ask& ask);

  // What the keys have of a row, without its sink.
  double KeyShare(const Setup& setup, int64_t b, int64_t l, int64_t h);

 private:
  void Load(const Setup& setup);
  size_t RowOf(int64_t b, int64_t l, int64_t h) const;
  enum class ScoresOf { kSecondPass, kEither, kSoftmax };
  Expected WeightsOf(const Setup& setup, const Ask& ask, ScoresOf scores);
  // Adds `share` of a row's weights to the elements from `first` on.
  void AddRow(int64_t b, int64_t l, int64_t h, double share, ScoresOf scores, size_t first,
              Expected* e) const;

  const Problem& problem_;
  Expectations known_;
  const ExpectedScores* scores_ = nullptr;
  const Expected* lse_ = nullptr;
};

struct Answer {
  Tensor out, lse, weights, mass;  // those that were not asked for are empty
};

// Like TryAttend: returns what went wrong; empty = nothing.
std::string TryAnswer(const Problem& problem, Setup setup, const Ask& ask, Answer* answer);
// Fails the test instead.
Answer AnswerOf(const Problem& problem, const Setup& setup, const Ask& ask);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_WEIGHTS_H_
