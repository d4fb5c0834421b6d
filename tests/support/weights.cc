#include "support/weights.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>

#include "support/numeric.h"

namespace sightline {
namespace testing {
namespace {

// Weights of a row: w = exp(s - lse), in octaves with two more roundings of lse, one of s and one
// of their difference, and 2^x, which is good to 4 u and may be 0 below 2^-100.
double ToleranceOf(double w, double s, double score_tolerance, double lse, double lse_tolerance) {
  const double difference =
      score_tolerance + lse_tolerance + 4.0 * kF32Unit * (fabs(lse) + fabs(s));
  return w * (expm1(difference) + 4.0 * kF32Unit) + ldexp(1.0, -100);
}

Expected Zeros(const Dims& dims) {
  Expected e;
  e.dims = dims;
  e.value.assign(static_cast<size_t>(dims.NumElements()), 0.0);
  e.tolerance = e.value;
  return e;
}

void AddSumError(double num_terms, Expected* e) {
  for (size_t i = 0; i < e->value.size(); ++i) {
    e->tolerance[i] += num_terms * kF32Unit * (e->value[i] + e->tolerance[i]);
  }
}

GuardedBuffer ListOf(const std::vector<int32_t>& x, Placement placement) {
  GuardedBuffer buffer(std::max<size_t>(x.size(), 1) * sizeof(int32_t), placement, sizeof(int32_t));
  if (!x.empty()) memcpy(buffer.data(), x.data(), x.size() * sizeof(int32_t));
  return buffer;
}

}  // namespace

// ---- What is asked for ------------------------------------------------------------------------

std::string Ask::ToString() const {
  std::string text;
  const auto list = [&](const char* name, const std::vector<int32_t>& x) {
    text += std::string(name) + " {";
    for (const int32_t i : x) text += std::to_string(i) + " ";
    text += "} ";
  };
  if (weights) text += std::string("weights ") + Name(dtype) + " " + Name(layout) + " ";
  if (lists_heads) list("heads", heads);
  if (lists_queries) list("queries", queries);
  if (average) text += "averaged ";
  text += "+ " + std::to_string(extra_keys);
  if (mass) text += std::string(", mass ") + Name(mass_layout);
  if (mass_by_kv_head) text += " by kv head";
  if (mass_by_kv_batch) text += " by kv batch";
  return text + " + " + std::to_string(mass_extra_keys);
}

Ask OfHeads(const std::vector<int32_t>& heads, bool average) {
  Ask ask;
  ask.lists_heads = true;
  ask.heads = heads;
  ask.average = average;
  return ask;
}

Ask OfQueries(const std::vector<int32_t>& queries) {
  Ask ask;
  ask.lists_queries = true;
  ask.queries = queries;
  return ask;
}

Dims WeightsDims(const Case& c, const Ask& ask) {
  Dims dims = {c.batch(), c.q_len, c.heads, c.LongestKvLen() + ask.extra_keys};
  if (ask.lists_queries) dims.length = static_cast<int64_t>(ask.queries.size());
  if (ask.lists_heads) dims.heads = static_cast<int64_t>(ask.heads.size());
  if (ask.average) dims.heads = 1;
  return dims;
}

Dims MassDims(const Case& c, const Ask& ask) {
  const int64_t num_sequences = static_cast<int64_t>(c.Runs().size());
  return {ask.mass_by_kv_batch || c.features.ragged() ? num_sequences : c.batch(), 1,
          ask.mass_by_kv_head ? c.kv_heads : c.heads, c.LongestKvLen() + ask.mass_extra_keys};
}

// ---- What is expected -------------------------------------------------------------------------

Expected ExpectedWeights::Weights(const Setup& setup, const Ask& ask) {
  const Case& c = problem_.c;
  const bool leaves_out = ask.lists_queries && static_cast<int64_t>(ask.queries.size()) < c.q_len;
  const bool may_wait = !ask.average && !leaves_out && ask.dtype == DType::kF32 &&
                        c.heads == c.kv_heads && !c.features.modifies_scores();
  return WeightsOf(setup, ask, may_wait ? ScoresOf::kEither : ScoresOf::kSecondPass);
}

Expected ExpectedWeights::SoftmaxWeights(const Setup& setup, const Ask& ask) {
  return WeightsOf(setup, ask, ScoresOf::kSoftmax);
}

Expected ExpectedWeights::WeightsOf(const Setup& setup, const Ask& ask, ScoresOf scores) {
  Load(setup);
  const Case& c = problem_.c;
  Expected e = Zeros(WeightsDims(c, ask));
  for (int64_t b = 0; b < e.dims.batch; ++b) {
    for (int64_t n = 0; n < e.dims.length; ++n) {
      const int64_t l = ask.lists_queries ? ask.queries[static_cast<size_t>(n)] : n;
      const int64_t num_heads = ask.lists_heads ? static_cast<int64_t>(ask.heads.size()) : c.heads;
      for (int64_t m = 0; m < num_heads; ++m) {
        const int64_t h = ask.lists_heads ? ask.heads[static_cast<size_t>(m)] : m;
        const double share = ask.average ? 1.0 / static_cast<double>(num_heads) : 1.0;
        AddRow(b, l, h, share, scores, e.dims.Index(b, n, ask.average ? 0 : m, 0), &e);
      }
    }
  }
  // The factor, and one addition for each head.
  const size_t num_heads = ask.lists_heads ? ask.heads.size() : static_cast<size_t>(c.heads);
  if (ask.average) AddSumError(static_cast<double>(num_heads) + 2.0, &e);
  return e;
}

Expected ExpectedWeights::Mass(const Setup& setup, const Ask& ask) {
  Load(setup);
  const Case& c = problem_.c;
  Expected e = Zeros(MassDims(c, ask));
  const std::vector<Sequence> sequences = SequencesOf(c);
  const size_t beams = c.features.ragged() ? 1 : static_cast<size_t>(c.beams);
  double num_rows = 0.0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const Sequence& sequence = sequences[s];
    const int64_t b = c.features.ragged() || ask.mass_by_kv_batch ? static_cast<int64_t>(s / beams)
                                                                  : sequence.q_batch;
    for (int64_t l = sequence.q_begin; l < sequence.q_begin + sequence.q_len; ++l) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t to = ask.mass_by_kv_head ? h / (c.heads / c.kv_heads) : h;
        AddRow(sequence.q_batch, l, h, 1.0, ScoresOf::kSecondPass, e.dims.Index(b, 0, to, 0), &e);
      }
    }
    num_rows = std::max(num_rows, static_cast<double>(sequence.q_len));
  }
  AddSumError(num_rows * static_cast<double>(c.heads * c.beams), &e);
  return e;
}

