// Several memories and caches in one call: what comes out is what the same keys would give in one
// piece, wherever one ends and whatever its mean, bias and precision. Against the oracle on what is
// stored; random ones are in kv_state_test.cc.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kv/packed_kv.h"
#include "support/check.h"
#include "support/packed.h"
#include "support/problem.h"
#include "support/segment_oracle.h"
#include "support/stored.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr int64_t kHeads = 4;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kHeadDim = 20;
constexpr int64_t kVHeadDim = 37;

// Heads, and their channels.
struct Shape {
  int64_t heads = kHeads;
  int64_t kv_heads = kKvHeads;
  int64_t head_dim = kHeadDim;
  int64_t v_head_dim = kVHeadDim;
};

// One segment, which is made of normal numbers.
struct Part {
  int64_t kv_len = 1;
  bool is_cache = false;
  int64_t batch = 1;
  float k_mean = 0.0f, v_mean = 0.0f;
  float bias = 0.0f;                         // of all heads, the later ones a little more,
  int64_t hidden_begin = 0, hidden_end = 0;  // but of these -inf
  int64_t used = -1;                         // KvSegment::kv_len
  int64_t evicted = 0;                       // so many first tokens of a cache
  int64_t nan_v = 0;                         // and so many keys with nothing but NaN in V
  bool has_format = false;                   // else that of the plan
  KvFormat format = {};
};

// What is asked for beside the segments.
struct Asked {
  int64_t q_len = 1;
  int64_t beams = 1;
  bool causal = false;
  int64_t window_left = -1;
  int64_t prefix_len = -1;
  int64_t kv_block = 0;  // of a block mask that shows every other block
  float softcap = 0.0f;
  bool mask = false;       // by query, head and key
  bool bias = false;       // the same
  bool distances = false;  // T5's table and ALiBi's slopes
  bool sinks = false;
  DType q_dtype = DType::kF32;  // i8: with a scale for each head
  bool weights = true;          // and mass, beside lse
  ParallelFor parallel = {};
};

Tensor NormalTensor(const Dims& dims, float mean, Rng* rng, DType dtype = DType::kF32) {
  Tensor t(dtype, dims, Layout::kDense, Placement::kAtEnd, kPerHead);
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t l = 0; l < dims.length; ++l) {
      for (int64_t h = 0; h < dims.heads; ++h) {
        for (int64_t d = 0; d < dims.dim; ++d) {
          t.Set(b, l, h, d, mean + static_cast<float>(rng->Normal()));
        }
      }
    }
  }
  return t;
}

void Evict(KvCache* cache, int64_t batch, int64_t begin, int64_t end) {
  std::vector<int32_t> positions;
  for (int64_t i = begin; i < end; ++i) positions.push_back(static_cast<int32_t>(i));
  REQUIRE_THAT(cache->Evict(batch, positions.data(), static_cast<int64_t>(positions.size())),
               IsOk());
}

// The segments of a call, and what they hold.
class Segments {
 public:
  Segments(const std::vector<Part>& parts, const KvFormat& format, uint64_t seed,
           const Shape& of_all = {})
      : shape(of_all) {
    Rng rng(seed);
    for (const Part& part : parts) {
      const KvFormat of_part = part.has_format ? part.format : format;
      KvSegment segment;
      segment.kv_len = part.used;
      const Tensor k = NormalTensor({part.batch, part.kv_len, shape.kv_heads, shape.head_dim},
                                    part.k_mean, &rng);
      Tensor v = NormalTensor({part.batch, part.kv_len, shape.kv_heads, shape.v_head_dim},
                              part.v_mean, &rng);
      for (int64_t i = 0; i < part.nan_v * shape.kv_heads * shape.v_head_dim; ++i) {
        const int64_t row = i / shape.v_head_dim;
        v.Set(0, row / shape.kv_heads, row % shape.kv_heads, i % shape.v_head_dim, NAN);
      }
      if (part.is_cache) {
        caches_.push_back(CacheOf(part, of_part, k, v));
        segment.cache = &caches_.back();
      } else {
        memories_.emplace_back();
        REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), of_part, &memories_.back()), IsOk());
        segment.memory = &memories_.back();
      }
      if (part.bias != 0.0f || part.hidden_end != 0) segment.bias = BiasOf(part);
      Add(segment);
    }
  }

  void Add(const KvSegment& segment) { segments.push_back(segment); }

  int64_t batch() const {
    int64_t batch = 1;
    for (const KvSegment& segment : segments) {
      batch = std::max(batch, PackedOf(segment).geometry().batch);
    }
    return batch;
  }

  static const internal::PackedKv& PackedOf(const KvSegment& segment) {
    return segment.cache != nullptr ? *KvAccess::Get(*segment.cache)
                                    : *KvAccess::Get(*segment.memory);
  }

  std::vector<StoredPart> PartsOf(int64_t sequence) const {
    std::vector<StoredPart> parts;
    for (const KvSegment& segment : segments) {
      const internal::PackedKv& packed = PackedOf(segment);
      const size_t entry = static_cast<size_t>(packed.geometry().batch == 1 ? 0 : sequence);
      StoredPart part;
      part.count = packed.keys(entry).count;
      if (segment.kv_len >= 0) {
        part.count = std::min(part.count, static_cast<size_t>(segment.kv_len));
      }
      part.heads = ReadStored(packed, entry, part.count);
      if (segment.bias != nullptr) part.bias.assign(segment.bias, segment.bias + shape.heads);
      parts.push_back(std::move(part));
    }
    return parts;
  }

  const Shape shape;
  std::vector<KvSegment> segments;

 private:
  const float* BiasOf(const Part& part) {
    const float bias = part.bias;
    biases_.emplace_back();
    for (int64_t h = 0; h < shape.heads; ++h) {
      biases_.back().push_back(isfinite(bias) ? bias * (1.0f + 0.125f * static_cast<float>(h))
                                              : bias);
      if (h >= part.hidden_begin && h < part.hidden_end) biases_.back().back() = -HUGE_VALF;
    }
    return biases_.back().data();
  }

  KvCache CacheOf(const Part& part, const KvFormat& format, const Tensor& k,
                  const Tensor& v) const {
    KvCacheDesc desc;
    desc.batch = part.batch;
    desc.num_kv_heads = shape.kv_heads;
    desc.head_dim = shape.head_dim;
    desc.v_head_dim = shape.v_head_dim;
    desc.capacity = part.kv_len;
    desc.page_tokens = 128;
    desc.format = format;
    KvCache cache;
    REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
    REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
    for (int64_t b = 0; part.evicted > 0 && b < part.batch; ++b) Evict(&cache, b, 0, part.evicted);
    return cache;
  }

  std::deque<CrossMemory> memories_;
  std::deque<KvCache> caches_;
  std::deque<std::vector<float>> biases_;
};

struct Answer {
  Tensor out, lse, weights, mass;
};

// What shows every second element, in other places for each head.
Tensor EveryOther(const Dims& dims) {
  Tensor shown(DType::kI8, dims);
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t l = 0; l < dims.length; ++l) {
      for (int64_t h = 0; h < dims.heads; ++h) {
        for (int64_t j = 0; j < dims.dim; ++j) {
          shown.SetQuantum(b, l, h, j, static_cast<int8_t>((j + h + l) % 2));
        }
      }
    }
  }
  return shown;
}

