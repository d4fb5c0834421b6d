#include "support/problem.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "dispatch/tiers.h"
#include "support/check.h"
#include "support/oracle.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// ---- Numbers ----------------------------------------------------------------------------------

void FillNormal(Tensor* t, Rng* rng, double gain = 1.0) {
  const Dims& n = t->dims();
  for (int64_t b = 0; b < n.batch; ++b) {
    for (int64_t l = 0; l < n.length; ++l) {
      for (int64_t h = 0; h < n.heads; ++h) {
        for (int64_t d = 0; d < n.dim; ++d) {
          t->Set(b, l, h, d, static_cast<float>(gain * rng->Normal()));
        }
      }
    }
  }
}

// x[b, l, h, d] = f(x[b, l, h, d], l, d)
template <typename F>
void Transform(Tensor* t, const F& f) {
  const Dims& n = t->dims();
  for (int64_t b = 0; b < n.batch; ++b) {
    for (int64_t l = 0; l < n.length; ++l) {
      for (int64_t h = 0; h < n.heads; ++h) {
        for (int64_t d = 0; d < n.dim; ++d) t->Set(b, l, h, d, f(t->Get(b, l, h, d), l, d));
      }
    }
  }
}

std::vector<float> NormalVector(int64_t n, Rng* rng) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(static_cast<float>(rng->Normal()));
  return x;
}

// Every query has a component 10 along u, and one key is so long along u that it gets as much
// weight as all others together, which are short.
void MakeHeavyTail(Problem* p, Rng* rng) {
  const int64_t dim = p->c.head_dim;
  std::vector<float> u = NormalVector(dim, rng);
  double norm = 0.0;
  for (const float x : u) norm += static_cast<double>(x) * x;
  for (float& x : u) x = static_cast<float>(x / sqrt(norm));

  const Dims& n = p->q.dims();
  for (int64_t b = 0; b < n.batch; ++b) {
    for (int64_t l = 0; l < n.length; ++l) {
      for (int64_t h = 0; h < n.heads; ++h) {
        float along = 0.0f;
        for (int64_t d = 0; d < dim; ++d) along += p->q.Get(b, l, h, d) * u[static_cast<size_t>(d)];
        for (int64_t d = 0; d < dim; ++d) {
          const float moved = p->q.Get(b, l, h, d) + u[static_cast<size_t>(d)] * (10.0f - along);
          p->q.Set(b, l, h, d, moved);
        }
      }
    }
  }
  const int64_t heavy = std::min<int64_t>(5, p->c.kv_len - 1);
  const double others = static_cast<double>(std::max<int64_t>(p->c.kv_len - 1, 1));
  const double length = log(others) * sqrt(static_cast<double>(dim)) / 10.0;
  Transform(&p->k, [&](float x, int64_t key, int64_t d) {
    return key == heavy ? static_cast<float>(length * u[static_cast<size_t>(d)]) : 0.05f * x;
  });
}

void FillProblem(Problem* p, uint64_t seed) {
  Rng rng(seed);
  FillNormal(&p->q, &rng, p->c.q_gain);
  FillNormal(&p->k, &rng);
  FillNormal(&p->v, &rng);
  const int64_t head_dim = p->c.head_dim;
  switch (p->c.distribution) {
    case Distribution::kGaussian:
      break;
    case Distribution::kKOutliers: {
      const int64_t step = std::max<int64_t>(head_dim / 4, 1);
      Transform(&p->k,
                [&](float x, int64_t, int64_t d) { return d % step == 3 % step ? 10.0f * x : x; });
      break;
    }
    case Distribution::kKBias: {
      const std::vector<float> mean = NormalVector(head_dim, &rng);
      Transform(&p->k, [&](float x, int64_t, int64_t d) {
        return x + mean[static_cast<size_t>(d)] * (d % 8 == 1 ? 8.0f : 1.0f);
      });
      break;
    }
    case Distribution::kHeavyTail:
    case Distribution::kHeavyTailVMean: {
      MakeHeavyTail(p, &rng);
      if (p->c.distribution == Distribution::kHeavyTail) break;
      const std::vector<float> mean = NormalVector(p->c.value_dim(), &rng);
      Transform(&p->v,
                [&](float x, int64_t, int64_t d) { return x + mean[static_cast<size_t>(d)]; });
      break;
    }
    case Distribution::kPeaky:
      Transform(&p->q, [](float x, int64_t, int64_t) { return 4.0f * x; });
      break;
    case Distribution::kAllEqual: {
      const std::vector<float> key = NormalVector(head_dim, &rng);
      const std::vector<float> value = NormalVector(p->c.value_dim(), &rng);
      Transform(&p->k, [&](float, int64_t, int64_t d) { return key[static_cast<size_t>(d)]; });
      Transform(&p->v, [&](float, int64_t, int64_t d) { return value[static_cast<size_t>(d)]; });
      break;
    }
    case Distribution::kOneHot: {
      // Query l points along channel l % head_dim, and so does key l, if it is the first of its
      // kind.
      const double gain = sqrt(40.0 * sqrt(static_cast<double>(head_dim)));
      Transform(&p->q, [&](float, int64_t l, int64_t d) {
        return l % head_dim == d ? static_cast<float>(gain) : 0.0f;
      });
      Transform(&p->k, [&](float, int64_t l, int64_t d) {
        return l == d ? static_cast<float>(gain) : 0.0f;
      });
      break;
    }
  }
}

// Masks. Rows that see nothing or everything and runs of hidden and of visible keys are what
// kernels skip or take whole: each is as likely as a mixture.
constexpr int64_t kRunOfKeys = 64;

Dims GridDims(const Case& c, const GridCase& grid) {
  return {c.batch(), c.q_len, c.heads, c.kv_len + grid.extra_keys};
}

// Blocks count from the first query and key of each sequence.
Dims BlockDims(const Case& c) {
  const Features& f = c.features;
  const auto blocks = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
  return {c.NumEntries(), blocks(c.LongestQLen(), f.q_block), c.heads,
          blocks(c.LongestKvLen(), f.kv_block) + f.blocks.extra_keys};
}

// Calls f(b, l, h, j, shown) for every element that is not a repetition of another.
template <typename F>
void FillGrid(const GridCase& grid, const Dims& n, Rng* rng, const F& f) {
  const auto count = [&](int64_t length, Granularity axis) {
    return (grid.varies & axis) != 0 ? length : std::min<int64_t>(length, 1);
  };
  for (int64_t b = 0; b < count(n.batch, kPerSequence); ++b) {
    for (int64_t l = 0; l < count(n.length, kPerToken); ++l) {
      for (int64_t h = 0; h < count(n.heads, kPerHead); ++h) {
        const bool row_is_mixed = rng->Uniform() < 0.9;
        const bool row_is_shown = rng->Uniform() < 0.5;
        double density = grid.density;
        for (int64_t j = 0; j < count(n.dim, kPerChannel); ++j) {
          if (j % kRunOfKeys == 0) {
            const double kind = rng->Uniform();
            density = kind < 0.2 ? 0.0 : kind < 0.4 ? 1.0 : grid.density;
          }
          const bool mixed = rng->Uniform() < density;
          f(b, l, h, j, grid.density == 1.0 || (row_is_mixed ? mixed : row_is_shown));
        }
      }
    }
  }
}

