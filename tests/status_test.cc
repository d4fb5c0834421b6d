// Every documented mistake: its code, the argument that the message names, and nothing written.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <deque>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kv/layout.h"
#include "kv/packed_kv.h"
#include "support/check.h"
#include "support/packed.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
constexpr StatusCode kCapacity = StatusCode::kCapacityExceeded;
constexpr StatusCode kOutOfMemory = StatusCode::kOutOfMemory;
constexpr int64_t kHuge = INT64_MAX - 3;  // a multiple of 4

// What fits addresses, but no machine: bytes of so many sequences of so many keys.
constexpr bool kIs64Bit = sizeof(size_t) == 8;
constexpr int64_t kManySequences = kIs64Bit ? 1 << 14 : 3;
constexpr int64_t ManyKeys(int64_t if_32_bit) { return kIs64Bit ? 1 << 30 : if_32_bit; }

// The longest stride with which n elements still span less than 2^62 bytes; two such axes reach
// further than an int64_t can say.
int64_t LongStride(int64_t n) { return INT64_MAX / 2 / (n - 1) / 4 * 4; }

constexpr DType kNoDType = static_cast<DType>(77);
constexpr Precision kNoPrecision = static_cast<Precision>(77);

// One way to spoil a valid call.
template <typename Call>
struct Mistake {
  const char* what;
  StatusCode code;
  const char* named;  // a word of the message
  std::function<void(Call&)> spoil;
  std::vector<const char*> said;  // other words: what was given, what is allowed

  // GCC 12 cannot compile a default for `said` in an aggregate.
  Mistake(const char* what, StatusCode code, const char* named, std::function<void(Call&)> spoil,
          std::vector<const char*> said = {})
      : what(what), code(code), named(named), spoil(std::move(spoil)), said(std::move(said)) {}
};

Case ValidCase() {
  Case c;
  c.q_len = 6;
  c.kv_len = 40;
  c.heads = 4;
  c.kv_heads = 2;
  c.kv_batch = 2;
  c.beams = 2;
  c.head_dim = 8;
  c.v_head_dim = 12;
  return c;
}

// All four tensors as int8 with a scale for each element, so that every stride of the scales
// counts.
Case ValidI8Case() {
  Case c = ValidCase();
  c.q_dtype = c.k_dtype = c.v_dtype = c.out_dtype = DType::kI8;
  c.q_scales = c.k_scales = c.v_scales = c.out_scales = kNumGranularities - 1;
  return c;
}

// ---- Plan::Create -----------------------------------------------------------------------------

static_assert(std::is_nothrow_copy_constructible<Status>() &&
              std::is_nothrow_copy_assignable<Status>());

