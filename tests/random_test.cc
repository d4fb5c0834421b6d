// Random cases against the oracle and the simulation: every mask beside every score modification,
// every precision, tier, source of K and V, element type and layout, heads that share K and V,
// beams and ragged batches; beside the output lse, mass, and weights of chosen heads and queries or
// averaged over heads. Directed tests know where a kernel changes its way; this one knows nothing,
// and meets what nobody thought of.
//
// A case is a function of its seed, and seeds are consecutive. What fails is shrunk: features are
// left out, lengths halved, layouts made dense as long as it still fails, and what is left is
// printed as text that a test can be made of. Where none fails, stderr tells which seeds ran.
//
//   SIGHTLINE_RANDOM_SEED=4711 SIGHTLINE_RANDOM_CASES=1 build/tests/sightline_tests "[random]"
//
// Cases are small, some 5 ms each with their oracle, so that many fit into a minute.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <string>
#include <vector>

#include "support/check.h"
#include "support/numeric.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"
#include "support/weights.h"

namespace sightline {
namespace testing {
namespace {

// Of one tier, beside its other tests; the program's CTest entries ask for more (CMakeLists.txt).
constexpr uint64_t kCasesOfTier = 500;
constexpr uint64_t kCasesEmulated = 100;
constexpr uint64_t kCasesOfAllTiers = 5000;
constexpr int kMaxFailures = 3;
// Runs of a shrinking case: more would take longer than reading a larger one.
constexpr int kMaxShrinkRuns = 400;
// So much of a case, with its oracle, takes some 10 ms.
constexpr int64_t kMaxMultiplyAdds = 3000000;
constexpr int64_t kMaxMultiplyAddsEmulated = 300000;

struct RandomCase {
  Case c;
  Setup setup;
  Ask ask;
  uint64_t seed = 0;

  bool asks() const { return ask.weights || ask.mass; }
};

Ask AskNothing() {
  Ask ask;
  ask.weights = ask.mass = false;
  return ask;
}

// ---- Generation -------------------------------------------------------------------------------

class Generator {
 public:
  explicit Generator(uint64_t seed) : rng_(seed) {
    result_.seed = seed;
    result_.ask = AskNothing();
  }

  RandomCase Make() {
    Case& c = result_.c;
    c.placement = Chance(0.5) ? Placement::kAtEnd : Placement::kAtFront;
    MakeSetup();
    MakeShape();
    MakeElements();
    if (Chance(0.15)) MakeRagged();
    MakeMasks();
    if (Chance(0.5)) MakeModifications();
    if (Chance(0.3)) {
      const float spread = Pick({1.0f, 4.0f, 60.0f});
      for (int64_t h = 0; h < c.heads; ++h) c.features.sinks.push_back(spread * Normal());
    }
    c.features.lse = Chance(0.5);
    if (c.features.lse && Chance(0.3)) c.features.lse_layout = AnyLayout(/*output=*/true);
    if (Chance(0.25)) MakeWeights();
    if (Chance(0.2)) MakeMass();
    if (result_.asks()) c.features.lse = true;
    return result_;
  }

 private:
  bool Chance(double p) { return rng_.Uniform() < p; }
  int64_t Between(int64_t first, int64_t last) { return first + rng_.Below(last - first + 1); }
  float Normal() { return static_cast<float>(rng_.Normal()); }
  template <typename T>
  T Pick(std::initializer_list<T> from) {
    return from.begin()[rng_.Below(static_cast<int64_t>(from.size()))];
  }

  void MakeSetup() {
    Setup& setup = result_.setup;
    const std::vector<const char*> tiers = SupportedTiers();
    setup.tier = tiers[static_cast<size_t>(rng_.Below(static_cast<int64_t>(tiers.size())))];
    setup.precision = kPrecisions[static_cast<size_t>(rng_.Below(kPrecisions.size()))];
    setup.source = Pick({Source::kTensors, Source::kTensors, Source::kMemory, Source::kCache});
    setup.rotate_k = setup.precision == Precision::kI8 && Chance(0.25);
    if (Chance(0.2)) {
      setup.parallel = BackwardsOnThisThread(static_cast<size_t>(Between(2, 5)));
    }
  }

  int64_t AnyLength() {
    const double kind = rng_.Uniform();
    if (kind < 0.25) return Between(1, 20);
    if (kind < 0.75) return Between(1, 150);
    return kind < 0.97 ? Between(1, 300) : Between(1025, 1300);
  }