// A call over the segments, beside what the oracle says.
class Call {
 public:
  Call(const Segments& segments, const Asked& asked, const Setup& setup, uint64_t seed)
      : segments_(segments), shape_(segments.shape), asked_(asked), setup_(setup) {
    Rng rng(seed);
    const int64_t batch = segments.batch() * asked.beams;
    q_ = NormalTensor({batch, asked.q_len, shape_.heads, shape_.head_dim}, 0.0f, &rng,
                      asked.q_dtype);
    in_.q = &q_;
    in_.tier = setup.tier;
    in_.kv_heads = shape_.kv_heads;
    in_.v_head_dim = shape_.v_head_dim;
    in_.beams = asked.beams;
    in_.softcap = asked.softcap;
    in_.causal = asked.causal;
    in_.window_left = asked.window_left;
    for (int64_t b = 0; b < segments.batch(); ++b) {
      in_.parts.push_back(segments.PartsOf(b));
      int64_t length = 0;
      for (const StoredPart& part : in_.parts.back()) length += static_cast<int64_t>(part.count);
      longest_ = std::max(longest_, length);
      if (asked.prefix_len >= 0) in_.prefix_lens.push_back(static_cast<int32_t>(asked.prefix_len));
    }
    for (int64_t h = 0; asked.sinks && h < shape_.heads; ++h) {
      in_.sinks.push_back(std::vector<float>{0.5f, -3.0f, 4.0f, 60.0f}[static_cast<size_t>(h % 4)]);
    }
    if (asked.kv_block != 0) MakeBlocks();
    if (asked.mask) MakeMask();
    if (asked.bias) MakeBias(&rng);
    if (asked.distances) MakeDistances(&rng);
  }

  Answer Run() const {
    Answer answer;
    AttentionArgs args = Args(&answer);
    args.segments = segments_.segments.data();
    args.num_segments = static_cast<int64_t>(segments_.segments.size());
    Run(args);
    return answer;
  }
  // Over one memory of the same keys.
  Answer Run(const CrossMemory& memory) const {
    Answer answer;
    AttentionArgs args = Args(&answer);
    args.memory = &memory;
    Run(args);
    return answer;
  }

  void Check(const Answer& answer) const {
    const SegmentOutput expected = ComputeSegments(in_);
    CHECK_THAT(answer.out, IsClose(expected.out));
    const Expected lse = expected.out.Lse();
    CHECK_THAT(answer.lse, IsClose(lse));
    if (!asked_.weights) return;
    CHECK_THAT(answer.weights, IsClose(expected.weights));
    const Dims& mass = answer.mass.dims();
    const Expected expected_mass = MassOf(expected, mass.batch, mass.heads);
    CHECK_THAT(answer.mass, IsClose(expected_mass));
  }

 private:
  void MakeBlocks() {
    in_.q_block = 3;
    in_.kv_block = asked_.kv_block;
    const auto blocks = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
    const Dims& q = q_.dims();
    blocks_ =
        EveryOther({q.batch, blocks(q.length, 3), q.heads, blocks(longest_, asked_.kv_block)});
    in_.blocks = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
      return blocks_.Get(b, l, h, j) != 0.0f;
    };
  }

  void MakeMask() {
    const Dims& q = q_.dims();
    mask_ = EveryOther({q.batch, q.length, q.heads, longest_});
    in_.mask = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
      return mask_.Get(b, l, h, j) != 0.0f;
    };
  }

  void MakeBias(Rng* rng) {
    const Dims& q = q_.dims();
    bias_ = NormalTensor({q.batch, q.length, q.heads, longest_}, 0.0f, rng);
    in_.bias = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
      return static_cast<double>(bias_.Get(b, l, h, j));
    };
  }

  void MakeDistances(Rng* rng) {
    in_.relative_buckets = {12, 50};
    for (int64_t i = 0; i < 12 * shape_.heads; ++i) {
      in_.relative_bias.push_back(static_cast<float>(rng->Normal()));
    }
    for (int64_t h = 0; h < shape_.heads; ++h) {
      in_.alibi_slopes.push_back(0.125f / static_cast<float>(h + 1));
    }
  }

  AttentionArgs Args(Answer* answer) const {
    const Dims& q = q_.dims();
    AttentionArgs args;
    args.q = q_.view();
    answer->out = Tensor(DType::kF32, {q.batch, q.length, q.heads, shape_.v_head_dim});
    args.out = answer->out.view();
    if (!in_.prefix_lens.empty()) args.prefix_lens = in_.prefix_lens.data();
    if (!in_.sinks.empty()) args.sinks = in_.sinks.data();
    if (in_.blocks) args.block_mask = {blocks_.mask_view(), in_.q_block, in_.kv_block};
    if (in_.mask) args.mask = mask_.mask_view();
    if (in_.bias) args.bias = bias_.view();
    if (!in_.relative_bias.empty()) args.relative_bias = in_.relative_bias.data();
    if (!in_.alibi_slopes.empty()) args.alibi_slopes = in_.alibi_slopes.data();
    answer->lse = Tensor(DType::kF32, {q.batch, q.length, q.heads, 1});
    args.lse = answer->lse.view();
    if (!asked_.weights) return args;
    answer->weights = Tensor(DType::kF32, {q.batch, q.length, q.heads, longest_});
    answer->mass = Tensor(DType::kF32, {q.batch, 1, shape_.kv_heads, longest_});
    args.weights.out = answer->weights.view();
    args.mass = answer->mass.view();
    return args;
  }

  void Run(const AttentionArgs& args) const {
    AttentionDesc desc;
    desc.num_heads = shape_.heads;
    desc.num_kv_heads = shape_.kv_heads;
    desc.head_dim = shape_.head_dim;
    desc.v_head_dim = shape_.v_head_dim;
    desc.max_batch = q_.dims().batch;
    desc.max_q_len = asked_.q_len;
    desc.causal = asked_.causal;
    desc.window_left = asked_.window_left;
    desc.softcap = asked_.softcap;
    desc.relative_buckets = in_.relative_buckets;
    desc.precision = setup_.precision;
    desc.rotate_k = setup_.rotate_k;
    desc.tier = setup_.tier;
    desc.max_workers = static_cast<int64_t>(asked_.parallel.num_workers);
    desc.owns_workspace = false;
    for (const KvSegment& segment : segments_.segments) {
      desc.any_precision |=
          Segments::PackedOf(segment).geometry().precision != setup_.precision ||
          internal::IsRotated(Segments::PackedOf(segment).geometry().layout) != setup_.rotate_k;
    }
    Plan plan;
    REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
    GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
    scratch.Fill(0xFF);
    REQUIRE_THAT(sightline::Run(plan, args, {scratch.data(), scratch.size()}, asked_.parallel),
                 IsOk());
    RecordTierRun(plan.tier());
  }

  const Segments& segments_;
  Shape shape_;
  Asked asked_;
  Setup setup_;
  SegmentInput in_;
  Tensor q_, blocks_, mask_, bias_;
  int64_t longest_ = 0;
};

// In every precision, rotated K included, and on every tier with kernels of its own for it.
void ForEachSetup(const std::function<void(const Setup&)>& check) {
  for (const Precision precision : kPrecisions) {
    for (const bool rotate_k : {false, true}) {
      if (rotate_k && precision != Precision::kI8) continue;
      for (const char* tier : TiersOf(precision)) {
        if (!TakesTurn(tier)) continue;
        INFO(Name(precision) << (rotate_k ? " rotated" : "") << " on " << tier);
        check({tier, precision, Source::kMemory, {}, rotate_k});
      }
    }
  }
}

void CheckEverySetup(const std::vector<Part>& parts, const Asked& asked, uint64_t seed) {
  ForEachSetup([&](const Setup& setup) {
    const Segments segments(parts, {setup.precision, setup.tier, setup.rotate_k}, seed);
    const Call call(segments, asked, setup, seed + 1);
    call.Check(call.Run());
  });
}

Asked Queries(int64_t q_len, bool causal = false) {
  Asked asked;
  asked.q_len = q_len;
  asked.causal = causal;
  return asked;
}

Part Keys(int64_t kv_len, float bias = 0.0f) {
  Part part;
  part.kv_len = kv_len;
  part.bias = bias;
  return part;
}

Part Cached(int64_t kv_len) {
  Part part = Keys(kv_len);
  part.is_cache = true;
  return part;
}

Part WithMeans(int64_t kv_len, float k_mean, float v_mean, float bias = 0.0f) {
  Part part = Keys(kv_len, bias);
  part.k_mean = k_mean;
  part.v_mean = v_mean;
  return part;
}

// From heads [begin, end).
Part HiddenFrom(int64_t begin, int64_t end, Part part) {
  part.hidden_begin = begin;
  part.hidden_end = end;
  return part;
}