TEST_CASE("Plan::Create refuses", "[status]") {
  const std::vector<Mistake<AttentionDesc>> mistakes = {
      {"no heads", kInvalid, "num_heads", [](auto& d) { d.num_heads = 0; }},
      {"negative heads", kInvalid, "num_heads", [](auto& d) { d.num_heads = -4; }},
      {"no kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 0; }},
      {"negative kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = -2; }},
      {"heads not divisible", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 3; }},
      {"more kv heads than heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 8; }},
      {"head_dim 0", kInvalid, "head_dim", [](auto& d) { d.head_dim = 0; }},
      {"head_dim negative", kInvalid, "head_dim", [](auto& d) { d.head_dim = -8; }},
      {"head_dim 513", kInvalid, "head_dim", [](auto& d) { d.head_dim = 513; }},
      {"v_head_dim negative", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = -1; }},
      {"v_head_dim 513", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = 513; }},
      {"max_batch negative", kInvalid, "max_batch", [](auto& d) { d.max_batch = -1; }},
      {"max_q_len negative", kInvalid, "max_q_len", [](auto& d) { d.max_q_len = -1; }},
      {"max_kv_len negative", kInvalid, "max_kv_len", [](auto& d) { d.max_kv_len = -1; }},
      {"max_batch absurd", kInvalid, "max_batch", [](auto& d) { d.max_batch = kHuge; }},
      {"max_kv_len absurd", kInvalid, "max_kv_len", [](auto& d) { d.max_kv_len = kHuge; }},
      {"all maxima too large together", kInvalid, "max_kv_len",
       [](auto& d) {
         d.max_kv_len = d.max_batch = 1 << 30;
         d.head_dim = d.v_head_dim = 512;
       }},
      {"max_workers 0", kInvalid, "max_workers", [](auto& d) { d.max_workers = 0; }},
      {"max_workers negative", kInvalid, "max_workers", [](auto& d) { d.max_workers = -1; }},
      {"scale NaN", kInvalid, "scale", [](auto& d) { d.scale = NAN; }},
      {"scale infinite", kInvalid, "scale", [](auto& d) { d.scale = -HUGE_VALF; }},
      {"window_left -2",
       kInvalid,
       "window_left",
       [](auto& d) { d.window_left = -2; },
       {"-2", "-1"}},
      {"window_left absurd", kInvalid, "window_left", [](auto& d) { d.window_left = kHuge; }},
      {"window_left lowest", kInvalid, "window_left", [](auto& d) { d.window_left = INT64_MIN; }},
      {"window_right -2",
       kInvalid,
       "window_right",
       [](auto& d) { d.window_right = -2; },
       {"-2", "-1"}},
      {"window_right absurd", kInvalid, "window_right", [](auto& d) { d.window_right = kHuge; }},
      {"softcap negative",
       kInvalid,
       "softcap",
       [](auto& d) { d.softcap = -50.0f; },
       {"-50", "0", "1e-30", "30"}},
      {"softcap NaN", kInvalid, "softcap", [](auto& d) { d.softcap = NAN; }, {"nan"}},
      {"softcap infinite", kInvalid, "softcap", [](auto& d) { d.softcap = HUGE_VALF; }, {"inf"}},
      {"softcap tiny", kInvalid, "softcap", [](auto& d) { d.softcap = 1e-31f; }},
      {"softcap subnormal", kInvalid, "softcap", [](auto& d) { d.softcap = 1e-45f; }},
      {"softcap vast", kInvalid, "softcap", [](auto& d) { d.softcap = 2e30f; }},
      {"one bucket",
       kInvalid,
       "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets.num_buckets = 1; },
       {"1", "4", "4096", "even"}},
      {"two buckets for both sides", kInvalid, "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets.num_buckets = 2; }},
      {"odd buckets", kInvalid, "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets.num_buckets = 31; }},
      {"one bucket of one side",
       kInvalid,
       "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets = {1, 128, false}; },
       {"1", "2", "4096"}},
      {"negative buckets", kInvalid, "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets.num_buckets = -32; }},
      {"too many buckets", kInvalid, "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets = {4098, 65536, true}; }},
      {"absurd buckets", kInvalid, "relative_buckets.num_buckets",
       [](auto& d) { d.relative_buckets.num_buckets = kHuge - 1; }},
      {"max_distance within the buckets of one distance each",
       kInvalid,
       "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, 8, true}; },
       {"8", "9", "65536"}},
      {"the same of one side", kInvalid, "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, 16, false}; }},
      {"max_distance 0", kInvalid, "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, 0, true}; }},
      {"max_distance negative", kInvalid, "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, -128, true}; }},
      {"max_distance too far", kInvalid, "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, 65537, true}; }},
      {"max_distance absurd", kInvalid, "relative_buckets.max_distance",
       [](auto& d) { d.relative_buckets = {32, INT64_MAX, true}; }},
      {"no such precision", kInvalid, "precision", [](auto& d) { d.precision = kNoPrecision; }},
      {"rotated f32", kInvalid, "rotate_k", [](auto& d) { d.rotate_k = true; }},
      {"rotated i8_fine", kInvalid, "rotate_k",
       [](auto& d) {
         d.precision = Precision::kI8Fine;
         d.rotate_k = true;
       }},
      {"rotated mixed16", kInvalid, "rotate_k",
       [](auto& d) {
         d.precision = Precision::kMixed16;
         d.rotate_k = true;
       }},
      {"no such tier", kInvalid, "tier", [](auto& d) { d.tier = "abacus"; }},
      {"more memory than there is", kOutOfMemory, "workspace",
       [](auto& d) {
         // 2^44 keys of 2 KiB, or 3 GiB.
         d.max_batch = kManySequences;
         d.max_kv_len = ManyKeys(1 << 19);
         d.head_dim = d.v_head_dim = 128;
         d.owns_workspace = true;
       }},
  };
  const AttentionDesc valid = DescOf(ValidCase(), {});
  Plan plan;
  REQUIRE_THAT(Plan::Create(valid, &plan), IsOk());
  const size_t workspace_bytes = plan.workspace_bytes();
  for (const auto& mistake : mistakes) {
    AttentionDesc desc = valid;
    mistake.spoil(desc);
    INFO(mistake.what);
    const Status status = Plan::Create(desc, &plan);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK_FALSE(plan.empty());
    CHECK(plan.workspace_bytes() == workspace_bytes);
    Plan fresh;
    CHECK_FALSE(Plan::Create(desc, &fresh).ok());
    CHECK(fresh.empty());
  }
  CHECK_THAT(Plan::Create(valid, nullptr), IsError(kInvalid, "plan"));
}

TEST_CASE("an empty plan has no tier and no workspace", "[status]") {
  const Plan plan;
  CHECK(plan.empty());
  CHECK(std::string(plan.tier()).empty());
  CHECK(plan.workspace_bytes() == 0);
}

// ---- Run --------------------------------------------------------------------------------------

// A valid Run and all that it refers to.
struct RunCall {
  RunCall(const Setup& setup_in, const Case& c)
      : setup(setup_in),
        problem(c, 1),
        memory(MemoryOf(problem, setup)),
        cache(CacheOf(problem, setup)),
        out(problem.NewOut()),
        wide_out(DType::kF32, {4, 12, 4, 12}),
        lse(problem.NewLse()),
        weights(DType::kF32, {c.batch(), c.q_len, c.heads, c.kv_len}),
        mass(DType::kF32, {c.batch(), 1, c.heads, c.kv_len}) {
    AttentionDesc desc = DescOf(problem.c, setup);
    desc.max_workers = 2;
    REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
    scratch = GuardedBuffer(plan.workspace_bytes() + 64, Placement::kAtFront);
    workspace = {scratch.data(), plan.workspace_bytes()};
    args = TensorArgs(problem, out);
    if (setup.source != Source::kTensors) args.k = args.v = ConstTensorView();
    if (setup.source == Source::kMemory) args.memory = &memory;
    if (setup.source == Source::kCache) args.cache = &cache;
    if (c.features.lse) args.lse = lse.view();
  }

  void WipeOutputs() {
    for (Tensor* tensor : {&out, &wide_out, &lse, &weights, &mass}) tensor->Wipe();
  }
  bool OutputsAreWiped() const {
    return out.IsWiped() && wide_out.IsWiped() && lse.IsWiped() && weights.IsWiped() &&
           mass.IsWiped();
  }
  // An array that lives as long as the call, with pages between it and all others.
  const int32_t* Ints(const std::vector<int32_t>& x) {
    const size_t bytes = x.size() * sizeof(int32_t);
    arrays.emplace_back(bytes, Placement::kAtEnd);
    if (bytes != 0) memcpy(arrays.back().data(), x.data(), bytes);
    return reinterpret_cast<const int32_t*>(arrays.back().data());
  }

  Status Run() const { return sightline::Run(plan, args, workspace, parallel); }

  Setup setup;
  Problem problem;
  CrossMemory memory;
  KvCache cache;
  CrossMemory empty_memory;
  KvCache empty_cache;
  Tensor out;
  Tensor wide_out;
  Tensor lse, weights, mass;  // if they are asked for
  std::deque<GuardedBuffer> arrays;
  GuardedBuffer scratch;

  Plan plan;
  AttentionArgs args;
  Workspace workspace;
  ParallelFor parallel;
};

template <typename Pointer>
Pointer Shifted(Pointer p, int64_t bytes) {
  return reinterpret_cast<Pointer>(reinterpret_cast<intptr_t>(p) + bytes);
}

// prepare: adds to a valid call what leaves it so.
void CheckRunRefuses(const Setup& setup, const std::vector<Mistake<RunCall>>& mistakes,
                     const Case& c = ValidCase(),
                     const std::function<void(RunCall&)>& prepare = nullptr) {
  RunCall call(setup, c);
  if (prepare) prepare(call);
  const AttentionArgs valid_args = call.args;
  const Workspace valid_workspace = call.workspace;
  const Plan valid_plan = call.plan;
  for (const auto& mistake : mistakes) {
    call.args = valid_args;
    call.workspace = valid_workspace;
    call.plan = valid_plan;
    call.parallel = {};
    call.WipeOutputs();
    mistake.spoil(call);
    INFO(mistake.what << ", " << Name(setup.precision));
    const Status status = call.Run();
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(call.OutputsAreWiped());
  }
  // What was spoilt was the only thing wrong.
  call.args = valid_args;
  call.workspace = valid_workspace;
  call.plan = valid_plan;
  call.parallel = {};
  CHECK_THAT(call.Run(), IsOk());
  CHECK_FALSE(call.out.IsWiped());
}

// The same mistakes for each of the four tensors.
struct ViewMistake {
  const char* what;
  std::function<void(ConstTensorView&)> spoil;
};

void CheckRunRefusesViews(const std::vector<ViewMistake>& spoils, const Case& c) {
  using Spoil = std::function<void(ConstTensorView&)>;
  const struct {
    const char* name;
    std::function<void(AttentionArgs&, const Spoil&)> apply;
  } tensors[] = {
      {"q", [](AttentionArgs& args, const Spoil& spoil) { spoil(args.q); }},
      {"k", [](AttentionArgs& args, const Spoil& spoil) { spoil(args.k); }},
      {"v", [](AttentionArgs& args, const Spoil& spoil) { spoil(args.v); }},
      {"out",
       [](AttentionArgs& args, const Spoil& spoil) {
         ConstTensorView view = args.out;
         spoil(view);
         args.out = TensorView{const_cast<void*>(view.data),
                               view.dtype,
                               view.batch,
                               view.length,
                               view.heads,
                               view.dim,
                               view.batch_stride,
                               view.length_stride,
                               view.head_stride,
                               view.dim_stride,
                               view.scale};
       }},
  };
  std::vector<Mistake<RunCall>> mistakes;
  std::vector<std::string> names;
  names.reserve(sizeof(tensors) / sizeof(tensors[0]) * spoils.size());
  for (const auto& tensor : tensors) {
    for (const ViewMistake& mistake : spoils) {
      names.push_back(std::string(tensor.name) + ": " + mistake.what);
      mistakes.push_back({names.back().c_str(), kInvalid, tensor.name,
                          [&](RunCall& call) { tensor.apply(call.args, mistake.spoil); }});
    }
  }
  CheckRunRefuses({BestTier(), Precision::kF32}, mistakes, c);
}

TEST_CASE("Run refuses views that contradict themselves", "[status]") {
  static const float scale = 1.0f;
  const std::vector<ViewMistake> spoils = {
      {"null data", [](auto& t) { t.data = nullptr; }},
      {"no such dtype", [](auto& t) { t.dtype = kNoDType; }},
      {"negative batch", [](auto& t) { t.batch = -1; }},
      {"negative length", [](auto& t) { t.length = -1; }},
      {"negative heads", [](auto& t) { t.heads = -1; }},
      {"no heads", [](auto& t) { t.heads = 0; }},
      {"negative dim", [](auto& t) { t.dim = -1; }},
      {"no dim", [](auto& t) { t.dim = 0; }},
      {"dim 513", [](auto& t) { t.dim = 513; }},
      {"other heads", [](auto& t) { t.heads += 1; }},
      {"other dim", [](auto& t) { t.dim -= 1; }},
      {"batch stride between elements", [](auto& t) { t.batch_stride += 1; }},
      {"length stride between elements", [](auto& t) { t.length_stride += 2; }},
      {"head stride between elements", [](auto& t) { t.head_stride -= 1; }},
      {"dim stride between elements", [](auto& t) { t.dim_stride = 2; }},
      {"data between elements", [](auto& t) { t.data = Shifted(t.data, 2); }},
      {"length beyond the address space",
       [](auto& t) {
         t.length = INT64_MAX;
         t.length_stride = 4;
       }},
      {"batch stride beyond the address space", [](auto& t) { t.batch_stride = kHuge; }},
      {"length stride beyond the address space", [](auto& t) { t.length_stride = INT64_MIN; }},
      {"head stride beyond the address space", [](auto& t) { t.head_stride = kHuge; }},
      {"dim stride beyond the address space", [](auto& t) { t.dim_stride = -(kHuge); }},
      {"strides that overflow only together",
       [](auto& t) {
         t.batch_stride = LongStride(t.batch);
         t.length_stride = LongStride(t.length);
         t.head_stride = LongStride(t.heads);
       }},
      {"scales of floats", [](auto& t) { t.scale = ScaleView::PerTensor(&scale); }},
      {"int8 without scales", [](auto& t) { t.dtype = DType::kI8; }},
  };
  CheckRunRefusesViews(spoils, ValidCase());
}

TEST_CASE("Run refuses scales that contradict themselves", "[status]") {
  const std::vector<ViewMistake> spoils = {
      {"no scales", [](auto& t) { t.scale = ScaleView(); }},
      {"scales nowhere", [](auto& t) { t.scale.data = nullptr; }},
      {"scales of f16",
       [](auto& t) {
         t.dtype = DType::kF16;
         for (int64_t* stride :
              {&t.batch_stride, &t.length_stride, &t.head_stride, &t.dim_stride}) {
           *stride *= 2;
         }
       }},
      {"scales between elements", [](auto& t) { t.scale.data = Shifted(t.scale.data, 2); }},
      {"batch stride between elements", [](auto& t) { t.scale.batch_stride += 1; }},
      {"length stride between elements", [](auto& t) { t.scale.length_stride += 2; }},
      {"head stride between elements", [](auto& t) { t.scale.head_stride -= 1; }},
      {"dim stride between elements", [](auto& t) { t.scale.dim_stride = 2; }},
      {"batch stride beyond the address space", [](auto& t) { t.scale.batch_stride = kHuge; }},
      {"length stride beyond the address space",
       [](auto& t) { t.scale.length_stride = INT64_MIN; }},
      {"head stride beyond the address space", [](auto& t) { t.scale.head_stride = kHuge; }},
      {"dim stride beyond the address space", [](auto& t) { t.scale.dim_stride = -(kHuge); }},
      {"below address 0", [](auto& t) { t.scale.head_stride = -(int64_t{1} << 62); }},
      {"strides that overflow only together",
       [](auto& t) {
         t.scale.batch_stride = LongStride(t.batch);
         t.scale.length_stride = LongStride(t.length);
         t.scale.head_stride = LongStride(t.heads);
       }},
  };
  CheckRunRefusesViews(spoils, ValidI8Case());
}

// Another plan for the same call.
void Replan(RunCall& call, const std::function<void(AttentionDesc&)>& change) {
  AttentionDesc desc = DescOf(call.problem.c, call.setup);
  desc.max_workers = 2;
  change(desc);
  REQUIRE_THAT(Plan::Create(desc, &call.plan), IsOk());
}

TEST_CASE("Run refuses arguments that contradict each other", "[status]") {
  const std::vector<Mistake<RunCall>> mistakes = {
      {"empty plan", kInvalid, "plan", [](auto& c) { c.plan = Plan(); }},

      {"out of another batch", kInvalid, "out", [](auto& c) { c.args.out.batch = 3; }},
      {"out of another length", kInvalid, "out", [](auto& c) { c.args.out.length = 5; }},
      {"v of another batch", kInvalid, "v", [](auto& c) { c.args.v.batch = 1; }},
      {"v of another length", kInvalid, "v", [](auto& c) { c.args.v.length = 39; }},
      {"batch not divisible", kInvalid, "q",
       [](auto& c) { c.args.q.batch = c.args.out.batch = 3; }},
      {"no K/V batch", kInvalid, "q", [](auto& c) { c.args.k.batch = c.args.v.batch = 0; }},

      {"neither tensors nor memory nor cache", kInvalid, "memory",
       [](auto& c) { c.args.k = c.args.v = ConstTensorView(); }},
      {"k without v", kInvalid, "v", [](auto& c) { c.args.v = ConstTensorView(); }},
      {"v without k", kInvalid, "k", [](auto& c) { c.args.k = ConstTensorView(); }},
      {"tensors and memory", kInvalid, "memory", [](auto& c) { c.args.memory = &c.memory; }},
      {"tensors and cache", kInvalid, "cache", [](auto& c) { c.args.cache = &c.cache; }},
      {"k and memory", kInvalid, "memory",
       [](auto& c) {
         c.args.v = ConstTensorView();
         c.args.memory = &c.memory;
       }},
      {"memory and cache", kInvalid, "memory",
       [](auto& c) {
         c.args.k = c.args.v = ConstTensorView();
         c.args.memory = &c.memory;
         c.args.cache = &c.cache;
       }},
      {"empty memory", kInvalid, "memory",
       [](auto& c) {
         c.args.k = c.args.v = ConstTensorView();
         c.args.memory = &c.empty_memory;
       }},
      {"empty cache", kInvalid, "cache",
       [](auto& c) {
         c.args.k = c.args.v = ConstTensorView();
         c.args.cache = &c.empty_cache;
       }},

      {"out on q", kInvalid, "out", [](auto& c) { c.args.q.data = c.args.out.data; }},
      {"out on k", kInvalid, "out", [](auto& c) { c.args.k.data = c.args.out.data; }},
      {"out on the last byte of v", kInvalid, "out",
       [](auto& c) { c.args.v.data = Shifted(c.args.out.data, -2 * 40 * 2 * 12 * 4 + 4); }},
      {"out's heads on each other", kInvalid, "out", [](auto& c) { c.args.out.head_stride = 0; }},
      {"out's queries on each other", kInvalid, "out",
       [](auto& c) { c.args.out.length_stride = 4; }},
      {"out's sequences on each other", kInvalid, "out",
       [](auto& c) { c.args.out.batch_stride = 5 * 4 * 12 * 4; }},
      {"out's channels on each other", kInvalid, "out", [](auto& c) { c.args.out.dim_stride = 0; }},
      {"out backwards onto itself", kInvalid, "out", [](auto& c) { c.args.out.head_stride = -4; }},

      {"batch beyond the plan", kCapacity, "max_batch",
       [](auto& c) { Replan(c, [](auto& d) { d.max_batch = 3; }); }},
      {"q_len beyond the plan", kCapacity, "max_q_len",
       [](auto& c) { Replan(c, [](auto& d) { d.max_q_len = 5; }); }},
      {"kv_len beyond the plan", kCapacity, "max_kv_len",
       [](auto& c) { Replan(c, [](auto& d) { d.max_kv_len = 39; }); }},
      {"workers beyond the plan", kCapacity, "max_workers",
       [](auto& c) { c.parallel = BackwardsOnThisThread(3); }},
      {"no workers", kInvalid, "num_workers",
       [](auto& c) { c.parallel = BackwardsOnThisThread(0); }},
      {"workers that nobody runs", kInvalid, "run",
       [](auto& c) {
         c.parallel.num_workers = 2;
         c.parallel.run = nullptr;
       }},

      {"workspace one byte short", kInvalid, "workspace", [](auto& c) { c.workspace.bytes -= 1; }},
      {"workspace of no bytes", kInvalid, "workspace", [](auto& c) { c.workspace.bytes = 0; }},
      {"workspace nowhere", kInvalid, "workspace", [](auto& c) { c.workspace.data = nullptr; }},
      {"workspace misaligned", kInvalid, "workspace",
       [](auto& c) { c.workspace.data = Shifted(c.workspace.data, 32); }},
      {"no workspace, and the plan has none", kInvalid, "workspace",
       [](auto& c) { c.workspace = {}; }},
      {"workspace on q", kInvalid, "workspace", [](auto& c) { c.args.q.data = c.workspace.data; }},
      {"workspace on k", kInvalid, "workspace", [](auto& c) { c.args.k.data = c.workspace.data; }},
      {"workspace on v", kInvalid, "workspace", [](auto& c) { c.args.v.data = c.workspace.data; }},
      {"workspace on out", kInvalid, "workspace",
       [](auto& c) { c.args.out.data = c.workspace.data; }},
  };
  for (const Precision precision : kPrecisions) {
    CheckRunRefuses({BestTier(), precision}, mistakes);
  }
}

TEST_CASE("Run refuses scales where it writes", "[status]") {
  const std::vector<Mistake<RunCall>> mistakes = {
      {"out on q's scales", kInvalid, "q",
       [](auto& c) { c.args.q.scale.data = static_cast<float*>(c.args.out.data); }},
      {"out on k's scales", kInvalid, "k",
       [](auto& c) { c.args.k.scale.data = static_cast<float*>(c.args.out.data); }},
      {"out on v's scales", kInvalid, "v",
       [](auto& c) { c.args.v.scale.data = static_cast<float*>(c.args.out.data); }},
      {"out on its own scales", kInvalid, "scale",
       [](auto& c) { c.args.out.scale.data = static_cast<float*>(c.args.out.data); }},
      {"out on its one scale", kInvalid, "scale",
       [](auto& c) {
         c.args.out.scale = ScaleView::PerTensor(static_cast<float*>(c.args.out.data) + 1);
       }},
      {"workspace on q's scales", kInvalid, "workspace",
       [](auto& c) { c.args.q.scale.data = static_cast<float*>(c.workspace.data); }},
      {"workspace on k's scales", kInvalid, "workspace",
       [](auto& c) { c.args.k.scale.data = static_cast<float*>(c.workspace.data); }},
      {"workspace on v's scales", kInvalid, "workspace",
       [](auto& c) { c.args.v.scale.data = static_cast<float*>(c.workspace.data); }},
      {"workspace on out's scales", kInvalid, "workspace",
       [](auto& c) { c.args.out.scale.data = static_cast<float*>(c.workspace.data); }},
  };
  CheckRunRefuses({BestTier(), Precision::kI8}, mistakes, ValidI8Case());
}

// ---- Masks, biases and further outputs --------------------------------------------------------

// Everything that a padded batch may bring, beside the tensors of `c`.
Case RichCase(Case c = ValidCase()) {
  Features& f = c.features;
  f.kv_lens = {30, 40};
  f.prefix_lens = {3, 50};
  f.mask.on = f.blocks.on = f.bias.on = f.lse = true;
  f.bias_dtype = DType::kF16;
  f.q_block = 4;
  f.kv_block = 16;
  f.relative_buckets = {32, 128, true};
  f.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  f.sinks = {0.0f, 1.0f, 2.0f, 3.0f};
  return c;
}

void AskForWeights(RunCall& c) {
  c.args.weights.out = c.weights.view();
  c.args.weights.heads = c.Ints({3, 0, 0, 2});
  c.args.weights.num_heads = 4;
  c.args.weights.queries = c.Ints({0, 1, 2, 3, 4, 5});
  c.args.weights.num_queries = 6;
  c.args.mass = c.mass.view();
}

void CheckRichRunRefuses(const std::vector<Mistake<RunCall>>& mistakes) {
  for (const Precision precision : {Precision::kF32, Precision::kI8}) {
    CheckRunRefuses({BestTier(), precision}, mistakes, RichCase(), AskForWeights);
  }
}

TEST_CASE("Run takes all arguments at once", "[status]") {
  for (const Precision precision : kPrecisions) {
    for (const Source source : {Source::kTensors, Source::kMemory, Source::kCache}) {
      INFO(Name(precision) << ", source " << static_cast<int>(source));
      RunCall call({BestTier(), precision, source}, RichCase(ValidI8Case()));
      AskForWeights(call);
      CHECK_THAT(call.Run(), IsOk());
    }
  }
}

TEST_CASE("Run refuses masks that contradict themselves or the call", "[status]") {
  CheckRichRunRefuses({
      {"q_start far behind",
       kInvalid,
       "q_start",
       [](auto& c) { c.args.q_start = int64_t{1} << 31; },
       {"2147483648", "2147483392"}},
      {"q_start far before", kInvalid, "q_start",
       [](auto& c) { c.args.q_start = AttentionArgs::kBottomRight + 1; }},
      {"q_start absurd", kInvalid, "q_start", [](auto& c) { c.args.q_start = INT64_MAX; }},

      {"kv_lens negative",
       kInvalid,
       "kv_lens",
       [](auto& c) { c.args.kv_lens = c.Ints({40, -1}); },
       {"1", "-1", "0", "40"}},
      {"kv_lens lowest", kInvalid, "kv_lens",
       [](auto& c) { c.args.kv_lens = c.Ints({INT32_MIN, 40}); }},
      {"kv_lens beyond k",
       kInvalid,
       "kv_lens",
       [](auto& c) { c.args.kv_lens = c.Ints({41, 40}); },
       {"41", "40"}},
      {"kv_lens between elements",
       kInvalid,
       "kv_lens",
       [](auto& c) { c.args.kv_lens = Shifted(c.args.kv_lens, 2); },
       {"4"}},
      {"prefix_lens negative",
       kInvalid,
       "prefix_lens",
       [](auto& c) { c.args.prefix_lens = c.Ints({-7, 1}); },
       {"0", "-7"}},
      {"prefix_lens absurd", kInvalid, "prefix_lens",
       [](auto& c) { c.args.prefix_lens = c.Ints({0, INT32_MAX}); }},
      {"prefix_lens between elements", kInvalid, "prefix_lens",
       [](auto& c) { c.args.prefix_lens = Shifted(c.args.prefix_lens, -1); }},

      {"mask nowhere", kInvalid, "mask.data", [](auto& c) { c.args.mask.data = nullptr; }},
      {"mask of another batch",
       kInvalid,
       "mask.batch",
       [](auto& c) { c.args.mask.batch = 2; },
       {"2", "4"}},
      {"mask of another length",
       kInvalid,
       "mask.length",
       [](auto& c) { c.args.mask.length = 5; },
       {"5", "6"}},
      {"mask of no length", kInvalid, "mask.length", [](auto& c) { c.args.mask.length = 0; }},
      {"mask of kv heads",
       kInvalid,
       "mask.heads",
       [](auto& c) { c.args.mask.heads = 2; },
       {"2", "4"}},
      {"mask without heads", kInvalid, "mask.heads", [](auto& c) { c.args.mask.heads = 0; }},
      {"mask of fewer keys",
       kInvalid,
       "mask.dim",
       [](auto& c) { c.args.mask.dim = 39; },
       {"39", "40"}},
      {"mask of negative dim", kInvalid, "mask.dim", [](auto& c) { c.args.mask.dim = -40; }},
      {"mask of absurd dim", kInvalid, "mask.dim", [](auto& c) { c.args.mask.dim = kHuge; }},
      {"mask beyond the address space", kInvalid, "mask",
       [](auto& c) { c.args.mask.length_stride = kHuge; }},
      {"mask below address 0", kInvalid, "mask",
       [](auto& c) { c.args.mask.dim_stride = INT64_MIN; }},

      {"block_mask without q_block",
       kInvalid,
       "block_mask.q_block",
       [](auto& c) { c.args.block_mask.q_block = 0; },
       {"0", "1"}},
      {"block_mask of negative q_block", kInvalid, "block_mask.q_block",
       [](auto& c) { c.args.block_mask.q_block = -4; }},
      {"block_mask without kv_block",
       kInvalid,
       "block_mask.kv_block",
       [](auto& c) { c.args.block_mask.kv_block = 0; },
       {"0", "1"}},
      {"block_mask of absurd kv_block", kInvalid, "block_mask.kv_block",
       [](auto& c) { c.args.block_mask.kv_block = INT64_MAX; }},
      {"block_mask nowhere", kInvalid, "block_mask.blocks.data",
       [](auto& c) { c.args.block_mask.blocks.data = nullptr; }},
      {"block_mask of another batch",
       kInvalid,
       "block_mask.blocks.batch",
       [](auto& c) { c.args.block_mask.blocks.batch = 1; },
       {"1", "4"}},
      {"block_mask of fewer blocks of queries",
       kInvalid,
       "block_mask.blocks.length",
       [](auto& c) { c.args.block_mask.blocks.length = 1; },
       {"1", "2"}},
      {"block_mask of larger blocks of queries",
       kInvalid,
       "block_mask.blocks.length",
       [](auto& c) { c.args.block_mask.q_block = 6; },
       {"2", "1"}},
      {"block_mask of kv heads",
       kInvalid,
       "block_mask.blocks.heads",
       [](auto& c) { c.args.block_mask.blocks.heads = 2; },
       {"2", "4"}},
      {"block_mask of fewer blocks of keys",
       kInvalid,
       "block_mask.blocks.dim",
       [](auto& c) { c.args.block_mask.blocks.dim = 2; },
       {"2", "3"}},
      {"block_mask of smaller blocks of keys",
       kInvalid,
       "block_mask.blocks.dim",
       [](auto& c) { c.args.block_mask.kv_block = 13; },
       {"3", "4"}},
      {"block_mask beyond the address space", kInvalid, "block_mask.blocks",
       [](auto& c) { c.args.block_mask.blocks.batch_stride = kHuge; }},
  });
}

TEST_CASE("Run refuses biases and sinks that contradict themselves or the call", "[status]") {
  CheckRichRunRefuses({
      {"bias of i8",
       kInvalid,
       "bias.dtype",
       [](auto& c) { c.args.bias.dtype = DType::kI8; },
       {"i8", "f32", "f16", "bf16"}},
      {"bias of no type",
       kInvalid,
       "bias.dtype",
       [](auto& c) { c.args.bias.dtype = kNoDType; },
       {"77"}},
      {"bias nowhere", kInvalid, "bias.data", [](auto& c) { c.args.bias.data = nullptr; }},
      {"bias between elements", kInvalid, "bias.data",
       [](auto& c) { c.args.bias.data = Shifted(c.args.bias.data, 1); }},
      {"bias stride between elements",
       kInvalid,
       "bias",
       [](auto& c) { c.args.bias.dim_stride = 1; },
       {"1", "2"}},
      {"bias with scales",
       kInvalid,
       "bias.scale.data",
       [](auto& c) { c.args.bias.scale = ScaleView::PerTensor(c.args.sinks); },
       {"f16"}},
      {"bias of another batch",
       kInvalid,
       "bias.batch",
       [](auto& c) { c.args.bias.batch = 1; },
       {"1", "4"}},
      {"bias of another length",
       kInvalid,
       "bias.length",
       [](auto& c) { c.args.bias.length = 7; },
       {"7", "6"}},
      {"bias of kv heads",
       kInvalid,
       "bias.heads",
       [](auto& c) { c.args.bias.heads = 2; },
       {"2", "4"}},
      {"bias of fewer keys",
       kInvalid,
       "bias.dim",
       [](auto& c) { c.args.bias.dim = 39; },
       {"39", "40"}},
      {"bias of absurd dim", kInvalid, "bias.dim", [](auto& c) { c.args.bias.dim = kHuge; }},
      {"bias beyond the address space", kInvalid, "bias",
       [](auto& c) { c.args.bias.batch_stride = kHuge - 1; }},

      {"no relative_bias for the plan's buckets",
       kInvalid,
       "relative_bias",
       [](auto& c) { c.args.relative_bias = nullptr; },
       {"null", "relative_buckets", "32"}},
      {"relative_bias without buckets",
       kInvalid,
       "relative_bias",
       [](auto& c) { Replan(c, [](auto& d) { d.relative_buckets = {}; }); },
       {"given", "relative_buckets", "0"}},
      {"relative_bias between elements", kInvalid, "relative_bias",
       [](auto& c) { c.args.relative_bias = Shifted(c.args.relative_bias, 2); }},
      {"alibi_slopes between elements", kInvalid, "alibi_slopes",
       [](auto& c) { c.args.alibi_slopes = Shifted(c.args.alibi_slopes, 3); }},
      {"sinks between elements",
       kInvalid,
       "sinks",
       [](auto& c) { c.args.sinks = Shifted(c.args.sinks, 1); },
       {"4"}},
  });
}

TEST_CASE("Run refuses further outputs that contradict themselves or the call", "[status]") {
  CheckRichRunRefuses({
      {"lse of f16",
       kInvalid,
       "lse.dtype",
       [](auto& c) { c.args.lse.dtype = DType::kF16; },
       {"f16", "f32"}},
      {"lse of i8", kInvalid, "lse.dtype", [](auto& c) { c.args.lse.dtype = DType::kI8; }},
      {"lse of no type", kInvalid, "lse.dtype", [](auto& c) { c.args.lse.dtype = kNoDType; }},
      {"lse nowhere", kInvalid, "lse.data", [](auto& c) { c.args.lse.data = nullptr; }},
      {"lse between elements", kInvalid, "lse.data",
       [](auto& c) { c.args.lse.data = Shifted(c.args.lse.data, 2); }},
      {"lse of another batch",
       kInvalid,
       "lse.batch",
       [](auto& c) { c.args.lse.batch = 2; },
       {"2", "4"}},
      {"lse of another length",
       kInvalid,
       "lse.length",
       [](auto& c) { c.args.lse.length = 5; },
       {"5", "6"}},
      {"lse of kv heads", kInvalid, "lse.heads", [](auto& c) { c.args.lse.heads = 2; }, {"2", "4"}},
      {"lse of two", kInvalid, "lse.dim", [](auto& c) { c.args.lse.dim = 2; }, {"2", "1"}},
      {"lse of none", kInvalid, "lse.dim", [](auto& c) { c.args.lse.dim = 0; }, {"0", "1"}},
      {"lse's heads on each other", kInvalid, "lse", [](auto& c) { c.args.lse.head_stride = 0; }},
      {"lse's queries on each other", kInvalid, "lse",
       [](auto& c) { c.args.lse.length_stride = 4; }},
      {"lse with scales", kInvalid, "lse.scale.data",
       [](auto& c) { c.args.lse.scale = ScaleView::PerTensor(c.args.sinks); }},

      {"weights without lse",
       kInvalid,
       "lse",
       [](auto& c) {
         c.args.lse = TensorView();
         c.args.mass = TensorView();
       },
       {"weights"}},
      {"mass without lse",
       kInvalid,
       "lse",
       [](auto& c) {
         c.args.lse = TensorView();
         c.args.weights = {};
       },
       {"mass"}},
      {"weights of i8",
       kInvalid,
       "weights.out.dtype",
       [](auto& c) { c.args.weights.out.dtype = DType::kI8; },
       {"i8", "f32", "f16", "bf16"}},
      {"weights of no type", kInvalid, "weights.out.dtype",
       [](auto& c) { c.args.weights.out.dtype = kNoDType; }},
      {"averages of f16",
       kInvalid,
       "weights.out.dtype",
       [](auto& c) {
         c.args.weights.average_heads = true;
         c.args.weights.out.dtype = DType::kF16;
         c.args.weights.out.heads = 1;
       },
       {"f16", "f32"}},
      {"weights nowhere", kInvalid, "weights.out.data",
       [](auto& c) { c.args.weights.out.data = nullptr; }},
      {"weights between elements", kInvalid, "weights.out.data",
       [](auto& c) { c.args.weights.out.data = Shifted(c.args.weights.out.data, 1); }},
      {"weights stride between elements", kInvalid, "weights.out",
       [](auto& c) { c.args.weights.out.length_stride += 2; }},
      {"weights of another batch",
       kInvalid,
       "weights.out.batch",
       [](auto& c) { c.args.weights.out.batch = 2; },
       {"2", "4"}},
      {"weights of another length",
       kInvalid,
       "weights.out.length",
       [](auto& c) { c.args.weights.out.length = 5; },
       {"5", "6"}},
      {"weights of all queries, but not of their length",
       kInvalid,
       "weights.out.length",
       [](auto& c) {
         c.args.weights.queries = nullptr;
         c.args.weights.num_queries = 0;
         c.args.weights.out.length = 3;
       },
       {"3", "6"}},
      {"weights of other heads",
       kInvalid,
       "weights.out.heads",
       [](auto& c) { c.args.weights.out.heads = 3; },
       {"3", "4"}},
      {"weights without heads", kInvalid, "weights.out.heads",
       [](auto& c) { c.args.weights.out.heads = 0; }},
      {"averages of several heads",
       kInvalid,
       "weights.out.heads",
       [](auto& c) { c.args.weights.average_heads = true; },
       {"4", "1"}},
      {"weights of fewer keys",
       kInvalid,
       "weights.out.dim",
       [](auto& c) { c.args.weights.out.dim = 39; },
       {"39", "40"}},
      {"weights of absurd dim", kInvalid, "weights.out.dim",
       [](auto& c) { c.args.weights.out.dim = kHuge; }},
      {"weights beyond the address space", kInvalid, "weights.out",
       [](auto& c) { c.args.weights.out.batch_stride = kHuge; }},
      {"weights' keys on each other", kInvalid, "weights.out",
       [](auto& c) { c.args.weights.out.dim_stride = 0; }},
      {"weights' queries on each other", kInvalid, "weights.out",
       [](auto& c) { c.args.weights.out.length_stride = 39 * 4; }},

      {"no head",
       kInvalid,
       "weights.num_heads",
       [](auto& c) { c.args.weights.num_heads = 0; },
       {"0", "1"}},
      {"negative number of heads",
       kInvalid,
       "weights.num_heads",
       [](auto& c) { c.args.weights.num_heads = -4; },
       {"-4"}},
      {"absurd number of heads", kInvalid, "weights.num_heads",
       [](auto& c) { c.args.weights.num_heads = kHuge; }},
      {"other number of heads",
       kInvalid,
       "weights.out.heads",
       [](auto& c) { c.args.weights.num_heads = 3; },
       {"4", "3"}},
      {"head 4",
       kInvalid,
       "weights.heads",
       [](auto& c) { c.args.weights.heads = c.Ints({0, 1, 4, 2}); },
       {"2", "4", "0", "3"}},
      {"head -1",
       kInvalid,
       "weights.heads",
       [](auto& c) { c.args.weights.heads = c.Ints({-1, 1, 3, 2}); },
       {"0", "-1", "3"}},
      {"heads between elements", kInvalid, "weights.heads",
       [](auto& c) { c.args.weights.heads = Shifted(c.args.weights.heads, 2); }},
      {"negative number of queries",
       kInvalid,
       "weights.num_queries",
       [](auto& c) { c.args.weights.num_queries = -6; },
       {"-6", "0"}},
      {"absurd number of queries", kInvalid, "weights.num_queries",
       [](auto& c) { c.args.weights.num_queries = INT64_MAX; }},
      {"no query",
       kInvalid,
       "weights.out.length",
       [](auto& c) { c.args.weights.num_queries = 0; },
       {"6", "0"}},
      {"query 6",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({0, 1, 2, 3, 4, 6}); },
       {"5", "6"}},
      {"query -1",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({-1, 1, 2, 3, 4, 5}); },
       {"0", "-1", "5"}},
      {"a query twice",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({0, 1, 1, 3, 4, 5}); },
       {"2", "1", "ascending"}},
      {"queries backwards",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({5, 4, 3, 2, 1, 0}); },
       {"ascending"}},
      {"queries between elements", kInvalid, "weights.queries",
       [](auto& c) { c.args.weights.queries = Shifted(c.args.weights.queries, 1); }},

      {"mass of f16",
       kInvalid,
       "mass.dtype",
       [](auto& c) { c.args.mass.dtype = DType::kF16; },
       {"f16", "f32"}},
      {"mass of no type", kInvalid, "mass.dtype", [](auto& c) { c.args.mass.dtype = kNoDType; }},
      {"mass nowhere", kInvalid, "mass.data", [](auto& c) { c.args.mass.data = nullptr; }},
      {"mass between elements", kInvalid, "mass.data",
       [](auto& c) { c.args.mass.data = Shifted(c.args.mass.data, 2); }},
      {"mass of another batch",
       kInvalid,
       "mass.batch",
       [](auto& c) { c.args.mass.batch = 3; },
       {"3", "4", "2"}},
      {"mass of queries",
       kInvalid,
       "mass.length",
       [](auto& c) {
         c.args.weights = {};
         c.args.mass = c.weights.view();
       },
       {"6", "1"}},
      {"mass of no length", kInvalid, "mass.length", [](auto& c) { c.args.mass.length = 0; }},
      {"mass of other heads",
       kInvalid,
       "mass.heads",
       [](auto& c) { c.args.mass.heads = 3; },
       {"3", "4", "2"}},
      {"mass of fewer keys",
       kInvalid,
       "mass.dim",
       [](auto& c) { c.args.mass.dim = 39; },
       {"39", "40"}},
      {"mass's keys on each other", kInvalid, "mass", [](auto& c) { c.args.mass.dim_stride = 0; }},
      {"mass's heads on each other", kInvalid, "mass",
       [](auto& c) { c.args.mass.head_stride = 4; }},
  });
}

// Each of the outputs on each of the inputs, on the workspace, and on each other.
TEST_CASE("Run refuses outputs and a workspace on other arguments", "[status]") {
  struct Place {
    const char* name;
    std::function<const void*(const RunCall&)> at;
  };
  const Place places[] = {
      {"q", [](const RunCall& c) { return c.args.q.data; }},
      {"k", [](const RunCall& c) { return c.args.k.data; }},
      {"v", [](const RunCall& c) { return c.args.v.data; }},
      {"q.scale", [](const RunCall& c) { return c.args.q.scale.data; }},
      {"k.scale", [](const RunCall& c) { return c.args.k.scale.data; }},
      {"v.scale", [](const RunCall& c) { return c.args.v.scale.data; }},
      {"out.scale", [](const RunCall& c) { return c.args.out.scale.data; }},
      {"kv_lens", [](const RunCall& c) { return c.args.kv_lens; }},
      {"prefix_lens", [](const RunCall& c) { return c.args.prefix_lens; }},
      {"mask", [](const RunCall& c) { return c.args.mask.data; }},
      {"block_mask", [](const RunCall& c) { return c.args.block_mask.blocks.data; }},
      {"bias", [](const RunCall& c) { return c.args.bias.data; }},
      {"relative_bias", [](const RunCall& c) { return c.args.relative_bias; }},
      {"alibi_slopes", [](const RunCall& c) { return c.args.alibi_slopes; }},
      {"sinks", [](const RunCall& c) { return c.args.sinks; }},
      {"weights.heads", [](const RunCall& c) { return c.args.weights.heads; }},
      {"weights.queries", [](const RunCall& c) { return c.args.weights.queries; }},
      {"out", [](const RunCall& c) { return c.args.out.data; }},
      {"lse", [](const RunCall& c) { return c.args.lse.data; }},
      {"weights.out", [](const RunCall& c) { return c.args.weights.out.data; }},
      {"mass", [](const RunCall& c) { return c.args.mass.data; }},
  };
  const struct {
    const char* name;
    std::function<void(RunCall&, void*)> move;
  } outputs[] = {
      {"out", [](RunCall& c, void* to) { c.args.out.data = to; }},
      {"lse", [](RunCall& c, void* to) { c.args.lse.data = to; }},
      {"weights.out", [](RunCall& c, void* to) { c.args.weights.out.data = to; }},
      {"mass", [](RunCall& c, void* to) { c.args.mass.data = to; }},
      {"workspace",
       [](RunCall& c, void* to) {
         // Its first aligned byte at or before the place; what is needed reaches further.
         const uintptr_t address = reinterpret_cast<uintptr_t>(to) / 64 * 64;
         c.workspace.data = reinterpret_cast<void*>(address);
       }},
  };
  Case int8 = ValidI8Case();
  int8.features.lse = true;
  const Case c = GENERATE_COPY(RichCase(), int8);
  // Less than a page, which is what lies between two buffers.
  const auto prepare = [](RunCall& call) {
    AskForWeights(call);
    call.args.weights.num_heads = call.args.weights.num_queries = 2;
    call.args.weights.out = TensorView::Dense(call.weights.view().data, DType::kF32, 4, 2, 2, 40);
  };
  RunCall valid({BestTier(), Precision::kI8}, c);
  prepare(valid);
  std::vector<Mistake<RunCall>> mistakes;
  std::deque<std::string> names;
  for (const auto& output : outputs) {
    for (const Place& place : places) {
      if (std::string(output.name) == place.name || place.at(valid) == nullptr) continue;
      names.push_back(std::string(output.name) + " on " + place.name);
      mistakes.push_back({names.back().c_str(), kInvalid, output.name, [=](RunCall& c) {
                            void* at = const_cast<void*>(place.at(c));
                            // Elements of the mask may lie anywhere.
                            const uintptr_t aligned = reinterpret_cast<uintptr_t>(at) / 4 * 4;
                            output.move(c, reinterpret_cast<void*>(aligned));
                          }});
      // The workspace's begin may lie on another array: it is the first of them that is named.
      if (std::string(output.name) != "workspace") mistakes.back().said = {place.name};
    }
  }
  CheckRunRefuses({BestTier(), Precision::kI8}, mistakes, c, prepare);
}

// Sequences of 1, 3 and 2 queries, and of 9, 20 and 11 keys.
Case RaggedCase() {
  Case c = RichCase();
  c.kv_batch = c.beams = 1;
  c.features.q_indptr = {0, 1, 4, 6};
  c.features.kv_indptr = {0, 9, 29, 40};
  c.features.kv_lens = {9, 15, 0};
  c.features.prefix_lens = {1, 2, 3};
  c.features.q_block = 2;
  return c;
}

TEST_CASE("Run refuses ragged batches that contradict themselves", "[status]") {
  const auto prepare = [](RunCall& c) {
    c.args.weights.out = c.weights.view();
    c.args.weights.out.length = 4;
    c.args.weights.out.dim = 20;
    c.args.weights.queries = c.Ints({0, 2, 3, 5});
    c.args.weights.num_queries = 4;
    c.args.mass = TensorView::Dense(c.mass.view().data, DType::kF32, 3, 1, 2, 20);
  };
  const std::vector<Mistake<RunCall>> mistakes = {
      {"negative number of sequences",
       kInvalid,
       "num_sequences",
       [](auto& c) { c.args.num_sequences = -1; },
       {"-1", "0"}},
      {"absurd number of sequences", kInvalid, "num_sequences",
       [](auto& c) { c.args.num_sequences = INT64_MAX; }},
      {"sequences beyond the plan",
       kCapacity,
       "num_sequences",
       [](auto& c) { c.args.num_sequences = 4; },
       {"4", "max_batch", "3"}},
      {"q_indptr without sequences",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.num_sequences = 0; },
       {"num_sequences", "0"}},
      {"kv_indptr without sequences",
       kInvalid,
       "kv_indptr",
       [](auto& c) {
         c.args.num_sequences = 0;
         c.args.q_indptr = nullptr;
       },
       {"num_sequences"}},
      {"no q_indptr",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = nullptr; },
       {"null", "num_sequences", "3"}},
      {"q of several batch entries",
       kInvalid,
       "q.batch",
       [](auto& c) {
         c.args.q.batch = c.args.out.batch = c.args.lse.batch = 3;
         c.args.q.length = c.args.out.length = c.args.lse.length = 2;
       },
       {"3", "1"}},
      {"q_indptr begins behind 0",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({1, 1, 4, 6}); },
       {"0", "1"}},
      {"q_indptr begins before 0",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({-1, 1, 4, 6}); },
       {"-1"}},
      {"q_indptr falls",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 3, 2, 6}); },
       {"2", "3"}},
      {"q_indptr falls below 0", kInvalid, "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 1, INT32_MIN, 6}); }},
      {"q_indptr ends early",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 1, 4, 5}); },
       {"3", "5", "q.length", "6"}},
      {"q_indptr ends late",
       kInvalid,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 1, 4, 7}); },
       {"7", "6"}},
      {"q_indptr with more queries than the plan's",
       kCapacity,
       "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 1, 1, 6}); },
       {"2", "5", "max_q_len", "3"}},
      {"q_indptr absurd", kCapacity, "q_indptr",
       [](auto& c) { c.args.q_indptr = c.Ints({0, 1, 4, INT32_MAX}); }},
      {"q_indptr between elements", kInvalid, "q_indptr",
       [](auto& c) { c.args.q_indptr = Shifted(c.args.q_indptr, 2); }},
      {"kv_indptr begins behind 0", kInvalid, "kv_indptr",
       [](auto& c) { c.args.kv_indptr = c.Ints({1, 9, 29, 40}); }},
      {"kv_indptr falls",
       kInvalid,
       "kv_indptr",
       [](auto& c) { c.args.kv_indptr = c.Ints({0, 9, 8, 40}); },
       {"8", "9"}},
      {"kv_indptr ends early",
       kInvalid,
       "kv_indptr",
       [](auto& c) { c.args.kv_indptr = c.Ints({0, 9, 29, 39}); },
       {"39", "k.length", "40"}},
      {"kv_indptr ends late",
       kInvalid,
       "kv_indptr",
       [](auto& c) { c.args.kv_indptr = c.Ints({0, 9, 29, 41}); },
       {"41", "40"}},
      {"kv_indptr with more keys than the plan's",
       kCapacity,
       "kv_indptr",
       [](auto& c) { c.args.kv_indptr = c.Ints({0, 9, 30, 40}); },
       {"1", "21", "max_kv_len", "20"}},
      {"kv_indptr between elements", kInvalid, "kv_indptr",
       [](auto& c) { c.args.kv_indptr = Shifted(c.args.kv_indptr, 1); }},
      {"k of several batch entries",
       kInvalid,
       "k.batch",
       [](auto& c) {
         c.args.k.batch = c.args.v.batch = 2;
         c.args.k.length = c.args.v.length = 20;
       },
       {"2", "1", "kv_indptr"}},
      {"neither kv_indptr nor a batch entry for each sequence",
       kInvalid,
       "num_sequences",
       [](auto& c) {
         c.args.kv_indptr = nullptr;
         c.args.k.length = c.args.v.length = 20;
       },
       {"3", "1"}},
      {"kv_indptr beside a memory",
       kInvalid,
       "kv_indptr",
       [](auto& c) {
         c.args.k = c.args.v = ConstTensorView();
         c.args.memory = &c.memory;
       },
       {"memory"}},
      {"kv_indptr beside a cache",
       kInvalid,
       "kv_indptr",
       [](auto& c) {
         c.args.k = c.args.v = ConstTensorView();
         c.args.cache = &c.cache;
       },
       {"cache"}},
      {"block_mask of one batch entry",
       kInvalid,
       "block_mask.blocks.batch",
       [](auto& c) { c.args.block_mask.blocks.batch = 1; },
       {"1", "3", "num_sequences"}},
      {"block_mask of fewer blocks than the longest sequence's",
       kInvalid,
       "block_mask.blocks.length",
       [](auto& c) { c.args.block_mask.blocks.length = 1; },
       {"1", "2", "longest sequence"}},
      {"block_mask of the blocks of all queries",
       kInvalid,
       "block_mask.blocks.length",
       [](auto& c) { c.args.block_mask.blocks.length = 3; },
       {"3", "2"}},
      {"block_mask of fewer keys than the longest sequence's",
       kInvalid,
       "block_mask.blocks.dim",
       [](auto& c) { c.args.block_mask.blocks.dim = 1; },
       {"1", "2"}},
      {"block_mask without q_block", kInvalid, "block_mask.q_block",
       [](auto& c) { c.args.block_mask.q_block = 0; }},
      {"kv_lens beyond a sequence",
       kInvalid,
       "kv_lens",
       [](auto& c) { c.args.kv_lens = c.Ints({10, 20, 11}); },
       {"0", "10", "9"}},
      {"mask shorter than the longest sequence",
       kInvalid,
       "mask.dim",
       [](auto& c) { c.args.mask.dim = 19; },
       {"19", "20"}},
      {"bias shorter than the longest sequence",
       kInvalid,
       "bias.dim",
       [](auto& c) { c.args.bias.dim = 19; },
       {"19", "20"}},
      {"weights shorter than the longest sequence",
       kInvalid,
       "weights.out.dim",
       [](auto& c) { c.args.weights.out.dim = 19; },
       {"19", "20"}},
      {"weights of a query behind all sequences",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({0, 2, 3, 6}); },
       {"3", "6", "4", "5"}},
      {"weights of queries that count in each sequence",
       kInvalid,
       "weights.queries",
       [](auto& c) { c.args.weights.queries = c.Ints({0, 0, 2, 1}); },
       {"1", "0", "5", "ascending"}},
      {"weights of all queries where some are listed",
       kInvalid,
       "weights.out.length",
       [](auto& c) { c.args.weights.out.length = 6; },
       {"6", "4"}},
      {"mass of one batch entry",
       kInvalid,
       "mass.batch",
       [](auto& c) { c.args.mass.batch = 1; },
       {"1", "3"}},
      {"mass shorter than the longest sequence",
       kInvalid,
       "mass.dim",
       [](auto& c) { c.args.mass.dim = 19; },
       {"19", "20"}},
      {"out on q_indptr",
       kInvalid,
       "out",
       [](auto& c) { c.args.out.data = const_cast<int32_t*>(c.args.q_indptr); },
       {"q_indptr"}},
      {"mass on kv_indptr",
       kInvalid,
       "mass",
       [](auto& c) { c.args.mass.data = const_cast<int32_t*>(c.args.kv_indptr); },
       {"kv_indptr"}},
      {"workspace on q_indptr", kInvalid, "workspace",
       [](auto& c) {
         const uintptr_t address = reinterpret_cast<uintptr_t>(c.args.q_indptr) / 64 * 64;
         c.workspace.data = reinterpret_cast<void*>(address);
       }},
  };
  CheckRunRefuses({BestTier(), Precision::kI8}, mistakes, RaggedCase(), prepare);
}

