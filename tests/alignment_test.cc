// Align: paths against all paths there are, filters against naive ones in double precision, ties,
// special values, any stride and type, every documented mistake.
#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "sightline/alignment.h"
#include "support/allocations.h"
#include "support/check.h"
#include "support/numeric.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Calls ------------------------------------------------------------------------------------

using Cell = std::array<int32_t, 2>;  // token and frame; Catch2 prints and compares it

// A valid call, all of its memory between pages that fault.
struct AlignCall {
  explicit AlignCall(const Tensor& weights, int64_t skip_first = 0, int64_t skip_last = 0) {
    args.weights = weights.view();
    args.skip_first = skip_first;
    args.skip_last = skip_last;
  }

  int64_t num_aligned() const { return args.weights.length - args.skip_first - args.skip_last; }
  int64_t max_steps() const {
    return num_aligned() == 0 ? 0 : num_aligned() + args.weights.dim - 1;
  }

  void Prepare(Placement placement = Placement::kAtEnd) {
    const size_t batch = static_cast<size_t>(args.weights.batch);
    const size_t tokens = static_cast<size_t>(num_aligned());
    const size_t steps = static_cast<size_t>(max_steps());
    first_frame = GuardedBuffer(batch * tokens * sizeof(int32_t), placement);
    path = GuardedBuffer(batch * steps * sizeof(AlignmentStep), placement);
    path_lens = GuardedBuffer(batch * sizeof(int64_t), placement);
    scratch = GuardedBuffer(AlignmentWorkspaceBytes(args), placement, Workspace::kAlignmentBytes);
    args.first_frame = reinterpret_cast<int32_t*>(first_frame.data());
    args.path = reinterpret_cast<AlignmentStep*>(path.data());
    args.path_lens = reinterpret_cast<int64_t*>(path_lens.data());
    workspace = {scratch.data(), scratch.size()};
  }

  void Run(Placement placement = Placement::kAtEnd) {
    Prepare(placement);
    REQUIRE_THAT(Align(args, workspace), IsOk());
  }

  std::vector<int32_t> FirstFrames(int64_t batch = 0) const {
    const int32_t* begin = args.first_frame + batch * num_aligned();
    return std::vector<int32_t>(begin, begin + num_aligned());
  }
  std::vector<Cell> Path(int64_t batch = 0) const {
    const AlignmentStep* begin = args.path + batch * max_steps();
    std::vector<Cell> cells;
    for (const AlignmentStep* step = begin; step != begin + args.path_lens[batch]; ++step) {
      cells.push_back({step->token, step->frame});
    }
    return cells;
  }
  bool IsUnwritten() const {
    for (const GuardedBuffer* buffer : {&first_frame, &path, &path_lens, &scratch}) {
      const unsigned char* end = buffer->data() + buffer->size();
      if (std::any_of(static_cast<const unsigned char*>(buffer->data()), end,
                      [](unsigned char byte) { return byte != GuardedBuffer::kFillByte; })) {
        return false;
      }
    }
    return true;
  }

  AlignmentArgs args;
  Workspace workspace;
  GuardedBuffer first_frame, path, path_lens, scratch;
};

// Weights of any sign, as the path does not mind.
Tensor RandomWeights(const Dims& dims, uint64_t seed, DType dtype = DType::kF32,
                     Layout layout = Layout::kDense, Placement placement = Placement::kAtEnd) {
  Tensor weights(dtype, dims, layout, placement, kPerToken + kPerHead);
  Rng rng(seed);
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t l = 0; l < dims.length; ++l) {
      for (int64_t h = 0; h < dims.heads; ++h) {
        for (int64_t d = 0; d < dims.dim; ++d) {
          weights.Set(b, l, h, d, static_cast<float>(rng.Normal()));
        }
      }
    }
  }
  return weights;
}

// One head, of which nothing is filtered.
using Rows = std::vector<std::vector<float>>;
AlignCall AlignRows(const Rows& rows) {
  const int64_t tokens = static_cast<int64_t>(rows.size());
  const int64_t frames = static_cast<int64_t>(rows[0].size());
  Tensor weights(DType::kF32, {1, tokens, 1, frames});
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t f = 0; f < frames; ++f) {
      weights.Set(0, i, 0, f, rows[static_cast<size_t>(i)][static_cast<size_t>(f)]);
    }
  }
  AlignCall call(weights);
  call.args.standardize = false;
  call.args.median_width = 1;
  call.Run();
  call.args.weights = ConstTensorView::Dense(nullptr, DType::kF32, 1, tokens, 1, frames);
  return call;
}

// ---- The reference, in double precision ---------------------------------------------------------