TEST_CASE("segments of every length around a tile", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  uint64_t seed = 20000;
  for (const int64_t first : {1, 63, 64, 65, 127, 128, 129, 256}) {
    for (const int64_t second : {1, 64, 129}) {
      INFO(q_len << " queries, " << first << " and " << second << " keys");
      CheckEverySetup({Keys(first), Cached(second), Keys(first)}, Queries(q_len, seed % 2 == 0),
                      seed);
      seed += 2;
    }
  }
}

// Floats are stored alike, wherever they lie: the oracle's tolerance is that of f32 arithmetic.
TEST_CASE("segments give what one memory of the same keys gives", "[segments]") {
  const int64_t q_len = GENERATE(1, 70);
  const Precision precision = GENERATE(Precision::kF32, Precision::kF16, Precision::kBF16);
  for (const char* tier : SupportedTiers()) {
    INFO(q_len << " queries, " << Name(precision) << " on " << tier);
    const Setup setup = {tier, precision, Source::kMemory};
    const KvFormat format = {precision, tier};
    Rng rng(21000);
    const Tensor k = NormalTensor({2, 300, kKvHeads, kHeadDim}, 0.5f, &rng);
    const Tensor v = NormalTensor({2, 300, kKvHeads, kVHeadDim}, 3.0f, &rng);
    Segments whole({}, format, 1);
    CrossMemory memory;
    REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), format, &memory), IsOk());
    KvSegment all;
    all.memory = &memory;
    whole.Add(all);
    std::deque<CrossMemory> pieces;
    Segments split({}, format, 1);
    const std::vector<int64_t> ends = {0, 1, 64, 65, 193, 300};
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      pieces.emplace_back();
      REQUIRE_THAT(CrossMemory::Create(k.Slice(ends[i], ends[i + 1]), v.Slice(ends[i], ends[i + 1]),
                                       format, &pieces.back()),
                   IsOk());
      KvSegment piece;
      piece.memory = &pieces.back();
      split.Add(piece);
    }
    Asked asked = Queries(q_len, true);
    asked.beams = 2;
    const Call in_one_piece(whole, asked, setup, 5);
    const Call in_pieces(split, asked, setup, 5);
    const Answer expected = in_one_piece.Run(memory);
    in_one_piece.Check(expected);
    in_one_piece.Check(in_pieces.Run());
    // A single segment is the memory itself.
    CHECK_THAT(in_one_piece.Run().out, Equals(expected.out));
  }
}

TEST_CASE("segments that hold nothing, or of which nothing is seen", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  Part gone = Cached(200);
  gone.evicted = 200;
  Part unused = Keys(70);
  unused.used = 0;
  const std::vector<std::vector<Part>> cases = {
      {Keys(0), Keys(5)},
      {Keys(5), Keys(0)},
      {Keys(0)},
      {Keys(0), Keys(0)},
      {gone},
      {gone, Keys(70)},
      {Keys(70), gone, Cached(3)},
      {Keys(70), gone},
      {Keys(70, -HUGE_VALF)},
      {Keys(70, -HUGE_VALF), Keys(3)},
      {Keys(3), Keys(200, -HUGE_VALF), Keys(1)},
      {Cached(3), Keys(200, -HUGE_VALF)},
      {unused, Keys(64)},
      {Keys(64), unused, gone, Keys(130, -HUGE_VALF)},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i << ", " << q_len << " queries");
    CheckEverySetup(cases[i], Queries(q_len), 22000 + 2 * i);
    Asked with_sinks = Queries(q_len, true);
    with_sinks.sinks = true;
    CheckEverySetup(cases[i], with_sinks, 22100 + 2 * i);
  }
}

// A batch of 0 beside one that all sequences share: there is no sequence to read.
TEST_CASE("segments of no sequences, and lists of no segments", "[segments]") {
  Rng rng(91);
  const Tensor k = NormalTensor({1, 70, kKvHeads, kHeadDim}, 0.0f, &rng);
  const Tensor v = NormalTensor({1, 70, kKvHeads, kVHeadDim}, 0.0f, &rng);
  CrossMemory shared;
  REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), {}, &shared), IsOk());
  const auto none_of = [](const ConstTensorView& view) {
    ConstTensorView none = view;
    none.batch = 0;
    return none;
  };
  CrossMemory none;
  REQUIRE_THAT(CrossMemory::Create(none_of(k.view()), none_of(v.view()), {}, &none), IsOk());
  AttentionDesc desc;
  desc.num_heads = kHeads;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kHeadDim;
  desc.v_head_dim = kVHeadDim;
  desc.max_batch = 2;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  const Tensor q = NormalTensor({2, 1, kHeads, kHeadDim}, 0.0f, &rng);
  Tensor out(DType::kF32, {2, 1, kHeads, kVHeadDim});
  AttentionArgs args;
  args.q = q.view();
  args.out = out.view();
  KvSegment segments[2];
  args.segments = segments;
  args.num_segments = 2;
  for (const bool none_first : {false, true}) {
    segments[none_first ? 0 : 1].memory = &none;
    segments[none_first ? 1 : 0].memory = &shared;
    CHECK_THAT(Run(plan, args), IsError(StatusCode::kInvalidArgument, "q"));
    AttentionArgs of_nobody = args;
    of_nobody.q.batch = of_nobody.out.batch = 0;
    CHECK_THAT(Run(plan, of_nobody), IsOk());
  }
  const int32_t indptr[] = {0, 0, 0};
  args.num_segments = 0;
  args.num_segment_lists = 2;
  args.segment_indptr = indptr;
  for (const KvSegment* given : {static_cast<const KvSegment*>(segments), {}}) {
    args.segments = given;
    out.Set(1, 0, 1, 2, 5.0f);
    REQUIRE_THAT(Run(plan, args), IsOk());
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t c = 0; c < kVHeadDim; ++c) CHECK(out.Get(b, 0, 1, c) == 0.0f);
    }
  }
}

TEST_CASE("modifications and masks take no notice of where a segment ends", "[segments]") {
  const int64_t q_len = GENERATE(1, 5, 66);
  std::vector<Asked> all(6, Queries(q_len));
  all[0].softcap = 3.0f;
  all[1].sinks = true;
  all[1].softcap = 20.0f;
  all[2].kv_block = 48;
  all[3].kv_block = 130;
  all[3].causal = true;
  all[4].window_left = 90;
  all[4].causal = true;
  all[5].window_left = 20;
  all[5].prefix_len = 100;  // ends within the second segment
  all[5].beams = 2;
  const std::vector<Part> parts = {WithMeans(70, 2.0f, -5.0f, 1.5f), Cached(131), Keys(1),
                                   WithMeans(90, -3.0f, 40.0f, -0.5f)};
  for (size_t i = 0; i < all.size(); ++i) {
    INFO("case " << i << ", " << q_len << " queries");
    CheckEverySetup(parts, all[i], 23000 + 2 * i);
  }
}

// Decode reads 16 in one run of a kernel, and goes on with the next ones in another.
TEST_CASE("segments by the dozen", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  for (const size_t count : {size_t{17}, size_t{33}}) {
    INFO(count << " segments, " << q_len << " queries");
    std::vector<Part> parts;
    std::vector<int64_t> begins = {0};
    for (size_t i = 0; i < count; ++i) {
      const int64_t kv_len = i % 5 == 3 ? 140 : 5 + static_cast<int64_t>(i) * 29 % 60;
      const float x = static_cast<float>(i % 7) - 3.0f;
      parts.push_back(WithMeans(kv_len, 0.5f * x, 4.0f * x, -0.25f * x));
      parts.back().is_cache = i % 2 == 1;
      begins.push_back(begins.back() + kv_len);
    }
    Asked asked = Queries(q_len);
    asked.bias = true;
    CheckEverySetup(parts, asked, 23500 + count);
    // The last query sees the first segment, which is all of the first run of the kernel, and what
    // lies behind the middle of the next run's first. Without biases heads could share their tasks.
    for (Part& part : parts) part.bias = 0.0f;
    asked = Queries(q_len, true);
    asked.prefix_len = parts[0].kv_len;
    asked.window_left = begins.back() - 1 - begins[16] - parts[16].kv_len / 2;
    CheckEverySetup(parts, asked, 23600 + count);
  }
}