// Scales are inputs like any others.
TEST_CASE("tensors may share scales", "[status]") {
  Case c = ValidI8Case();
  c.q_scales = c.k_scales = c.v_scales = c.out_scales = kPerTensor;
  const Problem problem(c, 6);
  const Setup setup = {BestTier(), Precision::kI8};
  const Tensor expected = Attend(problem, setup);
  Plan plan;
  AttentionDesc desc = DescOf(c, setup);
  desc.owns_workspace = true;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  const Tensor out = problem.NewOut();
  AttentionArgs args = TensorArgs(problem, out);
  args.k.scale = args.v.scale = args.out.scale = args.q.scale;
  REQUIRE_THAT(Run(plan, args), IsOk());
  CHECK_THAT(out, Equals(expected));  // all have the same value
}

// Of the bytes that the caller lends, workspace_bytes() are used; `out` may lie in the rest.
TEST_CASE("out may lie in what the plan leaves of an arena", "[status]") {
  const Problem problem(ValidCase(), 5);
  for (const Precision precision : kPrecisions) {
    const Setup setup = {BestTier(), precision};
    const Tensor expected = Attend(problem, setup);
    Plan plan;
    REQUIRE_THAT(Plan::Create(DescOf(problem.c, setup), &plan), IsOk());
    const int64_t needed = static_cast<int64_t>(plan.workspace_bytes());
    REQUIRE(needed > 0);
    REQUIRE(needed % 4 == 0);
    const int64_t out_bytes = expected.dims().NumElements() * 4;
    const int64_t before = static_cast<int64_t>(
        internal::RoundUp(static_cast<size_t>(out_bytes), Workspace::kAlignmentBytes));
    GuardedBuffer arena(static_cast<size_t>(before + needed + out_bytes), Placement::kAtFront);

    const size_t exactly = plan.workspace_bytes();
    const size_t to_the_end = static_cast<size_t>(needed + out_bytes);
    const struct {
      const char* what;
      int64_t out_at;  // bytes from the workspace's begin
      size_t bytes;
      bool ok;
    } cases[] = {
        {"at the first byte", 0, exactly, false},
        {"at the first byte of all memory", 0, SIZE_MAX, false},
        {"inside the arena's first bytes", 64, to_the_end, false},
        {"at the last element", needed - 4, exactly, false},
        {"at the last element of an arena's part", needed - 4, to_the_end, false},
        {"at the last element of all memory's part", needed - 4, SIZE_MAX, false},
        {"onto the first element", 4 - out_bytes, exactly, false},
        {"onto the first element of all memory", 4 - out_bytes, SIZE_MAX, false},
        {"right behind", needed, exactly, true},
        {"in the rest of an arena", needed, to_the_end, true},
        {"in the rest of all memory", needed, SIZE_MAX, true},
        {"right before", -out_bytes, exactly, true},
        {"right before all memory", -out_bytes, SIZE_MAX, true},
    };
    for (const auto& c : cases) {
      arena.Fill(GuardedBuffer::kFillByte);
      unsigned char* const workspace = arena.data() + before;
      AttentionArgs args = TensorArgs(problem, expected);
      args.out.data = workspace + c.out_at;
      const Status status = Run(plan, args, {workspace, c.bytes});
      INFO("out " << c.what << ", " << Name(precision));
      if (c.ok) {
        CHECK_THAT(status, IsOk());
        CHECK(memcmp(args.out.data, expected.view().data, static_cast<size_t>(out_bytes)) == 0);
      } else {
        CHECK_THAT(status, IsError(kInvalid, "out"));
        CHECK_THAT(status, IsError(kInvalid, "workspace"));
        CHECK(std::all_of(arena.data(), arena.data() + arena.size(),
                          [](unsigned char byte) { return byte == GuardedBuffer::kFillByte; }));
      }
    }
  }
}

