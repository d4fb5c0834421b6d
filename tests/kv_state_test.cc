// Caches, their forks and what is read from them, by random operations beside a plain model: rows
// of K and V for each sequence, and which of them were evicted.
//
// After each operation the pages hold what the model says, to half a quantum, and no others are in
// use; what is refused changes nothing. Files are among the operations: a cache that is loaded
// takes the place of the one that was saved and goes on, and a mapped memory is read like any
// other. Attention over caches and memories, alone or as segments, is compared with the oracle on
// what is stored (support/segment_oracle.h): that is exact in all but arithmetic.
//
// A sequence of operations is a function of its seed, and seeds are consecutive. One that fails is
// shrunk by leaving operations out, and printed.
//
//   SIGHTLINE_RANDOM_SEED=4711 SIGHTLINE_RANDOM_CASES=1 build/tests/sightline_tests "[state]"
#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kv/paged_kv.h"
#include "sightline/kv_file.h"
#include "support/check.h"
#include "support/directory.h"
#include "support/numeric.h"
#include "support/problem.h"
#include "support/rotation.h"
#include "support/segment_oracle.h"
#include "support/stored.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

// Sequences of one tier beside its other tests; CTest entries of their own ask for more.
constexpr uint64_t kCasesOfTier = 60;
constexpr uint64_t kCasesSanitized = 150;
constexpr uint64_t kCasesEmulated = 10;
constexpr uint64_t kCasesOfAllTiers = 1000;
constexpr int kMaxFailures = 3;
constexpr int kMaxShrinkRuns = 200;
constexpr size_t kMaxCaches = 4;
constexpr size_t kMaxMemories = 3;
// Of one call: products of an element of Q and one of K, with its oracle some milliseconds.
constexpr int64_t kMaxMultiplyAdds = 600000;
constexpr int64_t kMaxMultiplyAddsEmulated = 60000;
// Of operations with a file, which wait for the disk: that takes longer than some hundred others.
constexpr double kChanceOfFile = 0.02;
#if defined(__EMSCRIPTEN__)  // no descriptors of directories: see tests/CMakeLists.txt
constexpr bool kHasFiles = false;
#else
constexpr bool kHasFiles = true;
#endif

class Random {
 public:
  explicit Random(uint64_t seed) : rng_(seed) {}
  bool Chance(double p) { return rng_.Uniform() < p; }
  int64_t Between(int64_t first, int64_t last) { return first + rng_.Below(last - first + 1); }
  size_t Index(size_t count) {
    return static_cast<size_t>(rng_.Below(static_cast<int64_t>(count)));
  }
  float Normal() { return static_cast<float>(rng_.Normal()); }
  uint64_t Next() { return rng_.Next(); }
  template <typename T>
  T Pick(std::initializer_list<T> from) {
    return from.begin()[Index(from.size())];
  }

 private:
  Rng rng_;
};

// What went wrong; thrown by whatever finds it.
struct Mismatch {
  std::string what;  // the check that failed
  std::string text;
};

void Require(bool condition, const std::string& what, const std::string& text = "") {
  if (!condition) throw Mismatch{what, text};
}

std::string Text(const Status& status) {
  return std::string(Name(status.code())) + " \"" + status.message() + "\"";
}

// ---- The model --------------------------------------------------------------------------------

// K and V of all kv heads.
struct Token {
  std::vector<float> k, v;
};
using Tokens = std::vector<std::shared_ptr<const Token>>;

struct ModelSequence {
  Tokens tokens;
  std::vector<bool> evicted;
  std::set<int64_t> dropped;  // pages without memory
  Tokens center;              // the tokens whose mean the centers are
  bool is_settled = false;

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_evicted() const { return std::count(evicted.begin(), evicted.end(), true); }
};

struct Geometry {
  const char* tier = nullptr;
  Precision precision = Precision::kF32;
  bool rotate_k = false;
  int64_t heads = 1, kv_heads = 1, head_dim = 1, v_head_dim = 1;
  int64_t page_tokens = 128;
  int64_t batch = 1;
  int64_t capacity = 0;
  int64_t window_left = -1, num_sinks = 0;
  bool is_pooled = false;
  int64_t max_pages = 0;
  float k_mean = 0.0f, v_mean = 0.0f;
};

struct ModelCache {
  std::vector<ModelSequence> sequences;
  int64_t forgotten_end = 0;  // the window has forgotten tokens up to this one

  int64_t length() const { return sequences[0].length(); }
};

// Where a window begins to forget.
int64_t ForgottenBegin(const Geometry& g) {
  return (g.num_sinks + g.page_tokens - 1) / g.page_tokens * g.page_tokens;
}

void DropFullPage(const Geometry& g, int64_t page, ModelSequence* s) {
  const int64_t end = (page + 1) * g.page_tokens;
  if (end > s->length()) return;
  for (int64_t i = page * g.page_tokens; i < end; ++i) {
    if (!s->evicted[static_cast<size_t>(i)]) return;
  }
  s->dropped.insert(page);
}

void EvictFrom(const Geometry& g, const std::vector<int32_t>& positions, ModelSequence* s) {
  std::set<int64_t> pages;
  for (const int32_t position : positions) {
    s->evicted[static_cast<size_t>(position)] = true;
    pages.insert(position / g.page_tokens);
  }
  for (const int64_t page : pages) DropFullPage(g, page, s);
}

int64_t HeldTokens(const Geometry& g, const ModelSequence& s) {
  int64_t held = s.length();
  for (const int64_t page : s.dropped) {
    held -= std::min(g.page_tokens, s.length() - page * g.page_tokens);
  }
  return held;
}

// What an append forgets before it begins.
void Forget(const Geometry& g, ModelCache* cache) {
  if (g.window_left < 0 || cache->length() <= g.window_left) return;
  const int64_t end = (cache->length() - g.window_left) / g.page_tokens * g.page_tokens;
  std::vector<int32_t> positions;
  for (int64_t i = ForgottenBegin(g); i < end; ++i) positions.push_back(static_cast<int32_t>(i));
  for (ModelSequence& s : cache->sequences) EvictFrom(g, positions, &s);
  cache->forgotten_end = std::max(cache->forgotten_end, end);
}

void AppendTo(const Geometry& g, const Tokens& tokens, ModelSequence* s) {
  if (tokens.empty()) return;
  s->dropped.erase(s->length() / g.page_tokens);  // an open page is there again
  s->tokens.insert(s->tokens.end(), tokens.begin(), tokens.end());
  s->evicted.resize(s->tokens.size(), false);
  if (s->is_settled) return;
  constexpr ptrdiff_t kTile = static_cast<ptrdiff_t>(kScaleTileKeys);
  s->is_settled = s->length() >= kTile;
  const ptrdiff_t count = std::min(static_cast<ptrdiff_t>(s->tokens.size()), kTile);
  s->center.assign(s->tokens.begin(), s->tokens.begin() + count);
}

void TruncateTo(const Geometry& g, int64_t length, ModelSequence* s) {
  s->tokens.resize(static_cast<size_t>(length));
  s->evicted.resize(static_cast<size_t>(length));
  while (!s->dropped.empty() && *s->dropped.rbegin() * g.page_tokens >= length) {
    s->dropped.erase(std::prev(s->dropped.end()));
  }
  if (length == 0) *s = ModelSequence();
}

// Whether the next query after Truncate(length) looks for tokens that the window has forgotten.
bool MissesForgotten(const Geometry& g, const ModelCache& cache, int64_t length) {
  if (g.window_left < 0) return false;
  const int64_t begin = std::max(length - g.window_left, ForgottenBegin(g));
  return begin < std::min(length, cache.forgotten_end);
}

// ---- What is stored ---------------------------------------------------------------------------