// What decode reads in one go begins and ends within segments; four queries are two blocks of rows,
// for which that is less. Means of K are such that the maximum of a row rises in one turn again and
// again.
TEST_CASE("segments that decode reads by turns", "[segments]") {
  const int64_t q_len = GENERATE(1, 4);
  std::vector<Part> parts = {WithMeans(700, -8.0f, 20.0f), WithMeans(1100, 8.0f, 3.0f, 0.25f),
                             WithMeans(700, -24.0f, -40.0f), WithMeans(1700, 24.0f, -9.0f)};
  parts[1].is_cache = parts[3].is_cache = true;
  CheckEverySetup(parts, Queries(q_len, true), 23700);
}

// Of floats: a tile with NaN is read key by key, and only keys that are seen.
TEST_CASE("NaN in hidden keys of a segment amid others", "[segments]") {
  const int64_t q_len = GENERATE(1, 7);
  std::vector<Part> parts(4, Keys(200));
  parts[1].nan_v = 60;
  Asked asked = Queries(q_len, true);
  asked.window_left = 499;  // from key 94 of the second on
  ForEachSetup([&](const Setup& setup) {
    if (HasQuantizedV(setup.precision)) return;
    const Segments segments(parts, {setup.precision, setup.tier}, 23800);
    const Call call(segments, asked, setup, 23801);
    call.Check(call.Run());
  });
}

TEST_CASE("the first page of a later segment is gone", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  Part cached = Cached(300);
  cached.evicted = 128;
  CheckEverySetup({Keys(128), cached}, Queries(q_len), 23900);
  CheckEverySetup({cached, cached, Keys(3)}, Queries(q_len), 23902);
}

TEST_CASE("batches of segments, shared ones among them", "[segments]") {
  const int64_t beams = GENERATE(1, 3);
  Part shared = Keys(130, 0.25f);
  Part own = Cached(67);
  own.batch = 3;
  Part memory = Keys(65);
  memory.batch = 3;
  Asked asked = Queries(4, true);
  asked.beams = beams;
  CheckEverySetup({shared, own, memory, shared}, asked, 24000);
  CheckEverySetup({own, shared}, asked, 24002);
}

TEST_CASE("a ragged batch over lists of segments is a call for each, bit by bit", "[segments]") {
  constexpr int64_t kQBlock = 5;
  constexpr int64_t kKvBlock = 48;
  const std::vector<int32_t> q_indptr = {0, 1, 30, 35, 100};
  const std::vector<int32_t> segment_indptr = {0, 2, 3, 3, 6};  // the third has no keys
  const std::vector<std::vector<int32_t>> listed = {{0}, {4, 5, 6, 28}, {1}, {5, 25, 26, 64}};
  std::vector<int32_t> all_listed;
  for (size_t s = 0; s < 4; ++s) {
    for (const int32_t i : listed[s]) all_listed.push_back(q_indptr[s] + i);
  }
  ForEachSetup([&](const Setup& setup) {
    Segments segments({Keys(140), Cached(131), Keys(60)},
                      {setup.precision, setup.tier, setup.rotate_k}, 23900);
    for (const size_t i : {size_t{0}, size_t{2}, size_t{1}})
      segments.Add(KvSegment(segments.segments[i]));
    constexpr int64_t kLongest = 140 + 60 + 131;
    const int64_t num_listed = static_cast<int64_t>(all_listed.size());
    Rng rng(23901);
    const Tensor q = NormalTensor({1, 100, kHeads, kHeadDim}, 0.0f, &rng);
    const Tensor blocks = EveryOther({4, 65 / kQBlock, kHeads, kLongest / kKvBlock + 1});
    const auto new_answer = [&] {
      return Answer{Tensor(DType::kF32, {1, 100, kHeads, kVHeadDim}),
                    Tensor(DType::kF32, {1, 100, kHeads, 1}),
                    Tensor(DType::kF32, {1, num_listed, kHeads, kLongest}),
                    {}};
    };
    AttentionDesc desc;
    desc.num_heads = kHeads;
    desc.num_kv_heads = kKvHeads;
    desc.head_dim = kHeadDim;
    desc.v_head_dim = kVHeadDim;
    desc.max_batch = 4;
    desc.max_q_len = 65;
    desc.causal = true;
    desc.precision = setup.precision;
    desc.rotate_k = setup.rotate_k;
    desc.tier = setup.tier;
    Plan plan;
    REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());

    const Answer together = new_answer();
    AttentionArgs args;
    args.q = q.view();
    args.out = together.out.view();
    args.lse = together.lse.view();
    args.weights.out = together.weights.view();
    args.weights.queries = all_listed.data();
    args.weights.num_queries = num_listed;
    args.block_mask = {blocks.mask_view(), kQBlock, kKvBlock};
    args.segments = segments.segments.data();
    args.num_segments = 6;
    args.num_segment_lists = args.num_sequences = 4;
    args.segment_indptr = segment_indptr.data();
    args.q_indptr = q_indptr.data();
    REQUIRE_THAT(Run(plan, args), IsOk());
    RecordTierRun(plan.tier());

    const Answer alone = new_answer();
    int64_t weighed = 0;
    for (size_t s = 0; s < 4; ++s) {
      AttentionArgs one = args;
      one.num_sequences = 0;
      one.q_indptr = nullptr;
      one.q = q.Slice(q_indptr[s], q_indptr[s + 1]);
      one.out = alone.out.Slice(q_indptr[s], q_indptr[s + 1]);
      one.lse = alone.lse.Slice(q_indptr[s], q_indptr[s + 1]);
      one.block_mask = OfSequence(args.block_mask, s, one.q.length);
      const int32_t indptr[] = {0, segment_indptr[s + 1] - segment_indptr[s]};
      one.segments = args.segments + segment_indptr[s];
      one.num_segments = indptr[1];
      one.num_segment_lists = 1;
      one.segment_indptr = indptr;
      one.weights.queries = listed[s].data();
      one.weights.num_queries = static_cast<int64_t>(listed[s].size());
      one.weights.out = alone.weights.Slice(weighed, weighed + one.weights.num_queries);
      weighed += one.weights.num_queries;
      REQUIRE_THAT(Run(plan, one), IsOk());
    }
    CHECK_THAT(together.out, Equals(alone.out));
    CHECK_THAT(together.lse, Equals(alone.lse));
    CHECK_THAT(together.weights, Equals(alone.weights));
  });
}

// A segment that hardly anybody looks at must not be noticed, whatever it holds.
TEST_CASE("means of K and V that differ wildly", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  const std::vector<std::vector<Part>> cases = {
      {Keys(70), WithMeans(70, 0.0f, 1e6f, -30.0f)},
      {WithMeans(70, 0.0f, 1e6f, -30.0f), Keys(70)},
      {WithMeans(70, 0.0f, -1e6f, -30.0f), Keys(5), WithMeans(129, 0.0f, 1e6f, -30.0f), Keys(9)},
      {WithMeans(70, 30.0f, 100.0f), WithMeans(70, -30.0f, -100.0f), Keys(70)},
      {WithMeans(3, 300.0f, 0.0f, -10.0f), Keys(130)},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i << ", " << q_len << " queries");
    CheckEverySetup(cases[i], Queries(q_len), 25000 + 2 * i);
  }
}

// Biases that other libraries use for masks, and their opposites.
TEST_CASE("large biases of segments", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  const float bias = GENERATE(-80.0f, -1e4f, -1e9f, -7e29f, 80.0f, 1e4f);
  for (const bool sinks : {false, true}) {
    INFO("bias " << bias << ", sinks " << sinks << ", " << q_len << " queries");
    Asked asked = Queries(q_len);
    asked.sinks = sinks;
    CheckEverySetup({Keys(70), Keys(65, bias)}, asked, 26000);
    CheckEverySetup({Keys(65, bias), Keys(70)}, asked, 26002);
    CheckEverySetup({Keys(3), Cached(65), Keys(65, bias), Keys(130)}, asked, 26004);
  }
}