TEST_CASE("Run refuses memories and caches made for something else", "[status]") {
  const struct {
    Source source;
    const char* name;
  } sources[] = {{Source::kMemory, "memory"}, {Source::kCache, "cache"}};
  for (const auto& source : sources) {
    const char* name = source.name;
    std::vector<Mistake<RunCall>> mistakes = {
        {"other precision", kInvalid, "precision",
         [](auto& c) { Replan(c, [](auto& d) { d.precision = Precision::kF16; }); }},
        {"other kv heads", kInvalid, "num_kv_heads",
         [](auto& c) { Replan(c, [](auto& d) { d.num_kv_heads = 4; }); }},
        {"other head_dim", kInvalid, "head_dim",
         [](auto& c) {
           Replan(c, [](auto& d) { d.head_dim = 7; });
           c.args.q.dim = 7;
         }},
        {"other v_head_dim", kInvalid, "v_head_dim",
         [](auto& c) {
           Replan(c, [](auto& d) { d.v_head_dim = 11; });
           c.args.out.dim = 11;
         }},
        {"batch not divisible", kInvalid, "q",
         [](auto& c) { c.args.q.batch = c.args.out.batch = 3; }},
        {"workspace nowhere", kInvalid, "workspace",
         [](auto& c) { c.workspace = {nullptr, 1 << 20}; }},
    };
    if (source.source == Source::kMemory) {  // nobody knows where a cache's pages are
      mistakes.push_back({"out inside its storage", kInvalid, "out", [](RunCall& c) {
                            c.args.out.data = KvAccess::Get(c.memory)->keys(0).heads;
                          }});
    }
    INFO(name);
    for (const Precision precision : {Precision::kF32, Precision::kI8}) {
      CheckRunRefuses({BestTier(), precision, source.source}, mistakes);
    }
  }
}