DType StoredType(Precision precision) {
  if (precision == Precision::kF32) return DType::kF32;
  return precision == Precision::kF16 ? DType::kF16 : DType::kBF16;
}

double MeanOf(const Tokens& tokens, size_t at, std::vector<float> Token::* values) {
  double sum = 0.0;
  for (const auto& token : tokens) sum += static_cast<double>((token.get()->*values)[at]);
  return tokens.empty() ? 0.0 : sum / static_cast<double>(tokens.size());
}

// Centers of one head against the means of the model's tokens.
void CheckCenters(const StoredHead& head, size_t h, const Tokens& tokens) {
  const auto check = [&](const char* what, const std::vector<float>& center,
                         std::vector<float> Token::* values) {
    for (size_t d = 0; d < center.size(); ++d) {
      const double mean = MeanOf(tokens, h * center.size() + d, values);
      Require(fabs(static_cast<double>(center[d]) - mean) <= 1e-4 + 1e-5 * fabs(mean), what,
              std::to_string(center[d]) + " is not " + std::to_string(mean));
    }
  };
  if (HasQuantizedK(head.precision)) check("center of K", head.k_center, &Token::k);
  if (HasQuantizedV(head.precision)) check("center of V", head.v_center, &Token::v);
}

void CheckElement(const char* what, size_t key, double stored, double wanted, double step,
                  double magnitude) {
  const double allowed = 0.5001 * step + (step == 0.0 ? 0.0 : 1e-6 * magnitude);
  if (fabs(stored - wanted) <= allowed) return;
  throw Mismatch{what, "key " + std::to_string(key) + " has " + std::to_string(stored) + ", not " +
                           std::to_string(wanted) + " within " + std::to_string(allowed)};
}

void CheckKey(const StoredHead& head, size_t h, size_t key, const Token& token) {
  const size_t dim = head.head_dim;
  std::vector<float> k(token.k.begin() + static_cast<ptrdiff_t>(h * dim),
                       token.k.begin() + static_cast<ptrdiff_t>((h + 1) * dim));
  double largest = 0.0;
  if (HasQuantizedK(head.precision)) {
    std::vector<float> factors = head.q_factor;
    size_t block = 1;
    while (dim % (2 * block) == 0) block *= 2;
    for (float& factor : factors) factor = 1.0f / (factor * static_cast<float>(block));
    for (size_t d = 0; d < dim; ++d) k[d] -= head.k_center[d];
    if (head.rotate_k) RotateQ(factors, &k);
    for (const float x : k) largest = std::max(largest, static_cast<double>(fabsf(x)));
    Require(head.k_step[key] <= largest / 127.0 * 1.0001 + 1e-9, "step of K");
  }
  for (size_t d = 0; d < dim; ++d) {
    double wanted = static_cast<double>(k[d]);
    if (!HasQuantizedK(head.precision)) {
      wanted = static_cast<double>(RoundThrough(StoredType(head.precision), k[d]));
    }
    CheckElement("K", key, head.k[key * dim + d], wanted, head.k_step[key], largest + fabs(wanted));
  }
  for (size_t c = 0; c < head.v_head_dim; ++c) {
    const float v = token.v[h * head.v_head_dim + c];
    const double center = static_cast<double>(head.v_center[c]);
    const size_t at = key * head.v_head_dim + c;
    double wanted = static_cast<double>(v) - center;
    if (!HasQuantizedV(head.precision)) {
      wanted = static_cast<double>(RoundThrough(StoredType(head.precision), v));
    }
    CheckElement("V", key, head.v[at], wanted, head.v_step[at],
                 fabs(static_cast<double>(v)) + fabs(center));
  }
}

void CheckSequence(const internal::PackedKv& packed, size_t batch, const ModelSequence& model) {
  const StoredHeads heads = ReadStored(packed, batch, model.tokens.size());
  for (size_t h = 0; h < heads->size(); ++h) {
    const StoredHead& head = (*heads)[h];
    bool any = false;
    for (size_t key = 0; key < head.num_keys(); ++key) {
      Require(head.present[key] != model.evicted[key], "eviction",
              "of key " + std::to_string(key) + " in sequence " + std::to_string(batch));
      any |= head.present[key];
      if (head.present[key]) CheckKey(head, h, key, *model.tokens[key]);
    }
    if (any) CheckCenters(head, h, model.center);
  }
}

// ---- Operations -------------------------------------------------------------------------------

enum class Kind {
  kAppend,
  kFork,
  kCreate,
  kTruncate,
  kReorder,
  kEvict,
  kClear,
  kSnapshot,
  kAttend,
  kReload,
  kMap,
};

struct Operation {
  Kind kind;
  uint64_t seed;  // of all that it draws
};

struct Script {
  Geometry geometry;
  std::vector<Operation> operations;
};

Script MakeScript(uint64_t seed) {
  Random random(seed);
  Script script;
  Geometry& g = script.geometry;
  const std::vector<const char*> tiers = SupportedTiers();
  g.tier = tiers[random.Index(tiers.size())];
  g.precision = kPrecisions[random.Index(kPrecisions.size())];
  g.rotate_k = g.precision == Precision::kI8 && random.Chance(0.3);
  g.kv_heads = random.Between(1, 2);
  g.heads = g.kv_heads * random.Between(1, 3);
  g.head_dim = random.Chance(0.1) ? random.Between(33, 80) : random.Between(1, 24);
  g.v_head_dim = random.Chance(0.1) ? random.Between(33, 80) : random.Between(1, 24);
  g.page_tokens = random.Pick<int64_t>({128, 128, 256, 384});
  g.batch = random.Chance(0.5) ? 1 : random.Between(2, 3);
  g.capacity = random.Between(100, 700);
  if (random.Chance(0.3)) {
    g.window_left = random.Between(0, 200);
    g.num_sinks = random.Pick<int64_t>({0, 0, 4, 128, 150});
  }
  g.is_pooled = random.Chance(0.7);
  g.max_pages = random.Chance(0.5) ? 1000 : random.Between(2, 14);
  if (random.Chance(0.4)) g.k_mean = random.Pick({0.5f, -4.0f, 30.0f});
  if (random.Chance(0.4)) g.v_mean = random.Pick({1.0f, -20.0f, 300.0f});
  const int64_t count = random.Between(3, 24);
  for (int64_t i = 0; i < count; ++i) {
    Kind kind = random.Pick({Kind::kAppend,   Kind::kAppend,   Kind::kAppend,   Kind::kAppend,
                             Kind::kAppend,   Kind::kFork,     Kind::kFork,     Kind::kCreate,
                             Kind::kTruncate, Kind::kTruncate, Kind::kTruncate, Kind::kReorder,
                             Kind::kReorder,  Kind::kEvict,    Kind::kEvict,    Kind::kEvict,
                             Kind::kClear,    Kind::kSnapshot, Kind::kAttend,   Kind::kAttend,
                             Kind::kAttend,   Kind::kAttend});
    if (kHasFiles && random.Chance(kChanceOfFile)) kind = random.Pick({Kind::kReload, Kind::kMap});
    script.operations.push_back({kind, random.Next()});
  }
  return script;
}

// ---- A call of attention ----------------------------------------------------------------------

// Something to read, with what it holds.
struct Readable {
  const KvCache* cache = nullptr;
  const CrossMemory* memory = nullptr;

  const internal::PackedKv& packed() const {
    return cache != nullptr ? *KvAccess::Get(*cache) : *KvAccess::Get(*memory);
  }
  int64_t batch() const { return packed().geometry().batch; }
};

// A call over what is readable, drawn at random, and what it gives.
class RandomCall {
 public:
  RandomCall(const Geometry& g, std::vector<Readable> readables, Random* random)
      : g_(g), random_(*random), readables_(std::move(readables)) {}

  void RunAndCheck() {
    TakeSources();
    TakeQueries();
    TakeMasks();
    TakeModifications();
    Run();
    Compare();
  }