using Matrix = std::vector<std::vector<double>>;  // [tokens][frames]

Matrix HeadOf(const Tensor& weights, int64_t batch, int64_t head) {
  const Dims& n = weights.dims();
  Matrix m(static_cast<size_t>(n.length), std::vector<double>(static_cast<size_t>(n.dim)));
  for (int64_t i = 0; i < n.length; ++i) {
    for (int64_t f = 0; f < n.dim; ++f) {
      m[static_cast<size_t>(i)][static_cast<size_t>(f)] = weights.Get(batch, i, head, f);
    }
  }
  return m;
}

void Standardize(Matrix* m) {
  const double n = static_cast<double>(m->size());
  for (size_t f = 0; f < m->front().size(); ++f) {
    double mean = 0.0;
    for (const auto& row : *m) mean += row[f] / n;
    double variance = 0.0;
    for (const auto& row : *m) variance += (row[f] - mean) * (row[f] - mean) / n;
    for (auto& row : *m) row[f] = (row[f] - mean) / sqrt(variance);
  }
}

void FilterMedian(int64_t width, Matrix* m) {
  const int64_t half = width / 2;
  const int64_t frames = static_cast<int64_t>(m->front().size());
  if (frames <= half) return;
  for (auto& row : *m) {
    const std::vector<double> unfiltered = row;
    for (int64_t f = 0; f < frames; ++f) {
      std::vector<double> window;
      for (int64_t i = f - half; i <= f + half; ++i) {
        const int64_t reflected = i < 0 ? -i : i >= frames ? 2 * (frames - 1) - i : i;
        window.push_back(unfiltered[static_cast<size_t>(reflected)]);
      }
      std::sort(window.begin(), window.end());
      row[static_cast<size_t>(f)] = window[static_cast<size_t>(half)];
    }
  }
}

// What the path is found in.
Matrix MatrixOf(const Tensor& weights, const AlignmentArgs& args, int64_t batch) {
  Matrix mean;
  for (int64_t h = 0; h < weights.dims().heads; ++h) {
    Matrix m = HeadOf(weights, batch, h);
    if (args.standardize) Standardize(&m);
    FilterMedian(args.median_width, &m);
    m.erase(m.end() - static_cast<ptrdiff_t>(args.skip_last), m.end());
    m.erase(m.begin(), m.begin() + static_cast<ptrdiff_t>(args.skip_first));
    if (h == 0) mean.assign(m.size(), std::vector<double>(m[0].size(), 0.0));
    for (size_t i = 0; i < m.size(); ++i) {
      for (size_t f = 0; f < m[i].size(); ++f) {
        mean[i][f] += m[i][f] / static_cast<double>(weights.dims().heads);
      }
    }
  }
  return mean;
}

double CostOf(const std::vector<Cell>& path, const Matrix& matrix) {
  double cost = 0.0;
  for (const auto& [token, frame] : path) {
    cost -= matrix[static_cast<size_t>(token)][static_cast<size_t>(frame)];
  }
  return cost;
}

// The least cost of all paths, by dynamic programming.
double LeastCost(const Matrix& m) {
  Matrix cost = m;
  for (size_t i = 0; i < m.size(); ++i) {
    for (size_t f = 0; f < m[i].size(); ++f) {
      double before = i == 0 && f == 0 ? 0.0 : HUGE_VAL;
      if (i > 0) before = std::min(before, cost[i - 1][f]);
      if (f > 0) before = std::min(before, cost[i][f - 1]);
      if (i > 0 && f > 0) before = std::min(before, cost[i - 1][f - 1]);
      cost[i][f] = before - m[i][f];
    }
  }
  return cost.back().back();
}

// The same by walking every one of them.
double LeastCostOfAllPaths(const Matrix& m, size_t i = 0, size_t f = 0) {
  const size_t last_token = m.size() - 1;
  const size_t last_frame = m[0].size() - 1;
  if (i == last_token && f == last_frame) return -m[i][f];
  double rest = HUGE_VAL;
  if (i < last_token) rest = std::min(rest, LeastCostOfAllPaths(m, i + 1, f));
  if (f < last_frame) rest = std::min(rest, LeastCostOfAllPaths(m, i, f + 1));
  if (i < last_token && f < last_frame) rest = std::min(rest, LeastCostOfAllPaths(m, i + 1, f + 1));
  return rest - m[i][f];
}