TEST_CASE("Run refuses the layout of another version", "[status]") {
  CheckRunRefuses({BestTier(), Precision::kI8, Source::kMemory},
                  {{"layout version", kUnsupported, "version", [](RunCall& c) {
                      const Problem problem(ValidCase(), 1);
                      // A memory of its own: the valid one must stay so.
                      c.empty_memory = MemoryOf(problem, c.setup);
                      KvAccess::Mutable(c.empty_memory)->geometry().layout_version =
                          internal::kLayoutVersion + 1;
                      c.args.memory = &c.empty_memory;
                    }}});
}

// K as it was stored has to meet Q as the plan treats it.
TEST_CASE("Run refuses rotated K where the plan does not rotate, and the reverse", "[status]") {
  for (const Source source : {Source::kMemory, Source::kCache}) {
    Setup setup = {BestTier(), Precision::kI8, source};
    for (const bool rotate_k : {false, true}) {
      setup.rotate_k = rotate_k;
      INFO("source " << static_cast<int>(source) << ", rotate_k " << rotate_k);
      CheckRunRefuses(setup, {{"other rotation", kInvalid, "rotate_k", [rotate_k](RunCall& c) {
                                 Replan(c, [rotate_k](auto& d) { d.rotate_k = !rotate_k; });
                               }}});
    }
  }
  Setup rotated = {BestTier(), Precision::kI8};
  rotated.rotate_k = true;
  const Problem problem(ValidCase(), 1);
  CHECK(MemoryOf(problem, rotated).rotate_k());
  CHECK(CacheOf(problem, rotated).rotate_k());
  rotated.rotate_k = false;
  CHECK_FALSE(MemoryOf(problem, rotated).rotate_k());
  CHECK_FALSE(CacheOf(problem, rotated).rotate_k());
  CHECK_FALSE(CrossMemory().rotate_k());
  CHECK_FALSE(KvCache().rotate_k());
}

// A layout is what counts, not the name of the tier that wrote it.
TEST_CASE("tiers read each other's memories if the layout is theirs", "[status]") {
  const Problem problem(ValidCase(), 2);
  for (const Precision precision : kPrecisions) {
    for (const char* reader : SupportedTiers()) {
      const Setup setup = {reader, precision, Source::kMemory};
      Plan plan;
      AttentionDesc desc = DescOf(problem.c, setup);
      desc.owns_workspace = true;
      REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
      const CrossMemory own = MemoryOf(problem, setup);
      const Tensor expected = Attend(problem, setup);
      for (const char* writer : SupportedTiers()) {
        INFO(Name(precision) << ", written by " << writer << ", read by " << reader);
        const CrossMemory memory = MemoryOf(problem, {writer, precision});
        Tensor out = problem.NewOut();
        AttentionArgs args;
        args.q = problem.q.view();
        args.out = out.view();
        args.memory = &memory;
        const Status status = Run(plan, args);
        if (KvAccess::Get(memory)->geometry().layout == KvAccess::Get(own)->geometry().layout) {
          CHECK_THAT(status, IsOk());
          CHECK_THAT(out, Equals(expected));
        } else {
          CHECK_THAT(status, IsError(kUnsupported, "layout"));
          CHECK(out.IsWiped());
        }
      }
    }
  }
}

// Counts that 32 bits hold, and products of them that they do not: at home in 64 bits, refused
// in 32.
TEST_CASE("products of counts that 32 bits cannot count", "[status]") {
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = desc.max_batch = 1 << 16;
  desc.head_dim = 8;
  desc.max_kv_len = 64;
  desc.max_q_len = 1;
  desc.owns_workspace = false;
  Plan plan;
  const Status planned = Plan::Create(desc, &plan);
  if (kIs64Bit) {
    CHECK_THAT(planned, IsOk());
    CHECK(plan.workspace_bytes() > uint64_t{1} << 32);
  } else {
    CHECK_THAT(planned, IsError(kInvalid, "address space"));
  }

  const auto bytes_of = [](int64_t batch, int64_t kv_len, int64_t heads) {
    CrossMemoryDesc memory;
    memory.batch = batch;
    memory.kv_len = kv_len;
    memory.num_kv_heads = heads;
    memory.head_dim = 512;
    size_t bytes = 0;
    const Status status = CrossMemory::Bytes(memory, &bytes);
    if (!kIs64Bit) CHECK_THAT(status, IsError(kInvalid, "address space"));
    return uint64_t{bytes};
  };
  const uint64_t expected[] = {bytes_of(1, 1 << 20, 1), bytes_of(1 << 16, 1, 1 << 16),
                               bytes_of(1 << 30, 0, 1)};
  for (const uint64_t bytes : expected) CHECK((bytes > UINT32_MAX) == kIs64Bit);

  // Pages of 2^48 bytes: where they cannot be counted they are not there either.
  KvCacheDesc cache_desc;
  cache_desc.num_kv_heads = 1 << 20;
  cache_desc.head_dim = 512;
  cache_desc.page_tokens = cache_desc.capacity = 65536;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(cache_desc, &cache), IsOk());
  std::vector<float> row(512);
  ConstTensorView token = ConstTensorView::Dense(row.data(), DType::kF32, 1, 1, 1, 512);
  token.heads = 1 << 20;
  token.head_stride = 0;
  CHECK_THAT(cache.Append(token, token), IsError(kOutOfMemory, "page"));
}