  const std::string& text() const { return text_; }

 private:
  int64_t kv_batch() const { return static_cast<int64_t>(in_.parts.size()); }
  int64_t LengthOf(size_t r) const {
    int64_t length = 0;
    for (const StoredPart& part : in_.parts[r]) length += static_cast<int64_t>(part.count);
    return length;
  }
  int64_t Longest() const {
    int64_t longest = 0;
    for (size_t r = 0; r < in_.parts.size(); ++r) longest = std::max(longest, LengthOf(r));
    return longest;
  }

  static int64_t KeysIn(const Readable& from, int64_t batch) {
    return static_cast<int64_t>(from.packed().keys(static_cast<size_t>(batch)).count);
  }

  StoredPart PartOf(const Readable& from, int64_t batch, const KvSegment& segment) {
    const size_t entry = static_cast<size_t>(from.batch() == 1 ? 0 : batch);
    int64_t count = KeysIn(from, static_cast<int64_t>(entry));
    if (segment.kv_len >= 0) count = std::min(count, segment.kv_len);
    StoredPart part;
    part.count = static_cast<size_t>(count);
    part.heads = ReadStored(from.packed(), entry, part.count);
    if (segment.bias != nullptr) part.bias.assign(segment.bias, segment.bias + g_.heads);
    return part;
  }

  void TakeSources() {
    desc_.any_precision = random_.Chance(0.45);
    std::vector<Readable> fitting;
    for (const Readable& readable : readables_) {
      const internal::KvGeometry& geometry = readable.packed().geometry();
      if (desc_.any_precision || (geometry.precision == g_.precision &&
                                  internal::IsRotated(geometry.layout) == g_.rotate_k)) {
        fitting.push_back(readable);
      }
    }
    readables_ = std::move(fitting);
    if (readables_.empty() || random_.Chance(0.35)) {
      TakeOne();
    } else if (random_.Chance(0.3)) {
      TakeLists();
    } else {
      TakeSegments();
    }
  }

  void TakeOne() {
    if (readables_.empty()) throw Mismatch{"nothing to read", ""};
    const Readable from = readables_[random_.Index(readables_.size())];
    args_.cache = from.cache;
    args_.memory = from.memory;
    for (int64_t b = 0; b < from.batch(); ++b) {
      in_.parts.push_back({PartOf(from, b, KvSegment())});
    }
    text_ += from.cache != nullptr ? "cache" : "memory";
    if (!random_.Chance(0.2)) return;
    for (auto& parts : in_.parts) {
      parts[0].count =
          static_cast<size_t>(random_.Between(0, static_cast<int64_t>(parts[0].count)));
      kv_lens_.push_back(static_cast<int32_t>(parts[0].count));
      text_ += " kv_len " + std::to_string(parts[0].count);
    }
    args_.kv_lens = kv_lens_.data();
  }

  KvSegment SegmentOf(const Readable& from) {
    KvSegment segment;
    segment.cache = from.cache;
    segment.memory = from.memory;
    if (random_.Chance(0.2)) segment.kv_len = random_.Between(0, KeysIn(from, 0) + 5);
    if (random_.Chance(0.4)) {
      auto bias = std::make_unique<std::vector<float>>();
      const float spread = random_.Pick({1.0f, 1.0f, 20.0f, 1000.0f});
      for (int64_t h = 0; h < g_.heads; ++h) bias->push_back(spread * random_.Normal());
      const int64_t group = g_.heads / g_.kv_heads;
      if (random_.Chance(0.2)) {
        const int64_t hidden = random_.Between(0, g_.kv_heads - 1) * group;
        std::fill_n(bias->begin() + static_cast<ptrdiff_t>(hidden), group, -HUGE_VALF);
      }
      if (random_.Chance(0.2)) (*bias)[random_.Index(bias->size())] = -HUGE_VALF;
      segment.bias = bias->data();
      biases_.push_back(std::move(bias));
    }
    text_ += std::string(from.cache != nullptr ? " cache" : " memory") + " of " +
             std::to_string(from.batch()) + "x" + std::to_string(KeysIn(from, 0)) + " " +
             Name(from.packed().geometry().precision);
    if (segment.kv_len >= 0) text_ += " kv_len " + std::to_string(segment.kv_len);
    if (segment.bias != nullptr) text_ += " bias " + std::to_string(*segment.bias);
    return segment;
  }

  void TakeSegments() {
    text_ += "segments:";
    int64_t batch = 1;
    const int64_t count = random_.Between(1, 5);
    std::vector<Readable> taken;
    for (int64_t i = 0; i < count; ++i) {
      const Readable from = readables_[random_.Index(readables_.size())];
      if (from.batch() != 1 && batch != 1 && from.batch() != batch) continue;
      if (from.batch() != 1) batch = from.batch();
      taken.push_back(from);
      segments_.push_back(SegmentOf(from));
    }
    for (int64_t b = 0; b < batch; ++b) {
      in_.parts.emplace_back();
      for (size_t i = 0; i < taken.size(); ++i) {
        in_.parts.back().push_back(PartOf(taken[i], b, segments_[i]));
      }
    }
    args_.segments = segments_.data();
    args_.num_segments = static_cast<int64_t>(segments_.size());
  }

  void TakeLists() {
    std::vector<Readable> single;
    for (const Readable& from : readables_) {
      if (from.batch() == 1) single.push_back(from);
    }
    if (single.empty()) return TakeSegments();
    text_ += "lists:";
    segment_indptr_ = {0};
    const int64_t num_lists = random_.Between(1, 4);
    for (int64_t s = 0; s < num_lists; ++s) {
      in_.parts.emplace_back();
      for (int64_t i = random_.Between(s == 0 ? 1 : 0, 3); i > 0; --i) {
        const Readable from = single[random_.Index(single.size())];
        segments_.push_back(SegmentOf(from));
        in_.parts.back().push_back(PartOf(from, 0, segments_.back()));
      }
      segment_indptr_.push_back(static_cast<int32_t>(segments_.size()));
      text_ += ";";
    }
    args_.segments = segments_.data();
    args_.num_segments = static_cast<int64_t>(segments_.size());
    args_.num_segment_lists = num_lists;
    args_.segment_indptr = segment_indptr_.data();
  }

  void TakeQueries() {
    const double kind = static_cast<double>(random_.Between(0, 99)) / 100.0;
    int64_t q_len = kind < 0.5 ? 1 : kind < 0.7 ? random_.Between(2, 8) : random_.Between(9, 70);
    if (random_.Chance(0.04)) q_len = random_.Between(150, 230);
    in_.beams = random_.Chance(0.7) ? 1 : random_.Between(2, 3);
    const int64_t most = IsEmulated() ? kMaxMultiplyAddsEmulated : kMaxMultiplyAdds;
    const int64_t of_query = kv_batch() * in_.beams * g_.heads * std::max<int64_t>(Longest(), 1) *
                             (g_.head_dim + g_.v_head_dim);
    q_len = std::max<int64_t>(std::min(q_len, most / of_query), 1);
    q_ = Tensor(DType::kF32, {kv_batch() * in_.beams, q_len, g_.heads, g_.head_dim});
    const float gain = random_.Chance(0.8) ? 1.0f : 4.0f;
    for (int64_t b = 0; b < q_.dims().batch; ++b) {
      for (int64_t l = 0; l < q_len; ++l) {
        for (int64_t h = 0; h < g_.heads; ++h) {
          for (int64_t d = 0; d < g_.head_dim; ++d) q_.Set(b, l, h, d, gain * random_.Normal());
        }
      }
    }
    args_.q = q_.view();
    text_ += ", " + std::to_string(q_len) + " queries, " + std::to_string(in_.beams) + " beams";
  }