// What all keys that a row sees have in common makes no difference to its output, however large;
// lse has it, and is as exact as a number of that size. With blocks each head sees one of the
// segments.
TEST_CASE("biases of segments count from the largest that is seen", "[segments]") {
  const std::vector<std::pair<float, float>> biases = {
      {1e4f, 0.0f}, {1e6f, 0.0f}, {1e9f, 0.0f}, {0.0f, 1e9f}, {-1e9f, -1e9f}, {-1e9f, -9e8f}};
  for (const auto& bias : biases) {
    for (const int64_t kv_block : {0, 70}) {
      INFO("biases " << bias.first << " and " << bias.second << ", blocks of " << kv_block);
      Asked asked = Queries(1);
      asked.kv_block = kv_block;
      asked.weights = false;
      CheckEverySetup({Keys(70, bias.first), Keys(70, bias.second)}, asked, 26500);
    }
  }
  // In a second run of a kernel, and nothing seen in the first.
  INFO("in a second run of a kernel");
  std::vector<Part> parts(16, Keys(5));
  parts.insert(parts.end(), 2, Keys(70, -1e9f));
  Asked asked = Queries(1, true);
  asked.window_left = 139;
  asked.weights = false;
  CheckEverySetup(parts, asked, 26502);
}

Part In(int64_t kv_len, Precision precision, bool rotate_k = false, float v_mean = 0.0f) {
  Part part = WithMeans(kv_len, 1.0f, v_mean);
  part.has_format = true;
  part.format.precision = precision;
  part.format.rotate_k = rotate_k;
  return part;
}

// Rows that see nothing of one precision, or of all, are merged as well.
TEST_CASE("segments of several precisions", "[segments]") {
  const int64_t q_len = GENERATE(1, 40, 200);
  const std::vector<std::vector<Part>> cases = {
      {In(70, Precision::kI8), In(70, Precision::kI8, true), In(5, Precision::kI8)},
      {In(70, Precision::kI8, true), In(70, Precision::kI8)},
      {In(70, Precision::kF32), In(130, Precision::kI8Fine, false, 50.0f)},
      {In(70, Precision::kF16), In(1, Precision::kBF16), In(64, Precision::kMixed16)},
      {In(30, Precision::kF16), In(30, Precision::kF16), In(64, Precision::kI8),
       In(9, Precision::kI8), In(9, Precision::kF32)},
      {In(0, Precision::kF16), In(0, Precision::kI8)},
      {In(3, Precision::kF16), In(0, Precision::kI8), In(70, Precision::kI8Fine)},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const bool causal : {false, true}) {
      for (const char* tier : SupportedTiers()) {
        if (!TakesTurn(tier) || (q_len > 100 && std::string(tier) == "scalar")) continue;
        INFO("case " << i << ", " << q_len << " queries, causal " << causal << " on " << tier);
        std::vector<Part> parts = cases[i];
        for (Part& part : parts) part.format.tier = tier;
        const Segments segments(parts, {}, 27000 + 2 * i);
        Asked asked = Queries(q_len, causal);
        asked.sinks = i % 2 == 1;
        const Call call(segments, asked, {tier, Precision::kF16}, 27001 + 2 * i);
        call.Check(call.Run());
      }
    }
  }
}