Tensor MaskOf(const GridCase& grid, const Dims& dims, Placement placement, uint64_t seed) {
  if (!grid.on) return Tensor();
  Tensor t = Tensor::Broadcast(DType::kI8, dims, grid.varies, grid.layout, placement);
  Rng rng(seed);
  FillGrid(grid, dims, &rng, [&](int64_t b, int64_t l, int64_t h, int64_t j, bool shown) {
    // Any byte but 0 is true: 1 mostly, or the sign bit alone.
    t.SetQuantum(b, l, h, j, !shown ? 0 : j % 7 == 3 ? INT8_MIN : 1);
  });
  return t;
}

Tensor BiasOf(const Case& c, uint64_t seed) {
  const GridCase& grid = c.features.bias;
  if (!grid.on) return Tensor();
  const Dims dims = GridDims(c, grid);
  Tensor t = Tensor::Broadcast(c.features.bias_dtype, dims, grid.varies, grid.layout, c.placement);
  Rng rng(seed);
  FillGrid(grid, dims, &rng, [&](int64_t b, int64_t l, int64_t h, int64_t j, bool shown) {
    const float x = static_cast<float>(rng.Normal());
    t.Set(b, l, h, j, shown ? x : -HUGE_VALF);
  });
  return t;
}

Tensor RelativeBiasOf(const Case& c, uint64_t seed) {
  const int64_t num_buckets = c.features.relative_buckets.num_buckets;
  if (num_buckets == 0) return Tensor();
  Tensor t(DType::kF32, {1, num_buckets, c.heads, 1}, Layout::kDense, c.placement);
  Rng rng(seed);
  FillNormal(&t, &rng);
  return t;
}

template <typename T>
GuardedBuffer Guarded(const std::vector<T>& x, Placement placement) {
  GuardedBuffer buffer(x.size() * sizeof(T), placement, alignof(T));
  if (!x.empty()) memcpy(buffer.data(), x.data(), buffer.size());
  return buffer;
}

// Null if there is none.
template <typename T>
const T* Array(const GuardedBuffer& buffer) {
  return buffer.size() == 0 ? nullptr : reinterpret_cast<const T*>(buffer.data());
}

// ---- Expectations -----------------------------------------------------------------------------

using Arithmetic = Expectations::Arithmetic;

}  // namespace

std::vector<Sequence> SequencesOf(const Case& c) {
  const Features& f = c.features;
  const std::vector<KvRun> runs = c.Runs();
  std::vector<Sequence> sequences;
  for (size_t r = 0; r < runs.size(); ++r) {
    Sequence s;
    s.q_begin = runs[r].q_begin;
    s.q_len = runs[r].q_len;
    s.kv_batch = runs[r].kv_batch;
    s.kv_begin = runs[r].kv_begin;
    s.kv_len = f.kv_lens.empty() ? runs[r].kv_len : f.kv_lens[r];
    s.prefix_len = f.prefix_lens.empty() ? 0 : f.prefix_lens[r];
    const int64_t beams = f.ragged() ? 1 : c.beams;
    for (int64_t beam = 0; beam < beams; ++beam) {
      s.blocks_batch = static_cast<int64_t>(r) * beams + beam;
      if (!f.ragged()) s.q_batch = s.blocks_batch;
      sequences.push_back(s);
    }
  }
  return sequences;
}

Masks MasksOf(const Problem& p) {
  const Features& f = p.c.features;
  Masks masks;
  masks.causal = p.c.causal;
  masks.window_left = f.window_left;
  masks.window_right = f.window_right;
  masks.q_start = f.q_start;
  masks.q_block = f.q_block;
  masks.kv_block = f.kv_block;
  const auto sees = [](const Tensor& t) {
    return [&t](int64_t b, int64_t l, int64_t h, int64_t j) { return t.Get(b, l, h, j) != 0.0f; };
  };
  if (f.mask.on) masks.mask = sees(p.mask);
  if (f.blocks.on) masks.blocks = sees(p.blocks);
  return masks;
}