// ---- CrossMemory::Create ----------------------------------------------------------------------

struct MemoryCall {
  ConstTensorView k, v;
  KvFormat format;
  ParallelFor parallel;
};

TEST_CASE("CrossMemory::Create refuses", "[status]") {
  const std::vector<Mistake<MemoryCall>> mistakes = {
      {"null k", kInvalid, "k", [](auto& c) { c.k.data = nullptr; }},
      {"null v", kInvalid, "v", [](auto& c) { c.v.data = nullptr; }},
      {"nothing", kInvalid, "k", [](auto& c) { c.k = c.v = ConstTensorView(); }},
      {"no such dtype of k", kInvalid, "k", [](auto& c) { c.k.dtype = kNoDType; }},
      {"no such dtype of v", kInvalid, "v", [](auto& c) { c.v.dtype = kNoDType; }},
      {"negative length", kInvalid, "k", [](auto& c) { c.k.length = c.v.length = -1; }},
      {"no heads", kInvalid, "k", [](auto& c) { c.k.heads = c.v.heads = 0; }},
      {"head_dim 0", kInvalid, "k", [](auto& c) { c.k.dim = 0; }},
      {"head_dim 513", kInvalid, "k", [](auto& c) { c.k.dim = 513; }},
      {"v_head_dim 0", kInvalid, "v", [](auto& c) { c.v.dim = 0; }},
      {"v_head_dim 513", kInvalid, "v", [](auto& c) { c.v.dim = 513; }},
      {"int8 k without scales", kInvalid, "k", [](auto& c) { c.k.dtype = DType::kI8; }},
      {"scales of a float v", kInvalid, "v",
       [](auto& c) { c.v.scale.data = static_cast<const float*>(c.v.data); }},
      {"other batch", kInvalid, "v", [](auto& c) { c.v.batch = 1; }},
      {"other length", kInvalid, "v", [](auto& c) { c.v.length = 39; }},
      {"other heads", kInvalid, "v", [](auto& c) { c.v.heads = 1; }},
      {"k stride between elements", kInvalid, "k", [](auto& c) { c.k.length_stride += 2; }},
      {"v stride between elements", kInvalid, "v", [](auto& c) { c.v.dim_stride = 1; }},
      {"k data between elements", kInvalid, "k", [](auto& c) { c.k.data = Shifted(c.k.data, 1); }},
      {"v beyond the address space", kInvalid, "v", [](auto& c) { c.v.length_stride = kHuge; }},
      {"no such precision", kInvalid, "precision",
       [](auto& c) { c.format.precision = kNoPrecision; }},
      {"rotated f16", kInvalid, "rotate_k",
       [](auto& c) { c.format = {Precision::kF16, BestTier(), true}; }},
      {"rotated i8_fine", kInvalid, "rotate_k",
       [](auto& c) { c.format = {Precision::kI8Fine, BestTier(), true}; }},
      {"no such tier", kInvalid, "tier", [](auto& c) { c.format.tier = "abacus"; }},
      {"no workers", kInvalid, "num_workers", [](auto& c) { c.parallel.num_workers = 0; }},
      {"workers that nobody runs", kInvalid, "run", [](auto& c) { c.parallel.num_workers = 2; }},
      {"more memory than there is", kOutOfMemory, "bytes",
       [](auto& c) {
         // The same key again and again, 2^30 times for each of 2^14 sequences, or 3 GB.
         c.k.batch = c.v.batch = kManySequences;
         c.k.length = c.v.length = ManyKeys(1 << 24);
         c.k.batch_stride = c.v.batch_stride = c.k.length_stride = c.v.length_stride = 0;
       }},
  };
  const Problem problem(ValidCase(), 3);
  const MemoryCall valid = {problem.k.view(), problem.v.view(), {Precision::kI8, BestTier()}, {}};
  CrossMemory memory;
  REQUIRE_THAT(CrossMemory::Create(valid.k, valid.v, valid.format, &memory), IsOk());
  const internal::PackedKv* before = KvAccess::Get(memory);
  for (const auto& mistake : mistakes) {
    MemoryCall call = valid;
    mistake.spoil(call);
    INFO(mistake.what);
    CHECK_THAT(CrossMemory::Create(call.k, call.v, call.format, &memory, call.parallel),
               IsError(mistake.code, mistake.named));
    CHECK(KvAccess::Get(memory) == before);
  }
  CHECK_THAT(CrossMemory::Create(valid.k, valid.v, valid.format, nullptr),
             IsError(kInvalid, "memory"));

  // Without tokens there is nothing to scale.
  ConstTensorView no_keys = ConstTensorView::Dense(nullptr, DType::kI8, 2, 0, 2, 8);
  CHECK_THAT(CrossMemory::Create(no_keys, no_keys, valid.format, &memory), IsOk());
  CHECK(memory.kv_len() == 0);
}

// ---- KvCache ----------------------------------------------------------------------------------

KvCacheDesc ValidCacheDesc() {
  const Case c = ValidCase();
  KvCacheDesc desc;
  desc.batch = c.kv_batch;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.capacity = 50;
  desc.format = {Precision::kI8, BestTier()};
  return desc;
}

TEST_CASE("KvCache::Create refuses", "[status]") {
  const std::vector<Mistake<KvCacheDesc>> mistakes = {
      {"no batch", kInvalid, "batch", [](auto& d) { d.batch = 0; }},
      {"negative batch", kInvalid, "batch", [](auto& d) { d.batch = -1; }},
      {"no kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 0; }},
      {"negative kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = -1; }},
      {"head_dim 0", kInvalid, "head_dim", [](auto& d) { d.head_dim = 0; }},
      {"head_dim 513", kInvalid, "head_dim", [](auto& d) { d.head_dim = 513; }},
      {"head_dim absurd, own pages", kInvalid, "head_dim",
       [](auto& d) {
         d.head_dim = INT64_MAX;
         d.page_tokens = 0;
         d.capacity = 1 << 20;
       }},
      {"v_head_dim -1", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = -1; }},
      {"v_head_dim 513", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = 513; }},
      {"negative capacity", kInvalid, "capacity", [](auto& d) { d.capacity = -1; }},
      {"absurd capacity", kInvalid, "capacity", [](auto& d) { d.capacity = kHuge; }},
      {"no such precision", kInvalid, "precision",
       [](auto& d) { d.format.precision = kNoPrecision; }},
      {"rotated f16", kInvalid, "rotate_k",
       [](auto& d) { d.format = {Precision::kF16, BestTier(), true}; }},
      {"rotated i8_fine", kInvalid, "rotate_k",
       [](auto& d) { d.format = {Precision::kI8Fine, BestTier(), true}; }},
      {"no such tier", kInvalid, "tier", [](auto& d) { d.format.tier = "abacus"; }},
      {"window_left -2", kInvalid, "window_left", [](auto& d) { d.window_left = -2; }},
      {"sinks without a window", kInvalid, "num_sinks", [](auto& d) { d.num_sinks = 4; }},
      {"negative sinks", kInvalid, "num_sinks",
       [](auto& d) {
         d.window_left = 9;
         d.num_sinks = -1;
       }},
      {"pages of 100", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = 100; }},
      {"pages of -128", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = -128; }},
      {"pages of 2^20", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = 1 << 20; }},
  };
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(ValidCacheDesc(), &cache), IsOk());
  const internal::PackedKv* before = KvAccess::Get(cache);
  for (const auto& mistake : mistakes) {
    KvCacheDesc desc = ValidCacheDesc();
    mistake.spoil(desc);
    INFO(mistake.what);
    CHECK_THAT(KvCache::Create(desc, &cache), IsError(mistake.code, mistake.named));
    CHECK(KvAccess::Get(cache) == before);
  }
  CHECK_THAT(KvCache::Create(ValidCacheDesc(), nullptr), IsError(kInvalid, "cache"));
}

TEST_CASE("KvCache::Append refuses and leaves the cache as it was", "[status]") {
  const std::vector<Mistake<MemoryCall>> mistakes = {
      {"beyond the capacity", kCapacity, "k", [](auto& c) { c.k.length = c.v.length = 21; }},
      {"null k", kInvalid, "k", [](auto& c) { c.k.data = nullptr; }},
      {"null v", kInvalid, "v", [](auto& c) { c.v.data = nullptr; }},
      {"negative length", kInvalid, "k", [](auto& c) { c.k.length = c.v.length = -1; }},
      {"other length", kInvalid, "v", [](auto& c) { c.v.length -= 1; }},
      {"other batch", kInvalid, "k", [](auto& c) { c.k.batch = c.v.batch = 1; }},
      {"no batch", kInvalid, "k", [](auto& c) { c.k.batch = c.v.batch = 0; }},
      {"other heads", kInvalid, "k", [](auto& c) { c.k.heads = c.v.heads = 1; }},
      {"other head_dim", kInvalid, "k", [](auto& c) { c.k.dim = 7; }},
      {"other v_head_dim", kInvalid, "v", [](auto& c) { c.v.dim = 11; }},
      {"no such dtype", kInvalid, "k", [](auto& c) { c.k.dtype = kNoDType; }},
      {"scales of a float k", kInvalid, "k",
       [](auto& c) { c.k.scale.data = static_cast<const float*>(c.k.data); }},
      {"int8 v without scales", kInvalid, "v", [](auto& c) { c.v.dtype = DType::kI8; }},
      {"stride between elements", kInvalid, "v", [](auto& c) { c.v.head_stride += 1; }},
      {"data between elements", kInvalid, "k", [](auto& c) { c.k.data = Shifted(c.k.data, 1); }},
      {"no workers", kInvalid, "num_workers", [](auto& c) { c.parallel.num_workers = 0; }},
  };
  const Problem problem(ValidCase(), 4);
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(ValidCacheDesc(), &cache), IsOk());
  REQUIRE_THAT(cache.Append(problem.k.Slice(0, 30), problem.v.Slice(0, 30)), IsOk());
  const internal::PackedKv& packed = *KvAccess::Get(cache);
  const std::vector<unsigned char> before = PackedBytes(packed);
  const MemoryCall valid = {problem.k.Slice(30, 40), problem.v.Slice(30, 40), {}, {}};
  for (const auto& mistake : mistakes) {
    MemoryCall call = valid;
    mistake.spoil(call);
    INFO(mistake.what);
    CHECK_THAT(cache.Append(call.k, call.v, call.parallel), IsError(mistake.code, mistake.named));
    CHECK(cache.length() == 30);
    CHECK(PackedBytes(packed) == before);
  }
  CHECK_THAT(cache.Append(valid.k, valid.v), IsOk());
  CHECK(cache.length() == 40);
  CHECK_THAT(cache.Append(problem.k.Slice(0, 10), problem.v.Slice(0, 10)), IsOk());
  CHECK(cache.length() == cache.capacity());
  CHECK_THAT(cache.Append(problem.k.Slice(0, 0), problem.v.Slice(0, 0)), IsOk());
  CHECK_THAT(cache.Append(problem.k.Slice(0, 1), problem.v.Slice(0, 1)), IsError(kCapacity, "k"));
  CHECK(cache.length() == 50);

  KvCache empty;
  CHECK_THAT(empty.Append(valid.k, valid.v), IsError(kInvalid, "cache"));
  CHECK(empty.length() == 0);
  empty.Clear();
  CHECK(empty.empty());
}

// ---- Pools and what changes caches ------------------------------------------------------------

KvPoolDesc ValidPoolDesc() {
  const Case c = ValidCase();
  KvPoolDesc desc;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.format = {Precision::kI8, BestTier()};
  desc.max_pages = 5;
  return desc;
}

TEST_CASE("KvPool::Create refuses", "[status]") {
  const std::vector<Mistake<KvPoolDesc>> mistakes = {
      {"no kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 0; }},
      {"head_dim 0", kInvalid, "head_dim", [](auto& d) { d.head_dim = 0; }, {"0", "512"}},
      {"head_dim 513", kInvalid, "head_dim", [](auto& d) { d.head_dim = 513; }, {"513", "512"}},
      {"v_head_dim -1", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = -1; }},
      {"v_head_dim 513", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = 513; }},
      {"negative pages", kInvalid, "max_pages", [](auto& d) { d.max_pages = -1; }},
      {"absurd pages", kInvalid, "max_pages", [](auto& d) { d.max_pages = kHuge; }},
      {"pages of 0",
       kInvalid,
       "page_tokens",
       [](auto& d) { d.page_tokens = 0; },
       {"0", "128", "65536"}},
      {"pages of 64", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = 64; }, {"64"}},
      {"pages of 2^17", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = 1 << 17; }},
      {"no such precision", kInvalid, "precision",
       [](auto& d) { d.format.precision = kNoPrecision; }},
      {"rotated f16", kInvalid, "rotate_k",
       [](auto& d) { d.format = {Precision::kF16, BestTier(), true}; }},
      {"no such tier", kInvalid, "tier", [](auto& d) { d.format.tier = "abacus"; }},
      {"more memory than there is", kOutOfMemory, "pages",
       [](auto& d) {
         d.max_pages = int64_t{1} << 30;
         d.page_tokens = 65536;
         d.head_dim = d.v_head_dim = 512;
         d.num_kv_heads = 1 << 20;
         d.preallocate = true;
       }},
  };
  KvPool pool;
  CHECK(pool.empty());
  CHECK(pool.max_pages() == 0);
  CHECK(pool.page_bytes() == 0);
  REQUIRE_THAT(KvPool::Create(ValidPoolDesc(), &pool), IsOk());
  for (const auto& mistake : mistakes) {
    KvPoolDesc desc = ValidPoolDesc();
    mistake.spoil(desc);
    INFO(mistake.what);
    const Status status = KvPool::Create(desc, &pool);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(pool.max_pages() == 5);
    CHECK(pool.page_tokens() == 256);
    CHECK(pool.pages_in_use() == 0);
  }
  CHECK_THAT(KvPool::Create(ValidPoolDesc(), nullptr), IsError(kInvalid, "pool"));
}

