#include "support/problem.h"

#include <math.h>

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

// ---- Expectations -----------------------------------------------------------------------------

OracleInput OracleInputOf(const Problem& p) {
  OracleInput in;
  in.q_dims = p.q.dims();
  in.k_dims = p.k.dims();
  in.v_dims = p.v.dims();
  in.q = p.q.ToDoubles();
  in.k = p.k.ToDoubles();
  in.v = p.v.ToDoubles();
  in.mask = p.c.mask;
  in.scale = EffectiveScale(p.c.scale, p.c.head_dim);
  return in;
}

// Q, K and V as the precision leaves them; what kernels do with them exactly is part of the
// oracle's input.
OracleInput RoundedInputOf(const Problem& p, const Expectations::Method& method) {
  OracleInput in = OracleInputOf(p);
  const auto round = [](std::vector<double>* x, DType dtype, float gain = 1.0f) {
    for (double& element : *x) {
      element = static_cast<double>(RoundThrough(dtype, static_cast<float>(element) * gain));
    }
  };
  switch (method.precision) {
    case Precision::kF16:
      round(&in.k, DType::kF16);
      round(&in.v, DType::kF16);
      break;
    case Precision::kBF16:
      round(&in.k, DType::kBF16);
      round(&in.v, DType::kBF16);
      if (method.bf16 != BF16Arithmetic::kNone) {
        // Q has been multiplied by what makes octaves of scores; powers of two besides do not
        // matter.
        round(&in.q, DType::kBF16, static_cast<float>(in.scale * kLog2E));
        in.scale = 1.0 / kLog2E;
      }
      break;
    case Precision::kMixed16:
      round(&in.v, DType::kBF16);
      for (int64_t b = 0; b < p.c.kv_batch; ++b) {
        for (int64_t g = 0; g < p.c.kv_heads; ++g) {
          const QuantHead head = QuantizeHeadOf(p, b, g, method.quant, method.center_keys);
          for (int64_t key = 0; key < p.c.kv_len; ++key) {
            for (int64_t d = 0; d < p.c.head_dim; ++d) {
              const size_t at = static_cast<size_t>(key * p.c.head_dim + d);
              in.k[in.k_dims.Index(b, key, g, d)] =
                  static_cast<double>(head.k[at]) *
                  static_cast<double>(head.k_scale[static_cast<size_t>(key)]);
            }
          }
        }
      }
      for (size_t row = 0; row < in.q.size(); row += static_cast<size_t>(p.c.head_dim)) {
        QuantizeQuery(method.quant, static_cast<size_t>(p.c.head_dim), in.q.data() + row);
      }
      break;
    default:
      break;
  }
  return in;
}

// Tolerance where V is in floats, u = 2^-24. Q, K and V are exact copies of the oracle's,
// arithmetic is f32 but for P where V is bf16:
//
//  - A score is a sum of head_dim products in any order, times the scale, minus a maximum:
//    |ds| <= (head_dim + 4) u * sum |scale q k|, plus 2 u |s| for the subtraction and the change of
//    base, which the same sum bounds. It enters p as a relative error: exp(ds) - 1. We take the
//    row's largest bound for all of its keys.
//
//  - 2^x itself: a polynomial good to 4 u, and one rescaling by such a factor per 128 keys at most.
//
//  - P V and the sum of p run over n = visible keys in any order: n u each, on sums of magnitudes.
//
//  - P rounded to bf16: 2^-8, and d sums the same roundings. Straight from sums instead: the score
//    rounded to 1/128 octave, and the mantissa by half a step of 1/128.
//
//  - Numerator and denominator each carry all of this: a factor 2, on sum_j p |v|. The division
//    adds 4 u.
//
//  - What underflows: the kernels may take 2^x as 0 below 2^-100, and P straight from sums below
//    2^-70, since its reference may be 56 octaves above the maximum.
Expected ExpectFloat(const Problem& p, const Expectations::Method& method) {
  const OracleOutput oracle = ComputeOracle(RoundedInputOf(p, method));

  Expected e;
  e.dims = oracle.dims;
  e.value = oracle.out;
  e.tolerance.resize(e.value.size());
  const double u = kF32Unit;
  const double head_dim = static_cast<double>(p.c.head_dim);
  double p_error = 0.0;
  const int lowest = method.bf16 == BF16Arithmetic::kDirect ? -70 : -100;
  if (method.bf16 == BF16Arithmetic::kRounded) p_error = kBF16Unit;
  if (method.bf16 == BF16Arithmetic::kDirect) p_error = exp2(1.0 / 256.0) - 1.0 + kBF16Unit;
  for (size_t i = 0; i < e.value.size(); ++i) {
    const size_t row = i / static_cast<size_t>(e.dims.dim);
    const size_t query =
        row / static_cast<size_t>(e.dims.heads) % static_cast<size_t>(e.dims.length);
    const double n = static_cast<double>(oracle.visible[query]);
    const double score_error = expm1((head_dim + 6.0) * u * oracle.score_bound[row]);
    const double exp_error = 4.0 * u * (1.0 + ceil(n / 128.0));
    const double error = 2.0 * (score_error + exp_error + p_error + n * u) + 4.0 * u;
    e.tolerance[i] = error * oracle.abs_out[i] + n * ldexp(oracle.max_abs_v, lowest);
  }
  return e;
}