namespace {

OracleInput OracleInputOf(const Problem& p) {
  const Features& f = p.c.features;
  OracleInput in;
  static_cast<Masks&>(in) = MasksOf(p);
  in.q_dims = p.q.dims();
  in.k_dims = p.k.dims();
  in.v_dims = p.v.dims();
  in.q = p.q.ToDoubles();
  in.k = p.k.ToDoubles();
  in.v = p.v.ToDoubles();
  in.scale = EffectiveScale(p.c.scale, p.c.head_dim);
  in.sequences = SequencesOf(p.c);
  in.softcap = static_cast<double>(f.softcap);
  if (f.bias.on) {
    in.bias = [&p](int64_t b, int64_t l, int64_t h, int64_t j) {
      return static_cast<double>(p.bias.Get(b, l, h, j));
    };
  }
  in.relative_buckets = f.relative_buckets;
  if (f.relative_buckets.num_buckets != 0) in.relative_bias = p.relative_bias.ToDoubles();
  in.alibi_slopes.assign(f.alibi_slopes.begin(), f.alibi_slopes.end());
  in.sinks.assign(f.sinks.begin(), f.sinks.end());
  return in;
}

float KeptQScale(const Problem& p, const QuantMethod& method, int64_t b, int64_t i, int64_t h) {
  const bool keeps_q = p.c.q_dtype == DType::kI8 && (p.c.q_scales & kPerChannel) == 0 &&
                       !method.wide_k && !method.rotate_k && method.max_q == 127;
  return keeps_q ? p.q.Scale(b, i, h, 0) : 0.0f;
}

// K's center takes the same from every score of a row, which matters to lse, sinks and whatever
// modifies scores: kernels add it again.
struct Center {
  double score = 0.0;  // what it takes
  double bound = 0.0;  // sum of magnitudes
};

Center CenterOf(const Problem& p, const QuantHead& head, const double* q) {
  const double scale = EffectiveScale(p.c.scale, p.c.head_dim);
  const CenterProduct product = MultiplyCenter(head, q);
  return {scale * product.sum, fabs(scale) * product.magnitude};
}

struct RoundedInput {
  OracleInput in;  // without the centers of K and V
  // [batch][q_len][heads], or empty: see Center.
  std::vector<double> center_score, center_bound;
  // [batch][q_len][heads][v_head_dim], or empty.
  std::vector<double> v_center;
};

// Replaces Q, K and, if it is quantised, V by what their quanta are worth.
void QuantizeInput(const Problem& p, const Expectations::Method& method, RoundedInput* rounded) {
  const Case& c = p.c;
  OracleInput& in = rounded->in;
  const size_t head_dim = static_cast<size_t>(c.head_dim);
  const size_t v_head_dim = static_cast<size_t>(c.value_dim());
  const size_t num_rows = in.q.size() / head_dim;
  rounded->center_score.assign(num_rows, 0.0);
  rounded->center_bound.assign(num_rows, 0.0);
  const bool quantizes_v = HasQuantizedV(method.precision);
  if (quantizes_v) rounded->v_center.assign(num_rows * v_head_dim, 0.0);

  const std::vector<KvRun> runs = c.Runs();
  const size_t beams = in.sequences.size() / std::max<size_t>(runs.size(), 1);
  const int64_t group = c.heads / c.kv_heads;
  for (size_t r = 0; r < runs.size(); ++r) {
    const KvRun& run = runs[r];
    const QuantMethod& quant = method.runs[r].quant;
    for (int64_t g = 0; g < c.kv_heads; ++g) {
      const QuantHead head = QuantizeHeadOf(p, static_cast<int64_t>(r), g, quant,
                                            method.runs[r].num_keys, method.runs[r].center_keys);
      for (size_t key = 0; key < head.kv_len; ++key) {
        const int64_t l = run.kv_begin + static_cast<int64_t>(key);
        double* k = in.k.data() + in.k_dims.Index(run.kv_batch, l, g, 0);
        for (size_t d = 0; d < head_dim; ++d) {
          k[d] = static_cast<double>(head.k[key * head_dim + d]) *
                 static_cast<double>(head.k_scale[key]);
        }
        if (!quantizes_v) continue;
        double* v = in.v.data() + in.v_dims.Index(run.kv_batch, l, g, 0);
        for (size_t d = 0; d < v_head_dim; ++d) {
          v[d] = static_cast<double>(head.v[key * v_head_dim + d]) *
                 static_cast<double>(head.v_scale[key / kScaleTileKeys * v_head_dim + d]);
        }
      }
      for (size_t s = r * beams; s < (r + 1) * beams; ++s) {
        const int64_t b = in.sequences[s].q_batch;
        for (int64_t i = run.q_begin; i < run.q_begin + run.q_len; ++i) {
          for (int64_t h = g * group; h < (g + 1) * group; ++h) {
            const size_t first = in.q_dims.Index(b, i, h, 0);
            const size_t row = first / head_dim;
            const Center center = CenterOf(p, head, in.q.data() + first);
            rounded->center_score[row] = center.score;
            rounded->center_bound[row] = center.bound;
            QuantizeQuery(head, quant, KeptQScale(p, quant, b, i, h), in.q.data() + first);
            if (!quantizes_v) continue;
            for (size_t d = 0; d < v_head_dim; ++d) {
              rounded->v_center[row * v_head_dim + d] = static_cast<double>(head.v_center[d]);
            }
          }
        }
      }
    }
  }
}

// Q, K and V as the precision leaves them; what kernels do with them exactly is part of the
// oracle's input.
RoundedInput RoundedInputOf(const Problem& p, const Expectations::Method& method) {
  RoundedInput rounded;
  OracleInput& in = rounded.in;
  in = OracleInputOf(p);
  const auto round = [](std::vector<double>* x, DType dtype, float gain = 1.0f) {
    for (double& element : *x) {
      element = static_cast<double>(RoundThrough(dtype, static_cast<float>(element) * gain));
    }
  };
  switch (method.precision) {
    case Precision::kF32:
      break;
    case Precision::kF16:
      round(&in.k, DType::kF16);
      round(&in.v, DType::kF16);
      break;
    case Precision::kBF16:
      round(&in.k, DType::kBF16);
      round(&in.v, DType::kBF16);
      // Of all runs or of none.
      if (!method.runs.empty() && method.runs[0].bf16 != BF16Arithmetic::kNone) {
        // Q has been multiplied by what makes octaves of scores; powers of two besides do not
        // matter.
        round(&in.q, DType::kBF16, static_cast<float>(in.scale * kLog2E));
        in.scale = 1.0 / kLog2E;
      }
      break;
    case Precision::kMixed16:
      round(&in.v, DType::kBF16);
      QuantizeInput(p, method, &rounded);
      break;
    case Precision::kI8:
    case Precision::kI8Fine:
      QuantizeInput(p, method, &rounded);
      break;
  }
  return rounded;
}

// Of each row of [batch][q_len][heads] the number of its run.
std::vector<size_t> RunsOfRows(const Case& c) {
  const Dims dims = {c.batch(), c.q_len, c.heads, 1};
  std::vector<size_t> result(static_cast<size_t>(dims.NumElements()), 0);
  const std::vector<Sequence> sequences = SequencesOf(c);
  const size_t beams = c.features.ragged() ? 1 : static_cast<size_t>(c.beams);
  for (size_t n = 0; n < sequences.size(); ++n) {
    const Sequence& s = sequences[n];
    for (int64_t i = s.q_begin; i < s.q_begin + s.q_len; ++i) {
      for (int64_t h = 0; h < c.heads; ++h) result[dims.Index(s.q_batch, i, h, 0)] = n / beams;
    }
  }
  return result;
}

}  // namespace

// Steps by which a modified score in fixed point may be off: half of one for each rounding (of the
// sum, twice times a factor, and of a bias), 0.7 for two factors that are off by 2^-16 and 352
// octaves at most, and one and a half for softcap, more for one above 90 octaves, whose polynomial
// is off by 10^-4 of the score. In f32 it is half of one for all together.
double StepsOff(const Features& f) {
  const bool by_distance = f.relative_buckets.num_buckets != 0 || !f.alibi_slopes.empty();
  const double cap_octaves = std::min(double{f.softcap} * 1.4426950408889634, 352.0);
  const double capped = f.softcap == 0.0f ? 0.0 : std::max(1.5, 0.5 + 0.0115 * cap_octaves);
  return 1.5 + 0.7 + (by_distance ? 0.5 : 0.0) + capped;
}

// The largest relative error of 2^x in fixed point.
double TableError(const QuantMethod& quant) {
  double error = 0.0;
  for (size_t i = 0; i < quant.exp2.size(); ++i) {
    const double exact =
        quant.exp2[0] * exp2(-static_cast<double>(i) / static_cast<double>(quant.exp2.size()));
    error = std::max(error, fabs(quant.exp2[i] / exact - 1.0));
  }
  return error;
}