TEST_CASE("KvCache::Create refuses what a pool has already", "[status]") {
  KvPool pool;
  REQUIRE_THAT(KvPool::Create(ValidPoolDesc(), &pool), IsOk());
  KvCacheDesc valid;
  valid.pool = &pool;
  valid.batch = 2;
  valid.capacity = 1000;
  const KvPool empty;
  const std::vector<Mistake<KvCacheDesc>> mistakes = {
      {"an empty pool", kInvalid, "pool", [&](auto& d) { d.pool = &empty; }},
      {"kv heads", kInvalid, "num_kv_heads", [](auto& d) { d.num_kv_heads = 2; }, {"2", "0"}},
      {"head_dim", kInvalid, "head_dim", [](auto& d) { d.head_dim = 8; }, {"8", "0"}},
      {"v_head_dim", kInvalid, "v_head_dim", [](auto& d) { d.v_head_dim = 12; }, {"12", "0"}},
      {"page_tokens", kInvalid, "page_tokens", [](auto& d) { d.page_tokens = 256; }, {"256"}},
      {"no batch", kInvalid, "batch", [](auto& d) { d.batch = 0; }},
      {"capacity -1", kInvalid, "capacity", [](auto& d) { d.capacity = -1; }},
      {"window_left -2", kInvalid, "window_left", [](auto& d) { d.window_left = -2; }},
      {"sinks without a window", kInvalid, "num_sinks", [](auto& d) { d.num_sinks = 1; }},
  };
  KvCache cache;
  for (const auto& mistake : mistakes) {
    KvCacheDesc desc = valid;
    mistake.spoil(desc);
    INFO(mistake.what);
    const Status status = KvCache::Create(desc, &cache);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(cache.empty());
  }
  CHECK_THAT(KvCache::Create(valid, &cache), IsOk());
  CHECK(cache.num_kv_heads() == 2);
  CHECK(cache.page_tokens() == 256);
}

// A call that changes a cache of 2 sequences of 40 tokens.
using Change = std::function<Status(KvCache&)>;
struct WrongChange {
  const char* what;
  const char* named;
  Change change;
  std::vector<const char*> said;
};

Change TruncateTo(int64_t length) {
  return [=](KvCache& cache) { return cache.Truncate(length); };
}
Change ReorderTo(const std::vector<int32_t>& parents, int64_t batch) {
  return [=](KvCache& cache) {
    return cache.Reorder(parents.empty() ? nullptr : parents.data(), batch);
  };
}
Change EvictFrom(int64_t batch_entry, const std::vector<int32_t>& positions, int64_t count) {
  return [=](KvCache& cache) {
    return cache.Evict(batch_entry, positions.empty() ? nullptr : positions.data(), count);
  };
}

TEST_CASE("what changes a cache refuses and leaves it as it was", "[status]") {
  const std::vector<WrongChange> changes = {
      {"length -1", "length", TruncateTo(-1), {"-1", "0", "40"}},
      {"length 41", "length", TruncateTo(41), {"41", "40"}},
      {"absurd length", "length", TruncateTo(kHuge), {}},
      {"no parents", "parents", ReorderTo({}, 1), {"null"}},
      {"no batch", "batch", ReorderTo({0}, 0), {"0"}},
      {"negative batch", "batch", ReorderTo({0}, -1), {"-1"}},
      {"absurd batch", "batch", ReorderTo({0}, kHuge), {}},
      {"parent -1", "parents", ReorderTo({0, -1}, 2), {"-1", "1"}},
      {"parent 2", "parents", ReorderTo({1, 0, 2}, 3), {"2", "1"}},
      {"batch_entry -1", "batch_entry", EvictFrom(-1, {0}, 1), {"-1", "1"}},
      {"batch_entry 2", "batch_entry", EvictFrom(2, {0}, 1), {"2", "1"}},
      {"no positions", "positions", EvictFrom(0, {}, 1), {"null", "1"}},
      {"count -1", "count", EvictFrom(0, {0}, -1), {"-1"}},
      {"position 40", "positions", EvictFrom(1, {3, 40}, 2), {"40", "39"}},
      {"position -1", "positions", EvictFrom(1, {3, -1}, 2), {"-1", "0"}},
  };
  const Problem problem(ValidCase(), 7);
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(ValidCacheDesc(), &cache), IsOk());
  REQUIRE_THAT(cache.Append(problem.k.view(), problem.v.view()), IsOk());
  const std::vector<unsigned char> before = PackedBytes(*KvAccess::Get(cache));
  for (const WrongChange& wrong : changes) {
    INFO(wrong.what);
    const Status status = wrong.change(cache);
    CHECK_THAT(status, IsError(kInvalid, wrong.named));
    for (const char* word : wrong.said) CHECK_THAT(status, IsError(kInvalid, word));
    CHECK(cache.length() == 40);
    CHECK(cache.batch() == 2);
    CHECK(cache.num_evicted(0) + cache.num_evicted(1) == 0);
    CHECK(PackedBytes(*KvAccess::Get(cache)) == before);
    KvCache empty;
    CHECK_THAT(wrong.change(empty), IsError(kInvalid, "cache"));
  }
  CHECK_THAT(cache.Fork(nullptr), IsError(kInvalid, "child"));
  CHECK_THAT(KvCache().Fork(&cache), IsError(kInvalid, "cache"));
  CHECK(cache.length() == 40);
  CHECK_THAT(EvictFrom(0, {}, 0)(cache), IsOk());
  CHECK_THAT(CrossMemory::From(cache, nullptr), IsError(kInvalid, "memory"));
  CrossMemory memory;
  CHECK_THAT(CrossMemory::From(KvCache(), &memory), IsError(kInvalid, "cache"));
  for (const std::vector<int32_t>& kv_lens : std::vector<std::vector<int32_t>>{{0, 41}, {0, -1}}) {
    CHECK_THAT(CrossMemory::From(cache, &memory, kv_lens.data()), IsError(kInvalid, "kv_lens"));
  }
  CHECK(memory.empty());
}

TEST_CASE("Append refuses what its pool has no pages for", "[status]") {
  for (const Precision precision : kPrecisions) {
    KvPoolDesc desc = ValidPoolDesc();
    desc.format.precision = precision;
    desc.page_tokens = 128;
    desc.max_pages = 3;
    KvPool pool;
    REQUIRE_THAT(KvPool::Create(desc, &pool), IsOk());
    KvCacheDesc cache_desc;
    cache_desc.pool = &pool;
    cache_desc.batch = 2;
    cache_desc.capacity = 1000;
    KvCache cache, fork;
    REQUIRE_THAT(KvCache::Create(cache_desc, &cache), IsOk());
    Case c = ValidCase();
    c.kv_len = 129;
    const Problem problem(c, 8);
    CHECK_THAT(cache.Append(problem.k.view(), problem.v.view()), IsError(kCapacity, "max_pages"));
    CHECK(pool.pages_in_use() == 0);
    REQUIRE_THAT(cache.Append(problem.k.Slice(0, 100), problem.v.Slice(0, 100)), IsOk());
    CHECK(pool.pages_in_use() == 2);
    REQUIRE_THAT(cache.Fork(&fork), IsOk());
    const std::vector<unsigned char> before = PackedBytes(*KvAccess::Get(cache));
    // Both sequences share their open pages with the fork: a copy of one alone would not do.
    CHECK_THAT(cache.Append(problem.k.Slice(100, 101), problem.v.Slice(100, 101)),
               IsError(kCapacity, "pool"));
    CHECK(cache.length() == 100);
    CHECK(PackedBytes(*KvAccess::Get(cache)) == before);
    CHECK(PackedBytes(*KvAccess::Get(fork)) == before);
    fork = KvCache();
    CHECK_THAT(cache.Append(problem.k.Slice(100, 128), problem.v.Slice(100, 128)), IsOk());
    cache = KvCache();
    CHECK(pool.pages_in_use() == 0);
  }
}

// ---- Placed memories and sets -----------------------------------------------------------------

struct PlacedCall {
  CrossMemoryOptions options;
  std::vector<int32_t> kv_lens;
};

TEST_CASE("CrossMemory::Create refuses placements and lengths", "[status]") {
  const Problem problem(ValidCase(), 9);
  const KvFormat format = {Precision::kI8, BestTier()};
  size_t bytes = 0;
  REQUIRE_THAT(CrossMemory::Bytes({2, 40, 2, 8, 12, format}, &bytes), IsOk());
  const GuardedBuffer buffer(bytes + 64, Placement::kAtEnd, 64);
  const std::vector<Mistake<PlacedCall>> mistakes = {
      {"null",
       kInvalid,
       "placement",
       [](auto& c) { c.options.placement.data = nullptr; },
       {"null"}},
      {"not aligned",
       kInvalid,
       "placement",
       [](auto& c) { c.options.placement.data = Shifted(c.options.placement.data, 32); },
       {"64"}},
      {"too small", kInvalid, "placement", [](auto& c) { --c.options.placement.bytes; }},
      {"no bytes", kInvalid, "placement", [](auto& c) { c.options.placement.bytes = 0; }, {"0"}},
      {"negative length",
       kInvalid,
       "kv_lens",
       [](auto& c) {
         c.kv_lens = {3, -1};
         c.options.kv_lens = c.kv_lens.data();
       },
       {"-1", "40"}},
      {"long length",
       kInvalid,
       "kv_lens",
       [](auto& c) {
         c.kv_lens = {41, 0};
         c.options.kv_lens = c.kv_lens.data();
       },
       {"41", "40"}},
  };
  for (const auto& mistake : mistakes) {
    PlacedCall call;
    call.options.placement = {buffer.data(), bytes};
    mistake.spoil(call);
    INFO(mistake.what);
    CrossMemory memory;
    const Status status =
        CrossMemory::Create(problem.k.view(), problem.v.view(), format, &memory, {}, call.options);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(memory.empty());
    for (size_t i = 0; i < buffer.size(); ++i) {
      if (buffer.data()[i] != GuardedBuffer::kFillByte) FAIL("byte " << i << " was written");
    }
  }
}

struct SetCall {
  CrossMemoryDesc desc;
  int64_t num_layers = 0;
  KvPlacement placement;
};

TEST_CASE("CrossMemorySet refuses", "[status]") {
  const SetCall valid = {{2, 40, 2, 8, 12, {Precision::kI8, BestTier()}}, 3, {}};
  const std::vector<Mistake<SetCall>> mistakes = {
      {"batch -1", kInvalid, "batch", [](auto& c) { c.desc.batch = -1; }, {"-1"}},
      {"kv_len -1", kInvalid, "kv_len", [](auto& c) { c.desc.kv_len = -1; }, {"-1"}},
      {"no kv heads", kInvalid, "num_kv_heads", [](auto& c) { c.desc.num_kv_heads = 0; }},
      {"head_dim 513", kInvalid, "head_dim", [](auto& c) { c.desc.head_dim = 513; }},
      {"v_head_dim -1", kInvalid, "v_head_dim", [](auto& c) { c.desc.v_head_dim = -1; }},
      {"no layers", kInvalid, "num_layers", [](auto& c) { c.num_layers = 0; }},
      {"absurd layers", kInvalid, "num_layers", [](auto& c) { c.num_layers = kHuge; }},
      {"rotated f16", kInvalid, "rotate_k",
       [](auto& c) { c.desc.format = {Precision::kF16, BestTier(), true}; }},
      {"no such tier", kInvalid, "tier", [](auto& c) { c.desc.format.tier = "abacus"; }},
      {"beyond the address space", kInvalid, "num_layers",
       [](auto& c) {
         c.desc.kv_len = ManyKeys(1 << 20);
         c.num_layers = 1 << 30;
         c.desc.batch = kIs64Bit ? 1 << 10 : 1;
       }},
  };
  CrossMemorySet set;
  size_t bytes = 12345;
  for (const auto& mistake : mistakes) {
    SetCall call = valid;
    mistake.spoil(call);
    INFO(mistake.what);
    const Status status = CrossMemorySet::Create(call.desc, call.num_layers, &set, call.placement);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(set.empty());
    CHECK_THAT(CrossMemorySet::Bytes(call.desc, call.num_layers, &bytes),
               IsError(mistake.code, mistake.named));
    CHECK(bytes == 12345);
  }
  CHECK_THAT(CrossMemorySet::Bytes(valid.desc, 3, nullptr), IsError(kInvalid, "bytes"));
  CHECK_THAT(CrossMemory::Bytes(valid.desc, nullptr), IsError(kInvalid, "bytes"));
  CHECK_THAT(CrossMemorySet::Create(valid.desc, 3, nullptr), IsError(kInvalid, "set"));
  CHECK_THAT(CrossMemorySet::Create(valid.desc, 3, &set, {&bytes, 0}),
             IsError(kInvalid, "placement"));
  CHECK(set.empty());
}

struct FillCall {
  int64_t layer;
  ConstTensorView k, v;
  ParallelFor parallel;
  std::vector<int32_t> kv_lens;
};