  void MakeShape() {
    Case& c = result_.c;
    c.kv_len = Chance(0.01) ? 0 : AnyLength();
    const double kind = rng_.Uniform();
    c.q_len = kind < 0.25 ? 1 : kind < 0.45 ? Between(2, 12) : std::min<int64_t>(AnyLength(), 300);
    c.head_dim = Chance(0.5) ? Pick<int64_t>({8, 16, 32, 64}) : Between(1, 64);
    c.v_head_dim = Chance(0.5) ? 0 : Between(1, 64);
    if (Chance(0.05)) c.head_dim = Pick<int64_t>({80, 96, 128, 129, 256});
    c.kv_heads = Chance(0.6) ? 1 : Between(2, 3);
    c.heads = c.kv_heads * (Chance(0.6) ? 1 : Between(2, 4));
    c.kv_batch = Chance(0.7) ? 1 : Between(2, 3);
    c.beams = Chance(0.8) ? 1 : Between(2, 4);
    if (Chance(0.2)) c.scale = Pick({1.0f, 0.02f, -0.3f});
    const int64_t most = IsEmulated() ? kMaxMultiplyAddsEmulated : kMaxMultiplyAdds;
    while (c.MultiplyAdds() > most) {
      int64_t* largest = std::max({&c.q_len, &c.kv_len, &c.heads, &c.kv_batch, &c.beams},
                                  [](const int64_t* a, const int64_t* b) { return *a < *b; });
      // Long keys are worth more than many queries.
      if (largest == &c.kv_len && c.q_len > 16) largest = &c.q_len;
      *largest = largest == &c.heads ? c.kv_heads = 1 : (*largest + 1) / 2;
    }
  }

  Layout AnyLayout(bool output) {
    constexpr Layout kLayouts[] = {Layout::kDense,    Layout::kHeadsFirst, Layout::kFused,
                                   Layout::kPadded,   Layout::kDimStrided, Layout::kDimFirst,
                                   Layout::kReversed, Layout::kSharedHeads};
    constexpr int64_t kNumLayouts = sizeof(kLayouts) / sizeof(kLayouts[0]);
    return kLayouts[rng_.Below(output ? kNumLayouts - 1 : kNumLayouts)];
  }

  void MakeElements() {
    Case& c = result_.c;
    const auto make = [&](DType* dtype, unsigned* scales, Layout* layout, bool output) {
      if (Chance(0.5)) *dtype = Pick({DType::kF16, DType::kBF16, DType::kI8});
      *scales = static_cast<unsigned>(rng_.Below(kNumGranularities));
      if (Chance(0.3)) *layout = AnyLayout(output);
    };
    make(&c.q_dtype, &c.q_scales, &c.q_layout, false);
    make(&c.k_dtype, &c.k_scales, &c.k_layout, false);
    make(&c.v_dtype, &c.v_scales, &c.v_layout, false);
    make(&c.out_dtype, &c.out_scales, &c.out_layout, true);
    if (Chance(0.2)) {
      constexpr int64_t kNum = sizeof(kDistributions) / sizeof(kDistributions[0]);
      c.distribution = kDistributions[rng_.Below(kNum)];
    }
    // Where there are no keys there is none to be the heavy one.
    if (c.kv_len == 0) c.distribution = Distribution::kGaussian;
    if (Chance(0.15)) c.q_gain = Pick({0.1f, 4.0f, 20.0f});
  }

  // Splits the case's lengths at random, empty sequences included.
  std::vector<int32_t> Split(int64_t length, int64_t parts) {
    std::vector<int32_t> ends = {0};
    for (int64_t i = 1; i < parts; ++i) ends.push_back(static_cast<int32_t>(Between(0, length)));
    ends.push_back(static_cast<int32_t>(length));
    std::sort(ends.begin(), ends.end());
    return ends;
  }

  void MakeRagged() {
    Case& c = result_.c;
    const int64_t sequences = Between(1, 5);
    c.beams = 1;
    c.features.q_indptr = Split(c.q_len, sequences);
    const bool packed = result_.setup.source == Source::kTensors && Chance(0.7);
    c.kv_batch = packed ? 1 : sequences;
    if (packed) c.features.kv_indptr = Split(c.kv_len, sequences);
  }

  GridCase AnyGrid() {
    GridCase grid;
    grid.on = true;
    grid.density = Pick({0.05, 0.5, 0.9});
    if (Chance(0.4)) grid.varies = static_cast<unsigned>(rng_.Below(kNumGranularities));
    if (Chance(0.4)) grid.layout = AnyLayout(false);
    return grid;
  }

  std::vector<int32_t> AnyLengths() {
    std::vector<int32_t> lengths;
    for (const KvRun& run : result_.c.Runs()) {
      const double kind = rng_.Uniform();
      lengths.push_back(static_cast<int32_t>(kind < 0.15   ? 0
                                             : kind < 0.3  ? run.kv_len
                                             : kind < 0.45 ? std::min<int64_t>(run.kv_len, 64)
                                                           : Between(0, run.kv_len)));
    }
    return lengths;
  }

  int64_t AnyWindow() {
    return Chance(0.5) ? Pick<int64_t>({0, 1, 63, 64, 128, 300}) : Between(0, 200);
  }