// Rows that share K and V are numbered by query, beam and head of the group, and computed in tasks
// of kTaskRows (dispatch/run.cc).
Expected ExpectQuantized(const Problem& p, const QuantMethod& method, int64_t center_keys) {
  const Case& c = p.c;
  Expected e;
  e.dims = {c.batch(), c.q_len, c.heads, c.value_dim()};
  const float scale_log2e = static_cast<float>(EffectiveScale(c.scale, c.head_dim) * kLog2E);
  const int64_t group = c.heads / c.kv_heads;
  const int64_t sharing = c.beams * group;
  const int64_t task_rows = static_cast<int64_t>(internal::kTaskRows);
  const auto visible_keys = [&](int64_t query) {
    return static_cast<size_t>(VisibleKeys(c.mask, c.q_len, c.kv_len, query));
  };

  e.value.resize(static_cast<size_t>(e.dims.NumElements()));
  e.tolerance.resize(e.value.size());
  std::vector<float> query(static_cast<size_t>(c.head_dim));
  for (int64_t b = 0; b < c.kv_batch; ++b) {
    for (int64_t g = 0; g < c.kv_heads; ++g) {
      const QuantHead head = QuantizeHeadOf(p, b, g, method, center_keys);
      for (int64_t row = 0; row < c.q_len * sharing; ++row) {
        const int64_t i = row / sharing;
        const int64_t qb = b * c.beams + row % sharing / group;
        const int64_t h = g * group + row % group;
        for (int64_t d = 0; d < c.head_dim; ++d) {
          query[static_cast<size_t>(d)] = p.q.Get(qb, i, h, d);
        }
        const bool keeps_q = c.q_dtype == DType::kI8 && (c.q_scales & kPerChannel) == 0 &&
                             !method.wide_k && !method.rotate_k && method.max_q == 127;
        const float kept_q_scale = keeps_q ? p.q.Scale(qb, i, h, 0) : 0.0f;
        const int64_t task_end = std::min((row / task_rows + 1) * task_rows, c.q_len * sharing);
        const SeenKeys seen = {visible_keys(i), visible_keys((task_end - 1) / sharing)};
        const QuantResult result =
            AttendQuantized(head, method, query.data(), kept_q_scale, seen, scale_log2e);
        const auto first = static_cast<ptrdiff_t>(e.dims.Index(qb, i, h, 0));
        std::copy(result.value.begin(), result.value.end(), e.value.begin() + first);
        std::copy(result.tolerance.begin(), result.tolerance.end(), e.tolerance.begin() + first);
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

int64_t Case::MultiplyAdds() const {
  return batch() * heads * q_len * kv_len * (head_dim + value_dim());
}

std::string Case::ToString() const {
  const auto n = [](int64_t x) { return std::to_string(x); };
  const auto t = [](DType dtype, unsigned scales, Layout layout) {
    return std::string(" ") + sightline::Name(dtype) +
           (dtype == DType::kI8 ? GranularityName(scales) : "") + " " + Name(layout);
  };
  return "q_len " + n(q_len) + ", kv_len " + n(kv_len) + ", head_dim " + n(head_dim) +
         ", v_head_dim " + n(value_dim()) + ", heads " + n(heads) + "/" + n(kv_heads) +
         ", kv batch " + n(kv_batch) + ", beams " + n(beams) +
         (mask == Mask::kCausal ? ", causal" : ", no mask") + ", scale " + std::to_string(scale) +
         ", Q" + t(q_dtype, q_scales, q_layout) + ", K" + t(k_dtype, k_scales, k_layout) + ", V" +
         t(v_dtype, v_scales, v_layout) + ", out" + t(out_dtype, out_scales, out_layout) + ", " +
         Name(distribution) + ", Q x " + std::to_string(q_gain);
}

Problem::Problem(const Case& description, uint64_t seed)
    : c(description),
      q(c.q_dtype, {c.batch(), c.q_len, c.heads, c.head_dim}, c.q_layout, c.placement, c.q_scales),
      k(c.k_dtype, {c.kv_batch, c.kv_len, c.kv_heads, c.head_dim}, c.k_layout, c.placement,
        c.k_scales),
      v(c.v_dtype, {c.kv_batch, c.kv_len, c.kv_heads, c.value_dim()}, c.v_layout, c.placement,
        c.v_scales) {
  FillProblem(this, seed);
}

Tensor Problem::NewOut() const {
  return Tensor(c.out_dtype, {c.batch(), c.q_len, c.heads, c.value_dim()}, c.out_layout,
                c.placement, c.out_scales);
}

AttentionDesc DescOf(const Case& c, const Setup& setup) {
  AttentionDesc desc;
  desc.num_heads = c.heads;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.max_batch = c.batch();
  desc.max_q_len = std::max<int64_t>(c.q_len, 1);
  desc.max_kv_len = setup.source == Source::kTensors ? c.kv_len : 0;
  desc.mask = c.mask;
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
  return args;
}

CrossMemory MemoryOf(const Problem& problem, const Setup& setup) {
  CrossMemory memory;
  REQUIRE_THAT(
      CrossMemory::Create(problem.k.view(), problem.v.view(),
                          {setup.precision, setup.tier, setup.rotate_k}, &memory, setup.parallel),
      IsOk());
  return memory;
}

KvCache CacheOf(const Problem& problem, const Setup& setup) {
  KvCacheDesc desc;
  desc.batch = problem.c.kv_batch;
  desc.num_kv_heads = problem.c.kv_heads;
  desc.head_dim = problem.c.head_dim;
  desc.v_head_dim = problem.c.v_head_dim;
  desc.capacity = std::max<int64_t>(problem.c.kv_len, 1);
  desc.format = {setup.precision, setup.tier, setup.rotate_k};
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  REQUIRE_THAT(cache.Append(problem.k.view(), problem.v.view(), setup.parallel), IsOk());
  REQUIRE(cache.length() == problem.c.kv_len);
  return cache;
}

Tensor Attend(const Problem& problem, const Setup& setup) {
  Plan plan;
  REQUIRE_THAT(Plan::Create(DescOf(problem.c, setup), &plan), IsOk());
  if (setup.tier != nullptr) REQUIRE(std::string(plan.tier()) == setup.tier);

  GuardedBuffer scratch(plan.workspace_bytes(), problem.c.placement, Workspace::kAlignmentBytes);
  scratch.Fill(0xFF);  // NaN in every format: what is read before it is written shows
  Tensor out = problem.NewOut();
  AttentionArgs args = TensorArgs(problem, out);
  CrossMemory memory;
  KvCache cache;
  if (setup.source != Source::kTensors) args.k = args.v = ConstTensorView();
  if (setup.source == Source::kMemory) {
    memory = MemoryOf(problem, setup);
    args.memory = &memory;
  } else if (setup.source == Source::kCache) {
    cache = CacheOf(problem, setup);
    args.cache = &cache;
  }
  REQUIRE_THAT(Run(plan, args, {scratch.data(), scratch.size()}, setup.parallel), IsOk());
  REQUIRE(out.GapsAreWiped());
  RecordTierRun(plan.tier());
  return out;
}

QuantHead QuantizeHeadOf(const Problem& p, int64_t batch, int64_t head, const QuantMethod& method,
                         int64_t center_keys) {
  std::vector<float> k, v;
  for (int64_t key = 0; key < p.c.kv_len; ++key) {
    for (int64_t d = 0; d < p.c.head_dim; ++d) k.push_back(p.k.Get(batch, key, head, d));
    for (int64_t d = 0; d < p.c.value_dim(); ++d) v.push_back(p.v.Get(batch, key, head, d));
  }
  KeptScales kept;
  const bool keeps_k = method.keeps_kv && !method.wide_k && !method.rotate_k;
  if (keeps_k && p.c.k_dtype == DType::kI8 && (p.c.k_scales & kPerChannel) == 0) {
    kept.one_k = (p.c.k_scales & kPerToken) == 0;
    for (int64_t key = 0; key < p.c.kv_len; ++key) {
      kept.k.push_back(p.k.Scale(batch, key, head, 0));
    }
  }
  const bool keeps_v = method.keeps_kv && p.c.kv_len > 0;
  if (keeps_v && p.c.v_dtype == DType::kI8 && (p.c.v_scales & kPerToken) == 0) {
    for (int64_t d = 0; d < p.c.value_dim(); ++d) kept.v.push_back(p.v.Scale(batch, 0, head, d));
  }
  return QuantizeHead(k, v, static_cast<size_t>(p.c.kv_len), static_cast<size_t>(p.c.head_dim),
                      static_cast<size_t>(p.c.value_dim()), method,
                      static_cast<size_t>(center_keys), kept);
}

namespace {

const internal::PrecisionKernels& KernelsOf(const Setup& setup) {
  const internal::KernelTable* table = nullptr;
  REQUIRE_THAT(internal::FindKernels(setup.tier, &table), IsOk());
  return table->kernels[static_cast<size_t>(setup.precision)];
}

bool IsDecoded(const Case& c, const internal::PrecisionKernels& kernels) {
  const int64_t num_rows = c.q_len * c.beams * (c.heads / c.kv_heads);
  return num_rows <= static_cast<int64_t>(kernels.decode_rows);
}

BF16Arithmetic BF16ArithmeticOf(const Case& c, const Setup& setup) {
  const internal::PrecisionKernels& kernels = KernelsOf(setup);
  if (!kernels.rounds_to_bf16) return BF16Arithmetic::kNone;
  return IsDecoded(c, kernels) ? BF16Arithmetic::kRounded : BF16Arithmetic::kDirect;
}

}  // namespace

QuantMethod QuantMethodOf(const Case& c, const Setup& setup) {
  QuantMethod method;
  const internal::PrecisionKernels& kernels = KernelsOf(setup);
  method.wide_k = internal::HasWideK(kernels.layout);
  method.rotate_k = setup.rotate_k;
  if (kernels.scheme == nullptr) return method;
  method.max_q = kernels.scheme->max_q;
  method.max_p = kernels.scheme->max_p;
  if (IsDecoded(c, kernels) || kernels.scheme->exp2 == nullptr) return method;
  method.p_tile_keys = kernels.scheme->p_tile_keys;
  constexpr size_t kFractions = 64;
  method.exp2.assign(kernels.scheme->exp2, kernels.scheme->exp2 + kFractions);
  return method;
}

Expectations::Method Expectations::MethodOf(const Case& c, const Setup& setup) {
  Method method = {setup.precision, QuantMethodOf(c, setup), 0, BF16ArithmeticOf(c, setup)};
  if (!HasQuantizedK(setup.precision)) return method;
  method.quant.keeps_kv = setup.source != Source::kCache;
  method.center_keys = setup.source == Source::kCache ? CacheCenterKeys(c.kv_len) : c.kv_len;
  return method;
}

Expected Expectations::Compute(const Problem& problem, const Method& method) {
  return HasQuantizedV(method.precision)
             ? ExpectQuantized(problem, method.quant, method.center_keys)
             : ExpectFloat(problem, method);
}

const Expected& Expectations::operator()(const Setup& setup) {
  const Method method = MethodOf(problem_.c, setup);
  for (const auto& [known, expected] : known_) {
    if (known.precision == method.precision && known.center_keys == method.center_keys &&
        known.bf16 == method.bf16 && known.quant == method.quant) {
      return expected;
    }
  }
  known_.emplace_back(method, Compute(problem_, method));
  return known_.back().second;
}

Expected Expect(const Problem& problem, const Setup& setup) {
  return Expectations::Compute(problem, Expectations::MethodOf(problem.c, setup));
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