// The path of Whisper's rule, written as it is stated: costs framed by infinities, in f32, and a
// choice kept for every cell.
template <typename T>
std::vector<Cell> PathByWhispersRule(const std::vector<std::vector<T>>& weights) {
  enum Choice { kBoth, kToken, kFrame };
  const size_t tokens = weights.size();
  const size_t frames = weights[0].size();
  Rows cost(tokens + 1, std::vector<float>(frames + 1, kInfinity));
  std::vector<std::vector<Choice>> choice(tokens + 1, std::vector<Choice>(frames + 1, kFrame));
  cost[0][0] = 0.0f;
  for (size_t f = 1; f <= frames; ++f) {
    for (size_t i = 1; i <= tokens; ++i) {
      const float both = cost[i - 1][f - 1];
      const float token = cost[i - 1][f];
      const float frame = cost[i][f - 1];
      float least = frame;
      if (both < token && both < frame) {
        least = both;
        choice[i][f] = kBoth;
      } else if (token < both && token < frame) {
        least = token;
        choice[i][f] = kToken;
      }
      cost[i][f] = least - static_cast<float>(weights[i - 1][f - 1]);
    }
  }
  std::vector<Cell> path;
  for (size_t i = tokens, f = frames; i > 0 && f > 0;) {
    path.insert(path.begin(), {static_cast<int32_t>(i - 1), static_cast<int32_t>(f - 1)});
    const Choice back = choice[i][f];
    if (back != kFrame) --i;
    if (back != kToken) --f;
  }
  return path;
}

// ---- Properties -------------------------------------------------------------------------------

// From the first cell to the last, one token, one frame or both at a time, and first_frame says
// where tokens are entered; nothing is written behind the path.
void CheckIsPath(const AlignCall& call, int64_t batch = 0) {
  const std::vector<Cell> path = call.Path(batch);
  REQUIRE(path.size() >= 1);
  CHECK(path.front() == Cell{0, 0});
  CHECK(path.back() == Cell{static_cast<int32_t>(call.num_aligned() - 1),
                            static_cast<int32_t>(call.args.weights.dim - 1)});
  std::vector<int32_t> entered = {0};
  for (size_t s = 1; s < path.size(); ++s) {
    const int32_t tokens = path[s][0] - path[s - 1][0];
    const int32_t frames = path[s][1] - path[s - 1][1];
    REQUIRE((tokens == 0 || tokens == 1));
    REQUIRE((frames == 0 || frames == 1));
    REQUIRE(tokens + frames > 0);
    if (tokens == 1) entered.push_back(path[s][1]);
  }
  CHECK(call.FirstFrames(batch) == entered);
  const auto* behind = reinterpret_cast<const unsigned char*>(
      call.args.path + batch * call.max_steps() + call.args.path_lens[batch]);
  const size_t unused_bytes =
      static_cast<size_t>(call.max_steps() - call.args.path_lens[batch]) * sizeof(AlignmentStep);
  CHECK(std::all_of(behind, behind + unused_bytes,
                    [](unsigned char byte) { return byte == GuardedBuffer::kFillByte; }));
}

// As cheap as any in the reference's matrix, up to the rounding of its cells and sums. Medians make
// equal cells, and ties go Whisper's way, which may cost more.
void CheckIsCheapest(const AlignCall& call, const Tensor& weights, int64_t batch) {
  const Matrix matrix = MatrixOf(weights, call.args, batch);
  const double least =
      call.args.median_width == 1 ? LeastCost(matrix) : CostOf(PathByWhispersRule(matrix), matrix);
  CHECK(fabs(CostOf(call.Path(batch), matrix) - least) <
        1e-6 * static_cast<double>(call.max_steps()));
}

// ---- Paths ------------------------------------------------------------------------------------

TEST_CASE("no path is cheaper", "[alignment]") {
  uint64_t seed = 100;
  for (const int64_t tokens : {1, 2, 3, 5, 6}) {
    for (const int64_t frames : {1, 2, 4, 6}) {
      for (int repeat = 0; repeat < 8; ++repeat) {
        const Tensor weights = RandomWeights({1, tokens, 1, frames}, ++seed);
        AlignCall call(weights);
        call.args.standardize = false;
        call.args.median_width = 1;
        call.Run();
        INFO(weights.ToString() << ", seed " << seed);
        CheckIsPath(call);
        const Matrix matrix = MatrixOf(weights, call.args, 0);
        CHECK(fabs(CostOf(call.Path(), matrix) - LeastCostOfAllPaths(matrix)) < 1e-5);
      }
    }
  }
}

