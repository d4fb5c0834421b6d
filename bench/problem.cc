#include "bench/problem.h"

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <iterator>
#include <random>

#include "quant/elements.h"
#include "support/oracle.h"

namespace sightline {
namespace bench {
namespace {

// Most multiply-adds spent on exact rows of one case: some 50 ms of scalar double arithmetic.
constexpr double kMaxExactWork = 4e7;
// More rows than that do not make the error of a sample more certain: its spread over rows is
// small.
constexpr int64_t kMaxSequences = 2;
constexpr int64_t kMaxHeads = 4;
constexpr int64_t kMaxQueries = 64;

// A prime, so that tensors whose rows are powers of two long do not repeat rows.
constexpr size_t kNumRandom = 1048573;

const std::vector<float>& RandomNumbers() {
  static const std::vector<float> numbers = [] {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> result(kNumRandom);
    for (float& x : result) x = internal::F32FromF16(internal::F16FromF32(normal(rng)));
    return result;
  }();
  return numbers;
}

// Takes `count` numbers from a circle of random ones, from `start` on: drawing each anew would take
// longer than attention.
std::vector<float> Fill(int64_t count, size_t start) {
  const std::vector<float>& random = RandomNumbers();
  std::vector<float> result(static_cast<size_t>(count));
  for (size_t done = 0; done < result.size();) {
    const size_t from = (start + done) % kNumRandom;
    const size_t n = std::min(result.size() - done, kNumRandom - from);
    std::copy_n(random.begin() + static_cast<std::ptrdiff_t>(from), n,
                result.begin() + static_cast<std::ptrdiff_t>(done));
    done += n;
  }
  return result;
}

// Ranges of the circle that different tensors begin with.
constexpr size_t kStartOfK = kNumRandom / 3;
constexpr size_t kStartOfV = kNumRandom / 3 * 2;
constexpr size_t kStartOfBias = kNumRandom / 6;
constexpr size_t kStartOfHeads = kNumRandom / 2;

// Tokens [begin, begin + length) of one head of a tensor [batch, tensor_length, num_heads, dim].
struct HeadSlice {
  int64_t batch, begin, length, head;
};
std::vector<double> Take(const std::vector<float>& x, const HeadSlice& slice, int64_t tensor_length,
                         int64_t num_heads, int64_t dim) {
  std::vector<double> result;
  result.reserve(static_cast<size_t>(slice.length * dim));
  for (int64_t l = slice.begin; l < slice.begin + slice.length; ++l) {
    const auto row = x.begin() + ((slice.batch * tensor_length + l) * num_heads + slice.head) * dim;
    result.insert(result.end(), row, row + dim);
  }
  return result;
}

// What an entry of Q's batch (of a ragged one, a sequence) is made of.
struct Queries {
  int64_t q_batch, q_begin, sequence, kv_batch, kv_begin;
};
Queries QueriesOf(const Case& c, int64_t b) {
  if (!c.ragged()) return {b, 0, b / c.beams, b / c.beams, 0};
  const int64_t begin = c.Indptr()[static_cast<size_t>(b)];
  return {0, begin, b, 0, begin};
}

// The exact attention of head h over one sequence, for these of its queries.
testing::OracleOutput Exact(const Problem& problem, const Queries& of, int64_t h,
                            const std::vector<int64_t>& queries) {
  const Case& c = problem.c;
  const Features& f = c.features;
  const int64_t q_len = c.QLen(of.sequence);
  const int64_t kv_len = c.KvLen(of.sequence);
  const int64_t kv_head = h / (c.heads / c.kv_heads);
  const HeadSlice keys = {of.kv_batch, of.kv_begin, kv_len, kv_head};
  testing::OracleInput in;
  in.q_dims = {1, q_len, 1, c.head_dim};
  in.k_dims = {1, kv_len, 1, c.head_dim};
  in.v_dims = {1, kv_len, 1, c.v_head_dim};
  in.q = Take(problem.q, {of.q_batch, of.q_begin, q_len, h}, c.q_length(), c.heads, c.head_dim);
  in.k = Take(problem.k, keys, c.kv_length(), c.kv_heads, c.head_dim);
  in.v = Take(problem.v, keys, c.kv_length(), c.kv_heads, c.v_head_dim);
  in.scale = static_cast<double>(problem.scale());
  in.queries = queries;
  in.sequences = {{0, 0, q_len, 0, 0, kv_len, std::min(f.prefix, kv_len), 0}};

  in.causal = c.causal();
  in.window_left = c.WindowLeft();
  in.window_right = c.WindowRight();
  in.q_start = c.PositionOf(of.sequence, 0);
  if (f.mask != 0) {
    in.mask = [&c](int64_t, int64_t l, int64_t, int64_t j) { return c.MaskShows(l, j); };
  }
  if (f.block_mask != 0) {
    in.q_block = in.kv_block = f.block_mask;
    in.blocks = [&c, h](int64_t, int64_t q_block, int64_t, int64_t kv_block) {
      return c.BlockMaskShows(h, q_block, kv_block);
    };
  }

  const size_t head = static_cast<size_t>(h);
  in.softcap = static_cast<double>(f.softcap);
  if (f.bias != 0) {
    in.bias = [&problem, &c, h](int64_t, int64_t l, int64_t, int64_t j) {
      return static_cast<double>(
          problem.bias[static_cast<size_t>((l * c.heads + h) * c.kv_len + j)]);
    };
  }
  if (f.t5 != 0) {
    in.relative_buckets = c.Buckets();
    for (size_t i = head; i < problem.relative_bias.size(); i += static_cast<size_t>(c.heads)) {
      in.relative_bias.push_back(static_cast<double>(problem.relative_bias[i]));
    }
  }
  if (f.alibi != 0) in.alibi_slopes = {static_cast<double>(problem.alibi_slopes[head])};
  if (f.sinks != 0) in.sinks = {static_cast<double>(problem.sinks[head])};
  return testing::ComputeOracle(in);
}

// Adds up |actual - exact|^2 and |exact|^2.
class Distance {
 public:
  void Add(double actual, double exact) {
    error_ += (actual - exact) * (actual - exact);
    norm_ += exact * exact;
  }
  double relative() const { return norm_ == 0.0 ? sqrt(error_) : sqrt(error_ / norm_); }