  // The smallest window of the caches that are read: none if it is -1.
  int64_t KeptWindow() const {
    int64_t kept = -1;
    const auto look = [&](const KvCache* cache) {
      if (cache == nullptr || cache->window_left() < 0) return;
      kept = kept < 0 ? cache->window_left() : std::min(kept, cache->window_left());
    };
    look(args_.cache);
    for (const KvSegment& segment : segments_) look(segment.cache);
    return kept;
  }

  Tensor Booleans(const Dims& dims) {
    Tensor t(DType::kI8, dims);
    const double density = random_.Pick({0.1, 0.5, 0.95});
    for (int64_t b = 0; b < dims.batch; ++b) {
      for (int64_t l = 0; l < dims.length; ++l) {
        for (int64_t h = 0; h < dims.heads; ++h) {
          for (int64_t j = 0; j < dims.dim; ++j) {
            t.SetQuantum(b, l, h, j, random_.Chance(density) ? 1 : 0);
          }
        }
      }
    }
    return t;
  }

  void TakeMasks() {
    desc_.causal = in_.causal = random_.Chance(0.4);
    const int64_t kept = KeptWindow();
    if (kept >= 0 || random_.Chance(0.2)) {
      desc_.window_left = random_.Between(0, kept >= 0 ? kept : 300);
    }
    if (random_.Chance(0.1)) desc_.window_right = random_.Between(0, 100);
    in_.window_left = desc_.window_left;
    in_.window_right = desc_.window_right;
    if (random_.Chance(0.15)) in_.q_start = random_.Between(-3, Longest() + 20);
    args_.q_start = in_.q_start;
    if (random_.Chance(0.2)) {
      for (int64_t b = 0; b < kv_batch(); ++b) {
        const int64_t most = LengthOf(static_cast<size_t>(b)) + (args_.kv_lens == nullptr ? 10 : 0);
        in_.prefix_lens.push_back(static_cast<int32_t>(random_.Between(0, most)));
      }
      args_.prefix_lens = in_.prefix_lens.data();
    }
    const Dims& q = q_.dims();
    if (random_.Chance(0.15)) {
      mask_ = Booleans({q.batch, q.length, q.heads, LongestHeld()});
      args_.mask = mask_.mask_view();
      in_.mask = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
        return mask_.Get(b, l, h, j) != 0.0f;
      };
      text_ += ", mask";
    }
    if (random_.Chance(0.12)) TakeBlocks();
    if (in_.causal) text_ += ", causal";
    text_ +=
        ", window " + std::to_string(desc_.window_left) + " " + std::to_string(desc_.window_right);
    for (const int32_t prefix : in_.prefix_lens) text_ += ", prefix " + std::to_string(prefix);
    if (in_.q_start != AttentionArgs::kBottomRight) {
      text_ += ", q_start " + std::to_string(in_.q_start);
    }
  }

  // Keys of the longest sequence before kv_lens cuts them off.
  int64_t LongestHeld() const {
    int64_t longest = Longest();
    for (const auto& parts : in_.parts) {
      for (const StoredPart& part : parts) {
        if (kv_lens_.empty()) break;
        longest = std::max(longest, static_cast<int64_t>((*part.heads)[0].num_keys()));
      }
    }
    return longest;
  }

  void TakeBlocks() {
    const Dims& q = q_.dims();
    in_.q_block = random_.Pick<int64_t>({1, 3, 64});
    in_.kv_block = random_.Pick<int64_t>({1, 7, 32, 100, 128});
    const auto blocks = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
    blocks_ = Booleans(
        {q.batch, blocks(q.length, in_.q_block), q.heads, blocks(LongestHeld(), in_.kv_block)});
    args_.block_mask = {blocks_.mask_view(), in_.q_block, in_.kv_block};
    in_.blocks = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
      return blocks_.Get(b, l, h, j) != 0.0f;
    };
    text_ += ", blocks " + std::to_string(in_.q_block) + "x" + std::to_string(in_.kv_block);
  }

  void TakeModifications() {
    if (random_.Chance(0.2)) desc_.softcap = in_.softcap = random_.Pick({2.0f, 30.0f});
    if (random_.Chance(0.15)) TakeBias();
    if (random_.Chance(0.15)) {
      for (int64_t h = 0; h < g_.heads; ++h) {
        in_.alibi_slopes.push_back(random_.Pick({0.5f, 0.0625f, 0.004f}));
      }
      args_.alibi_slopes = in_.alibi_slopes.data();
      text_ += ", alibi";
    }
    if (random_.Chance(0.15)) {
      in_.relative_buckets.num_buckets = random_.Pick<int64_t>({4, 16});
      in_.relative_buckets.bidirectional = random_.Chance(0.5);
      in_.relative_buckets.max_distance = random_.Pick<int64_t>({20, 128});
      desc_.relative_buckets = in_.relative_buckets;
      for (int64_t i = 0; i < in_.relative_buckets.num_buckets * g_.heads; ++i) {
        in_.relative_bias.push_back(random_.Normal());
      }
      args_.relative_bias = in_.relative_bias.data();
      text_ += ", buckets";
    }
    if (random_.Chance(0.2)) {
      for (int64_t h = 0; h < g_.heads; ++h) in_.sinks.push_back(3.0f * random_.Normal());
      args_.sinks = in_.sinks.data();
      text_ += ", sinks";
    }
    if (in_.softcap != 0.0f) text_ += ", softcap " + std::to_string(in_.softcap);
  }

  void TakeBias() {
    const Dims& q = q_.dims();
    bias_ = Tensor(DType::kF32, {q.batch, q.length, q.heads, LongestHeld()});
    for (int64_t b = 0; b < q.batch; ++b) {
      for (int64_t l = 0; l < q.length; ++l) {
        for (int64_t h = 0; h < q.heads; ++h) {
          for (int64_t j = 0; j < bias_.dims().dim; ++j) {
            bias_.Set(b, l, h, j, random_.Chance(0.03) ? -HUGE_VALF : random_.Normal());
          }
        }
      }
    }
    args_.bias = bias_.view();
    in_.bias = [this](int64_t b, int64_t l, int64_t h, int64_t j) {
      return static_cast<double>(bias_.Get(b, l, h, j));
    };
    text_ += ", bias";
  }

  void TakeOutputs() {
    const Dims& q = q_.dims();
    out_ = Tensor(DType::kF32, {q.batch, q.length, q.heads, g_.v_head_dim});
    args_.out = out_.view();
    if (!random_.Chance(0.6)) return;
    has_lse_ = true;
    lse_ = Tensor(DType::kF32, {q.batch, q.length, q.heads, 1});
    args_.lse = lse_.view();
    const int64_t num_keys = LongestHeld() + (random_.Chance(0.3) ? 9 : 0);
    if (random_.Chance(0.4)) {
      has_weights_ = true;
      weights_ = Tensor(DType::kF32, {q.batch, q.length, q.heads, num_keys});
      args_.weights.out = weights_.view();
    }
    if (random_.Chance(0.4)) {
      has_mass_ = true;
      mass_ = Tensor(DType::kF32, {random_.Chance(0.5) ? q.batch : kv_batch(), 1,
                                   random_.Chance(0.5) ? q.heads : g_.kv_heads, num_keys});
      args_.mass = mass_.view();
    }
  }

  void Run() {
    TakeOutputs();
    desc_.num_heads = g_.heads;
    desc_.num_kv_heads = g_.kv_heads;
    desc_.head_dim = g_.head_dim;
    desc_.v_head_dim = g_.v_head_dim;
    desc_.max_batch = q_.dims().batch;
    desc_.max_q_len = q_.dims().length;
    desc_.precision = g_.precision;
    desc_.rotate_k = g_.rotate_k;
    desc_.tier = g_.tier;
    desc_.owns_workspace = false;
    ParallelFor parallel;
    if (random_.Chance(0.2)) parallel = BackwardsOnThisThread(3);
    desc_.max_workers = static_cast<int64_t>(parallel.num_workers);
    Plan plan;
    Status status = Plan::Create(desc_, &plan);
    Require(status.ok(), "Plan::Create", Text(status));
    GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
    scratch.Fill(0xFF);
    status = sightline::Run(plan, args_, {scratch.data(), scratch.size()}, parallel);
    Require(status.ok(), "Run", Text(status));
    RecordTierRun(plan.tier());
  }

  // With zeros behind the keys.
  static Expected Widen(const Expected& from, int64_t dim) {
    Expected to = from;
    to.dims.dim = dim;
    to.value.assign(static_cast<size_t>(to.dims.NumElements()), 0.0);
    to.tolerance = to.value;
    for (size_t i = 0; i < from.value.size(); ++i) {
      const size_t row = i / static_cast<size_t>(from.dims.dim);
      const size_t at = row * static_cast<size_t>(dim) + i % static_cast<size_t>(from.dims.dim);
      to.value[at] = from.value[i];
      to.tolerance[at] = from.tolerance[i];
    }
    return to;
  }

  static void Match(const char* what, const Tensor& tensor, const Expected& expected) {
    const IsClose is_close(expected);
    Require(is_close.match(tensor), what, is_close.describe());
  }

  void Compare() {
    in_.q = &q_;
    in_.tier = g_.tier;
    in_.kv_heads = g_.kv_heads;
    in_.v_head_dim = g_.v_head_dim;
    const SegmentOutput expected = ComputeSegments(in_);
    Match("out", out_, expected.out);
    if (has_lse_) Match("lse", lse_, expected.out.Lse());
    if (has_weights_) Match("weights", weights_, Widen(expected.weights, weights_.dims().dim));
    if (!has_mass_) return;
    const Dims& mass = mass_.dims();
    Match("mass", mass_, Widen(MassOf(expected, mass.batch, mass.heads), mass.dim));
  }

  const Geometry& g_;
  Random& random_;
  std::vector<Readable> readables_;
  AttentionDesc desc_;
  AttentionArgs args_;
  SegmentInput in_;
  std::vector<KvSegment> segments_;
  std::vector<std::unique_ptr<std::vector<float>>> biases_;
  std::vector<int32_t> segment_indptr_, kv_lens_;
  Tensor q_, mask_, blocks_, bias_, out_, lse_, weights_, mass_;
  bool has_lse_ = false, has_weights_ = false, has_mass_ = false;
  std::string text_;
};