// Small whole numbers have equal costs everywhere, and exact sums.
TEST_CASE("ties are broken as in Whisper", "[alignment]") {
  Rng rng(200);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const size_t tokens = 1 + static_cast<size_t>(rng.Below(9));
    const size_t frames = 1 + static_cast<size_t>(rng.Below(12));
    Rows rows(tokens, std::vector<float>(frames));
    for (auto& row : rows) {
      for (float& weight : row) weight = static_cast<float>(rng.Below(3) - 1);
    }
    INFO(tokens << " tokens, " << frames << " frames, repeat " << repeat);
    const AlignCall call = AlignRows(rows);
    CheckIsPath(call);
    CHECK(call.Path() == PathByWhispersRule(rows));
  }
}

TEST_CASE("where nothing speaks for a step, the token goes on", "[alignment]") {
  const AlignCall all_equal = AlignRows({{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}});
  CHECK(all_equal.Path() == std::vector<Cell>{{0, 0}, {1, 0}, {2, 0}, {2, 1}, {2, 2}, {2, 3}});
  CHECK(all_equal.FirstFrames() == std::vector<int32_t>{0, 0, 0});
  // Both other steps into the last cell cost 0; the one taken costs 5.
  const AlignCall dearer = AlignRows({{0, 0}, {-5, 0}});
  CHECK(dearer.Path() == std::vector<Cell>{{0, 0}, {1, 0}, {1, 1}});
}

// ---- Filters ----------------------------------------------------------------------------------

// Weights whose means, deviations and sums are exact in any order: whole numbers, or, to be
// standardised, as many high as low ones of 8 tokens in each frame of each of 4 heads.
Tensor ExactWeights(bool standardize, int64_t frames, uint64_t seed) {
  const Dims dims = {2, 8, 4, frames};
  Tensor weights(DType::kF32, dims);
  Rng rng(seed);
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t h = 0; h < dims.heads; ++h) {
      for (int64_t f = 0; f < dims.dim; ++f) {
        const float mean = static_cast<float>(rng.Below(5)) / 4.0f;
        const float deviation = ldexpf(1.0f, static_cast<int>(rng.Below(5)) - 2);
        int64_t num_high = dims.length / 2;
        for (int64_t i = 0; i < dims.length; ++i) {
          const bool is_high = rng.Below(dims.length - i) < num_high;
          num_high -= is_high ? 1 : 0;
          const float x = standardize ? mean + (is_high ? deviation : -deviation)
                                      : static_cast<float>(rng.Below(9) - 4);
          weights.Set(b, i, h, f, x);
        }
      }
    }
  }
  return weights;
}

TEST_CASE("standardising and the median do what they should", "[alignment]") {
  const bool standardize = GENERATE(false, true);
  const int64_t median_width = GENERATE(1, 3, 7, 9, 31);
  uint64_t seed = 300;
  for (const int64_t frames : {1, 2, 3, 4, 5, 15, 16, 17, 40, 600}) {
    const Tensor weights = ExactWeights(standardize, frames, ++seed);
    for (const auto& [skip_first, skip_last] : {std::pair{0, 0}, {3, 1}, {7, 0}}) {
      AlignCall call(weights, skip_first, skip_last);
      call.args.standardize = standardize;
      call.args.median_width = median_width;
      call.Run();
      INFO(weights.ToString() << ", standardize " << standardize << ", median_width "
                              << median_width << ", skip " << skip_first << " and " << skip_last);
      for (int64_t b = 0; b < weights.dims().batch; ++b) {
        CheckIsPath(call, b);
        CHECK(call.Path(b) == PathByWhispersRule(MatrixOf(weights, call.args, b)));
      }
    }
  }
}

// Not exact, so compared by cost; few cells, of whose costs no two are likely to be equal in f32.
TEST_CASE("no path of standardised weights is cheaper", "[alignment]") {
  uint64_t seed = 350;
  for (const int64_t tokens : {2, 5, 13}) {
    for (const int64_t frames : {1, 4, 17, 33}) {
      const Tensor weights = RandomWeights({2, tokens, 3, frames}, ++seed);
      for (const int64_t median_width : {1, 7}) {
        AlignCall call(weights, 1);
        call.args.median_width = median_width;
        call.Run();
        INFO(weights.ToString() << ", seed " << seed << ", median_width " << median_width);
        for (int64_t b = 0; b < 2; ++b) CheckIsCheapest(call, weights, b);
      }
    }
  }
}

// Deviations far below the mean and means far from the first token's weight keep their digits.
TEST_CASE("standardising loses no digits", "[alignment]") {
  const Dims dims = {1, 20, 1, 50};
  Tensor weights = RandomWeights(dims, 400);
  for (int64_t i = 0; i < dims.length; ++i) {
    for (int64_t f = 0; f < dims.dim; ++f) {
      const float x = weights.Get(0, i, 0, f);
      // Up to 2^-149, far from 0, and one token that outweighs all others.
      weights.Set(0, i, 0, f, f % 3 == 0 ? x * 1e-37f : f % 3 == 1 ? 1.0f + x * 1e-5f : x);
    }
  }
  for (int64_t f = 2; f < dims.dim; f += 3) weights.Set(0, 0, 0, f, 1e6f);
  AlignCall call(weights);
  call.args.median_width = 1;
  call.Run();
  CheckIsPath(call);
  CheckIsCheapest(call, weights, 0);
}