  void MakeMasks() {
    Case& c = result_.c;
    Features& f = c.features;
    c.causal = Chance(0.3);
    if (Chance(0.25)) f.window_left = AnyWindow();
    if (Chance(0.15)) f.window_right = AnyWindow();
    if (Chance(0.25)) {
      f.q_start = Chance(0.3) ? 0 : Between(-c.q_len - 3, c.kv_len + 100);
    }
    if (Chance(0.25)) f.kv_lens = AnyLengths();
    if (Chance(0.15)) f.prefix_lens = AnyLengths();
    if (Chance(0.25)) {
      f.mask = AnyGrid();
      f.mask.extra_keys = Chance(0.3) ? Between(1, 20) : 0;
    }
    if (Chance(0.15)) {
      f.blocks = AnyGrid();
      f.q_block = Pick<int64_t>({1, 5, 16, 64, 128});
      f.kv_block = Pick<int64_t>({1, 7, 32, 64, 128, 192});
    }
  }

  void MakeModifications() {
    Case& c = result_.c;
    Features& f = c.features;
    if (Chance(0.4)) f.softcap = Pick({0.5f, 5.0f, 50.0f});
    if (Chance(0.5)) {
      f.bias = AnyGrid();
      f.bias.density = Pick({1.0, 0.7});  // the others are -inf
      f.bias.extra_keys = Chance(0.3) ? Between(1, 20) : 0;
      f.bias_dtype = Pick({DType::kF32, DType::kF16, DType::kBF16});
    }
    if (Chance(0.3)) {
      f.relative_buckets.bidirectional = Chance(0.5);
      f.relative_buckets.num_buckets = Pick<int64_t>({4, 8, 32, 64});
      if (!f.relative_buckets.bidirectional && Chance(0.2)) f.relative_buckets.num_buckets = 2;
      f.relative_buckets.max_distance = Pick<int64_t>({33, 128, 1000});
    }
    if (Chance(0.3)) {
      for (int64_t h = 0; h < c.heads; ++h) {
        f.alibi_slopes.push_back(ldexpf(1.0f, -static_cast<int>(Between(0, 8))));
      }
    }
  }

  void MakeWeights() {
    const Case& c = result_.c;
    Ask& ask = result_.ask;
    ask.weights = true;
    ask.lists_heads = Chance(0.5);
    for (int64_t i = Between(1, 5); ask.lists_heads && i > 0; --i) {
      ask.heads.push_back(static_cast<int32_t>(Between(0, c.heads - 1)));
    }
    ask.lists_queries = Chance(0.4);
    const double density = Chance(0.2) ? 1.0 : rng_.Uniform();  // 1: all of them
    for (int32_t i = 0; ask.lists_queries && i < c.q_len; ++i) {
      if (Chance(density)) ask.queries.push_back(i);
    }
    ask.average = Chance(0.3);
    if (!ask.average && Chance(0.4)) ask.dtype = Pick({DType::kF16, DType::kBF16});
    if (Chance(0.3)) ask.layout = AnyLayout(/*output=*/true);
    if (Chance(0.3)) ask.extra_keys = Between(1, 200);
  }

  void MakeMass() {
    Ask& ask = result_.ask;
    ask.mass = true;
    ask.mass_by_kv_head = Chance(0.5);
    ask.mass_by_kv_batch = Chance(0.5);
    if (Chance(0.3)) ask.mass_layout = AnyLayout(/*output=*/true);
    if (Chance(0.3)) ask.mass_extra_keys = Between(1, 200);
  }

