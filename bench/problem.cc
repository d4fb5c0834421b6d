#include "bench/problem.h"

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <random>
#include <set>

#include "quant/elements.h"
#include "support/oracle.h"

namespace sightline {
namespace bench {
namespace {

// Most multiply-adds spent on exact rows of one case: some 50 ms of scalar double arithmetic.
constexpr double kMaxExactWork = 4e7;
// More rows than that do not make the error of a sample more certain: its spread over rows is
// small.
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

// `count` numbers of 0 ... n - 1, evenly spread, both ends included; all if there are no more.
std::vector<int64_t> Spread(int64_t n, int64_t count) {
  std::set<int64_t> result;
  count = std::clamp<int64_t>(count, 1, n);
  for (int64_t i = 0; i < count; ++i) {
    result.insert(count == 1 ? n - 1 : i * (n - 1) / (count - 1));
  }
  return {result.begin(), result.end()};
}

}  // namespace

Problem::Problem(const Case& description)
    : c(description),
      q(Fill(c.q_batch() * c.q_len * c.heads * c.head_dim, 0)),
      k(Fill(c.batch * c.kv_len * c.kv_heads * c.head_dim, kNumRandom / 3)),
      v(Fill(c.batch * c.kv_len * c.kv_heads * c.v_head_dim, kNumRandom / 3 * 2)) {
  // A model whose scale is not 1 / sqrt(head_dim) has weights to match: scores have a variance of 1
  // in either case.
  const double gain = 1.0 / (sqrt(static_cast<double>(c.head_dim)) * static_cast<double>(scale()));
  if (fabs(gain - 1.0) > 1e-6) {
    for (float& x : q) {
      x = internal::F32FromF16(internal::F16FromF32(static_cast<float>(gain) * x));
    }
  }

  if (c.q_len == 0 || c.kv_len == 0) return;
  const std::vector<int64_t> batches = Spread(c.q_batch(), 2);
  const std::vector<int64_t> heads = Spread(c.heads, kMaxHeads);
  const double work_per_query = static_cast<double>(c.kv_len * (c.head_dim + c.v_head_dim)) *
                                static_cast<double>(batches.size() * heads.size());
  const std::vector<int64_t> queries =
      Spread(c.q_len, std::min(kMaxQueries, static_cast<int64_t>(kMaxExactWork / work_per_query)));

  for (const int64_t b : batches) {
    for (const int64_t h : heads) {
      testing::OracleInput in;
      in.q_dims = {1, c.q_len, 1, c.head_dim};
      in.k_dims = {1, c.kv_len, 1, c.head_dim};
      in.v_dims = {1, c.kv_len, 1, c.v_head_dim};
      in.mask = c.mask();
      in.scale = static_cast<double>(scale());
      in.queries = queries;
      const auto head_of = [](const std::vector<float>& x, int64_t sequence, int64_t length,
                              int64_t num_heads, int64_t head, int64_t dim) {
        std::vector<double> result;
        result.reserve(static_cast<size_t>(length * dim));
        for (int64_t l = 0; l < length; ++l) {
          const auto row = x.begin() + ((sequence * length + l) * num_heads + head) * dim;
          result.insert(result.end(), row, row + dim);
        }
        return result;
      };
      const int64_t kv_head = h / (c.heads / c.kv_heads);
      in.q = head_of(q, b, c.q_len, c.heads, h, c.head_dim);
      in.k = head_of(k, b / c.beams, c.kv_len, c.kv_heads, kv_head, c.head_dim);
      in.v = head_of(v, b / c.beams, c.kv_len, c.kv_heads, kv_head, c.v_head_dim);
      const testing::OracleOutput oracle = testing::ComputeOracle(in);
      for (const int64_t i : queries) {
        const auto row = oracle.out.begin() + i * c.v_head_dim;
        exact.push_back({b, i, h, {row, row + c.v_head_dim}});
      }
    }
  }
}

float Problem::scale() const {
  return static_cast<float>(testing::EffectiveScale(c.scale, c.head_dim));
}

double RelativeL2(const Problem& problem, const std::vector<float>& out) {
  const Case& c = problem.c;
  if (!std::all_of(out.begin(), out.end(), [](float x) { return isfinite(x); })) return NAN;
  double error = 0.0;
  double norm = 0.0;
  for (const Problem::Row& row : problem.exact) {
    const float* actual =
        out.data() + ((row.batch * c.q_len + row.query) * c.heads + row.head) * c.v_head_dim;
    for (size_t d = 0; d < row.value.size(); ++d) {
      const double difference = static_cast<double>(actual[d]) - row.value[d];
      error += difference * difference;
      norm += row.value[d] * row.value[d];
    }
  }
  return norm == 0.0 ? sqrt(error) : sqrt(error / norm);
}

}  // namespace bench
}  // namespace sightline