// ---- What it is for ---------------------------------------------------------------------------

// Softmax of scores that are high where a token is spoken; three heads follow it, each with noise
// of its own and an eye on the first frames whatever the token, one looks anywhere.
TEST_CASE("a staircase in noise is found", "[alignment]") {
  const std::vector<int32_t> begins = {0, 11, 20, 28, 45, 52, 60, 77, 84, 103};
  const Dims dims = {1, static_cast<int64_t>(begins.size()), 4, 120};
  Rng rng(500);
  Tensor weights(DType::kF16, dims);
  for (int64_t i = 0; i < dims.length; ++i) {
    const int32_t begin = begins[static_cast<size_t>(i)];
    const int64_t end = i + 1 < dims.length ? begins[static_cast<size_t>(i) + 1] : dims.dim;
    for (int64_t h = 0; h < dims.heads; ++h) {
      std::vector<double> row(static_cast<size_t>(dims.dim));
      double sum = 0.0;
      for (int64_t f = 0; f < dims.dim; ++f) {
        const bool is_spoken = f >= begin && f < end;
        double score = h == 2 ? 2.0 * rng.Normal() : (is_spoken ? 4.0 : 0.0) + 0.5 * rng.Normal();
        if (f < 3) score += 5.0;
        row[static_cast<size_t>(f)] = exp(score);
        sum += exp(score);
      }
      for (int64_t f = 0; f < dims.dim; ++f) {
        weights.Set(0, i, h, f, static_cast<float>(row[static_cast<size_t>(f)] / sum));
      }
    }
  }
  AlignCall call(weights);
  call.Run();
  CheckIsPath(call);
  // A frame early or late: the path also takes the cell beside it if that is above the mean.
  const std::vector<int32_t> found = call.FirstFrames();
  for (size_t i = 0; i < begins.size(); ++i) {
    INFO("token " << i << " begins at " << begins[i] << ", found " << found[i]);
    CHECK(abs(found[i] - begins[i]) <= 1);
  }
}

// The example of docs/alignment.md.
TEST_CASE("the page's example", "[alignment]") {
  const float weights[3][6] = {{.7f, .1f, .1f, .1f, 0.f, 0.f},
                               {.1f, .4f, .4f, .1f, 0.f, 0.f},
                               {0.f, 0.f, .1f, .3f, .3f, .3f}};
  int32_t first_frame[3];
  alignas(64) unsigned char scratch[1024];

  AlignmentArgs args;
  args.weights = ConstTensorView::Dense(weights, DType::kF32, 1, 3, 1, 6);
  args.median_width = 1;
  args.first_frame = first_frame;
  const Workspace workspace = {scratch, sizeof(scratch)};
  REQUIRE_THAT(Align(args, workspace), IsOk());
  CHECK(std::vector<int32_t>(first_frame, first_frame + 3) == std::vector<int32_t>{0, 1, 3});
  CHECK(AlignmentWorkspaceBytes(args) <= sizeof(scratch));
}

// ---- Special values and shapes ----------------------------------------------------------------

TEST_CASE("what is not finite counts as 0", "[alignment]") {
  const bool standardize = GENERATE(false, true);
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16);
  const Dims dims = {1, 8, 2, 40};
  Tensor zeros = RandomWeights(dims, 600, dtype);
  Tensor spoilt = RandomWeights(dims, 600, dtype);
  Rng rng(601);
  for (int i = 0; i < 100; ++i) {
    const int64_t token = rng.Below(dims.length);
    const int64_t head = rng.Below(dims.heads);
    const int64_t frame = rng.Below(dims.dim);
    constexpr float kSpecial[] = {kNan, kInfinity, -kInfinity};
    zeros.Set(0, token, head, frame, 0.0f);
    spoilt.Set(0, token, head, frame, kSpecial[i % 3]);
  }
  for (int64_t h = 0; h < dims.heads; ++h) {  // of one frame nothing is known
    for (int64_t i = 0; i < dims.length; ++i) {
      zeros.Set(0, i, h, 17, 0.0f);
      spoilt.Set(0, i, h, 17, kNan);
    }
  }
  AlignCall expected(zeros);
  AlignCall actual(spoilt);
  expected.args.standardize = actual.args.standardize = standardize;
  expected.Run();
  actual.Run();
  CheckIsPath(actual);
  CHECK(actual.Path() == expected.Path());
}