namespace {

// See the tolerance of the oracle below.
double ScoreTolerance(const Problem& p, const OracleInput& in, const OracleOutput& oracle,
                      size_t row) {
  const double magnitude = p.c.features.modifies_scores() ? oracle.magnitude_bound[row] : 0.0;
  return oracle.score_error[row] + 8.0 * kF32Unit * in.softcap + 6.0 * kF32Unit * magnitude;
}

double ScoreUnit(const Problem& p) { return (static_cast<double>(p.c.head_dim) + 6.0) * kF32Unit; }

ExpectedScores ComputeScores(const Problem& p, const Expectations::Method& method) {
  RoundedInput rounded = RoundedInputOf(p, method);
  OracleInput& in = rounded.in;
  in.score_offset = std::move(rounded.center_score);  // lse has it as well
  in.score_offset_bound = std::move(rounded.center_bound);
  in.score_unit = ScoreUnit(p);
  in.keeps_scores = true;
  OracleOutput oracle = ComputeOracle(in);
  ExpectedScores scores;
  scores.dims = {p.c.batch(), p.c.q_len, p.c.heads, p.c.kv_len};
  for (size_t row = 0; row < oracle.lse.size(); ++row) {
    scores.tolerance.push_back(ScoreTolerance(p, in, oracle, row));
  }
  scores.value = std::move(oracle.scores);
  return scores;
}

// Tolerance of the oracle, u = 2^-24. Q, K and V are exact copies of the oracle's, arithmetic is
// f32 but for P where V is bf16 or integers:
//
//  - A score is a sum of head_dim products in any order, times the scale, minus a maximum:
//    |ds| <= (head_dim + 4) u * sum |scale q k|, plus 2 u |s| for the subtraction and the change of
//    base, which the same sum bounds. Products of bf16 on ARM round to odd, which is off by up to
//    2 u, first the sum of a pair and then half as many sums: (head_dim + 2) u. It enters p as a
//    relative error: exp(ds) - 1. We take the row's largest bound for all of its keys. What K's
//    center takes is one more such sum.
//
//  - Modifications of scores: softcap leaves less of that error where it is flat, and tanh is good
//    to 8 u: 8 u * softcap. Each bias is rounded once as it is made (a product, or a change of
//    base), once as it is added, and the maximum is subtracted from what comes out: 6 u on the
//    magnitudes together.
//
//  - 2^x itself: a polynomial good to 4 u, and one rescaling by such a factor per 128 keys at most.
//
//  - P V and the sum of p run over n = visible keys in any order: n u each, on sums of magnitudes.
//
//  - P rounded to bf16: 2^-8, and d sums the same roundings. Straight from sums instead: the score
//    rounded to 1/128 octave, and the mantissa by half a step of 1/128.
//
//  - P rounded to 1/max_p of its tile's largest: half of that, of every key's |v - center|; many
//    rows at once: also scores in steps of 1/64 octave and the error of the table of 2^x, and p in
//    steps of 1/exp2[0], cut off; the denominator sums these.
//
//  - A sink is a score of magnitude |sink|, as good as a bias.
//
//  - Numerator and denominator each carry all of this: a factor 2, on sum_j p |v|. The division
//    adds 4 u. V's center, added last, has the error of the denominator where a sink shares it.
//
//  - What underflows: the kernels may take 2^x as 0 below 2^-100, and P straight from sums below
//    2^-70, since its reference may be 56 octaves above the maximum.
//
//  - lse: the score's error and, once, the relative one of the denominator.
Expected ExpectByOracle(const Problem& p, const Expectations::Method& method) {
  RoundedInput rounded = RoundedInputOf(p, method);
  OracleInput& in = rounded.in;
  const bool quantizes_v = HasQuantizedV(method.precision);
  const size_t beams = p.c.features.ragged() ? 1 : static_cast<size_t>(p.c.beams);
  for (size_t n = 0; quantizes_v && n < in.sequences.size(); ++n) {
    in.sequences[n].tile_keys = static_cast<int64_t>(method.runs[n / beams].quant.p_tile_keys);
  }
  // Weights do not notice what is added to all scores, unless something else meets these.
  const bool restores_scores =
      !rounded.center_score.empty() && (in.softcap != 0.0 || !in.sinks.empty());
  if (restores_scores) {
    in.score_offset = rounded.center_score;
    in.score_offset_bound = rounded.center_bound;
  }
  const double u = kF32Unit;
  in.score_unit = ScoreUnit(p);
  OracleOutput oracle = ComputeOracle(in);
  const std::vector<size_t> run_of_row = RunsOfRows(p.c);

  Expected e;
  e.dims = oracle.dims;
  e.value = std::move(oracle.out);
  e.tolerance.resize(e.value.size());
  e.lse = std::move(oracle.lse);
  e.lse_tolerance.resize(e.lse.size());
  const size_t dim = static_cast<size_t>(e.dims.dim);
  for (size_t row = 0; row < e.lse.size(); ++row) {
    const Arithmetic& arithmetic = method.runs[run_of_row[row]];
    double p_error = 0.0;
    double lowest = ldexp(1.0, -100);
    double tile_error = 0.0;  // of the numerator
    double tile_sum_error = 0.0;
    if (arithmetic.bf16 == BF16Arithmetic::kRounded) p_error = kBF16Unit;
    if (arithmetic.bf16 == BF16Arithmetic::kDirect) {
      p_error = exp2(1.0 / 256.0) - 1.0 + kBF16Unit;
      lowest = ldexp(1.0, -70);
    }
    if (quantizes_v) {
      const QuantMethod& quant = arithmetic.quant;
      tile_error = (0.5 + 1e-4) / quant.max_p;
      if (!quant.exp2.empty()) {
        p_error = exp2(StepsOff(p.c.features) / 64.0) - 1.0 + TableError(quant);
        tile_sum_error = 2.0 / quant.exp2[0];
        tile_error += tile_sum_error;
      }
    }
    const double n = static_cast<double>(oracle.visible[row]);
    const size_t head = row % static_cast<size_t>(e.dims.heads);
    const double sink = in.sinks.empty() ? 0.0 : fabs(in.sinks[head]);
    const double magnitude = p.c.features.modifies_scores() ? oracle.magnitude_bound[row] : 0.0;
    const double ds = ScoreTolerance(p, in, oracle, row) + 6.0 * u * (isfinite(sink) ? sink : 0.0);
    const double exp_error = 4.0 * u * (1.0 + ceil(n / 128.0));
    const double one_error = expm1(ds) + exp_error + p_error + n * u;
    const double sum_error = one_error + tile_sum_error * oracle.tile_share[row];
    const double error = one_error + sum_error + 4.0 * u;
    e.lse_tolerance[row] = ds + sum_error + n * lowest;
    if (!rounded.center_score.empty() && !restores_scores) {
      e.lse[row] += rounded.center_score[row];
      e.lse_tolerance[row] += in.score_unit * rounded.center_bound[row];
    }
    if (isfinite(e.lse[row])) {
      const double largest = p.c.features.modifies_scores() ? magnitude : oracle.score_bound[row];
      e.lse_tolerance[row] += 4.0 * u * (fabs(e.lse[row]) + largest);
    }
    for (size_t i = row * dim; i < (row + 1) * dim; ++i) {
      e.tolerance[i] = error * oracle.abs_out[i] + tile_error * oracle.tile_abs_out[i] +
                       n * oracle.max_abs_v * lowest;
      if (!quantizes_v) continue;
      const double center = rounded.v_center[i] * oracle.key_share[row];
      e.value[i] += center;
      e.tolerance[i] += 2.0 * u * (fabs(e.value[i]) + fabs(center));
      if (in.sinks.empty()) continue;
      e.tolerance[i] += 2.0 * sum_error * fabs(center) + lowest * fabs(rounded.v_center[i]);
    }
  }
  return e;
}

// Keys below this are those that query i and the prefix show by position.
int64_t PositionLimit(const Masks& masks, const Sequence& s, int64_t i) {
  Masks position = masks;
  position.window_left = -1;
  position.mask = nullptr;
  position.blocks = nullptr;
  int64_t limit = s.kv_len;
  while (limit > 0 && !Sees(position, s, i, 0, limit - 1)) --limit;
  return limit;
}

// Rows that share K and V are numbered by query, beam and head of the group, and computed in tasks
// of kTaskRows (dispatch/run.cc).
Expected ExpectQuantized(const Problem& p, const Expectations::Method& method) {
  const Case& c = p.c;
  Expected e;
  e.dims = {c.batch(), c.q_len, c.heads, c.value_dim()};
  const double scale_log2e = EffectiveScale(c.scale, c.head_dim) * kLog2E;
  const int64_t group = c.heads / c.kv_heads;
  const int64_t task_rows = static_cast<int64_t>(internal::kTaskRows);
  const Masks masks = MasksOf(p);
  const std::vector<Sequence> sequences = SequencesOf(c);
  const std::vector<KvRun> runs = c.Runs();
  const int64_t beams = c.features.ragged() ? 1 : c.beams;
  const int64_t sharing = beams * group;

  e.value.resize(static_cast<size_t>(e.dims.NumElements()));
  e.tolerance.resize(e.value.size());
  e.lse.assign(static_cast<size_t>(c.batch() * c.q_len * c.heads), -HUGE_VAL);
  e.lse_tolerance.resize(e.lse.size());
  e.softmax_scores.assign(e.lse.size() * static_cast<size_t>(c.kv_len), -HUGE_VAL);
  std::vector<double> exact_query(static_cast<size_t>(c.head_dim));
  for (size_t r = 0; r < runs.size(); ++r) {
    const QuantMethod& quant = method.runs[r].quant;
    const int64_t num_rows = runs[r].q_len * sharing;
    std::vector<int64_t> limits;
    for (int64_t i = 0; i < runs[r].q_len; ++i) {
      limits.push_back(PositionLimit(masks, sequences[r * static_cast<size_t>(beams)], i));
    }
    for (int64_t g = 0; g < c.kv_heads; ++g) {
      const QuantHead head = QuantizeHeadOf(p, static_cast<int64_t>(r), g, quant,
                                            method.runs[r].num_keys, method.runs[r].center_keys);
      for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t i = row / sharing;
        const Sequence& s =
            sequences[r * static_cast<size_t>(beams) + static_cast<size_t>(row % sharing / group)];
        const int64_t h = g * group + row % group;
        const int64_t l = s.q_begin + i;
        for (int64_t d = 0; d < c.head_dim; ++d) {
          exact_query[static_cast<size_t>(d)] = static_cast<double>(p.q.Get(s.q_batch, l, h, d));
        }
        const std::vector<float> query(exact_query.begin(), exact_query.end());
        const int64_t task_begin = row / task_rows * task_rows;
        const int64_t task_end = std::min(task_begin + task_rows, num_rows);
        SeenKeys seen;
        const auto limit = [&](int64_t at) {
          return limits.begin() + static_cast<ptrdiff_t>(at / sharing);
        };
        seen.task_visible =
            static_cast<size_t>(*std::max_element(limit(task_begin), limit(task_end - 1) + 1));
        seen.visible.resize(static_cast<size_t>(limits[static_cast<size_t>(i)]));
        for (size_t j = 0; j < seen.visible.size(); ++j) {
          seen.visible[j] = Sees(masks, s, i, h, static_cast<int64_t>(j));
        }
        const Center center = CenterOf(p, head, exact_query.data());
        const double sink =
            c.features.sinks.empty()
                ? -HUGE_VAL
                : static_cast<double>(c.features.sinks[static_cast<size_t>(h)]) - center.score;
        const QuantResult result =
            AttendQuantized(head, quant, query.data(), KeptQScale(p, quant, s.q_batch, l, h), seen,
                            static_cast<float>(scale_log2e), sink * kLog2E);
        const size_t first = e.dims.Index(s.q_batch, l, h, 0);
        const double center_error =
            (static_cast<double>(c.head_dim) + 6.0) * kF32Unit * center.bound;
        std::copy(result.value.begin(), result.value.end(),
                  e.value.begin() + static_cast<ptrdiff_t>(first));
        for (size_t d = 0; d < result.value.size(); ++d) {
          e.tolerance[first + d] = result.tolerance[d];
          if (c.features.sinks.empty()) continue;
          // Weights move against the sink's. |numerator| + |center| bounds what they carry.
          const double v_center = fabs(static_cast<double>(head.v_center[d]));
          e.tolerance[first + d] += expm1(center_error) * (fabs(result.value[d]) + 2.0 * v_center);
        }
        const size_t lse_at = first / static_cast<size_t>(c.value_dim());
        e.lse[lse_at] = result.lse + center.score;
        for (size_t j = 0; j < result.scores.size(); ++j) {
          e.softmax_scores[lse_at * static_cast<size_t>(c.kv_len) + j] =
              result.scores[j] / kLog2E + center.score;
        }
        e.lse_tolerance[lse_at] = result.lse_tolerance + center_error;
        e.paths.Add(result.paths);
      }
    }
  }
  return e;
}

}  // namespace