TEST_CASE("segments in any order give the same", "[segments]") {
  std::vector<Part> parts = {WithMeans(70, 2.0f, -5.0f, 1.5f), Cached(129),
                             WithMeans(3, -4.0f, 9.0f)};
  std::vector<size_t> order = {0, 1, 2};
  do {
    INFO("order " << order[0] << order[1] << order[2]);
    CheckEverySetup({parts[order[0]], parts[order[1]], parts[order[2]]}, Queries(7), 28000);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("segments give the same bits with any number of workers", "[segments][workers]") {
  const int64_t q_len = GENERATE(1, 90);
  ForEachSetup([&](const Setup& setup) {
    const Segments segments(
        {Keys(70, 0.5f), Cached(200), HiddenFrom(1, 2, WithMeans(130, 2.0f, 30.0f))},
        {setup.precision, setup.tier, setup.rotate_k}, 28500);
    Asked asked = Queries(q_len, true);
    const Answer expected = Call(segments, asked, setup, 1).Run();
    for (const size_t num_workers : {size_t{2}, size_t{5}}) {
      asked.parallel = OneThreadPerWorker(num_workers);
      const Answer answer = Call(segments, asked, setup, 1).Run();
      CHECK_THAT(answer.out, Equals(expected.out));
      CHECK_THAT(answer.lse, Equals(expected.lse));
      CHECK_THAT(answer.weights, Equals(expected.weights));
      CHECK_THAT(answer.mass, Equals(expected.mass));
    }
  });
}

// Without threads tasks go on from kv head to kv head of a sequence; two workers take two heads at
// a time of these, and five one. Groups of one head have biases by distance in another form.
TEST_CASE("tasks that go on with the next head", "[segments][workers]") {
  const int64_t q_len = GENERATE(1, 30);
  const int64_t group = GENERATE(1, 2);
  const int64_t hidden = GENERATE(0, 1, 2);  // heads, from the first kv head on
  ForEachSetup([&](const Setup& setup) {
    std::vector<Part> parts = {WithMeans(70, 1.0f, 3.0f), Cached(140), WithMeans(30, 2.0f, 30.0f)};
    parts[1].batch = 6;
    parts[2].hidden_end = hidden;
    const Segments segments(parts, {setup.precision, setup.tier, setup.rotate_k}, 28700,
                            {3 * group, 3, kHeadDim, kVHeadDim});
    Asked asked = Queries(q_len, true);
    asked.kv_block = 40;
    asked.mask = asked.bias = asked.distances = asked.sinks = true;
    asked.q_dtype = DType::kI8;
    asked.weights = false;  // which have tasks of their own
    const Answer expected = Call(segments, asked, setup, 1).Run();
    for (const size_t num_workers : {size_t{2}, size_t{5}}) {
      asked.parallel = OneThreadPerWorker(num_workers);
      const Answer answer = Call(segments, asked, setup, 1).Run();
      CHECK_THAT(answer.out, Equals(expected.out));
      CHECK_THAT(answer.lse, Equals(expected.lse));
    }
  });
}

// ---- Segments that some heads see and others do not ---------------------------------------------

// Of two kv heads with groups of three the first is divided; the second is, too, or sees nothing of
// a segment, or all of it.
TEST_CASE("heads of a group that see different segments", "[segments]") {
  const int64_t q_len = GENERATE(1, 4, 70);
  const Shape shape = {6, 2, kHeadDim, kVHeadDim};
  const std::vector<std::vector<Part>> cases = {
      {HiddenFrom(1, 2, Keys(70)), Cached(131)},
      {HiddenFrom(0, 1, Keys(70)), HiddenFrom(1, 6, WithMeans(131, 2.0f, -5.0f, 1.5f))},
      {Cached(5), HiddenFrom(2, 5, WithMeans(140, -3.0f, 40.0f)), HiddenFrom(1, 2, Cached(9))},
      {HiddenFrom(0, 2, Keys(70))},  // the only one
  };
  std::vector<Asked> all(3, Queries(q_len, true));
  all[1].softcap = 3.0f;
  all[1].mask = all[1].bias = all[1].distances = all[1].sinks = true;
  all[2].beams = 2;
  all[2].window_left = 90;
  all[2].prefix_len = 3;
  for (size_t i = 0; i < cases.size(); ++i) {
    for (size_t a = 0; a < all.size(); ++a) {
      INFO("case " << i << ", call " << a << ", " << q_len << " queries");
      ForEachSetup([&](const Setup& setup) {
        const Segments segments(cases[i], {setup.precision, setup.tier, setup.rotate_k},
                                28800 + 2 * i, shape);
        const Call call(segments, all[a], setup, 28801 + 2 * i);
        call.Check(call.Run());
      });
    }
  }
}

TEST_CASE("heads of a group that see segments of different precisions", "[segments]") {
  const int64_t q_len = GENERATE(1, 40, 200);
  const std::vector<std::vector<Part>> cases = {
      {HiddenFrom(1, 2, In(70, Precision::kI8)), In(30, Precision::kF16), In(9, Precision::kI8)},
      {HiddenFrom(0, 1, In(70, Precision::kF32)), HiddenFrom(1, 2, In(130, Precision::kI8Fine)),
       HiddenFrom(2, 3, In(5, Precision::kBF16))},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const char* tier : SupportedTiers()) {
      if (!TakesTurn(tier) || (q_len > 100 && std::string(tier) == "scalar")) continue;
      INFO("case " << i << ", " << q_len << " queries on " << tier);
      std::vector<Part> parts = cases[i];
      for (Part& part : parts) part.format.tier = tier;
      const Segments segments(parts, {}, 28900 + 2 * i);
      const Call call(segments, Queries(q_len, true), {tier, Precision::kF16}, 28901 + 2 * i);
      call.Check(call.Run());
    }
  }
}

std::vector<float> HeadOf(const Tensor& t, int64_t h) {
  std::vector<float> head;
  const Dims& dims = t.dims();
  for (int64_t b = 0; b < dims.batch; ++b) {
    for (int64_t l = 0; l < dims.length; ++l) {
      for (int64_t d = 0; d < dims.dim; ++d) head.push_back(t.Get(b, l, h, d));
    }
  }
  return head;
}

// Nor does NaN reach a head that only others see: integers have none.
TEST_CASE("what other heads of a group see changes no bit", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  ForEachSetup([&](const Setup& setup) {
    const auto answer_of = [&](int64_t hidden_begin, int64_t nan_v) {
      std::vector<Part> parts = {Keys(70), HiddenFrom(hidden_begin, 4, Keys(140)), Cached(30)};
      parts[1].nan_v = HasQuantizedV(setup.precision) ? 0 : nan_v;
      const Segments segments(parts, {setup.precision, setup.tier, setup.rotate_k}, 28950,
                              {4, 1, kHeadDim, kVHeadDim});
      return Call(segments, Queries(q_len, true), setup, 1).Run();
    };
    const Answer expected = answer_of(3, 0);
    for (const int64_t hidden_begin : {1, 2, 3}) {
      INFO("hidden from heads " << hidden_begin << " to 3");
      const Answer answer = answer_of(hidden_begin, 60);
      CHECK(HeadOf(answer.out, 3) == HeadOf(expected.out, 3));
      for (const int64_t h : {0, 3}) {
        CHECK(HeadOf(answer.lse, h) == HeadOf(expected.lse, h));
        CHECK(HeadOf(answer.weights, h) == HeadOf(expected.weights, h));
      }
    }
  });
}

// ---- Pages ------------------------------------------------------------------------------------

KvCache PagedCache(const KvFormat& format, int64_t page_tokens, int64_t window_left = -1,
                   int64_t num_sinks = 0, const Shape& shape = {}) {
  KvCacheDesc desc;
  desc.batch = 2;
  desc.num_kv_heads = shape.kv_heads;
  desc.head_dim = shape.head_dim;
  desc.v_head_dim = shape.v_head_dim;
  desc.capacity = 700;
  desc.page_tokens = page_tokens;
  desc.window_left = window_left;
  desc.num_sinks = num_sinks;
  desc.format = format;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  return cache;
}

Segments OfCache(const KvCache& cache, const Shape& shape = {}) {
  Segments segments({}, {}, 1, shape);
  KvSegment segment;
  segment.cache = &cache;
  segments.Add(segment);
  return segments;
}

TEST_CASE("groupings, forks and page sizes change no bit", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    Rng rng(29000);
    const Tensor k = NormalTensor({2, 400, kKvHeads, kHeadDim}, 1.0f, &rng);
    const Tensor v = NormalTensor({2, 400, kKvHeads, kVHeadDim}, 2.0f, &rng);
    KvCache at_once = PagedCache(format, 128);
    REQUIRE_THAT(at_once.Append(k.view(), v.view()), IsOk());
    const Segments expected_segments = OfCache(at_once);
    const Answer expected = Call(expected_segments, Queries(3, true), setup, 1).Run();
    for (const int64_t page_tokens : {128, 384}) {
      for (const int64_t step : {1, 37, 130}) {
        INFO("pages of " << page_tokens << ", appends of " << step);
        KvCache cache = PagedCache(format, page_tokens);
        KvCache fork;
        for (int64_t begin = 0; begin < 400; begin += step) {
          const int64_t end = std::min<int64_t>(begin + step, 400);
          REQUIRE_THAT(cache.Append(k.Slice(begin, end), v.Slice(begin, end)), IsOk());
          if (begin / step % 3 != 0) continue;
          REQUIRE_THAT(cache.Fork(&fork), IsOk());  // pages are copied again and again
          std::swap(fork, cache);
        }
        const Segments segments = OfCache(cache);
        const Answer answer = Call(segments, Queries(3, true), setup, 1).Run();
        CHECK_THAT(answer.out, Equals(expected.out));
        CHECK_THAT(answer.weights, Equals(expected.weights));
      }
    }
  });
}

// A row by itself sums every other step of a product apart, and pages end within such products: of
// 53 steps of f32 the last 24, of f16 48 and of bf16, 27, again 24 lie beyond what is fetched
// before the page ends, so that 29, 5 and 3 come before it.
TEST_CASE("page sizes change no bit of an odd number of steps", "[segments]") {
  const Shape shape = {2, 2, 53, kVHeadDim};
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    Rng rng(29500);
    const Tensor k = NormalTensor({2, 400, shape.kv_heads, shape.head_dim}, 1.0f, &rng);
    const Tensor v = NormalTensor({2, 400, shape.kv_heads, shape.v_head_dim}, 2.0f, &rng);
    std::vector<Answer> answers;
    for (const int64_t page_tokens : {128, 384}) {
      KvCache cache = PagedCache(format, page_tokens, -1, 0, shape);
      REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
      const Segments segments = OfCache(cache, shape);
      answers.push_back(Call(segments, Queries(1), setup, 1).Run());
    }
    CHECK_THAT(answers[0].out, Equals(answers[1].out));
    CHECK_THAT(answers[0].lse, Equals(answers[1].lse));
  });
}

TEST_CASE("a window forgets pages, but for its sinks", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    Rng rng(30000);
    const Tensor k = NormalTensor({2, 640, kKvHeads, kHeadDim}, 1.0f, &rng);
    const Tensor v = NormalTensor({2, 640, kKvHeads, kVHeadDim}, 2.0f, &rng);
    KvCache cache = PagedCache(format, 128, 100, 4);
    KvCache whole = PagedCache(format, 128);
    Asked asked = Queries(2, true);
    asked.window_left = 100;
    asked.prefix_len = 4;
    for (int64_t begin = 0; begin < 640; begin += 32) {
      REQUIRE_THAT(cache.Append(k.Slice(begin, begin + 32), v.Slice(begin, begin + 32)), IsOk());
      REQUIRE_THAT(whole.Append(k.Slice(begin, begin + 32), v.Slice(begin, begin + 32)), IsOk());
      if (begin % 96 != 0) continue;
      const Segments segments = OfCache(cache);
      const Segments all = OfCache(whole);
      const Call call(segments, asked, setup, 3);
      const Answer answer = call.Run();
      call.Check(answer);
      // Nothing is missing of what the window sees.
      CHECK_THAT(answer.out, Equals(Call(all, asked, setup, 3).Run().out));
    }
    // The last append saw from 508 on: pages 1 and 2 lie before that.
    CHECK(cache.num_evicted(0) == 256);
    CHECK(cache.num_evicted(1) == 256);
    CHECK_THAT(cache.Truncate(484), IsOk());
    CHECK_THAT(cache.Truncate(485), IsError(StatusCode::kInvalidArgument, "length"));
    CHECK_THAT(cache.Truncate(483), IsError(StatusCode::kInvalidArgument, "window"));
    CHECK(cache.length() == 484);
    CHECK_THAT(cache.Truncate(128), IsOk());  // the page of the sinks is whole
    CHECK(cache.num_evicted(0) == 0);
  });
}