// Sums beyond f32 make infinite and undefined costs; the path is one nevertheless.
TEST_CASE("huge weights still have a path", "[alignment]") {
  const bool standardize = GENERATE(false, true);
  const Dims dims = {1, 7, 3, 20};
  Tensor weights = RandomWeights(dims, 650);
  for (int64_t i = 0; i < dims.length; ++i) {
    for (int64_t h = 0; h < dims.heads; ++h) {
      for (int64_t f = 0; f < dims.dim; ++f) {
        weights.Set(0, i, h, f, weights.Get(0, i, h, f) < 0.0f ? -3e38f : 3e38f);
      }
    }
  }
  AlignCall call(weights);
  call.args.standardize = standardize;
  call.args.median_width = 3;
  call.Run();
  CheckIsPath(call);
}

TEST_CASE("a frame that all tokens look at alike moves none", "[alignment]") {
  const Dims dims = {1, 6, 2, 21};
  const Tensor weights = RandomWeights(dims, 700);
  AlignCall without(weights);
  without.args.median_width = 1;
  without.Run();
  for (const int64_t inserted : {1, 7, 20, 21}) {
    Tensor longer(DType::kF32, {1, 6, 2, 22});
    for (int64_t i = 0; i < dims.length; ++i) {
      for (int64_t h = 0; h < dims.heads; ++h) {
        for (int64_t f = 0; f < 22; ++f) {
          longer.Set(0, i, h, f,
                     f == inserted ? 0.1f : weights.Get(0, i, h, f < inserted ? f : f - 1));
        }
      }
    }
    AlignCall with(longer);
    with.args.median_width = 1;
    with.Run();
    std::vector<int32_t> expected = without.FirstFrames();
    for (int32_t& frame : expected) frame += frame >= inserted ? 1 : 0;
    INFO("inserted at " << inserted);
    CHECK(with.FirstFrames() == expected);
  }
}

TEST_CASE("one token, one frame, more tokens than frames", "[alignment]") {
  const Tensor weights_of_one = RandomWeights({1, 1, 2, 30}, 800);
  AlignCall one_token(weights_of_one);
  one_token.Run();
  CheckIsPath(one_token);
  CHECK(one_token.args.path_lens[0] == 30);

  const Tensor weights_of_one_frame = RandomWeights({1, 30, 2, 1}, 801);
  AlignCall one_frame(weights_of_one_frame);
  one_frame.Run();
  CheckIsPath(one_frame);
  CHECK(one_frame.FirstFrames() == std::vector<int32_t>(30, 0));

  const Tensor weights_of_few = RandomWeights({1, 40, 2, 11}, 802);
  AlignCall few_frames(weights_of_few);
  few_frames.Run();
  CheckIsPath(few_frames);
  CheckIsCheapest(few_frames, weights_of_few, 0);
}

TEST_CASE("nothing to align is no error", "[alignment]") {
  for (const auto& [batch, tokens, skip_first, skip_last] :
       {std::tuple{0, 5, 0, 0}, {3, 0, 0, 0}, {3, 5, 2, 3}, {3, 5, 5, 0}}) {
    const Tensor weights = RandomWeights({batch, tokens, 2, 9}, 850);
    AlignCall call(weights, skip_first, skip_last);
    INFO(weights.ToString() << ", skip " << skip_first << " and " << skip_last);
    CHECK(AlignmentWorkspaceBytes(call.args) == 0);
    call.Prepare();
    call.args.first_frame = nullptr;
    CHECK_THAT(Align(call.args, {}), IsOk());
    for (int64_t b = 0; b < batch; ++b) CHECK(call.args.path_lens[b] == 0);
  }
}

// ---- Memory -----------------------------------------------------------------------------------

TEST_CASE("any stride and type gives the same path", "[alignment]") {
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16, DType::kI8);
  const Placement placement = GENERATE(Placement::kAtEnd, Placement::kAtFront);
  const Dims dims = {2, 9, 3, 37};
  for (const Layout layout :
       {Layout::kDense, Layout::kHeadsFirst, Layout::kFused, Layout::kDimStrided, Layout::kDimFirst,
        Layout::kReversed, Layout::kPadded, Layout::kSharedHeads}) {
    const Tensor weights = RandomWeights(dims, 900, dtype, layout, placement);
    Tensor plain(DType::kF32, dims);
    for (int64_t b = 0; b < dims.batch; ++b) {
      for (int64_t i = 0; i < dims.length; ++i) {
        for (int64_t h = 0; h < dims.heads; ++h) {
          for (int64_t f = 0; f < dims.dim; ++f) {
            plain.Set(b, i, h, f, weights.Get(b, i, h, f));
          }
        }
      }
    }
    AlignCall expected(plain, 2, 1);
    AlignCall actual(weights, 2, 1);
    expected.Run();
    actual.Run(placement);
    INFO(weights.ToString());
    for (int64_t b = 0; b < dims.batch; ++b) CHECK(actual.Path(b) == expected.Path(b));
  }
}