TEST_CASE("CrossMemorySet::Fill refuses and leaves the layer as it was", "[status]") {
  const Problem problem(ValidCase(), 10);
  const std::vector<Mistake<FillCall>> mistakes = {
      {"layer -1", kInvalid, "layer", [](auto& c) { c.layer = -1; }, {"-1", "2"}},
      {"layer 3", kInvalid, "layer", [](auto& c) { c.layer = 3; }, {"3", "2"}},
      {"other batch", kInvalid, "k", [](auto& c) { c.k.batch = c.v.batch = 1; }, {"1", "2"}},
      {"other heads", kInvalid, "k", [](auto& c) { c.k.heads = c.v.heads = 1; }},
      {"other head_dim", kInvalid, "k", [](auto& c) { c.k.dim = 7; }},
      {"other v_head_dim", kInvalid, "v", [](auto& c) { c.v.dim = 11; }},
      {"null v", kInvalid, "v", [](auto& c) { c.v.data = nullptr; }},
      {"length 42", kInvalid, "kv_lens", [](auto& c) { c.kv_lens = {0, 42}; }, {"42", "40"}},
      {"no workers", kInvalid, "num_workers", [](auto& c) { c.parallel.num_workers = 0; }},
  };
  CrossMemorySet set;
  REQUIRE_THAT(CrossMemorySet::Create({2, 40, 2, 8, 12, {Precision::kI8, BestTier()}}, 3, &set),
               IsOk());
  const auto fill = [&](const FillCall& c) {
    return set.Fill(c.layer, c.k, c.v, c.parallel, c.kv_lens.empty() ? nullptr : c.kv_lens.data());
  };
  const FillCall valid = {1, problem.k.view(), problem.v.view(), {}, {}};
  for (const auto& mistake : mistakes) {
    FillCall call = valid;
    mistake.spoil(call);
    INFO(mistake.what);
    const Status status = fill(call);
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(set.layer(1).empty());
  }
  CrossMemorySet shorter;
  REQUIRE_THAT(CrossMemorySet::Create({2, 39, 2, 8, 12, {Precision::kI8, BestTier()}}, 1, &shorter),
               IsOk());
  CHECK_THAT(shorter.Fill(0, valid.k, valid.v), IsError(kCapacity, "kv_len"));
  CHECK(shorter.layer(0).empty());
  CHECK_THAT(fill(valid), IsOk());
  CHECK_THAT(fill(valid), IsError(kInvalid, "layer"));
  CHECK_FALSE(set.layer(1).empty());
  CHECK_THAT(CrossMemorySet().Fill(0, valid.k, valid.v), IsError(kInvalid, "set"));
}

// ---- Segments ---------------------------------------------------------------------------------

// What segments may be made of, right and wrong.
struct SegmentSources {
  static Case CaseOf(int64_t kv_batch) {
    Case c = ValidCase();
    c.kv_batch = kv_batch;
    return c;
  }
  static Setup SetupOf(Precision precision, bool rotate_k) {
    return {BestTier(), precision, Source::kMemory, {}, rotate_k};
  }
  SegmentSources() {
    KvCacheDesc desc = ValidCacheDesc();
    desc.window_left = 7;
    REQUIRE_THAT(KvCache::Create(desc, &windowed), IsOk());
  }

  Problem single{CaseOf(1), 11};
  Problem triple{CaseOf(3), 12};
  CrossMemory one = MemoryOf(single, SetupOf(Precision::kI8, false));
  CrossMemory three = MemoryOf(triple, SetupOf(Precision::kI8, false));
  CrossMemory f16 = MemoryOf(single, SetupOf(Precision::kF16, false));
  CrossMemory rotated = MemoryOf(single, SetupOf(Precision::kI8, true));
  CrossMemory no_memory;
  KvCache windowed, no_cache;
};

// A valid call: the memory of two sequences and the cache, one after the other.
struct SegmentCall {
  explicit SegmentCall(RunCall* call_in) : call(*call_in) {
    segments[0].memory = &call.memory;
    segments[1].cache = &call.cache;
    segments[1].bias = bias.data();
  }
  // Lists of one memory, as many as they need.
  void MakeLists(const CrossMemory& memory, const std::vector<int32_t>& offsets) {
    for (KvSegment& segment : segments) segment = {&memory, nullptr, -1, nullptr};
    indptr = offsets;
    num_lists = static_cast<int64_t>(offsets.size()) - 1;
  }
  Status Run() {
    AttentionArgs& args = call.args;
    args.memory = nullptr;
    args.segments = segments.data();
    args.num_segments = num_segments;
    args.segment_indptr = indptr.empty() ? nullptr : indptr.data();
    args.num_segment_lists = num_lists;
    if (amend) amend(call);
    return call.Run();
  }

  RunCall& call;
  std::vector<KvSegment> segments = std::vector<KvSegment>(2);
  std::vector<float> bias = {1.0f, -HUGE_VALF, 0.5f, -1e30f};
  std::vector<int32_t> indptr;
  int64_t num_segments = 2;
  int64_t num_lists = 0;
  std::function<void(RunCall&)> amend;
};

void CheckSegmentsRefused(const std::vector<Mistake<SegmentCall>>& mistakes) {
  RunCall call(SegmentSources::SetupOf(Precision::kI8, false), ValidCase());
  const AttentionArgs valid_args = call.args;
  for (const auto& mistake : mistakes) {
    call.args = valid_args;
    call.WipeOutputs();
    SegmentCall segments(&call);
    mistake.spoil(segments);
    INFO(mistake.what);
    const Status status = segments.Run();
    CHECK_THAT(status, IsError(mistake.code, mistake.named));
    for (const char* word : mistake.said) CHECK_THAT(status, IsError(mistake.code, word));
    CHECK(call.OutputsAreWiped());
  }
  call.args = valid_args;
  SegmentCall segments(&call);  // with half of a group hidden
  CHECK_THAT(segments.Run(), IsOk());
  CHECK_FALSE(call.out.IsWiped());
}

TEST_CASE("Run refuses segments that contradict themselves or the plan", "[status]") {
  const SegmentSources from;
  CheckSegmentsRefused({
      {"neither",
       kInvalid,
       "segments",
       [](auto& c) { c.segments[1].cache = nullptr; },
       {"neither", "memory", "cache"}},
      {"both",
       kInvalid,
       "segments",
       [](auto& c) { c.segments[1].memory = c.segments[0].memory; },
       {"both"}},
      {"an empty memory",
       kInvalid,
       "segments",
       [&](auto& c) { c.segments[0].memory = &from.no_memory; },
       {"0", "empty"}},
      {"an empty cache",
       kInvalid,
       "segments",
       [&](auto& c) { c.segments[1].cache = &from.no_cache; },
       {"1", "empty"}},
      {"another source",
       kInvalid,
       "segments",
       [](auto& c) { c.amend = [](RunCall& call) { call.args.cache = &call.cache; }; },
       {"2"}},
      {"null",
       kInvalid,
       "segments",
       [](auto& c) { c.amend = [](RunCall& call) { call.args.segments = nullptr; }; },
       {"2"}},
      {"num_segments -1", kInvalid, "num_segments", [](auto& c) { c.num_segments = -1; }, {"-1"}},
      {"num_segments absurd", kInvalid, "num_segments", [](auto& c) { c.num_segments = kHuge; }},
      {"kv_len -2", kInvalid, "kv_len", [](auto& c) { c.segments[0].kv_len = -2; }, {"-2", "-1"}},
      {"kv_len absurd", kInvalid, "kv_len", [](auto& c) { c.segments[0].kv_len = kHuge; }},
      {"kv_lens", kInvalid, "kv_lens",
       [](auto& c) { c.amend = [](RunCall& call) { call.args.kv_lens = call.Ints({1, 2}); }; }},
      {"bias NaN", kInvalid, "bias", [](auto& c) { c.bias[2] = NAN; }, {"2", "inf"}},
      {"bias inf", kInvalid, "bias", [](auto& c) { c.bias[0] = HUGE_VALF; }, {"0", "inf"}},
      {"bias 2e30", kInvalid, "bias", [](auto& c) { c.bias[0] = 2e30f; }, {"2e"}},
      {"bias between elements",
       kInvalid,
       "bias",
       [](auto& c) { c.segments[1].bias = Shifted(c.segments[1].bias, 2); },
       {"4"}},
      {"other batch",
       kInvalid,
       "batch",
       [&](auto& c) { c.segments[1] = {&from.three, nullptr, -1, nullptr}; },
       {"3", "1", "2"}},
      {"other precision",
       kInvalid,
       "precision",
       [&](auto& c) { c.segments[0].memory = &from.f16; },
       {"f16", "i8"}},
      {"rotated",
       kInvalid,
       "rotate_k",
       [&](auto& c) { c.segments[0].memory = &from.rotated; },
       {"true", "false"}},
      {"the cache's window",
       kInvalid,
       "window_left",
       [&](auto& c) { c.segments[1].cache = &from.windowed; },
       {"7", "-1"}},
  });
}

TEST_CASE("Run refuses lists of segments that contradict themselves", "[status]") {
  const SegmentSources from;
  CheckSegmentsRefused({
      {"no indices", kInvalid, "segment_indptr", [](auto& c) { c.num_lists = 2; }, {"null", "2"}},
      {"indices without lists",
       kInvalid,
       "segment_indptr",
       [&](auto& c) {
         c.MakeLists(from.one, {0, 1, 2});
         c.num_lists = 0;
       },
       {"0"}},
      {"-1 lists", kInvalid, "num_segment_lists", [](auto& c) { c.num_lists = -1; }, {"-1"}},
      {"begins with 1",
       kInvalid,
       "segment_indptr",
       [&](auto& c) { c.MakeLists(from.one, {1, 1, 2}); },
       {"1", "0"}},
      {"falls",
       kInvalid,
       "segment_indptr",
       [&](auto& c) { c.MakeLists(from.one, {0, 2, 1}); },
       {"1", "2"}},
      {"ends too early",
       kInvalid,
       "segment_indptr",
       [&](auto& c) { c.MakeLists(from.one, {0, 1, 1}); },
       {"1", "2", "num_segments"}},
      {"a batch of 3",
       kInvalid,
       "batch",
       [&](auto& c) { c.MakeLists(from.three, {0, 1, 2}); },
       {"3", "1"}},
      {"lists that do not divide q's batch",
       kInvalid,
       "q",
       [&](auto& c) { c.MakeLists(from.one, {0, 1, 1, 2}); },
       {"4", "3"}},
      {"lists without segments", kInvalid, "segments",
       [](auto& c) {
         c.amend = [](RunCall& call) {
           call.args.memory = &call.memory;
           call.args.segments = nullptr;
           call.args.num_segments = 0;
           call.args.num_segment_lists = 2;
         };
       }},
      {"out inside a memory", kInvalid, "out",
       [](auto& c) {
         c.amend = [](RunCall& call) {
           call.args.out.data = KvAccess::Get(call.memory)->keys(0).heads;
         };
       }},
      {"weights too short",
       kInvalid,
       "weights",
       [](auto& c) {
         c.amend = [](RunCall& call) {
           call.args.lse = call.lse.view();
           call.args.weights.out = call.weights.view();
         };
       },
       {"40", "80"}},
      {"mass too short",
       kInvalid,
       "mass",
       [](auto& c) {
         c.amend = [](RunCall& call) {
           call.args.lse = call.lse.view();
           call.args.mass = call.mass.view();
         };
       },
       {"40", "80"}},
  });
}

// ---- Status and views -------------------------------------------------------------------------

TEST_CASE("a Status keeps code and message, and cuts long ones", "[status]") {
  CHECK(Status().ok());
  CHECK(Status().code() == StatusCode::kOk);
  CHECK(std::string(Status().message()).empty());
  const Status status = Status::Error(kUnsupported, "%s is %d", "answer", 42);
  CHECK_FALSE(status.ok());
  CHECK(status.code() == kUnsupported);
  CHECK(std::string(status.message()) == "answer is 42");
  const std::string longest(1000, 'x');
  const Status cut = Status::Error(kInvalid, "%s", longest.c_str());
  CHECK(std::string(cut.message()) ==
        longest.substr(0, static_cast<size_t>(Status::kMaxMessageBytes) - 1));
  Status copy = cut;
  CHECK(copy.code() == kInvalid);
  CHECK(std::string(copy.message()) == cut.message());
  copy = status;  // a shorter message than was there
  CHECK(copy.code() == kUnsupported);
  CHECK(std::string(copy.message()) == "answer is 42");
  copy = Status();
  CHECK(copy.ok());
  CHECK(std::string(copy.message()).empty());
}

TEST_CASE("names and sizes of element types", "[status]") {
  CHECK(std::string(Name(DType::kF32)) == "f32");
  CHECK(std::string(Name(DType::kF16)) == "f16");
  CHECK(std::string(Name(DType::kBF16)) == "bf16");
  CHECK(std::string(Name(DType::kI8)) == "i8");
  CHECK(std::string(Name(kNoDType)) == "?");
  CHECK(std::string(Name(Precision::kF32)) == "f32");
  CHECK(std::string(Name(Precision::kF16)) == "f16");
  CHECK(std::string(Name(Precision::kI8)) == "i8");
  CHECK(std::string(Name(Precision::kI8Fine)) == "i8_fine");
  CHECK(std::string(Name(Precision::kBF16)) == "bf16");
  CHECK(std::string(Name(Precision::kMixed16)) == "mixed16");
  CHECK(std::string(Name(kNoPrecision)) == "?");
  CHECK(SizeBytes(DType::kF32) == 4);
  CHECK(SizeBytes(DType::kF16) == 2);
  CHECK(SizeBytes(DType::kBF16) == 2);
  CHECK(SizeBytes(DType::kI8) == 1);
  CHECK(SizeBytes(kNoDType) == 0);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