// Tokens that come once more are forgotten once more.
TEST_CASE("a window that was cut back goes on forgetting", "[segments]") {
  Rng rng(92);
  const Tensor k = NormalTensor({1, 50, kKvHeads, kHeadDim}, 0.0f, &rng);
  const Tensor v = NormalTensor({1, 50, kKvHeads, kVHeadDim}, 0.0f, &rng);
  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = kKvHeads;
  pool_desc.head_dim = kHeadDim;
  pool_desc.v_head_dim = kVHeadDim;
  pool_desc.page_tokens = 128;
  pool_desc.max_pages = 3;
  KvPool pool;
  REQUIRE_THAT(KvPool::Create(pool_desc, &pool), IsOk());
  KvCacheDesc desc;
  desc.pool = &pool;
  desc.capacity = 1000;
  desc.window_left = 0;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  for (int turn = 0; turn < 2; ++turn) {
    while (cache.length() < 900) REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
    CHECK(pool.pages_in_use() <= 2);
    REQUIRE_THAT(cache.Truncate(200), IsOk());
  }
}

TEST_CASE("a page that is gone stays so until a token comes", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    Rng rng(30500);
    const Tensor k = NormalTensor({2, 256, kKvHeads, kHeadDim}, 1.0f, &rng);
    const Tensor v = NormalTensor({2, 256, kKvHeads, kVHeadDim}, 2.0f, &rng);
    KvCache cache = PagedCache(format, 128);
    REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
    for (int64_t b = 0; b < 2; ++b) Evict(&cache, b, 128, 256);
    REQUIRE_THAT(cache.Truncate(150), IsOk());
    CHECK(cache.num_evicted(0) == 22);
    const Segments segments = OfCache(cache);
    for (const int64_t q_len : {1, 33}) {
      const Call call(segments, Queries(q_len), setup, 1);
      call.Check(call.Run());
    }
    REQUIRE_THAT(cache.Append(k.Slice(0, 30), v.Slice(0, 30)), IsOk());
    CHECK(cache.num_evicted(0) == 22);
    for (const int64_t q_len : {1, 33}) {
      const Call call(segments, Queries(q_len), setup, 1);
      call.Check(call.Run());
    }
    REQUIRE_THAT(cache.Truncate(128), IsOk());
    CHECK(cache.num_evicted(0) == 0);
  });
}

TEST_CASE("the capacity counts tokens whose memory is in use", "[segments]") {
  KvCacheDesc desc;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kHeadDim;
  desc.v_head_dim = kVHeadDim;
  desc.capacity = 256;
  desc.page_tokens = 128;
  Rng rng(30600);
  const Tensor k = NormalTensor({1, 256, kKvHeads, kHeadDim}, 1.0f, &rng);
  const Tensor v = NormalTensor({1, 256, kKvHeads, kVHeadDim}, 2.0f, &rng);
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
  CHECK_THAT(cache.Append(k.Slice(0, 1), v.Slice(0, 1)),
             IsError(StatusCode::kCapacityExceeded, "256"));
  Evict(&cache, 0, 128, 256);
  REQUIRE_THAT(cache.Truncate(150), IsOk());  // of which 22 are gone, with their page
  CHECK_THAT(cache.Append(k.Slice(0, 129), v.Slice(0, 129)),
             IsError(StatusCode::kCapacityExceeded, "128"));
  CHECK(cache.length() == 150);
  CHECK_THAT(cache.Append(k.Slice(0, 128), v.Slice(0, 128)), IsOk());
  CHECK(cache.length() == 278);
}

TEST_CASE("pages that served before are as new", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    KvPoolDesc desc;
    desc.num_kv_heads = kKvHeads;
    desc.head_dim = kHeadDim;
    desc.v_head_dim = kVHeadDim;
    desc.format = {setup.precision, setup.tier, setup.rotate_k};
    desc.page_tokens = 128;
    desc.max_pages = 2;
    KvPool used, fresh;
    REQUIRE_THAT(KvPool::Create(desc, &used), IsOk());
    REQUIRE_THAT(KvPool::Create(desc, &fresh), IsOk());
    Rng rng(30700);
    Tensor k = NormalTensor({1, 256, kKvHeads, kHeadDim}, 1.0f, &rng);
    Tensor v = NormalTensor({1, 256, kKvHeads, kVHeadDim}, 2.0f, &rng);
    const auto cache_of = [&](const KvPool& pool, int64_t length) {
      KvCacheDesc of_pool;
      of_pool.pool = &pool;
      of_pool.capacity = 256;
      KvCache cache;
      REQUIRE_THAT(KvCache::Create(of_pool, &cache), IsOk());
      REQUIRE_THAT(cache.Append(k.Slice(0, length), v.Slice(0, length)), IsOk());
      return cache;
    };
    for (int64_t l = 0; l < 256; ++l) {
      for (int64_t d = 0; d < kVHeadDim; ++d) v.Set(0, l, l % 2, d, l % 3 == 0 ? NAN : HUGE_VALF);
    }
    cache_of(used, 256);  // and destroyed
    v = NormalTensor({1, 256, kKvHeads, kVHeadDim}, 2.0f, &rng);
    for (const int64_t length : {1, 3, 65, 127, 129}) {
      INFO(length << " tokens");
      const KvCache cache = cache_of(used, length);
      CHECK(PackedBytes(*KvAccess::Get(cache)) ==
            PackedBytes(*KvAccess::Get(cache_of(fresh, length))));
      const Segments segments = OfCache(cache);
      const Call call(segments, Queries(2), setup, 1);
      call.Check(call.Run());
    }
    CHECK(used.pages_in_use() == 0);
  });
}

// ---- Memories ---------------------------------------------------------------------------------

TEST_CASE("a memory leaves padding out", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    Rng rng(31000);
    Tensor k = NormalTensor({3, 200, kKvHeads, kHeadDim}, 1.0f, &rng);
    Tensor v = NormalTensor({3, 200, kKvHeads, kVHeadDim}, 2.0f, &rng);
    const std::vector<int32_t> kv_lens = {200, 0, 131};
    for (int64_t b = 0; b < 3; ++b) {
      for (int64_t l = kv_lens[static_cast<size_t>(b)]; l < 200; ++l) {
        for (int64_t d = 0; d < kHeadDim; ++d) k.Set(b, l, 1, d, NAN);
        for (int64_t d = 0; d < kVHeadDim; ++d) v.Set(b, l, 0, d, NAN);
      }
    }
    CrossMemoryOptions options;
    options.kv_lens = kv_lens.data();
    CrossMemory memory;
    REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), format, &memory, {}, options), IsOk());
    CHECK(memory.kv_len() == 200);
    for (int64_t b = 0; b < 3; ++b) CHECK(memory.kv_len(b) == kv_lens[static_cast<size_t>(b)]);
    CHECK(memory.kv_len(3) == 0);
    CHECK(memory.kv_len(-1) == 0);
    Segments segments({}, format, 1);
    KvSegment segment;
    segment.memory = &memory;
    segments.Add(segment);
    const Call call(segments, Queries(3), setup, 1);
    call.Check(call.Run(memory));
    call.Check(call.Run());
  });
}