TEST_CASE("the workspace is what it says, to the byte", "[alignment]") {
  const int64_t median_width = GENERATE(1, 17, 31);
  const Placement placement = GENERATE(Placement::kAtEnd, Placement::kAtFront);
  for (const int64_t frames : {1, 4, 15, 16, 17, 32, 48, 1500}) {
    const Tensor weights = RandomWeights({1, 7, 2, frames}, 950);
    AlignCall call(weights, 1, 1);
    call.args.median_width = median_width;
    INFO(frames << " frames, median_width " << median_width);
    CHECK(AlignmentWorkspaceBytes(call.args) ==
          static_cast<size_t>(4 * 5 * frames + 20 * frames + 4 * (median_width - 1)));
    call.Run(placement);
    CheckIsPath(call);
  }
}

// The shape is enough to ask, and no shape is too large to: where 32 bits cannot count the bytes,
// it is more than there are.
TEST_CASE("the workspace is known before there are weights", "[alignment]") {
  constexpr int64_t kMost = 0x7fffff00;
  AlignmentArgs args;
  args.weights.batch = args.weights.heads = 1;
  args.weights.length = args.weights.dim = kMost;
  const uint64_t n = static_cast<uint64_t>(kMost);
  CHECK(AlignmentWorkspaceBytes(args) == std::min<uint64_t>(n * (4 * n + 20) + 24, SIZE_MAX));
  args.weights.dim = kMost + 1;
  CHECK(AlignmentWorkspaceBytes(args) == 0);
  CHECK(AlignmentWorkspaceBytes(AlignmentArgs()) == 0);
}

TEST_CASE("the path is optional", "[alignment]") {
  const Tensor weights = RandomWeights({2, 9, 2, 30}, 1000);
  AlignCall with(weights);
  AlignCall without(weights);
  with.Run();
  without.Prepare();
  without.args.path = nullptr;
  without.args.path_lens = nullptr;
  REQUIRE_THAT(Align(without.args, without.workspace), IsOk());
  for (int64_t b = 0; b < 2; ++b) CHECK(without.FirstFrames(b) == with.FirstFrames(b));
}

TEST_CASE("Align allocates nothing", "[alignment]") {
  if (!CanCountAllocations()) SKIP("allocations cannot be counted: sanitizer, or not glibc");
  const Tensor weights = RandomWeights({2, 9, 3, 37}, 1100);
  AlignCall call(weights);
  call.Prepare();
  AllocationCounter counter;
  const Status status = Align(call.args, call.workspace);
  CHECK(counter.Stop() == 0);
  CHECK_THAT(status, IsOk());
}

// ---- Mistakes ---------------------------------------------------------------------------------

struct Mistake {
  const char* what;
  const char* message;  // part of it
  std::function<void(AlignCall&)> spoil;
};

template <typename T>
T* Shifted(T* p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}