 private:
  double error_ = 0.0;
  double norm_ = 0.0;
};

// weights[kv_len] times V of the sequence and head that the row sees.
std::vector<double> TimesV(const Problem& problem, int64_t q_batch, int64_t head,
                           const float* weights) {
  const Case& c = problem.c;
  const int64_t kv_head = head / (c.heads / c.kv_heads);
  std::vector<double> result(static_cast<size_t>(c.v_head_dim));
  for (int64_t j = 0; j < c.kv_len; ++j) {
    const float* v = problem.v.data() +
                     ((q_batch / c.beams * c.kv_len + j) * c.kv_heads + kv_head) * c.v_head_dim;
    for (size_t d = 0; d < result.size(); ++d) {
      result[d] += static_cast<double>(weights[j]) * static_cast<double>(v[d]);
    }
  }
  return result;
}

double LseError(const Problem& problem, const std::vector<float>& lse) {
  const Case& c = problem.c;
  Distance distance;
  for (const Problem::Row& row : problem.exact) {
    const double actual = static_cast<double>(
        lse[static_cast<size_t>((row.batch * c.q_length() + row.query) * c.heads + row.head)]);
    if (row.lse == -HUGE_VAL && actual == -HUGE_VAL) continue;
    distance.Add(exp(actual - row.lse), 1.0);
  }
  return distance.relative();
}

double WeightsError(const Problem& problem, const std::vector<float>& weights) {
  const Case& c = problem.c;
  const std::vector<int64_t> heads = problem.weight_heads();
  Distance distance;
  for (const Problem::Row& row : problem.exact) {
    const auto head = std::find(heads.begin(), heads.end(), row.head);
    if (head == heads.end()) continue;
    const int64_t place =
        (row.batch * c.q_len + row.query) * c.features.weights + std::distance(heads.begin(), head);
    const std::vector<double> actual =
        TimesV(problem, row.batch, row.head, weights.data() + place * c.kv_len);
    for (size_t d = 0; d < actual.size(); ++d) distance.Add(actual[d], row.value[d]);
  }
  return distance.relative();
}

double MassError(const Problem& problem, const std::vector<float>& out,
                 const std::vector<float>& mass) {
  const Case& c = problem.c;
  Distance distance;
  for (const int64_t b : Spread(c.q_batch(), kMaxSequences)) {
    for (const int64_t h : Spread(c.heads, kMaxHeads)) {
      const std::vector<double> actual =
          TimesV(problem, b, h, mass.data() + (b * c.heads + h) * c.kv_len);
      for (size_t d = 0; d < actual.size(); ++d) {
        double sum = 0.0;
        for (int64_t i = 0; i < c.q_len; ++i) {
          const int64_t row = (b * c.q_len + i) * c.heads + h;
          sum += static_cast<double>(out[static_cast<size_t>(row * c.v_head_dim) + d]);
        }
        distance.Add(actual[d], sum);
      }
    }
  }
  return distance.relative();
}

}  // namespace

Problem::Problem(const Case& description)
    : c(description),
      q(Fill(c.q_batch() * c.q_length() * c.heads * c.head_dim, 0)),
      k(Fill(c.kv_batch() * c.kv_length() * c.kv_heads * c.head_dim, kStartOfK)),
      v(Fill(c.kv_batch() * c.kv_length() * c.kv_heads * c.v_head_dim, kStartOfV)) {
  // A model whose scale is not 1 / sqrt(head_dim) has weights to match: scores have a variance of 1
  // in either case.
  const double gain = 1.0 / (sqrt(static_cast<double>(c.head_dim)) * static_cast<double>(scale()));
  if (fabs(gain - 1.0) > 1e-6) {
    for (float& x : q) {
      x = internal::F32FromF16(internal::F16FromF32(static_cast<float>(gain) * x));
    }
  }

  const Features& f = c.features;
  if (f.bias != 0) bias = Fill(c.q_len * c.heads * c.kv_len, kStartOfBias);
  if (f.t5 != 0) relative_bias = Fill(f.t5 * c.heads, kStartOfHeads);
  if (f.sinks != 0) sinks = Fill(c.heads, kStartOfHeads);
  for (int64_t h = 0; f.alibi != 0 && h < c.heads; ++h) {
    alibi_slopes.push_back(exp2f(-8.0f * static_cast<float>(h + 1) / static_cast<float>(c.heads)));
  }

  if (c.q_len == 0 || c.kv_len == 0) return;
  const int64_t entries = c.batch * c.beams;
  const std::vector<int64_t> batches = Spread(entries, c.is_mixed() ? entries : kMaxSequences);
  const std::vector<int64_t> heads = Spread(c.heads, kMaxHeads);
  const double work_per_query = static_cast<double>(c.kv_len * (c.head_dim + c.v_head_dim)) *
                                static_cast<double>(batches.size() * heads.size());
  const int64_t num_queries =
      std::min(kMaxQueries, static_cast<int64_t>(kMaxExactWork / work_per_query));
  for (const int64_t b : batches) {
    const Queries of = QueriesOf(c, b);
    const std::vector<int64_t> queries = Spread(c.QLen(of.sequence), num_queries);
    for (const int64_t h : heads) {
      const testing::OracleOutput oracle = Exact(*this, of, h, queries);
      for (const int64_t i : queries) {
        const auto row = oracle.out.begin() + i * c.v_head_dim;
        exact.push_back({of.q_batch,
                         of.q_begin + i,
                         h,
                         {row, row + c.v_head_dim},
                         oracle.lse[static_cast<size_t>(i)]});
      }
    }
  }
}

float Problem::scale() const {
  return static_cast<float>(testing::EffectiveScale(c.scale, c.head_dim));
}

std::vector<int64_t> Problem::weight_heads() const {
  if (c.features.weights == 0) return {};
  return Spread(c.heads, c.features.weights);
}

double RelativeL2(const Problem& problem, const std::vector<float>& out) {
  const Case& c = problem.c;
  if (!std::all_of(out.begin(), out.end(), [](float x) { return isfinite(x); })) return NAN;
  Distance distance;
  for (const Problem::Row& row : problem.exact) {
    const float* actual =
        out.data() + ((row.batch * c.q_length() + row.query) * c.heads + row.head) * c.v_head_dim;
    for (size_t d = 0; d < row.value.size(); ++d) {
      distance.Add(static_cast<double>(actual[d]), row.value[d]);
    }
  }
  return distance.relative();
}

double FurtherRelativeL2(const Problem& problem, const std::vector<float>& out,
                         const FurtherOutputs& further) {
  const Features& f = problem.c.features;
  const bool complete = (f.lse == 0 || !further.lse.empty()) &&
                        (f.weights == 0 || !further.weights.empty()) &&
                        (f.mass == 0 || !further.mass.empty());
  if (!complete) return NAN;
  std::vector<double> errors = {0.0};
  if (f.lse != 0) errors.push_back(LseError(problem, further.lse));
  if (f.weights != 0) errors.push_back(WeightsError(problem, further.weights));
  if (f.mass != 0) errors.push_back(MassError(problem, out, further.mass));
  for (const double error : errors) {
    if (isnan(error)) return NAN;
  }
  return *std::max_element(errors.begin(), errors.end());
}

}  // namespace bench
}  // namespace sightline