  Rng rng_;
  RandomCase result_;
};

// ---- What fails -------------------------------------------------------------------------------

struct Failure {
  std::string what;  // empty = nothing failed
  std::string text;
};

Failure Check(const RandomCase& random) {
  const Problem problem(random.c, random.seed);
  Answer answer;
  const std::string error = TryAnswer(problem, random.setup, random.ask, &answer);
  if (!error.empty()) return {"error", error};
  ExpectedWeights expected(problem);
  const auto check = [](const char* what, const Tensor& actual, const Expected& wanted) {
    const IsClose is_close(wanted);
    return is_close.match(actual) ? Failure() : Failure{what, is_close.describe()};
  };
  const Expected& output = expected.Output(random.setup);
  Failure failure = check("out", answer.out, output);
  if (failure.what.empty() && random.c.features.lse) {
    failure = check("lse", answer.lse, output.Lse());
  }
  if (failure.what.empty() && random.ask.weights) {
    failure = check("weights", answer.weights, expected.Weights(random.setup, random.ask));
  }
  if (failure.what.empty() && random.ask.mass) {
    failure = check("mass", answer.mass, expected.Mass(random.setup, random.ask));
  }
  return failure;
}

// ---- Shrinking --------------------------------------------------------------------------------

// A sequence of a ragged batch.
struct Part {
  int32_t q_len;
  int32_t kv_len;                // unused where keys are batch entries
  std::vector<int32_t> queries;  // listed ones, counted in the sequence
};

std::vector<Part> PartsOf(const RandomCase& random) {
  const Features& f = random.c.features;
  std::vector<Part> parts;
  for (size_t s = 0; s + 1 < f.q_indptr.size(); ++s) {
    Part part = {f.q_indptr[s + 1] - f.q_indptr[s], 0, {}};
    if (!f.kv_indptr.empty()) part.kv_len = f.kv_indptr[s + 1] - f.kv_indptr[s];
    for (const int32_t query : random.ask.queries) {
      const bool is_own = query >= f.q_indptr[s] && query < f.q_indptr[s + 1];
      if (is_own) part.queries.push_back(query - f.q_indptr[s]);
    }
    parts.push_back(part);
  }
  return parts;
}

void SetParts(const std::vector<Part>& parts, RandomCase* random) {
  Features& f = random->c.features;
  const bool is_packed = !f.kv_indptr.empty();
  f.q_indptr = f.kv_indptr = {0};
  random->ask.queries.clear();
  for (const Part& part : parts) {
    for (const int32_t query : part.queries) {
      if (query < part.q_len) random->ask.queries.push_back(f.q_indptr.back() + query);
    }
    f.q_indptr.push_back(f.q_indptr.back() + part.q_len);
    f.kv_indptr.push_back(f.kv_indptr.back() + part.kv_len);
  }
  if (!is_packed) f.kv_indptr.clear();
}

// Makes lists as long, and lengths as large, as the case has come to allow, and what is not asked
// for the default.
void Repair(RandomCase* random) {
  Case* c = &random->c;
  Features& f = c->features;
  if (f.ragged()) {
    c->q_len = f.q_indptr.back();
    if (!f.kv_indptr.empty()) c->kv_len = f.kv_indptr.back();
    c->kv_batch = f.kv_indptr.empty() ? static_cast<int64_t>(f.q_indptr.size()) - 1 : 1;
  }
  const std::vector<KvRun> runs = c->Runs();
  for (std::vector<int32_t>* lengths : {&f.kv_lens, &f.prefix_lens}) {
    if (lengths->empty()) continue;
    lengths->resize(runs.size());
    for (size_t r = 0; r < runs.size(); ++r) {
      (*lengths)[r] = std::min((*lengths)[r], static_cast<int32_t>(runs[r].kv_len));
    }
  }
  for (std::vector<float>* heads : {&f.alibi_slopes, &f.sinks}) {
    if (!heads->empty()) heads->resize(static_cast<size_t>(c->heads));
  }

  Ask& ask = random->ask;
  const auto keep_below = [](std::vector<int32_t>* list, int64_t end) {
    list->erase(std::remove_if(list->begin(), list->end(), [&](int32_t x) { return x >= end; }),
                list->end());
  };
  keep_below(&ask.heads, c->heads);
  keep_below(&ask.queries, c->q_len);
  if (ask.lists_heads && ask.heads.empty()) ask.heads = {0};
  const Ask given = ask;
  ask = AskNothing();
  if (given.weights) {
    ask = given;
    ask.mass = false;
    ask.mass_by_kv_head = ask.mass_by_kv_batch = false;
    ask.mass_layout = Layout::kDense;
    ask.mass_extra_keys = 0;
  }
  if (given.mass) {
    ask.mass = true;
    ask.mass_by_kv_head = given.mass_by_kv_head;
    ask.mass_by_kv_batch = given.mass_by_kv_batch;
    ask.mass_layout = given.mass_layout;
    ask.mass_extra_keys = given.mass_extra_keys;
  }
  if (random->asks()) f.lse = true;
}

// Changes a case into a simpler one, which may be the same.
using Step = std::function<void(RandomCase*)>;

template <typename T>
Step Reset(T Case::* field) {
  return [field](RandomCase* random) { random->c.*field = Case().*field; };
}

template <typename T>
Step Reset(T Features::* field) {
  return [field](RandomCase* random) { random->c.features.*field = Features().*field; };
}

template <typename T>
Step Reset(T Ask::* field) {
  return [field](RandomCase* random) { random->ask.*field = Ask().*field; };
}

// Some of a list, which may be none.
Step OfList(std::vector<int32_t> Ask::* list,
            const std::function<void(std::vector<int32_t>*)>& change) {
  return [list, change](RandomCase* random) {
    if (!(random->ask.*list).empty()) change(&(random->ask.*list));
  };
}

Step Halve(int64_t Case::* field) {
  return [field](RandomCase* random) { random->c.*field = (random->c.*field + 1) / 2; };
}

Step Halve(int64_t Ask::* field) {
  return [field](RandomCase* random) { random->ask.*field = (random->ask.*field + 1) / 2; };
}

Step Decrease(int64_t Case::* field) {
  return [field](RandomCase* random) {
    int64_t& x = random->c.*field;
    x = std::max<int64_t>(x - 1, 1);
  };
}

// The sequences of a ragged batch.
Step OfParts(const std::function<void(std::vector<Part>*)>& change) {
  return [change](RandomCase* random) {
    if (!random->c.features.ragged()) return;
    std::vector<Part> parts = PartsOf(*random);
    change(&parts);
    SetParts(parts, random);
  };
}

// Their lengths.
Step OfLengths(int32_t Part::* length, const std::function<int32_t(int32_t)>& change) {
  return OfParts([length, change](std::vector<Part>* parts) {
    for (Part& part : *parts) part.*length = change(part.*length);
  });
}

Step OfGrid(GridCase Features::* grid, const std::function<void(GridCase*)>& change) {
  return [grid, change](RandomCase* random) { change(&(random->c.features.*grid)); };
}

const std::vector<Step>& Steps() {
  static const std::vector<Step> steps = [] {
    std::vector<Step> s = {
        [](RandomCase* random) { random->ask.weights = false; },
        [](RandomCase* random) { random->ask.mass = false; },
        [](RandomCase* random) {
          random->ask.lists_heads = false;
          random->ask.heads.clear();
        },
        [](RandomCase* random) {
          random->ask.lists_queries = false;
          random->ask.queries.clear();
        },
        Reset(&Ask::average),
        Reset(&Ask::dtype),
        Reset(&Ask::layout),
        Reset(&Ask::extra_keys),
        Reset(&Ask::mass_by_kv_head),
        Reset(&Ask::mass_by_kv_batch),
        Reset(&Ask::mass_layout),
        Reset(&Ask::mass_extra_keys),
        Halve(&Ask::extra_keys),
        Halve(&Ask::mass_extra_keys),
        Reset(&Features::lse),
        Reset(&Features::softcap),
        Reset(&Features::bias),
        Reset(&Features::relative_buckets),
        Reset(&Features::alibi_slopes),
        Reset(&Features::sinks),
        Reset(&Features::mask),
        Reset(&Features::blocks),
        Reset(&Features::prefix_lens),
        Reset(&Features::kv_lens),
        Reset(&Features::window_left),
        Reset(&Features::window_right),
        Reset(&Features::q_start),
        Reset(&Case::causal),
        [](RandomCase* random) {  // ragged: the first sequence alone
          Case& c = random->c;
          if (!c.features.ragged()) return;
          const KvRun run = c.Runs().front();
          c.features.q_indptr.clear();
          c.features.kv_indptr.clear();
          c.q_len = run.q_len;
          c.kv_len = run.kv_len;
          c.kv_batch = 1;
        },
        OfParts([](std::vector<Part>* parts) {
          if (parts->size() > 1) parts->pop_back();
        }),
        OfParts([](std::vector<Part>* parts) {
          if (parts->size() > 1) parts->erase(parts->begin());
        }),
        [](RandomCase* random) { random->setup.source = Source::kTensors; },
        [](RandomCase* random) { random->setup.parallel = {}; },
        [](RandomCase* random) { random->setup.rotate_k = false; },
        [](RandomCase* random) { random->setup.precision = Precision::kF32; },
        [](RandomCase* random) { random->c.heads = random->c.kv_heads = 1; },
        [](RandomCase* random) { random->c.heads = random->c.kv_heads; },
        [](RandomCase* random) { random->c.kv_heads = 1; },
        [](RandomCase* random) {
          Case& c = random->c;
          if (c.heads > c.kv_heads) c.heads -= c.kv_heads;
        },
        Reset(&Case::kv_batch),
        Reset(&Case::beams),
        Reset(&Case::v_head_dim),
        Reset(&Case::scale),
        Reset(&Case::q_gain),
        Reset(&Case::distribution),
        Reset(&Case::placement),
        Reset(&Case::q_dtype),
        Reset(&Case::k_dtype),
        Reset(&Case::v_dtype),
        Reset(&Case::out_dtype),
        Reset(&Case::q_scales),
        Reset(&Case::k_scales),
        Reset(&Case::v_scales),
        Reset(&Case::out_scales),
        Reset(&Case::q_layout),
        Reset(&Case::k_layout),
        Reset(&Case::v_layout),
        Reset(&Case::out_layout),
        Reset(&Features::q_block),
        Reset(&Features::kv_block),
        Reset(&Features::lse_layout),
        Reset(&Features::bias_dtype),
        Halve(&Case::q_len),
        Halve(&Case::kv_len),
        Halve(&Case::head_dim),
        Halve(&Case::v_head_dim),
        Decrease(&Case::q_len),
        Decrease(&Case::kv_len),
    };
    for (int32_t Part::* length : {&Part::q_len, &Part::kv_len}) {
      s.push_back(OfLengths(length, [](int32_t x) { return (x + 1) / 2; }));
      s.push_back(OfLengths(length, [](int32_t x) { return x > 1 ? x - 1 : x; }));
    }
    for (GridCase Features::* grid : {&Features::mask, &Features::blocks, &Features::bias}) {
      s.push_back(OfGrid(grid, [](GridCase* x) { x->layout = Layout::kDense; }));
      s.push_back(OfGrid(grid, [](GridCase* x) { x->extra_keys = 0; }));
      s.push_back(OfGrid(grid, [](GridCase* x) { x->density = 1.0; }));
      s.push_back(OfGrid(grid, [](GridCase* x) {
        if (x->varies != kPerTensor) x->varies = kPerElement;  // which is simpler still
      }));
      s.push_back(OfGrid(grid, [](GridCase* x) { x->varies = kPerTensor; }));
    }
    for (std::vector<int32_t> Ask::* list : {&Ask::heads, &Ask::queries}) {
      const auto half = [](const std::vector<int32_t>& x) {
        return static_cast<ptrdiff_t>((x.size() + 1) / 2);
      };
      s.push_back(OfList(
          list, [half](std::vector<int32_t>* x) { x->erase(x->begin() + half(*x), x->end()); }));
      s.push_back(OfList(
          list, [half](std::vector<int32_t>* x) { x->erase(x->begin(), x->end() - half(*x)); }));
      s.push_back(OfList(list, [](std::vector<int32_t>* x) { x->pop_back(); }));
      s.push_back(OfList(list, [](std::vector<int32_t>* x) { x->erase(x->begin()); }));
    }
    return s;
  }();
  return steps;
}

// What describes a case: two are the same if this is.
std::string ToCode(const RandomCase& random);

// The simplest case found that still fails.
RandomCase Shrink(RandomCase random, const std::function<bool(const RandomCase&)>& fails) {
  int runs = 0;
  bool simpler = true;
  while (simpler) {
    simpler = false;
    for (const Step& step : Steps()) {
      RandomCase candidate = random;
      step(&candidate);
      Repair(&candidate);
      if (ToCode(candidate) == ToCode(random)) continue;
      if (++runs > kMaxShrinkRuns) return random;
      if (!fails(candidate)) continue;
      random = candidate;
      simpler = true;
    }
  }
  return random;
}

// ---- Text -------------------------------------------------------------------------------------

class Code {
 public:
  template <typename T>
  void Number(const std::string& name, T x, T off) {
    if (x != off) Line(name, Text(x));
  }
  // Enumerators are told by their names elsewhere.
  template <typename T>
  void Enum(const std::string& name, const char* type, T x, T off) {
    if (x != off) {
      Line(name, std::string(type) + "(" + std::to_string(static_cast<int>(x)) + ")" + Comment(x));
    }
  }
  template <typename T>
  void List(const std::string& name, const std::vector<T>& x) {
    if (x.empty()) return;
    std::string text;
    for (const T& element : x) text += (text.empty() ? "" : ", ") + Text(element);
    Line(name, "{" + text + "}");
  }
  void Grid(const std::string& name, const GridCase& x) {
    if (!x.on) return;
    Line(name, "{true, " + Text(x.density) + ", " + Text(x.varies) + ", " + Text(x.extra_keys) +
                   ", Layout(" + std::to_string(static_cast<int>(x.layout)) + ")}" +
                   Comment(x.layout));
  }
  void Line(const std::string& name, const std::string& value) {
    text_ += "  " + name + " = " + value + ";\n";
  }
  const std::string& text() const { return text_; }