// Streams that have ended are padded, as chunks of a batch are: with NaN, of which integers make 0.
TEST_CASE("a memory of a cache leaves padding out", "[segments]") {
  const int64_t q_len = GENERATE(1, 33);
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    for (const std::vector<int32_t>& kv_lens :
         std::vector<std::vector<int32_t>>{{131, 300}, {128, 0}, {400, 257}, {0, 0}}) {
      Rng rng(31500);
      Tensor k = NormalTensor({2, 400, kKvHeads, kHeadDim}, 1.0f, &rng);
      Tensor v = NormalTensor({2, 400, kKvHeads, kVHeadDim}, 2.0f, &rng);
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t l = kv_lens[static_cast<size_t>(b)]; l < 400; ++l) {
          for (int64_t d = 0; d < kHeadDim; ++d) k.Set(b, l, 1, d, NAN);
          for (int64_t d = 0; d < kVHeadDim; ++d) v.Set(b, l, 0, d, NAN);
        }
      }
      KvCache cache = PagedCache(format, 128);
      for (int64_t begin = 0; begin < 400; begin += 80) {
        REQUIRE_THAT(cache.Append(k.Slice(begin, begin + 80), v.Slice(begin, begin + 80)), IsOk());
      }
      Evict(&cache, 0, 7, 12);
      CrossMemory memory;
      REQUIRE_THAT(CrossMemory::From(cache, &memory, kv_lens.data()), IsOk());
      CHECK(memory.kv_len() == std::max(kv_lens[0], kv_lens[1]));
      for (int64_t b = 0; b < 2; ++b) CHECK(memory.kv_len(b) == kv_lens[static_cast<size_t>(b)]);
      INFO("lengths " << kv_lens[0] << " and " << kv_lens[1] << ", " << q_len << " queries");
      Segments segments({Keys(5)}, format, 1);
      KvSegment segment;
      segment.memory = &memory;
      segments.Add(segment);
      const Call beside_others(segments, Queries(q_len, true), setup, 1);
      const Answer answer = beside_others.Run();
      beside_others.Check(answer);
      Segments alone({}, format, 1);
      alone.Add(segment);
      const Call call(alone, Queries(q_len), setup, 1);
      call.Check(call.Run(memory));
      // What becomes of the cache is nothing to it.
      REQUIRE_THAT(cache.Append(k.Slice(0, 80), v.Slice(0, 80)), IsOk());
      cache.Clear();
      REQUIRE_THAT(cache.Append(k.Slice(0, 80), v.Slice(0, 80)), IsOk());
      CHECK_THAT(beside_others.Run().out, Equals(answer.out));
    }
  });
}

TEST_CASE("a memory of a cache takes no pages of padding", "[segments]") {
  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = kKvHeads;
  pool_desc.head_dim = kHeadDim;
  pool_desc.v_head_dim = kVHeadDim;
  pool_desc.page_tokens = 128;
  pool_desc.max_pages = 8;
  KvPool pool;
  REQUIRE_THAT(KvPool::Create(pool_desc, &pool), IsOk());
  KvCacheDesc desc;
  desc.pool = &pool;
  desc.batch = 2;
  desc.capacity = 400;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  Rng rng(31600);
  const Tensor k = NormalTensor({2, 400, kKvHeads, kHeadDim}, 0.0f, &rng);
  const Tensor v = NormalTensor({2, 400, kKvHeads, kVHeadDim}, 0.0f, &rng);
  REQUIRE_THAT(cache.Append(k.view(), v.view()), IsOk());
  const int32_t kv_lens[] = {129, 0};
  CrossMemory memory;
  REQUIRE_THAT(CrossMemory::From(cache, &memory, kv_lens), IsOk());
  CHECK(memory.bytes() == 2 * pool.page_bytes());
  CHECK(pool.pages_in_use() == 8);
  cache.Clear();
  CHECK(pool.pages_in_use() == 2);
}

// A block between bytes that nobody may touch.
struct Placed {
  explicit Placed(size_t bytes) : size(bytes), buffer(bytes + 128, Placement::kAtEnd, 64) {}
  KvPlacement placement() const { return {buffer.data() + 64, size}; }
  bool is_intact() const {
    for (size_t i = 0; i < 64; ++i) {
      if (buffer.data()[i] != GuardedBuffer::kFillByte) return false;
      if (buffer.data()[64 + size + i] != GuardedBuffer::kFillByte) return false;
    }
    return true;
  }
  size_t size;
  GuardedBuffer buffer;
};

TEST_CASE("memories lie where the caller wants them", "[segments]") {
  ForEachSetup([&](const Setup& setup) {
    const KvFormat format = {setup.precision, setup.tier, setup.rotate_k};
    for (const int64_t kv_len : {0, 1, 65, 130}) {
      Rng rng(32000);
      const Tensor k = NormalTensor({2, kv_len, kKvHeads, kHeadDim}, 1.0f, &rng);
      const Tensor v = NormalTensor({2, kv_len, kKvHeads, kVHeadDim}, 2.0f, &rng);
      CrossMemory own;
      REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), format, &own), IsOk());
      size_t bytes = 0;
      REQUIRE_THAT(CrossMemory::Bytes({2, kv_len, kKvHeads, kHeadDim, kVHeadDim, format}, &bytes),
                   IsOk());
      CHECK(own.bytes() == bytes);
      const Placed placed(bytes);
      {
        CrossMemoryOptions options;
        options.placement = placed.placement();
        CrossMemory memory;
        REQUIRE_THAT(CrossMemory::Create(k.view(), v.view(), format, &memory, {}, options), IsOk());
        CHECK(memory.bytes() == bytes);
        CHECK(PackedBytes(*KvAccess::Get(memory)) == PackedBytes(*KvAccess::Get(own)));
        CHECK(KvAccess::Get(memory)->block().data == placed.buffer.data() + 64);
      }
      CHECK(placed.is_intact());
    }
  });
}

TEST_CASE("a set holds the memories of all layers", "[segments][workers]") {
  const bool is_placed = GENERATE(false, true);
  const KvFormat format = {Precision::kI8, BestTier()};
  const CrossMemoryDesc desc = {2, 130, kKvHeads, kHeadDim, kVHeadDim, format};
  constexpr int64_t kLayers = 6;
  size_t bytes = 0, layer_bytes = 0;
  REQUIRE_THAT(CrossMemorySet::Bytes(desc, kLayers, &bytes), IsOk());
  REQUIRE_THAT(CrossMemory::Bytes(desc, &layer_bytes), IsOk());
  CHECK(bytes == kLayers * layer_bytes);
  const Placed placed(bytes);
  std::vector<CrossMemory> layers;
  std::vector<std::vector<unsigned char>> expected(kLayers);
  {
    CrossMemorySet set;
    CHECK(set.num_layers() == 0);
    REQUIRE_THAT(
        CrossMemorySet::Create(desc, kLayers, &set, is_placed ? placed.placement() : KvPlacement()),
        IsOk());
    CHECK(set.bytes() == bytes);
    CHECK(set.num_layers() == kLayers);
    CHECK(set.layer(0).empty());
    std::vector<std::thread> threads;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      threads.emplace_back([&, layer] {
        Rng rng(33000 + static_cast<uint64_t>(layer));
        const int64_t kv_len = layer == 3 ? 65 : 130;  // shorter ones fit as well
        const Tensor k = NormalTensor({2, kv_len, kKvHeads, kHeadDim}, 1.0f, &rng);
        const Tensor v = NormalTensor({2, kv_len, kKvHeads, kVHeadDim}, 2.0f, &rng);
        CrossMemory own;
        const Status created = CrossMemory::Create(k.view(), v.view(), format, &own);
        const Status filled = set.Fill(layer, k.view(), v.view());
        if (created.ok() && filled.ok()) {
          expected[static_cast<size_t>(layer)] = PackedBytes(*KvAccess::Get(own));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const CrossMemorySet copy = set;
    for (int64_t layer = 0; layer < kLayers; ++layer) layers.push_back(copy.layer(layer));
    CHECK(copy.layer(-1).empty());
    CHECK(copy.layer(kLayers).empty());
  }
  for (size_t layer = 0; layer < layers.size(); ++layer) {  // they outlive the set
    INFO("layer " << layer);
    REQUIRE_FALSE(layers[layer].empty());
    CHECK(layers[layer].kv_len() == (layer == 3 ? 65 : 130));
    CHECK(PackedBytes(*KvAccess::Get(layers[layer])) == expected[layer]);
  }
  if (is_placed) CHECK(placed.is_intact());
}

}  // namespace
}  // namespace testing
}  // namespace sightline