// ---- The machine ------------------------------------------------------------------------------

class Machine {
 public:
  explicit Machine(const Geometry& g) : g_(g) {
    if (!g.is_pooled) return;
    KvPoolDesc desc;
    desc.num_kv_heads = g.kv_heads;
    desc.head_dim = g.head_dim;
    desc.v_head_dim = g.v_head_dim;
    desc.format = {g.precision, g.tier, g.rotate_k};
    desc.page_tokens = g.page_tokens;
    desc.max_pages = g.max_pages;
    Expect("KvPool::Create", KvPool::Create(desc, &pool_));
  }

  // What goes wrong, or nothing.
  Mismatch Run(const std::vector<Operation>& operations) {
    try {
      for (const Operation& operation : operations) {
        Apply(operation);
        CheckPages();
      }
      for (size_t i = 0; i < caches_.size(); ++i) CheckCache(*caches_[i]);
      caches_.clear();
      memories_.clear();
      Require(pool_.pages_in_use() == 0, "pages are left", std::to_string(pool_.pages_in_use()));
    } catch (const Mismatch& mismatch) {
      return mismatch;
    }
    return {};
  }

  const std::string& log() const { return log_; }

 private:
  struct Live {
    KvCache cache;
    ModelCache model;
  };
  struct Snapshot {
    CrossMemory memory;
    std::vector<ModelSequence> model;  // empty for those made of tensors
    bool is_mapped = false;
  };

  static void Expect(const std::string& what, const Status& status) {
    Require(status.ok(), what, Text(status));
  }
  // It has to be refused.
  static void ExpectError(const std::string& what, const Status& status, StatusCode code) {
    Require(status.code() == code, what + " is not refused", Text(status));
  }

  void Log(const std::string& text) { log_ += "  " + text + "\n"; }

  void Apply(const Operation& operation) {
    Random random(operation.seed);
    if (caches_.empty()) Create(&random, random.Index(kMaxCaches));
    const size_t at = random.Index(caches_.size());
    Live& live = *caches_[at];
    const std::string name = "cache " + std::to_string(at) + " of " +
                             std::to_string(live.model.sequences.size()) + "x" +
                             std::to_string(live.model.length());
    switch (operation.kind) {
      case Kind::kAppend:
        Append(name, &random, &live);
        break;
      case Kind::kFork:
        Fork(name, &random, at);
        break;
      case Kind::kCreate:
        Create(&random, at);
        break;
      case Kind::kTruncate:
        Truncate(name, &random, &live);
        break;
      case Kind::kReorder:
        Reorder(name, &random, &live);
        break;
      case Kind::kEvict:
        Evict(name, &random, &live);
        break;
      case Kind::kClear:
        Log(name + ": clear");
        live.cache.Clear();
        for (ModelSequence& s : live.model.sequences) s = ModelSequence();
        live.model.forgotten_end = 0;
        break;
      case Kind::kSnapshot:
        TakeMemory(name, &random, live);
        break;
      case Kind::kAttend:
        Attend(&random, EverythingReadable());
        break;
      case Kind::kReload:
        Reload(name, &random, &live);
        break;
      case Kind::kMap:
        MapMemory(name, &random, live);
        break;
    }
    // The one that changed, and another that should not have.
    CheckCache(*caches_[std::min(at, caches_.size() - 1)]);
    CheckCache(*caches_[random.Index(caches_.size())]);
    for (const Snapshot& snapshot : memories_) CheckMemory(snapshot);
  }

  KvCacheDesc CacheDesc() const {
    KvCacheDesc desc;
    desc.batch = g_.batch;
    desc.capacity = g_.capacity;
    desc.window_left = g_.window_left;
    desc.num_sinks = g_.num_sinks;
    if (g_.is_pooled) {
      desc.pool = &pool_;
    } else {
      desc.num_kv_heads = g_.kv_heads;
      desc.head_dim = g_.head_dim;
      desc.v_head_dim = g_.v_head_dim;
      desc.format = {g_.precision, g_.tier, g_.rotate_k};
      desc.page_tokens = g_.page_tokens;
    }
    return desc;
  }

  // Without tokens.
  void MakeNew(Live* live) const {
    live->model = ModelCache();
    live->model.sequences.resize(static_cast<size_t>(g_.batch));
    Expect("KvCache::Create", KvCache::Create(CacheDesc(), &live->cache));
  }

  // A new one at `at`, or behind the last.
  void Create(Random* random, size_t at) {
    auto live = std::make_unique<Live>();
    MakeNew(live.get());
    Log("create a cache in place of " + std::to_string(at));
    if (at < caches_.size() && random->Chance(0.8)) {
      caches_[at] = std::move(live);
    } else if (caches_.size() < kMaxCaches) {
      caches_.push_back(std::move(live));
    }
  }

  int64_t AnyCount(Random* random, int64_t length) {
    const double kind = static_cast<double>(random->Between(0, 99)) / 100.0;
    if (kind < 0.3) return 1;
    if (kind < 0.32) return 0;
    if (kind < 0.5) return random->Between(2, 12);
    if (kind < 0.8) return random->Between(13, 200);
    const int64_t boundary = random->Pick<int64_t>({64, 128, g_.page_tokens});
    const int64_t to = (length / boundary + 1) * boundary + random->Between(-1, 1);
    return std::max<int64_t>(to - length, 1);
  }