 private:
  static std::string Text(bool x) { return x ? "true" : "false"; }
  static std::string Text(double x) {
    char text[40];
    snprintf(text, sizeof(text), "%.9g", x);
    return text;
  }
  static std::string Text(float x) { return Text(static_cast<double>(x)); }
  template <typename T>
  static std::string Text(T x) {
    return std::to_string(x);
  }
  template <typename T>
  static std::string Comment(T x) {
    return std::string(" /* ") + Name(x) + " */";
  }
  static std::string Comment(Placement x) {
    return x == Placement::kAtEnd ? " /* at end */" : " /* at front */";
  }

  std::string text_;
};

std::string ToCode(const RandomCase& random) {
  const Case& c = random.c;
  const Features& f = c.features;
  const Case off;
  const Features none;
  Code code;
  code.Number("c.q_len", c.q_len, int64_t{-1});
  code.Number("c.kv_len", c.kv_len, int64_t{-1});
  code.Number("c.head_dim", c.head_dim, int64_t{-1});
  code.Number("c.v_head_dim", c.v_head_dim, off.v_head_dim);
  code.Number("c.heads", c.heads, off.heads);
  code.Number("c.kv_heads", c.kv_heads, off.kv_heads);
  code.Number("c.kv_batch", c.kv_batch, off.kv_batch);
  code.Number("c.beams", c.beams, off.beams);
  code.Number("c.causal", c.causal, off.causal);
  code.Number("c.scale", c.scale, off.scale);
  const auto elements = [&](const std::string& name, DType dtype, unsigned scales, Layout layout) {
    code.Enum(name + "_dtype", "DType", dtype, DType::kF32);
    if (dtype == DType::kI8) code.Number(name + "_scales", scales, unsigned{kPerTensor});
    code.Enum(name + "_layout", "Layout", layout, Layout::kDense);
  };
  elements("c.q", c.q_dtype, c.q_scales, c.q_layout);
  elements("c.k", c.k_dtype, c.k_scales, c.k_layout);
  elements("c.v", c.v_dtype, c.v_scales, c.v_layout);
  elements("c.out", c.out_dtype, c.out_scales, c.out_layout);
  code.Enum("c.placement", "Placement", c.placement, off.placement);
  code.Enum("c.distribution", "Distribution", c.distribution, off.distribution);
  code.Number("c.q_gain", c.q_gain, off.q_gain);
  code.Number("c.features.window_left", f.window_left, none.window_left);
  code.Number("c.features.window_right", f.window_right, none.window_right);
  code.Number("c.features.q_start", f.q_start, none.q_start);
  code.List("c.features.kv_lens", f.kv_lens);
  code.List("c.features.prefix_lens", f.prefix_lens);
  code.Grid("c.features.mask", f.mask);
  code.Grid("c.features.blocks", f.blocks);
  if (f.blocks.on) {
    code.Number("c.features.q_block", f.q_block, none.q_block);
    code.Number("c.features.kv_block", f.kv_block, none.kv_block);
  }
  code.List("c.features.q_indptr", f.q_indptr);
  code.List("c.features.kv_indptr", f.kv_indptr);
  code.Number("c.features.softcap", f.softcap, none.softcap);
  code.Grid("c.features.bias", f.bias);
  code.Enum("c.features.bias_dtype", "DType", f.bias_dtype, none.bias_dtype);
  if (f.relative_buckets.num_buckets != 0) {
    code.Line("c.features.relative_buckets",
              "{" + std::to_string(f.relative_buckets.num_buckets) + ", " +
                  std::to_string(f.relative_buckets.max_distance) + ", " +
                  (f.relative_buckets.bidirectional ? "true" : "false") + "}");
  }
  code.List("c.features.alibi_slopes", f.alibi_slopes);
  code.List("c.features.sinks", f.sinks);
  code.Number("c.features.lse", f.lse, none.lse);
  code.Enum("c.features.lse_layout", "Layout", f.lse_layout, none.lse_layout);

  const Ask& ask = random.ask;
  const Ask all;
  Code asks;
  asks.Number("ask.weights", ask.weights, all.weights);
  if (ask.weights) {
    asks.Number("ask.lists_heads", ask.lists_heads, all.lists_heads);
    asks.List("ask.heads", ask.heads);
    asks.Number("ask.lists_queries", ask.lists_queries, all.lists_queries);
    asks.List("ask.queries", ask.queries);
    asks.Number("ask.average", ask.average, all.average);
    asks.Enum("ask.dtype", "DType", ask.dtype, all.dtype);
    asks.Enum("ask.layout", "Layout", ask.layout, all.layout);
    asks.Number("ask.extra_keys", ask.extra_keys, all.extra_keys);
  }
  asks.Number("ask.mass", ask.mass, all.mass);
  if (ask.mass) {
    asks.Number("ask.mass_by_kv_head", ask.mass_by_kv_head, all.mass_by_kv_head);
    asks.Number("ask.mass_by_kv_batch", ask.mass_by_kv_batch, all.mass_by_kv_batch);
    asks.Enum("ask.mass_layout", "Layout", ask.mass_layout, all.mass_layout);
    asks.Number("ask.mass_extra_keys", ask.mass_extra_keys, all.mass_extra_keys);
  }

  const Setup& setup = random.setup;
  constexpr const char* kSources[] = {"kTensors", "kMemory", "kCache"};
  constexpr const char* kPrecisionNames[] = {"kF32", "kF16", "kI8", "kI8Fine", "kBF16", "kMixed16"};
  return "  Case c;\n" + code.text() + "  const Problem problem(c, " + std::to_string(random.seed) +
         ");\n  const Setup setup = {\"" + setup.tier +
         "\", Precision::" + kPrecisionNames[static_cast<size_t>(setup.precision)] +
         ", Source::" + kSources[static_cast<size_t>(setup.source)] + ", " +
         (setup.parallel.run == nullptr
              ? std::string("{}")
              : "BackwardsOnThisThread(" + std::to_string(setup.parallel.num_workers) + ")") +
         ", " + (setup.rotate_k ? "true" : "false") + "};\n" +
         (random.asks() ? "  Ask ask;\n" + asks.text() : std::string());
}

uint64_t Environment(const char* name, uint64_t otherwise) {
  const char* value = getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : strtoull(value, nullptr, 10);
}

TEST_CASE("random cases", "[random]") {
  const bool one_tier = SupportedTiers().size() == 1;
  const uint64_t first = Environment("SIGHTLINE_RANDOM_SEED", 0);
  const uint64_t num_cases = Environment("SIGHTLINE_RANDOM_CASES", IsEmulated() ? kCasesEmulated
                                                                   : one_tier   ? kCasesOfTier
                                                                                : kCasesOfAllTiers);
  int num_failures = 0;
  uint64_t num_run = 0;
  for (uint64_t seed = first; seed < first + num_cases && num_failures < kMaxFailures; ++seed) {
    const RandomCase random = Generator(seed).Make();
    // For whatever ends the program.
    INFO("SIGHTLINE_RANDOM_SEED=" << seed << " SIGHTLINE_RANDOM_CASES=1\n" << ToCode(random));
    if (!IsAffordable(random.c, random.setup.tier)) continue;
    ++num_run;
    const Failure failure = Check(random);
    if (failure.what.empty()) continue;
    ++num_failures;
    const RandomCase small =
        Shrink(random, [&](const RandomCase& other) { return Check(other).what == failure.what; });
    FAIL_CHECK(failure.what << ": " << failure.text << "\nand simpler:\n"
                            << ToCode(small) << "  " << Check(small).text);
  }
  if (num_failures > 0 || num_cases == 0) return;
  fprintf(stderr, "random cases: seeds %llu to %llu passed, %llu of %llu small enough to run\n",
          static_cast<unsigned long long>(first),
          static_cast<unsigned long long>(first + num_cases - 1),
          static_cast<unsigned long long>(num_run), static_cast<unsigned long long>(num_cases));
}

// Causes of failures that are known: what is left has the cause and nothing else, whatever the case
// was that failed.
TEST_CASE("random cases are shrunk to what makes them fail", "[support]") {
  const auto has = [](const std::vector<int32_t>& list, int32_t i) {
    return std::count(list.begin(), list.end(), i) > 0;
  };
  const auto shrink = [](const std::function<bool(const RandomCase&)>& fails,
                         bool is_ragged = false) {
    std::string simplest;
    int num_cases = 0;
    for (uint64_t seed = 0; num_cases < 30; ++seed) {
      const RandomCase random = Generator(seed).Make();
      // Ragged ones keep a sequence for each part of the cause.
      if (random.c.features.ragged() != is_ragged || random.c.kv_len == 0) continue;
      if (!fails(random)) continue;
      ++num_cases;
      RandomCase small = Shrink(random, fails);
      INFO("seed " << seed << ":\n" << ToCode(random) << "became\n" << ToCode(small));
      CHECK(fails(small));
      small.seed = 0;
      small.setup.tier = "any";
      if (simplest.empty()) simplest = ToCode(small);
      CHECK(ToCode(small) == simplest);
    }
    return simplest;
  };
  const std::string setup =
      "  const Problem problem(c, 0);\n"
      "  const Setup setup = {\"any\", Precision::kF32, Source::kTensors, {}, false};\n";
  CHECK(shrink([](const RandomCase& x) {
          return x.c.features.softcap == 5.0f && x.c.kv_len >= 37 && x.c.q_len >= 3;
        }) ==
        "  Case c;\n  c.q_len = 3;\n  c.kv_len = 37;\n  c.head_dim = 1;\n"
        "  c.features.softcap = 5;\n" +
            setup);
  CHECK(shrink([&](const RandomCase& x) { return has(x.ask.heads, 1) && has(x.ask.queries, 2); }) ==
        "  Case c;\n  c.q_len = 3;\n  c.kv_len = 1;\n  c.head_dim = 1;\n  c.heads = 2;\n"
        "  c.features.lse = true;\n" +
            setup +
            "  Ask ask;\n  ask.lists_heads = true;\n  ask.heads = {1};\n"
            "  ask.lists_queries = true;\n  ask.queries = {2};\n  ask.mass = false;\n");
  CHECK(shrink([](const RandomCase& x) {
          return x.ask.mass_by_kv_head && x.ask.mass_extra_keys > 0;
        }) ==
        "  Case c;\n  c.q_len = 1;\n  c.kv_len = 1;\n  c.head_dim = 1;\n"
        "  c.features.lse = true;\n" +
            setup +
            "  Ask ask;\n  ask.weights = false;\n  ask.mass_by_kv_head = true;\n"
            "  ask.mass_extra_keys = 1;\n");
  const auto in_one_sequence = [&](const RandomCase& x) {
    const std::vector<Part> parts = PartsOf(x);
    return x.c.features.blocks.on && std::any_of(parts.begin(), parts.end(), [&](const Part& part) {
             return part.kv_len >= 2 && has(part.queries, 2);
           });
  };
  CHECK(shrink(in_one_sequence, /*is_ragged=*/true) ==
        "  Case c;\n  c.q_len = 3;\n  c.kv_len = 2;\n  c.head_dim = 1;\n"
        "  c.features.blocks = {true, 1, 0, 0, Layout(0)} /* dense */;\n"
        "  c.features.q_indptr = {0, 3};\n  c.features.kv_indptr = {0, 2};\n"
        "  c.features.lse = true;\n" +
            setup +
            "  Ask ask;\n  ask.lists_queries = true;\n  ask.queries = {2};\n"
            "  ask.mass = false;\n");
}

}  // namespace
}  // namespace testing
}  // namespace sightline