const char* Name(Distribution distribution) {
  switch (distribution) {
    case Distribution::kGaussian:
      return "gaussian";
    case Distribution::kKOutliers:
      return "K outliers";
    case Distribution::kKBias:
      return "K bias";
    case Distribution::kHeavyTail:
      return "heavy tail";
    case Distribution::kHeavyTailVMean:
      return "heavy tail, V mean";
    case Distribution::kPeaky:
      return "peaky";
    case Distribution::kAllEqual:
      return "all equal";
    case Distribution::kOneHot:
      return "one-hot";
  }
  return "?";
}

std::vector<KvRun> Case::Runs() const {
  std::vector<KvRun> runs;
  if (!features.ragged()) {
    for (int64_t b = 0; b < kv_batch; ++b) runs.push_back({b, 0, kv_len, 0, q_len});
    return runs;
  }
  const std::vector<int32_t>& q_begin = features.q_indptr;
  const std::vector<int32_t>& kv_begin = features.kv_indptr;
  for (size_t s = 0; s + 1 < q_begin.size(); ++s) {
    KvRun run = {static_cast<int64_t>(s), 0, kv_len, q_begin[s], q_begin[s + 1] - q_begin[s]};
    if (!kv_begin.empty()) {
      run.kv_batch = 0;
      run.kv_begin = kv_begin[s];
      run.kv_len = kv_begin[s + 1] - kv_begin[s];
    }
    runs.push_back(run);
  }
  return runs;
}