  // Pages that an append may take: at least, and with copies of shared ones.
  struct PageBounds {
    int64_t least = 0, most = 0;
    int64_t freed = 0;  // the window lets so many go, if nobody else holds them
  };
  PageBounds BoundsOf(const ModelCache& before, const ModelCache& forgotten, int64_t count) const {
    PageBounds bounds;
    const auto pages = [&](int64_t length) {
      return (length + g_.page_tokens - 1) / g_.page_tokens;
    };
    for (size_t b = 0; b < before.sequences.size(); ++b) {
      const int64_t length = before.length();
      bounds.least += pages(length + count) - pages(length);
      bounds.most += pages(length + count) - pages(length) + (length % g_.page_tokens != 0 ? 1 : 0);
      bounds.freed += static_cast<int64_t>(forgotten.sequences[b].dropped.size() -
                                           before.sequences[b].dropped.size());
    }
    return bounds;
  }

  void Append(const std::string& name, Random* random, Live* live) {
    const int64_t count = AnyCount(random, live->model.length());
    const size_t batch = live->model.sequences.size();
    Log(name + ": append " + std::to_string(count));
    const DType dtype = random->Pick({DType::kF32, DType::kF32, DType::kF16, DType::kBF16});
    const int64_t b = static_cast<int64_t>(batch);
    Tensor k(dtype, {b, count, g_.kv_heads, g_.head_dim});
    Tensor v(dtype, {b, count, g_.kv_heads, g_.v_head_dim});
    std::vector<Tokens> tokens(batch);
    for (size_t s = 0; s < batch; ++s)
      tokens[s] = MakeTokens(random, static_cast<int64_t>(s), &k, &v);

    ModelCache forgotten = live->model;
    if (count > 0) Forget(g_, &forgotten);
    bool exceeds = false;
    for (const ModelSequence& s : forgotten.sequences) {
      exceeds |= count > 0 && count > g_.capacity - HeldTokens(g_, s);
    }
    const PageBounds bounds = BoundsOf(live->model, forgotten, count);
    const int64_t room = g_.is_pooled ? g_.max_pages - pool_.pages_in_use() : bounds.most;
    const ParallelFor parallel = random->Chance(0.2) ? BackwardsOnThisThread(3) : ParallelFor();
    const Status status = live->cache.Append(k.view(), v.view(), parallel);
    if (status.ok()) {
      Require(!exceeds, "an append beyond the capacity");
      Require(bounds.least <= room + bounds.freed, "an append beyond the pool");
      for (size_t s = 0; s < batch; ++s) AppendTo(g_, tokens[s], &forgotten.sequences[s]);
      live->model = std::move(forgotten);
      return;
    }
    Log("  refused: " + Text(status));
    Require(status.code() == StatusCode::kCapacityExceeded, "Append", Text(status));
    Require(exceeds || bounds.most > room, "an append that fits is refused", Text(status));
  }