double ExpectedWeights::KeyShare(const Setup& setup, int64_t b, int64_t l, int64_t h) {
  Load(setup);
  const double lse = lse_->lse[RowOf(b, l, h)];
  if (lse == -HUGE_VAL) return 0.0;
  const std::vector<float>& sinks = problem_.c.features.sinks;
  if (sinks.empty()) return 1.0;
  return 1.0 - exp(static_cast<double>(sinks[static_cast<size_t>(h)]) - lse);
}

void ExpectedWeights::Load(const Setup& setup) {
  scores_ = &known_.Scores(setup);
  lse_ = &known_(setup);
}

size_t ExpectedWeights::RowOf(int64_t b, int64_t l, int64_t h) const {
  return static_cast<size_t>((b * problem_.c.q_len + l) * problem_.c.heads + h);
}

void ExpectedWeights::AddRow(int64_t b, int64_t l, int64_t h, double share, ScoresOf scores,
                             size_t first, Expected* e) const {
  const size_t row = RowOf(b, l, h);
  const size_t kv_len = static_cast<size_t>(scores_->dims.dim);
  const size_t n = std::min(kv_len, static_cast<size_t>(e->dims.dim));
  for (size_t j = 0; j < n; ++j) {
    double s = scores_->value[row * kv_len + j];
    if (s == -HUGE_VAL) continue;  // exactly 0
    const double lse = lse_->lse[row];
    if (scores != ScoresOf::kSecondPass && !lse_->softmax_scores.empty()) {
      const double of_softmax = lse_->softmax_scores[row * kv_len + j];
      if (scores == ScoresOf::kSoftmax) s = of_softmax;
      e->tolerance[first + j] += share * fabs(exp(of_softmax - lse) - exp(s - lse));
    }
    const double w = exp(s - lse);
    e->value[first + j] += share * w;
    e->tolerance[first + j] +=
        share * ToleranceOf(w, s, scores_->tolerance[row], lse, lse_->lse_tolerance[row]);
  }
}

// ---- What comes out ---------------------------------------------------------------------------

std::string TryAnswer(const Problem& problem, Setup setup, const Ask& ask, Answer* answer) {
  const Case& c = problem.c;
  const GuardedBuffer heads = ListOf(ask.heads, c.placement);
  const GuardedBuffer queries = ListOf(ask.queries, c.placement);
  if (ask.weights) {
    answer->weights = Tensor(ask.dtype, WeightsDims(c, ask), ask.layout, c.placement);
  }
  if (ask.mass) {
    answer->mass = Tensor(DType::kF32, MassDims(c, ask), ask.mass_layout, c.placement);
  }
  setup.amend = [&](AttentionArgs& args) {
    if (ask.weights) {
      args.weights.out = answer->weights.view();
      args.weights.average_heads = ask.average;
      if (ask.lists_heads) {
        args.weights.heads = reinterpret_cast<const int32_t*>(heads.data());
        args.weights.num_heads = static_cast<int64_t>(ask.heads.size());
      }
      if (ask.lists_queries) {
        args.weights.queries = reinterpret_cast<const int32_t*>(queries.data());
        args.weights.num_queries = static_cast<int64_t>(ask.queries.size());
      }
    }
    if (ask.mass) args.mass = answer->mass.view();
  };
  std::string error = TryAttend(problem, setup, &answer->out, &answer->lse);
  if (!error.empty()) return error;
  if (ask.weights && !answer->weights.GapsAreWiped()) {
    return "weights: written between their elements";
  }
  if (ask.mass && !answer->mass.GapsAreWiped()) return "mass: written between its elements";
  return "";
}

Answer AnswerOf(const Problem& problem, const Setup& setup, const Ask& ask) {
  Answer answer;
  REQUIRE(TryAnswer(problem, setup, ask, &answer) == "");
  return answer;
}

}  // namespace testing
}  // namespace sightline