namespace {

int64_t Longest(const std::vector<KvRun>& runs, int64_t KvRun::* length) {
  int64_t longest = 0;
  for (const KvRun& run : runs) longest = std::max(longest, run.*length);
  return longest;
}

}  // namespace

int64_t Case::LongestQLen() const {
  return features.ragged() ? Longest(Runs(), &KvRun::q_len) : q_len;
}

int64_t Case::LongestKvLen() const {
  return features.ragged() ? Longest(Runs(), &KvRun::kv_len) : kv_len;
}

int64_t Case::MultiplyAdds() const {
  int64_t pairs = 0;
  for (const KvRun& run : Runs()) pairs += run.q_len * run.kv_len;
  return pairs * (features.ragged() ? 1 : beams) * heads * (head_dim + value_dim());
}

int64_t Case::NumEntries() const {
  return features.ragged() ? static_cast<int64_t>(features.q_indptr.size()) - 1 : batch();
}

std::string Features::ToString() const {
  std::string text;
  const auto number = [&](const char* name, auto x, decltype(x) off) {
    if (x != off) text += std::string(", ") + name + " " + std::to_string(x);
  };
  const auto list = [&](const char* name, const auto& x) {
    if (x.empty()) return;
    text += std::string(", ") + name + " {";
    for (size_t i = 0; i < x.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(x[i]);
    text += "}";
  };
  const auto grid = [&](const char* name, const GridCase& x) {
    if (!x.on) return;
    text += std::string(", ") + name + GranularityName(x.varies) + " " + Name(x.layout) + " " +
            std::to_string(x.density) + " + " + std::to_string(x.extra_keys);
  };
  number("window_left", window_left, -1);
  number("window_right", window_right, -1);
  number("q_start", q_start, AttentionArgs::kBottomRight);
  list("kv_lens", kv_lens);
  list("prefix_lens", prefix_lens);
  grid("mask", mask);
  grid("block_mask", blocks);
  if (blocks.on) text += " of " + std::to_string(q_block) + "x" + std::to_string(kv_block);
  list("q_indptr", q_indptr);
  list("kv_indptr", kv_indptr);
  number("softcap", softcap, 0.0f);
  grid(sightline::Name(bias_dtype), bias);
  number("buckets", relative_buckets.num_buckets, 0);
  number("max_distance", relative_buckets.max_distance, RelativeBuckets().max_distance);
  if (!relative_buckets.bidirectional) text += " one way";
  list("alibi_slopes", alibi_slopes);
  list("sinks", sinks);
  if (lse) text += std::string(", lse ") + Name(lse_layout);
  return text;
}

std::string Case::ToString() const {
  const auto n = [](int64_t x) { return std::to_string(x); };
  const auto t = [](DType dtype, unsigned scales, Layout layout) {
    return std::string(" ") + sightline::Name(dtype) +
           (dtype == DType::kI8 ? GranularityName(scales) : "") + " " + Name(layout);
  };
  return "q_len " + n(q_len) + ", kv_len " + n(kv_len) + ", head_dim " + n(head_dim) +
         ", v_head_dim " + n(value_dim()) + ", heads " + n(heads) + "/" + n(kv_heads) +
         ", kv batch " + n(kv_batch) + ", beams " + n(beams) + (causal ? ", causal" : ", no mask") +
         ", scale " + std::to_string(scale) + ", Q" + t(q_dtype, q_scales, q_layout) + ", K" +
         t(k_dtype, k_scales, k_layout) + ", V" + t(v_dtype, v_scales, v_layout) + ", out" +
         t(out_dtype, out_scales, out_layout) + ", " + Name(distribution) + ", Q x " +
         std::to_string(q_gain) + features.ToString();
}

Problem::Problem(const Case& description, uint64_t seed)
    : c(description),
      q(c.q_dtype, {c.batch(), c.q_len, c.heads, c.head_dim}, c.q_layout, c.placement, c.q_scales),
      k(c.k_dtype, {c.kv_batch, c.kv_len, c.kv_heads, c.head_dim}, c.k_layout, c.placement,
        c.k_scales),
      v(c.v_dtype, {c.kv_batch, c.kv_len, c.kv_heads, c.value_dim()}, c.v_layout, c.placement,
        c.v_scales),
      // Seeds of their own, so that nothing else changes when a feature is left out.
      mask(MaskOf(c.features.mask, GridDims(c, c.features.mask), c.placement, seed + 1)),
      blocks(MaskOf(c.features.blocks, BlockDims(c), c.placement, seed + 2)),
      bias(BiasOf(c, seed + 3)),
      relative_bias(RelativeBiasOf(c, seed + 4)),
      kv_lens(Guarded(c.features.kv_lens, c.placement)),
      prefix_lens(Guarded(c.features.prefix_lens, c.placement)),
      q_indptr(Guarded(c.features.q_indptr, c.placement)),
      kv_indptr(Guarded(c.features.kv_indptr, c.placement)),
      alibi_slopes(Guarded(c.features.alibi_slopes, c.placement)),
      sinks(Guarded(c.features.sinks, c.placement)) {
  FillProblem(this, seed);
}

Tensor Problem::NewOut() const {
  return Tensor(c.out_dtype, {c.batch(), c.q_len, c.heads, c.value_dim()}, c.out_layout,
                c.placement, c.out_scales);
}

Tensor Problem::NewLse() const {
  return Tensor(DType::kF32, {c.batch(), c.q_len, c.heads, 1}, c.features.lse_layout, c.placement);
}

AttentionDesc DescOf(const Case& c, const Setup& setup) {
  AttentionDesc desc;
  desc.num_heads = c.heads;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.max_batch = c.NumEntries();
  desc.max_q_len = std::max<int64_t>(c.LongestQLen(), 1);
  if (setup.source == Source::kTensors) desc.max_kv_len = c.LongestKvLen();
  desc.causal = c.causal;
  desc.window_left = c.features.window_left;
  desc.window_right = c.features.window_right;
  desc.softcap = c.features.softcap;
  desc.relative_buckets = c.features.relative_buckets;
  desc.scale = c.scale;
  desc.precision = setup.precision;
  desc.rotate_k = setup.rotate_k;
  desc.max_workers = static_cast<int64_t>(setup.parallel.num_workers);
  desc.tier = setup.tier;
  desc.owns_workspace = false;
  return desc;
}

AttentionArgs TensorArgs(const Problem& problem, const Tensor& out) {
  AttentionArgs args;
  args.q = problem.q.view();
  args.k = problem.k.view();
  args.v = problem.v.view();
  args.out = out.view();
  const Features& f = problem.c.features;
  args.q_start = f.q_start;
  args.kv_lens = Array<int32_t>(problem.kv_lens);
  args.prefix_lens = Array<int32_t>(problem.prefix_lens);
  if (f.mask.on) args.mask = problem.mask.mask_view();
  if (f.blocks.on) args.block_mask = {problem.blocks.mask_view(), f.q_block, f.kv_block};
  args.num_sequences = f.ragged() ? problem.c.NumEntries() : 0;
  args.q_indptr = Array<int32_t>(problem.q_indptr);
  args.kv_indptr = Array<int32_t>(problem.kv_indptr);
  if (f.bias.on) args.bias = problem.bias.view();
  if (f.relative_buckets.num_buckets != 0) {
    args.relative_bias = static_cast<const float*>(problem.relative_bias.view().data);
  }
  args.alibi_slopes = Array<float>(problem.alibi_slopes);
  args.sinks = Array<float>(problem.sinks);
  return args;
}

BlockMask OfSequence(BlockMask mask, size_t sequence, int64_t q_len) {
  MaskView& blocks = mask.blocks;
  blocks.data = static_cast<const unsigned char*>(blocks.data) +
                static_cast<int64_t>(sequence) * blocks.batch_stride;
  blocks.batch = 1;
  blocks.length = (q_len + mask.q_block - 1) / mask.q_block;
  return mask;
}

namespace {

Status CreateMemory(const Problem& problem, const Setup& setup, CrossMemory* memory) {
  return CrossMemory::Create(problem.k.view(), problem.v.view(),
                             {setup.precision, setup.tier, setup.rotate_k}, memory, setup.parallel);
}

Status CreateCache(const Problem& problem, const Setup& setup, KvCache* cache) {
  KvCacheDesc desc;
  desc.batch = problem.c.kv_batch;
  desc.num_kv_heads = problem.c.kv_heads;
  desc.head_dim = problem.c.head_dim;
  desc.v_head_dim = problem.c.v_head_dim;
  desc.capacity = std::max<int64_t>(problem.c.kv_len, 1);
  desc.format = {setup.precision, setup.tier, setup.rotate_k};
  const Status status = KvCache::Create(desc, cache);
  if (!status.ok()) return status;
  return cache->Append(problem.k.view(), problem.v.view(), setup.parallel);
}

}  // namespace

CrossMemory MemoryOf(const Problem& problem, const Setup& setup) {
  CrossMemory memory;
  REQUIRE_THAT(CreateMemory(problem, setup, &memory), IsOk());
  return memory;
}

KvCache CacheOf(const Problem& problem, const Setup& setup) {
  KvCache cache;
  REQUIRE_THAT(CreateCache(problem, setup, &cache), IsOk());
  REQUIRE(cache.length() == problem.c.kv_len);
  return cache;
}

std::string TryAttend(const Problem& problem, const Setup& setup, Tensor* out, Tensor* lse) {
  const auto text = [](const char* what, const Status& status) {
    return std::string(what) + ": " + Name(status.code()) + " \"" + status.message() + "\"";
  };
  Plan plan;
  Status status = Plan::Create(DescOf(problem.c, setup), &plan);
  if (!status.ok()) return text("Plan::Create", status);
  if (setup.tier != nullptr && std::string(plan.tier()) != setup.tier) {
    return std::string("the plan is for ") + plan.tier();
  }

  GuardedBuffer scratch(plan.workspace_bytes(), problem.c.placement, Workspace::kAlignmentBytes);
  scratch.Fill(0xFF);  // NaN in every format: what is read before it is written shows
  *out = problem.NewOut();
  AttentionArgs args = TensorArgs(problem, *out);
  if (problem.c.features.lse) {
    *lse = problem.NewLse();
    args.lse = lse->view();
  }
  CrossMemory memory;
  KvCache cache;
  if (setup.source != Source::kTensors) args.k = args.v = ConstTensorView();
  if (setup.source == Source::kMemory) {
    status = CreateMemory(problem, setup, &memory);
    args.memory = &memory;
  } else if (setup.source == Source::kCache) {
    status = CreateCache(problem, setup, &cache);
    args.cache = &cache;
  }
  if (!status.ok()) return text("K and V", status);
  if (setup.amend) setup.amend(args);
  status = Run(plan, args, {scratch.data(), scratch.size()}, setup.parallel);
  if (!status.ok()) return text("Run", status);
  if (!out->GapsAreWiped()) return "out: written between its elements";
  if (problem.c.features.lse && !lse->GapsAreWiped()) return "lse: written between its elements";
  RecordTierRun(plan.tier());
  return "";
}

Tensor Attend(const Problem& problem, const Setup& setup, Tensor* lse) {
  Tensor out, unused;
  REQUIRE(TryAttend(problem, setup, &out, lse == nullptr ? &unused : lse) == "");
  return out;
}

Tensor AttendCache(const Problem& problem, const Setup& setup, const KvCache& cache) {
  Setup from_cache = setup;
  from_cache.source = Source::kCache;
  AttentionDesc desc = DescOf(problem.c, from_cache);
  desc.owns_workspace = true;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  Tensor out = problem.NewOut();
  AttentionArgs args;
  args.q = problem.q.view();
  args.out = out.view();
  args.cache = &cache;
  REQUIRE_THAT(Run(plan, args), IsOk());
  RecordTierRun(plan.tier());
  return out;
}

QuantHead QuantizeHeadOf(const Problem& p, int64_t run_number, int64_t head,
                         const QuantMethod& method, int64_t num_keys, int64_t center_keys) {
  const KvRun run = p.c.Runs()[static_cast<size_t>(run_number)];
  const int64_t end = run.kv_begin + num_keys;
  std::vector<float> k, v;
  for (int64_t key = run.kv_begin; key < end; ++key) {
    for (int64_t d = 0; d < p.c.head_dim; ++d) k.push_back(p.k.Get(run.kv_batch, key, head, d));
    for (int64_t d = 0; d < p.c.value_dim(); ++d) v.push_back(p.v.Get(run.kv_batch, key, head, d));
  }
  KeptScales kept;
  const bool keeps_k = method.keeps_kv && !method.wide_k && !method.rotate_k;
  if (keeps_k && p.c.k_dtype == DType::kI8 && (p.c.k_scales & kPerChannel) == 0) {
    kept.one_k = (p.c.k_scales & kPerToken) == 0;
    for (int64_t key = run.kv_begin; key < end; ++key) {
      kept.k.push_back(p.k.Scale(run.kv_batch, key, head, 0));
    }
  }
  const bool keeps_v = method.keeps_kv && num_keys > 0;
  if (keeps_v && p.c.v_dtype == DType::kI8 && (p.c.v_scales & kPerToken) == 0) {
    for (int64_t d = 0; d < p.c.value_dim(); ++d) {
      kept.v.push_back(p.v.Scale(run.kv_batch, run.kv_begin, head, d));
    }
  }
  return QuantizeHead(k, v, static_cast<size_t>(num_keys), static_cast<size_t>(p.c.head_dim),
                      static_cast<size_t>(p.c.value_dim()), method,
                      static_cast<size_t>(center_keys), kept);
}

namespace {

const internal::PrecisionKernels& KernelsOf(const Setup& setup) {
  const internal::KernelTable* table = nullptr;
  REQUIRE_THAT(internal::FindKernels(setup.tier, &table), IsOk());
  return table->kernels[static_cast<size_t>(setup.precision)];
}

// Rows of a run that share K and V.
int64_t NumRows(const Case& c, const KvRun& run) {
  return run.q_len * (c.features.ragged() ? 1 : c.beams) * (c.heads / c.kv_heads);
}

bool IsDecoded(int64_t num_rows, const internal::PrecisionKernels& kernels) {
  return num_rows <= static_cast<int64_t>(kernels.decode_rows);
}

}  // namespace

BF16Arithmetic BF16ArithmeticOf(int64_t num_rows, const Setup& setup) {
  const internal::PrecisionKernels& kernels = KernelsOf(setup);
  if (!kernels.rounds_to_bf16) return BF16Arithmetic::kNone;
  return IsDecoded(num_rows, kernels) ? BF16Arithmetic::kRounded : BF16Arithmetic::kDirect;
}

QuantMethod QuantMethodOf(int64_t num_rows, const Setup& setup) {
  QuantMethod method;
  const internal::PrecisionKernels& kernels = KernelsOf(setup);
  method.wide_k = internal::HasWideK(kernels.layout);
  method.rotate_k = setup.rotate_k;
  if (kernels.scheme == nullptr) return method;
  method.max_q = kernels.scheme->max_q;
  method.max_p = kernels.scheme->max_p;
  if (IsDecoded(num_rows, kernels) || kernels.scheme->exp2 == nullptr) return method;
  method.p_tile_keys = kernels.scheme->p_tile_keys;
  constexpr size_t kFractions = 64;
  method.exp2.assign(kernels.scheme->exp2, kernels.scheme->exp2 + kFractions);
  return method;
}

namespace {

bool SameArithmetic(const std::vector<Arithmetic>& a, const std::vector<Arithmetic>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Arithmetic& x, const Arithmetic& y) {
                      return x.num_keys == y.num_keys && x.center_keys == y.center_keys &&
                             x.bf16 == y.bf16 && x.quant == y.quant;
                    });
}

}  // namespace