  Tokens MakeTokens(Random* random, int64_t batch, Tensor* k, Tensor* v) {
    Tokens tokens;
    for (int64_t l = 0; l < k->dims().length; ++l) {
      auto token = std::make_shared<Token>();
      const auto fill = [&](Tensor* t, float mean, std::vector<float>* row) {
        for (int64_t h = 0; h < t->dims().heads; ++h) {
          for (int64_t d = 0; d < t->dims().dim; ++d) {
            t->Set(batch, l, h, d, mean * static_cast<float>(d % 3 - 1) + random->Normal());
            row->push_back(t->Get(batch, l, h, d));
          }
        }
      };
      fill(k, g_.k_mean, &token->k);
      fill(v, g_.v_mean, &token->v);
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

  void Fork(const std::string& name, Random* random, size_t at) {
    auto child = std::make_unique<Live>();
    child->model = caches_[at]->model;
    Expect("Fork", caches_[at]->cache.Fork(&child->cache));
    const size_t place = random->Index(kMaxCaches);
    Log(name + ": fork to " + std::to_string(place));
    if (place < caches_.size()) {
      caches_[place] = std::move(child);
    } else {
      caches_.push_back(std::move(child));
    }
  }

  void Truncate(const std::string& name, Random* random, Live* live) {
    ModelCache& model = live->model;
    const int64_t old_length = model.length();
    int64_t length = random->Chance(0.5) ? std::max<int64_t>(old_length - random->Between(0, 10), 0)
                                         : random->Between(0, old_length);
    if (random->Chance(0.1)) length = random->Pick<int64_t>({-1, old_length + 1, INT64_MAX});
    Log(name + ": truncate to " + std::to_string(length));
    const bool is_wrong = length < 0 || length > old_length ||
                          (length < old_length && MissesForgotten(g_, model, length));
    // Values of a closed tile are read back from their quanta.
    constexpr int64_t kTile = static_cast<int64_t>(kScaleTileKeys);
    const bool reopens = !is_wrong && HasQuantizedV(g_.precision) && length % kTile != 0 &&
                         length / kTile != old_length / kTile;
    if (reopens) ReadBack(length, live);
    const Status status = live->cache.Truncate(length);
    if (is_wrong) return ExpectError("Truncate", status, StatusCode::kInvalidArgument);
    Expect("Truncate", status);
    if (length == old_length) return;
    for (ModelSequence& s : model.sequences) TruncateTo(g_, length, &s);
    if (length <= ForgottenBegin(g_)) model.forgotten_end = 0;
  }

  // The model takes over the values of the tile that `length` is in the middle of, as stored.
  void ReadBack(int64_t length, Live* live) {
    const size_t end = static_cast<size_t>(length);
    for (size_t b = 0; b < live->model.sequences.size(); ++b) {
      ModelSequence& s = live->model.sequences[b];
      const StoredHeads heads = ReadStored(*KvAccess::Get(live->cache), b, s.tokens.size());
      for (size_t key = end / kScaleTileKeys * kScaleTileKeys; key < end; ++key) {
        if (s.evicted[key]) continue;
        Token token = *s.tokens[key];
        for (size_t i = 0; i < token.v.size(); ++i) {
          const StoredHead& head = (*heads)[i / static_cast<size_t>(g_.v_head_dim)];
          const size_t c = i % head.v_head_dim;
          token.v[i] = static_cast<float>(head.v[key * head.v_head_dim + c] +
                                          static_cast<double>(head.v_center[c]));
        }
        s.tokens[key] = std::make_shared<Token>(std::move(token));
      }
    }
  }

  void Reorder(const std::string& name, Random* random, Live* live) {
    const int64_t old_batch = static_cast<int64_t>(live->model.sequences.size());
    const int64_t batch = random->Between(1, 4);
    std::vector<int32_t> parents;
    std::string text;
    for (int64_t b = 0; b < batch; ++b) {
      parents.push_back(static_cast<int32_t>(random->Between(0, old_batch - 1)));
    }
    const bool is_wrong = random->Chance(0.1);
    if (is_wrong) parents.back() = static_cast<int32_t>(random->Chance(0.5) ? -1 : old_batch);
    for (const int32_t parent : parents) text += " " + std::to_string(parent);
    Log(name + ": reorder" + text);
    const Status status = live->cache.Reorder(parents.data(), batch);
    if (is_wrong) return ExpectError("Reorder", status, StatusCode::kInvalidArgument);
    Expect("Reorder", status);
    std::vector<ModelSequence> sequences;
    for (const int32_t parent : parents) {
      sequences.push_back(live->model.sequences[static_cast<size_t>(parent)]);
    }
    live->model.sequences = std::move(sequences);
  }

  std::vector<int32_t> AnyPositions(Random* random, int64_t length) {
    std::vector<int32_t> positions;
    if (length == 0) return positions;
    if (random->Chance(0.4)) {
      for (int64_t i = random->Between(0, 40); i > 0; --i) {
        positions.push_back(static_cast<int32_t>(random->Between(0, length - 1)));
      }
      return positions;
    }
    const int64_t unit = random->Pick<int64_t>({1, 32, 128, g_.page_tokens, length});
    const int64_t begin = random->Between(0, (length - 1) / unit) * unit;
    const int64_t end = std::min(begin + unit * random->Between(1, 3), length);
    for (int64_t i = begin; i < end; ++i) positions.push_back(static_cast<int32_t>(i));
    if (random->Chance(0.5)) std::reverse(positions.begin(), positions.end());
    return positions;
  }

  void Evict(const std::string& name, Random* random, Live* live) {
    const size_t b = random->Index(live->model.sequences.size());
    std::vector<int32_t> positions = AnyPositions(random, live->model.length());
    const bool is_wrong = random->Chance(0.1);
    if (is_wrong) {
      positions.push_back(
          random->Pick({-1, static_cast<int32_t>(live->model.length()), INT32_MAX}));
    }
    Log(name + ": evict " + std::to_string(positions.size()) + " from " +
        (positions.empty() ? "nothing" : std::to_string(positions[0])) + " of sequence " +
        std::to_string(b));
    const Status status = live->cache.Evict(static_cast<int64_t>(b), positions.data(),
                                            static_cast<int64_t>(positions.size()));
    if (is_wrong) return ExpectError("Evict", status, StatusCode::kInvalidArgument);
    Expect("Evict", status);
    EvictFrom(g_, positions, &live->model.sequences[b]);
  }

  // What a cache holds, or tensors in any precision.
  void TakeMemory(const std::string& name, Random* random, const Live& live) {
    Snapshot snapshot;
    if (random->Chance(0.5)) {
      snapshot = TakeSnapshot(name, random, live);
    } else {
      const int64_t batch = random->Chance(0.6) ? 1 : random->Between(1, 3);
      const int64_t kv_len = random->Pick<int64_t>({0, 1, 63, 64, 65, 130, 200});
      Tensor k(DType::kF32, {batch, kv_len, g_.kv_heads, g_.head_dim});
      Tensor v(DType::kF32, {batch, kv_len, g_.kv_heads, g_.v_head_dim});
      for (int64_t b = 0; b < batch; ++b) MakeTokens(random, b, &k, &v);
      std::vector<int32_t> lens;
      for (int64_t b = 0; b < batch; ++b) {
        lens.push_back(static_cast<int32_t>(random->Between(0, kv_len)));
      }
      CrossMemoryOptions options;
      if (random->Chance(0.3)) options.kv_lens = lens.data();
      KvFormat format = {kPrecisions[random->Index(kPrecisions.size())], g_.tier};
      if (random->Chance(0.5)) format = {g_.precision, g_.tier, g_.rotate_k};
      if (format.precision == Precision::kI8 && random->Chance(0.3)) format.rotate_k = true;
      Expect("CrossMemory::Create",
             CrossMemory::Create(k.view(), v.view(), format, &snapshot.memory, {}, options));
      Log("memory of " + std::to_string(batch) + "x" + std::to_string(kv_len) + " " +
          Name(format.precision));
    }
    AddMemory(std::move(snapshot));
  }

  // Of the tokens of a cache, of some streams not all.
  Snapshot TakeSnapshot(const std::string& name, Random* random, const Live& live) {
    Snapshot snapshot;
    snapshot.model = live.model.sequences;
    std::vector<int32_t> lens;
    const bool is_cut = random->Chance(0.4);
    Log(name + ": snapshot");
    for (ModelSequence& s : snapshot.model) {
      const int64_t length = random->Chance(0.3) ? s.length() : random->Between(0, s.length());
      lens.push_back(static_cast<int32_t>(length));
      if (!is_cut) continue;
      s.tokens.resize(static_cast<size_t>(length));
      s.evicted.resize(static_cast<size_t>(length));
      Log("  of " + std::to_string(length));
    }
    Expect("CrossMemory::From",
           CrossMemory::From(live.cache, &snapshot.memory, is_cut ? lens.data() : nullptr));
    return snapshot;
  }

  void AddMemory(Snapshot snapshot) {
    if (memories_.size() == kMaxMemories) memories_.erase(memories_.begin());
    memories_.push_back(std::move(snapshot));
  }

  // Always the same, so that files are replaced that somebody has mapped.
  std::string FilePath() {
    if (!directory_) directory_.emplace();
    return *directory_ / "kv";
  }

  // The pages of one cache, and how many a copy of it takes at most: those that sequences share
  // become several where other tokens of them are gone.
  PageBounds BoundsOfCopy(const Live& live) const {
    std::set<const unsigned char*> pages;
    Require(CollectPages(*KvAccess::Get(live.cache), &pages), "centers of pages differ");
    PageBounds bounds;
    bounds.least = static_cast<int64_t>(pages.size());
    for (const ModelSequence& s : live.model.sequences) {
      bounds.most += (s.length() + g_.page_tokens - 1) / g_.page_tokens;
      bounds.most -= static_cast<int64_t>(s.dropped.size());
    }
    return bounds;
  }

  // A fork goes back no further than the window has left tokens for.
  void CheckForgotten(const Live& live, int64_t length) const {
    for (const int64_t to : {std::max<int64_t>(live.model.forgotten_end - 1, 0), length}) {
      if (to > live.model.length()) continue;
      KvCache fork;
      Expect("Fork", live.cache.Fork(&fork));
      const bool is_refused = to < live.model.length() && MissesForgotten(g_, live.model, to);
      const Status status = fork.Truncate(to);
      if (is_refused) ExpectError("Truncate", status, StatusCode::kInvalidArgument);
      if (!is_refused) Expect("Truncate", status);
    }
  }

  // Into a file and back, into the same pool if there is one.
  void Reload(const std::string& name, Random* random, Live* live) {
    const std::string path = FilePath();
    Expect("Save", Save(live->cache, path.c_str()));
    const PageBounds bounds = BoundsOfCopy(*live);
    // What takes over when the other one is gone, as in another process, or while it is there.
    const bool is_gone = random->Chance(0.5);
    if (is_gone) live->cache = KvCache();
    KvCacheDesc desc = CacheDesc();
    desc.batch = static_cast<int64_t>(live->model.sequences.size());
    if (random->Chance(0.5)) {
      // All but the tier is the file's.
      desc = KvCacheDesc();
      if (g_.is_pooled) desc.pool = &pool_;
      if (!g_.is_pooled) desc.format.tier = g_.tier;
    }
    const int64_t room = g_.is_pooled ? g_.max_pages - pool_.pages_in_use() : bounds.most;
    Log(name + ": save and load" + (is_gone ? "" : " beside it"));
    const Status status = Load(path.c_str(), desc, &live->cache);
    if (status.ok()) {
      Require(bounds.least <= room, "a cache is loaded beyond the pool");
      Require(live->cache.capacity() == g_.capacity, "capacity of a loaded cache");
      CheckForgotten(*live, random->Between(0, live->model.length()));
      return;
    }
    Log("  refused: " + Text(status));
    Require(status.code() == StatusCode::kCapacityExceeded, "Load", Text(status));
    Require(bounds.most > room, "a cache that fits is not loaded", Text(status));
    if (!is_gone) return;
    Require(live->cache.empty(), "a refused cache is there");
    MakeNew(live);
  }

  // A memory that is there, or what a cache holds, as a memory or as what it is.
  void MapMemory(const std::string& name, Random* random, const Live& live) {
    const std::string path = FilePath();
    Snapshot mapped;
    mapped.is_mapped = true;
    const double kind = static_cast<double>(random->Between(0, 99)) / 100.0;
    if (kind < 0.3 && !memories_.empty()) {
      const size_t from = random->Index(memories_.size());
      Log("memory " + std::to_string(from) + ": save and map");
      Expect("Save", Save(memories_[from].memory, path.c_str()));
      mapped.model = memories_[from].model;
    } else {
      const bool is_cache = kind < 0.5;
      Log(name + ": save and map");
      const Snapshot saved = is_cache ? Snapshot() : TakeSnapshot(name, random, live);
      mapped.model = is_cache ? live.model.sequences : saved.model;
      Expect("Save", is_cache ? Save(live.cache, path.c_str()) : Save(saved.memory, path.c_str()));
    }
    KvMapOptions options;
    if (random->Chance(0.3)) options.check = KvCheck::kFull;
    options.copy = random->Chance(0.3);
    Expect("Map", Map(path.c_str(), &mapped.memory, options));
    Expect("Verify", Verify(mapped.memory));
    AddMemory(std::move(mapped));
    // One of tensors may be of another precision, which not every call reads.
    const Snapshot& added = memories_.back();
    Attend(random, added.model.empty() ? EverythingReadable()
                                       : std::vector<Readable>{{nullptr, &added.memory}});
  }

  std::vector<Readable> EverythingReadable() const {
    std::vector<Readable> readables;
    for (const auto& live : caches_) readables.push_back({&live->cache, nullptr});
    for (const Snapshot& snapshot : memories_) readables.push_back({nullptr, &snapshot.memory});
    return readables;
  }

  void Attend(Random* random, std::vector<Readable> readables) {
    RandomCall call(g_, std::move(readables), random);
    try {
      call.RunAndCheck();
    } catch (const Mismatch&) {
      Log("attend: " + call.text());
      throw;
    }
    Log("attend: " + call.text());
  }

  void CheckCache(const Live& live) const {
    const KvCache& cache = live.cache;
    Require(cache.length() == live.model.length(), "length", std::to_string(cache.length()));
    const int64_t batch = static_cast<int64_t>(live.model.sequences.size());
    Require(cache.batch() == batch, "batch", std::to_string(cache.batch()));
    for (int64_t b = 0; b < batch; ++b) {
      const ModelSequence& s = live.model.sequences[static_cast<size_t>(b)];
      Require(cache.num_evicted(b) == s.num_evicted(), "num_evicted",
              std::to_string(cache.num_evicted(b)) + ", not " + std::to_string(s.num_evicted()));
      CheckSequence(*KvAccess::Get(cache), static_cast<size_t>(b), s);
      CheckDropped(cache, static_cast<size_t>(b), s);
    }
  }

  // Pages are there unless the model says otherwise.
  void CheckDropped(const KvCache& cache, size_t b, const ModelSequence& s) const {
    const internal::SequenceKeys keys = KvAccess::Get(cache)->keys(b);
    for (int64_t page = 0; page * g_.page_tokens < s.length(); ++page) {
      const bool is_there = keys.pages.data[page] != nullptr;
      Require(is_there == (s.dropped.count(page) == 0), "page", std::to_string(page));
    }
  }

  static void CheckMemory(const Snapshot& snapshot) {
    int64_t longest = 0;
    for (size_t b = 0; b < snapshot.model.size(); ++b) {
      const int64_t length = snapshot.model[b].length();
      longest = std::max(longest, length);
      Require(snapshot.memory.kv_len(static_cast<int64_t>(b)) == length, "kv_len of a snapshot");
      CheckSequence(*KvAccess::Get(snapshot.memory), b, snapshot.model[b]);
    }
    if (snapshot.model.empty()) return;
    Require(snapshot.memory.kv_len() == longest, "kv_len of all of a snapshot");
  }

  // Those in use are those that somebody holds.
  void CheckPages() const {
    std::set<const unsigned char*> pages, in_files;
    for (const auto& live : caches_) {
      Require(CollectPages(*KvAccess::Get(live->cache), &pages), "centers of pages differ");
    }
    for (const Snapshot& snapshot : memories_) {
      Require(
          CollectPages(*KvAccess::Get(snapshot.memory), snapshot.is_mapped ? &in_files : &pages),
          "centers of pages differ");
    }
    if (!g_.is_pooled) return;
    Require(pool_.pages_in_use() == static_cast<int64_t>(pages.size()), "pages_in_use",
            std::to_string(pool_.pages_in_use()) + ", not " + std::to_string(pages.size()));
    Require(pool_.pages_in_use() <= pool_.max_pages(), "max_pages");
  }

  const Geometry& g_;
  KvPool pool_;
  std::vector<std::unique_ptr<Live>> caches_;
  std::vector<Snapshot> memories_;
  std::optional<Directory> directory_;  // from the first file on
  std::string log_;
};

// ---- Shrinking and printing -------------------------------------------------------------------

std::string Text(const Geometry& g) {
  const auto n = [](int64_t x) { return std::to_string(x); };
  return std::string(Name(g.precision)) + (g.rotate_k ? " rotated" : "") + " on " + g.tier +
         ", heads " + n(g.heads) + "/" + n(g.kv_heads) + ", dims " + n(g.head_dim) + " " +
         n(g.v_head_dim) + ", pages of " + n(g.page_tokens) +
         (g.is_pooled ? ", pool of " + n(g.max_pages) : ", own pages") + ", batch " + n(g.batch) +
         ", capacity " + n(g.capacity) + ", window " + n(g.window_left) + " + " + n(g.num_sinks) +
         ", means " + std::to_string(g.k_mean) + " " + std::to_string(g.v_mean);
}

Mismatch RunScript(const Script& script, std::string* log) {
  Machine machine(script.geometry);
  const Mismatch mismatch = machine.Run(script.operations);
  *log = machine.log();
  return mismatch;
}

// Leaves operations out as long as it fails in the same way.
Script Shrink(Script script, const std::string& what) {
  int runs = 0;
  std::string log;
  for (size_t length = script.operations.size() / 2; length > 0; length /= 2) {
    for (size_t at = 0; at + length <= script.operations.size() && runs < kMaxShrinkRuns;) {
      Script candidate = script;
      const auto begin = candidate.operations.begin() + static_cast<ptrdiff_t>(at);
      candidate.operations.erase(begin, begin + static_cast<ptrdiff_t>(length));
      ++runs;
      if (RunScript(candidate, &log).what == what) {
        script = candidate;
      } else {
        ++at;
      }
    }
  }
  return script;
}

uint64_t Environment(const char* name, uint64_t otherwise) {
  const char* value = getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : strtoull(value, nullptr, 10);
}

uint64_t DefaultCases() {
  if (IsEmulated()) return kCasesEmulated;
  if (IsSanitized()) return kCasesSanitized;
  return SupportedTiers().size() == 1 ? kCasesOfTier : kCasesOfAllTiers;
}

TEST_CASE("random operations on caches", "[state]") {
  const uint64_t first = Environment("SIGHTLINE_RANDOM_SEED", 0);
  const uint64_t num_cases = Environment("SIGHTLINE_RANDOM_CASES", DefaultCases());
  int num_failures = 0;
  for (uint64_t seed = first; seed < first + num_cases && num_failures < kMaxFailures; ++seed) {
    const Script script = MakeScript(seed);
    // For whatever ends the program.
    INFO("SIGHTLINE_RANDOM_SEED=" << seed << " SIGHTLINE_RANDOM_CASES=1");
    std::string log;
    const Mismatch mismatch = RunScript(script, &log);
    if (mismatch.what.empty()) continue;
    ++num_failures;
    const Script small = Shrink(script, mismatch.what);
    std::string small_log;
    const Mismatch again = RunScript(small, &small_log);
    FAIL_CHECK(mismatch.what << ": " << mismatch.text << "\n"
                             << Text(script.geometry) << "\n"
                             << log << "and simpler:\n"
                             << small_log << "  " << again.what << ": " << again.text);
  }
  SUCCEED("seeds " << first << " to " << first + num_cases - 1);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