TEST_CASE("Align refuses", "[alignment]") {
  constexpr int64_t kHuge = INT64_MAX - 3;
  static const float scale = 1.0f;
  const std::vector<Mistake> mistakes = {
      {"no weights", "weights.heads is 0, must be 1 to 2147483392",
       [](auto& c) { c.args.weights = ConstTensorView(); }},
      {"no such dtype", "weights.dtype is 77, must be f32, f16, bf16 or i8",
       [](auto& c) { c.args.weights.dtype = static_cast<DType>(77); }},
      {"null data", "weights.data is null, must not be",
       [](auto& c) { c.args.weights.data = nullptr; }},
      {"data between elements", "weights.data is not aligned",
       [](auto& c) { c.args.weights.data = Shifted(c.args.weights.data, 2); }},
      {"negative batch", "weights.batch is -1, must be 0 to 2147483392",
       [](auto& c) { c.args.weights.batch = -1; }},
      {"negative tokens", "weights.length is -1, must be 0 to 2147483392",
       [](auto& c) { c.args.weights.length = -1; }},
      {"no heads", "weights.heads is 0, must be 1 to", [](auto& c) { c.args.weights.heads = 0; }},
      {"no frames", "weights.dim is 0, must be 1 to 2147483392",
       [](auto& c) { c.args.weights.dim = 0; }},
      {"too many frames", "weights.dim is 2147483393, must be 1 to 2147483392",
       [](auto& c) { c.args.weights.dim = 0x7fffff01; }},
      {"stride between elements", "weights's dim stride is 2 bytes, must be a multiple of",
       [](auto& c) { c.args.weights.dim_stride = 2; }},
      {"beyond the address space", "weights's sizes and strides overflow the address space",
       [](auto& c) { c.args.weights.length_stride = kHuge; }},
      {"scales of floats", "weights.scale.data is given, must be null: weights is f32",
       [](auto& c) { c.args.weights.scale = ScaleView::PerTensor(&scale); }},
      {"int8 without scales", "weights.scale.data is null, must not be",
       [](auto& c) { c.args.weights.dtype = DType::kI8; }},

      {"skip_first negative", "skip_first is -1, must be 0 to 9",
       [](auto& c) { c.args.skip_first = -1; }},
      {"skip_first beyond", "skip_first is 10, must be 0 to 9",
       [](auto& c) { c.args.skip_first = 10; }},
      {"skip_last negative", "skip_last is -9223372036854775808, must be 0 to 7",
       [](auto& c) { c.args.skip_last = INT64_MIN; }},
      {"skip_last beyond", "skip_last is 8, must be 0 to 7", [](auto& c) { c.args.skip_last = 8; }},
      {"median_width 0", "median_width is 0, must be odd and 1 to 31",
       [](auto& c) { c.args.median_width = 0; }},
      {"median_width even", "median_width is 8, must be odd and 1 to 31",
       [](auto& c) { c.args.median_width = 8; }},
      {"median_width negative", "median_width is -7, must be odd and 1 to 31",
       [](auto& c) { c.args.median_width = -7; }},
      {"median_width 33", "median_width is 33, must be odd and 1 to 31",
       [](auto& c) { c.args.median_width = 33; }},

      {"no first_frame", "first_frame is null, must not be",
       [](auto& c) { c.args.first_frame = nullptr; }},
      {"path_lens without path", "path is null, but path_lens is given",
       [](auto& c) { c.args.path = nullptr; }},
      {"path without path_lens", "path_lens is null, but path is given",
       [](auto& c) { c.args.path_lens = nullptr; }},

      {"no workspace", "workspace.data is null", [](auto& c) { c.workspace = {}; }},
      {"workspace misaligned", "workspace.data is not aligned to 64 bytes",
       [](auto& c) { c.workspace.data = Shifted(c.workspace.data, 32); }},
      {"workspace too small", "this alignment needs", [](auto& c) { --c.workspace.bytes; }},

      {"first_frame on weights", "first_frame overlaps weights",
       [](auto& c) {
         c.args.first_frame =
             const_cast<int32_t*>(static_cast<const int32_t*>(c.args.weights.data));
       }},
      {"path on first_frame", "path overlaps first_frame",
       [](auto& c) {
         c.args.first_frame = reinterpret_cast<int32_t*>(c.args.path + 2 * c.max_steps() - 1);
       }},
      {"path_lens on path", "path_lens overlaps path",
       [](auto& c) { c.args.path_lens = reinterpret_cast<int64_t*>(c.args.path); }},
      {"workspace on first_frame", "workspace overlaps first_frame",
       [](auto& c) { c.args.first_frame = static_cast<int32_t*>(Shifted(c.workspace.data, 256)); }},
      {"workspace on weights", "workspace overlaps weights",
       [](auto& c) { c.args.weights.data = c.workspace.data; }},
      {"workspace on scales", "workspace overlaps weights.scale",
       [](auto& c) {
         c.args.weights.dtype = DType::kI8;
         c.args.weights.scale = ScaleView::PerTensor(static_cast<const float*>(c.workspace.data));
       }},
  };
  const Tensor weights = RandomWeights({2, 9, 3, 37}, 1200);
  AlignCall call(weights, 2, 1);
  call.Prepare();
  const AlignmentArgs valid_args = call.args;
  const Workspace valid_workspace = call.workspace;
  for (const Mistake& mistake : mistakes) {
    call.args = valid_args;
    call.workspace = valid_workspace;
    mistake.spoil(call);
    const Status status = Align(call.args, call.workspace);
    INFO(mistake.what << ": " << status.message());
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(std::string(status.message()).find(mistake.message) != std::string::npos);
    CHECK(call.IsUnwritten());
  }
  // What was spoilt was the only thing wrong.
  CHECK_THAT(Align(valid_args, valid_workspace), IsOk());
}

}  // namespace
}  // namespace testing
}  // namespace sightline