QuantMethod QuantMethodOf(const Case& c, const Setup& setup) {
  return QuantMethodOf(NumRows(c, c.Runs().front()), setup);
}

Expectations::Method Expectations::MethodOf(const Case& c, const Setup& setup) {
  Method method = {setup.precision, {}};
  const std::vector<KvRun> runs = c.Runs();
  for (size_t r = 0; r < runs.size(); ++r) {
    const int64_t num_rows = NumRows(c, runs[r]);
    Arithmetic arithmetic;
    arithmetic.quant = QuantMethodOf(num_rows, setup);
    arithmetic.bf16 = BF16ArithmeticOf(num_rows, setup);
    if (HasQuantizedK(setup.precision)) {
      const bool is_cache = setup.source == Source::kCache;
      // Padding of tensors is left out; memories and caches have been packed before it was known.
      const bool skips_padding = setup.source == Source::kTensors && !c.features.kv_lens.empty();
      arithmetic.quant.keeps_kv = !is_cache;
      arithmetic.num_keys = skips_padding ? c.features.kv_lens[r] : runs[r].kv_len;
      arithmetic.center_keys =
          is_cache ? CacheCenterKeys(arithmetic.num_keys) : arithmetic.num_keys;
    }
    method.runs.push_back(arithmetic);
  }
  return method;
}

Expected Expectations::Compute(const Problem& problem, const Method& method) {
  const bool simulate = HasQuantizedV(method.precision) && !problem.c.features.modifies_scores();
  return simulate ? ExpectQuantized(problem, method) : ExpectByOracle(problem, method);
}

const Expected& Expectations::operator()(const Setup& setup) {
  Method method = MethodOf(problem_.c, setup);
  for (const auto& [known, expected] : known_) {
    if (known.precision == method.precision && SameArithmetic(known.runs, method.runs)) {
      return expected;
    }
  }
  Expected expected = Compute(problem_, method);
  known_.emplace_back(std::move(method), std::move(expected));
  return known_.back().second;
}

const ExpectedScores& Expectations::Scores(const Setup& setup) {
  Method method = MethodOf(problem_.c, setup);
  for (const auto& [known, scores] : known_scores_) {
    if (known.precision == method.precision && SameArithmetic(known.runs, method.runs)) {
      return scores;
    }
  }
  ExpectedScores scores = ComputeScores(problem_, method);
  known_scores_.emplace_back(std::move(method), std::move(scores));
  return known_scores_.back().second;
}

Expected Expect(const Problem& problem, const Setup& setup) {
  return Expectations::Compute(problem, Expectations::MethodOf(problem.c, setup));
}

Expected Expected::Lse() const {
  Expected e;
  e.dims = {dims.batch, dims.length, dims.heads, 1};
  e.value = lse;
  e.tolerance = lse_tolerance;
  return e;
}

std::vector<double> ExactOutput(const Problem& problem) {
  return ComputeOracle(OracleInputOf(problem)).out;
}

bool HasQuantizedK(Precision precision) {
  return HasQuantizedV(precision) || precision == Precision::kMixed16;
}

bool HasQuantizedV(Precision precision) {
  return precision == Precision::kI8 || precision == Precision::kI8Fine;
}

int64_t CacheCenterKeys(int64_t length) {
  return std::min<int64_t>(length, static_cast<int64_t>(kScaleTileKeys));
}

}  // namespace testing
}  // namespace sightline
