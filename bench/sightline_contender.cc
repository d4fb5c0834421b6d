// Which calls of the public API a row times:
//
//   self, self_causal    Run on raw Q, K and V: quantising and packing K and V is part of the time
//   cross, decode_cross, self_causal_prepared  Run on a CrossMemory that was prepared before
//   decode_self          Run on a KvCache that holds kv_len tokens
//   prepare              CrossMemory::Create, its allocation included
//   append               KvCache::Append of q_len tokens
//   fork                 KvCache::Fork, and the end of the fork before
//   reorder              KvCache::Reorder: the best beam goes on twice, the last one ends
//   map                  Map, and the end of the mapping before
//
// Features are arguments of these Runs. Of `parts`, each sequence has a Run of its own. `segments`
// and `continuous` are AttentionArgs::segments, of memories and of caches of one pool; `append`
// is a KvCache::Append of one token to the fork or to all beams.
#include "bench/sightline_contender.h"

#include <pthreadpool.h>
#include <stdint.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "kv/layout.h"
#include "quant/elements.h"
#include "sightline/attention.h"
#include "sightline/kv_file.h"

namespace sightline {
namespace bench {
namespace {

#define SIGHTLINE_TEXT_OF(x) #x
#define SIGHTLINE_TEXT(x) SIGHTLINE_TEXT_OF(x)
constexpr char kVersion[] = SIGHTLINE_TEXT(SIGHTLINE_VERSION_MAJOR) "." SIGHTLINE_TEXT(
    SIGHTLINE_VERSION_MINOR) "." SIGHTLINE_TEXT(SIGHTLINE_VERSION_PATCH);

// Tokens that one Run of `append` adds, call by call, but no fewer than kMinCalls: with less,
// resetting would take longer than what is measured. A tile's, so that it is open by every length
// once.
constexpr int64_t kAppends = 128;
constexpr int64_t kMinCalls = 8;

// What a row calls a precision: its name, "_rotated" behind it where K is rotated.
bool ParseFormat(std::string name, KvFormat* format) {
  constexpr char kRotated[] = "_rotated";
  const size_t length = sizeof(kRotated) - 1;
  format->rotate_k = name.size() > length && name.substr(name.size() - length) == kRotated;
  if (format->rotate_k) name.resize(name.size() - length);
  for (int i = 0; i <= UINT8_MAX; ++i) {
    if (name == Name(static_cast<Precision>(i))) {
      format->precision = static_cast<Precision>(i);
      return true;
    }
  }
  return false;
}

// The caller's tensors beside a precision: what a model that cares for the precision computes with.
DType TensorsOf(Precision precision) {
  if (precision == Precision::kF32) return DType::kF32;
  return precision == Precision::kBF16 ? DType::kBF16 : DType::kF16;
}

class Pool {
 public:
  explicit Pool(int threads)
      : pool_(threads > 1 ? pthreadpool_create(static_cast<size_t>(threads)) : nullptr) {}
  ~Pool() { pthreadpool_destroy(pool_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ParallelFor parallel() const { return pool_ != nullptr ? ParallelForOn(pool_) : ParallelFor{}; }

 private:
  pthreadpool_t pool_;
};

// A dense [batch, length, heads, dim] tensor in the caller's element type. It begins at a cache
// line, as those of the usual frameworks do.
class Tensor {
 public:
  Tensor(DType dtype, int64_t batch, int64_t length, int64_t heads, int64_t dim)
      : bytes_(static_cast<size_t>(batch * length * heads * dim * SizeBytes(dtype))),
        lines_(bytes_ / sizeof(CacheLine) + 1),
        view_(TensorView::Dense(lines_.data(), dtype, batch, length, heads, dim)) {}
  Tensor(Tensor&&) = default;

  void Set(const std::vector<float>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      internal::StoreElement(values[i], view_.dtype, data() + i * element_bytes());
    }
  }

  std::vector<float> Get() const {
    std::vector<float> values(bytes_ / element_bytes());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = internal::LoadElement(data() + i * element_bytes(), view_.dtype);
    }
    return values;
  }

  const TensorView& view() const { return view_; }
  double bytes() const { return static_cast<double>(bytes_); }

 private:
  struct alignas(64) CacheLine {
    unsigned char bytes[64];
  };

  unsigned char* data() const { return static_cast<unsigned char*>(view_.data); }
  size_t element_bytes() const { return static_cast<size_t>(SizeBytes(view_.dtype)); }

  size_t bytes_;
  std::vector<CacheLine> lines_;
  TensorView view_;
};

// Tokens begin ... end - 1 of every sequence.
TensorView Slice(TensorView view, int64_t begin, int64_t end) {
  view.data = static_cast<unsigned char*>(view.data) + begin * view.length_stride;
  view.length = end - begin;
  return view;
}

// Entry b of its batch alone.
TensorView BatchEntry(TensorView view, int64_t b) {
  view.data = static_cast<unsigned char*>(view.data) + b * view.batch_stride;
  view.batch = 1;
  return view;
}

// The last sequence first.
TensorView Reversed(TensorView view) {
  view.data = static_cast<unsigned char*>(view.data) + (view.batch - 1) * view.batch_stride;
  view.batch_stride = -view.batch_stride;
  return view;
}

// What the features of a case take and give beside Q, K, V and O, and the arguments that say so.
class FeatureTensors {
 public:
  FeatureTensors(const Problem& problem, DType dtype)
      : c_(problem.c),
        relative_bias_(problem.relative_bias),
        alibi_slopes_(problem.alibi_slopes),
        sinks_(problem.sinks),
        // A bias is the same for all of a batch, a mask also for all heads.
        bias_(dtype, 1, If(f().bias, c_.q_len), c_.heads, c_.kv_len),
        lse_(DType::kF32, c_.q_batch(), If(HasLse(), c_.q_length()), c_.heads, 1),
        weights_(DType::kF32, c_.q_batch(), c_.q_len, f().weights, c_.kv_len),
        mass_(DType::kF32, c_.q_batch(), If(f().mass, 1), c_.heads, c_.kv_len) {
    if (f().bias != 0) bias_.Set(problem.bias);
    for (const int64_t head : problem.weight_heads()) {
      weight_heads_.push_back(static_cast<int32_t>(head));
    }
    if (c_.ragged()) indptr_ = c_.Indptr();
    for (int64_t s = 0; s < c_.batch; ++s) {
      if (f().padding != 0) kv_lens_.push_back(static_cast<int32_t>(c_.KvLen(s)));
      if (f().prefix != 0) prefix_lens_.push_back(static_cast<int32_t>(f().prefix));
    }
    if (f().mask != 0) FillMask();
    if (f().block_mask != 0) FillBlocks();
  }
  FeatureTensors(const FeatureTensors&) = delete;
  FeatureTensors& operator=(const FeatureTensors&) = delete;

  void SetDesc(AttentionDesc* desc) const {
    desc->window_left = c_.WindowLeft();
    desc->window_right = c_.WindowRight();
    desc->softcap = static_cast<float>(f().softcap);
    if (f().t5 != 0) desc->relative_buckets = c_.Buckets();
  }

  void SetArgs(AttentionArgs* args) const {
    if (c_.PadsQueries()) args->q_start = c_.kv_len - c_.q_len;
    args->kv_lens = DataOf(kv_lens_);
    args->prefix_lens = DataOf(prefix_lens_);
    if (f().mask != 0) {
      args->mask = MaskView::Dense(mask_.data(), c_.q_batch(), c_.q_len, 1, c_.kv_len);
      args->mask.heads = c_.heads;
      args->mask.batch_stride = args->mask.head_stride = 0;
    }
    if (f().block_mask != 0) {
      BlockMask* blocks = &args->block_mask;
      blocks->blocks = MaskView::Dense(blocks_.data(), c_.q_batch(), BlocksOf(c_.q_len), c_.heads,
                                       BlocksOf(c_.kv_len));
      blocks->blocks.batch_stride = 0;
      blocks->q_block = blocks->kv_block = f().block_mask;
    }
    if (f().ragged != 0) {
      args->num_sequences = c_.batch;
      args->q_indptr = args->kv_indptr = indptr_.data();
    }
    if (f().bias != 0) {
      TensorView bias = bias_.view();
      bias.batch = c_.q_batch();
      bias.batch_stride = 0;
      args->bias = bias;
    }
    args->relative_bias = DataOf(relative_bias_);
    args->alibi_slopes = DataOf(alibi_slopes_);
    args->sinks = DataOf(sinks_);
    if (HasLse()) args->lse = lse_.view();
    if (f().weights != 0) {
      args->weights.out = weights_.view();
      args->weights.heads = weight_heads_.data();
      args->weights.num_heads = f().weights;
    }
    if (f().mass != 0) args->mass = mass_.view();
  }

  const std::vector<int32_t>& indptr() const { return indptr_; }

  FurtherOutputs Get() const { return {lse_.Get(), weights_.Get(), mass_.Get()}; }

 private:
  const Features& f() const { return c_.features; }
  bool HasLse() const { return f().lse + f().weights + f().mass != 0; }
  // A tensor that is not there has a length of 0.
  static int64_t If(int64_t is_there, int64_t length) { return is_there != 0 ? length : 0; }
  int64_t BlocksOf(int64_t length) const { return (length + f().block_mask - 1) / f().block_mask; }
  template <typename T>
  static const T* DataOf(const std::vector<T>& x) {
    return x.empty() ? nullptr : x.data();
  }

  void FillMask() {
    for (int64_t i = 0; i < c_.q_len; ++i) {
      for (int64_t j = 0; j < c_.kv_len; ++j) mask_.push_back(c_.MaskShows(i, j) ? 1 : 0);
    }
  }
  void FillBlocks() {
    for (int64_t i = 0; i < BlocksOf(c_.q_len); ++i) {
      for (int64_t h = 0; h < c_.heads; ++h) {
        for (int64_t j = 0; j < BlocksOf(c_.kv_len); ++j) {
          blocks_.push_back(c_.BlockMaskShows(h, i, j) ? 1 : 0);
        }
      }
    }
  }

  Case c_;
  std::vector<int32_t> kv_lens_, prefix_lens_, indptr_, weight_heads_;
  std::vector<unsigned char> mask_, blocks_;
  std::vector<float> relative_bias_, alibi_slopes_, sinks_;
  Tensor bias_, lse_, weights_, mass_;
};

// What every op has: tensors, threads, a plan.
class SightlineEntry : public Entry {
 public:
  SightlineEntry(const Problem& problem, const KvFormat& format, int threads)
      : c_(problem.c),
        format_(format),
        pool_(threads),
        q_(dtype(), c_.q_batch(), c_.q_length(), c_.heads, c_.head_dim),
        k_(dtype(), c_.kv_batch(), c_.kv_length(), c_.kv_heads, c_.head_dim),
        v_(dtype(), c_.kv_batch(), c_.kv_length(), c_.kv_heads, c_.v_head_dim),
        out_(dtype(), c_.q_batch(), c_.q_length(), c_.heads, c_.v_head_dim),
        features_(problem, dtype()) {
    q_.Set(problem.q);
    k_.Set(problem.k);
    v_.Set(problem.v);
    args_.q = q_.view();
    args_.out = out_.view();
    features_.SetArgs(&args_);

    AttentionDesc desc;
    desc.num_heads = c_.heads;
    desc.num_kv_heads = c_.kv_heads;
    desc.head_dim = c_.head_dim;
    desc.v_head_dim = c_.v_head_dim;
    desc.max_batch = c_.features.ragged != 0 ? c_.batch : c_.q_batch();
    desc.max_q_len = c_.q_len;
    desc.max_kv_len = c_.kv_len;
    desc.causal = c_.causal();
    desc.scale = c_.scale;
    features_.SetDesc(&desc);
    desc.precision = format.precision;
    desc.rotate_k = format.rotate_k;
    desc.tier = format.tier;
    desc.max_workers = threads;
    Note(Plan::Create(desc, &plan_));
  }

  // The first error of any call; the entry is of no use then.
  const Status& status() const { return status_; }

  std::string error() const override { return status_.ok() ? "" : status_.message(); }
  std::vector<float> Output() override { return out_.Get(); }
  FurtherOutputs Further() override { return features_.Get(); }

 protected:
  DType dtype() const { return TensorsOf(format_.precision); }
  void Note(const Status& status) {
    if (status_.ok()) status_ = status;
  }
  void Attend() { Attend(args_); }
  void Attend(const AttentionArgs& args) {
    Note(sightline::Run(plan_, args, {}, pool_.parallel()));
  }
  ParallelFor parallel() const { return pool_.parallel(); }

  double raw_kv_bytes() const { return k_.bytes() + v_.bytes(); }
  // See Entry::token_bytes.
  double TokenBytes(size_t bytes, int64_t tokens) const {
    return static_cast<double>(bytes) / static_cast<double>(tokens * c_.kv_heads);
  }
  // What so many tokens of one sequence take in a cache: the elements, and the scales of quantised
  // K (per token) and V (per channel and tile). Not the room that a cache keeps beside them.
  double cached_bytes(int64_t tokens) const {
    const Precision precision = format_.precision;
    const bool i8 = precision == Precision::kI8;
    const bool quantized_v = i8 || precision == Precision::kI8Fine;
    const bool quantized_k = quantized_v || precision == Precision::kMixed16;
    const int64_t k_bytes = precision == Precision::kF32 ? 4 : i8 ? 1 : 2;
    const int64_t v_bytes = precision == Precision::kF32 ? 4 : quantized_v ? 1 : 2;
    const int64_t scale_bytes = static_cast<int64_t>(sizeof(float));
    const int64_t tile = static_cast<int64_t>(internal::kKvTile);
    const int64_t tiles = (tokens + tile - 1) / tile;
    int64_t bytes = tokens * (c_.head_dim * k_bytes + c_.v_head_dim * v_bytes);
    if (quantized_k) bytes += tokens * scale_bytes;
    if (quantized_v) bytes += tiles * c_.v_head_dim * scale_bytes;
    return static_cast<double>(c_.kv_heads * bytes);
  }

  Case c_;
  KvFormat format_;
  Pool pool_;
  Tensor q_, k_, v_, out_;
  FeatureTensors features_;
  Plan plan_;
  AttentionArgs args_;
  Status status_;
};

class SelfEntry : public SightlineEntry {
 public:
  SelfEntry(const Problem& problem, const KvFormat& format, int threads)
      : SightlineEntry(problem, format, threads) {
    args_.k = k_.view();
    args_.v = v_.view();
  }
  void Run() override { Attend(); }
  double kv_bytes() const override { return raw_kv_bytes(); }
};

// Ragged sequences one after the other.
class PartsEntry : public SightlineEntry {
 public:
  PartsEntry(const Problem& problem, const KvFormat& format, int threads)
      : SightlineEntry(problem, format, threads) {
    const std::vector<int32_t>& indptr = features_.indptr();
    for (size_t s = 0; s + 1 < indptr.size(); ++s) {
      const int64_t begin = indptr[s];
      const int64_t end = indptr[s + 1];
      AttentionArgs part = args_;
      part.q = Slice(q_.view(), begin, end);
      part.k = Slice(k_.view(), begin, end);
      part.v = Slice(v_.view(), begin, end);
      part.out = Slice(out_.view(), begin, end);
      if (args_.lse.data != nullptr) part.lse = Slice(args_.lse, begin, end);
      parts_.push_back(part);
    }
  }
  void Run() override {
    for (const AttentionArgs& part : parts_) Attend(part);
  }
  double kv_bytes() const override { return raw_kv_bytes(); }

 private:
  std::vector<AttentionArgs> parts_;
};

class MemoryEntry : public SightlineEntry {
 public:
  MemoryEntry(const Problem& problem, const KvFormat& format, int threads)
      : SightlineEntry(problem, format, threads) {
    Note(CrossMemory::Create(k_.view(), v_.view(), format_, &memory_, parallel()));
    args_.memory = &memory_;
  }
  void Run() override { Attend(); }
  // Of keys in use.
  double kv_bytes() const override {
    int64_t used = 0;
    for (int64_t s = 0; s < c_.batch; ++s) used += c_.KvLen(s);
    return static_cast<double>(memory_.bytes()) * static_cast<double>(used) /
           static_cast<double>(c_.batch * c_.kv_len);
  }
  double token_bytes() const override { return TokenBytes(memory_.bytes(), c_.batch * c_.kv_len); }

 protected:
  CrossMemory memory_;
};

// The keys cut into several memories, beside one.
class SegmentsEntry : public MemoryEntry {
 public:
  SegmentsEntry(const Problem& problem, const KvFormat& format, int threads)
      : MemoryEntry(problem, format, threads), one_memory_(args_) {
    const int64_t count = c_.features.segments;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t begin = s * c_.kv_len / count;
      const int64_t end = (s + 1) * c_.kv_len / count;
      CrossMemory part;
      Note(CrossMemory::Create(Slice(k_.view(), begin, end), Slice(v_.view(), begin, end), format_,
                               &part, parallel()));
      parts_.push_back(part);
    }
    for (const CrossMemory& part : parts_) {
      segments_.emplace_back();
      segments_.back().memory = &part;
    }
    args_.memory = nullptr;
    args_.segments = segments_.data();
    args_.num_segments = count;
  }
  std::string beside() const override { return "one memory"; }
  void RunBeside() override { Attend(one_memory_); }
  double kv_bytes() const override { return static_cast<double>(PartsBytes()); }
  double token_bytes() const override { return TokenBytes(PartsBytes(), c_.batch * c_.kv_len); }

 private:
  size_t PartsBytes() const {
    size_t bytes = 0;
    for (const CrossMemory& part : parts_) bytes += part.bytes();
    return bytes;
  }

  AttentionArgs one_memory_;
  std::vector<CrossMemory> parts_;
  std::vector<KvSegment> segments_;
};

class PrepareEntry : public MemoryEntry {
 public:
  using MemoryEntry::MemoryEntry;
  void Run() override {
    Note(CrossMemory::Create(k_.view(), v_.view(), format_, &memory_, parallel()));
  }
  double traffic_bytes() const override { return raw_kv_bytes() + kv_bytes(); }
  std::vector<float> Output() override {
    Attend();
    return out_.Get();
  }
};

class CacheEntry : public SightlineEntry {
 public:
  CacheEntry(const Problem& problem, const KvFormat& format, int threads, int64_t room)
      : SightlineEntry(problem, format, threads) {
    KvCacheDesc desc;
    desc.batch = c_.batch;
    desc.num_kv_heads = c_.kv_heads;
    desc.head_dim = c_.head_dim;
    desc.v_head_dim = c_.v_head_dim;
    desc.capacity = c_.kv_len + room;
    desc.format = format;
    desc.page_tokens = c_.features.pages;
    Note(KvCache::Create(desc, &cache_));
    Fill();
    args_.cache = &cache_;
  }
  double token_bytes() const override {
    return TokenBytes(cache_.bytes(), cache_.batch() * cache_.length());
  }

 protected:
  // With the problem's tokens and nothing else.
  void Fill() {
    cache_.Clear();
    Append(&cache_, 0, c_.kv_len);
  }
  // Tokens begin ... end - 1 of the problem.
  void Append(KvCache* cache, int64_t begin, int64_t end) {
    Note(cache->Append(Slice(k_.view(), begin, end), Slice(v_.view(), begin, end), parallel()));
  }

  KvCache cache_;
};

class DecodeSelfEntry : public CacheEntry {
 public:
  DecodeSelfEntry(const Problem& problem, const KvFormat& format, int threads)
      : CacheEntry(problem, format, threads, 0) {}
  void Run() override { Attend(); }
  // Of keys that windows and padding do not hide.
  double kv_bytes() const override {
    double bytes = 0.0;
    for (int64_t s = 0; s < c_.batch; ++s) bytes += cached_bytes(c_.KeysInReach(s, 0));
    return bytes;
  }
};

// A cache of pages beside one memory.
class PagesEntry : public DecodeSelfEntry {
 public:
  PagesEntry(const Problem& problem, const KvFormat& format, int threads)
      : DecodeSelfEntry(problem, format, threads), one_memory_(args_) {
    Note(CrossMemory::Create(k_.view(), v_.view(), format_, &memory_, parallel()));
    one_memory_.cache = nullptr;
    one_memory_.memory = &memory_;
  }
  std::string beside() const override { return "one memory"; }
  void RunBeside() override { Attend(one_memory_); }

 private:
  CrossMemory memory_;
  AttentionArgs one_memory_;
};

// Caches of several lengths in one call, beside a call for each.
class ContinuousEntry : public SightlineEntry {
 public:
  ContinuousEntry(const Problem& problem, const KvFormat& format, int threads)
      : SightlineEntry(problem, format, threads), caches_(static_cast<size_t>(c_.batch)) {
    KvPoolDesc pool_desc;
    pool_desc.num_kv_heads = c_.kv_heads;
    pool_desc.head_dim = c_.head_dim;
    pool_desc.v_head_dim = c_.v_head_dim;
    pool_desc.format = format;
    pool_desc.max_pages = c_.batch * (c_.kv_len / pool_desc.page_tokens + 1);
    KvPool pool;
    Note(KvPool::Create(pool_desc, &pool));
    KvCacheDesc desc;
    desc.pool = &pool;
    desc.capacity = c_.kv_len;
    for (int64_t s = 0; s < c_.batch; ++s) {
      KvCache& cache = caches_[static_cast<size_t>(s)];
      Note(KvCache::Create(desc, &cache));
      Note(cache.Append(Slice(BatchEntry(k_.view(), s), 0, c_.KvLen(s)),
                        Slice(BatchEntry(v_.view(), s), 0, c_.KvLen(s)), parallel()));
      segments_.emplace_back();
      segments_.back().cache = &cache;
      indptr_.push_back(static_cast<int32_t>(s));
      AttentionArgs alone = args_;
      alone.q = BatchEntry(q_.view(), s);
      alone.out = BatchEntry(out_.view(), s);
      alone.cache = &cache;
      alone_.push_back(alone);
    }
    indptr_.push_back(static_cast<int32_t>(c_.batch));
    args_.segments = segments_.data();
    args_.num_segments = args_.num_segment_lists = c_.batch;
    args_.segment_indptr = indptr_.data();
  }
  void Run() override { Attend(); }
  std::string beside() const override { return "a call for each"; }
  void RunBeside() override {
    for (const AttentionArgs& alone : alone_) Attend(alone);
  }
  double kv_bytes() const override {
    double bytes = 0.0;
    for (int64_t s = 0; s < c_.batch; ++s) bytes += cached_bytes(c_.KvLen(s));
    return bytes;
  }
  double token_bytes() const override {
    size_t bytes = 0;
    int64_t tokens = 0;
    for (const KvCache& cache : caches_) {
      bytes += cache.bytes();
      tokens += cache.length();
    }
    return TokenBytes(bytes, tokens);
  }

 private:
  std::vector<KvCache> caches_;
  std::vector<KvSegment> segments_;
  std::vector<int32_t> indptr_;
  std::vector<AttentionArgs> alone_;
};

class AppendEntry : public CacheEntry {
 public:
  AppendEntry(const Problem& problem, const KvFormat& format, int threads)
      : CacheEntry(problem, format, threads, Calls(problem.c) * problem.c.q_len) {}

  void Run() override {
    for (int64_t i = 0; i < Calls(c_); ++i) {
      const int64_t begin = i * c_.q_len % (c_.kv_len - c_.q_len + 1);
      Append(&cache_, begin, begin + c_.q_len);
    }
  }
  int64_t steps() const override { return Calls(c_); }
  bool needs_reset() const override { return cache_.length() > c_.kv_len; }
  void Reset() override { Fill(); }
  double kv_bytes() const override {
    return static_cast<double>(c_.batch) * cached_bytes(c_.q_len);
  }
  double traffic_bytes() const override {
    return kv_bytes() +
           raw_kv_bytes() * static_cast<double>(c_.q_len) / static_cast<double>(c_.kv_len);
  }
  // Of a cache to which the problem's tokens were appended one by one, or as many as in a step.
  std::vector<float> Output() override {
    cache_.Clear();
    for (int64_t i = 0; i < c_.kv_len; i += c_.q_len) {
      Append(&cache_, i, std::min(i + c_.q_len, c_.kv_len));
    }
    Attend();
    return out_.Get();
  }

 private:
  static int64_t Calls(const Case& c) { return std::max(kMinCalls, kAppends / c.q_len); }
};

class ShareEntry : public CacheEntry {
 public:
  using CacheEntry::CacheEntry;
  double kv_bytes() const override {
    return static_cast<double>(c_.batch) * cached_bytes(c_.kv_len);
  }
};

class ForkEntry : public ShareEntry {
 public:
  ForkEntry(const Problem& problem, const KvFormat& format, int threads)
      : ShareEntry(problem, format, threads, 1) {}

  void Run() override {
    Note(cache_.Fork(&fork_));
    if (c_.features.append != 0) Append(&fork_, 0, 1);
  }
  // Of a fork that got the last token, while the cache it comes from got another one.
  std::vector<float> Output() override {
    const int64_t last = c_.kv_len - 1;
    cache_.Clear();
    Append(&cache_, 0, last);
    Note(cache_.Fork(&fork_));
    Append(&fork_, last, c_.kv_len);
    Append(&cache_, 0, 1);
    AttentionArgs args = args_;
    args.cache = &fork_;
    Attend(args);
    Fill();
    return out_.Get();
  }

 private:
  KvCache fork_;
};

class ReorderEntry : public ShareEntry {
 public:
  ReorderEntry(const Problem& problem, const KvFormat& format, int threads)
      : ShareEntry(problem, format, threads, kAppends) {
    for (int64_t s = 0; s < c_.batch; ++s) {
      parents_.push_back(static_cast<int32_t>(std::max<int64_t>(0, s - 1)));
      reversal_.push_back(static_cast<int32_t>(c_.batch - 1 - s));
    }
  }

  void Run() override {
    for (int64_t i = 0; i < steps(); ++i) {
      Note(cache_.Reorder(parents_.data(), c_.batch));
      if (c_.features.append != 0) Append(&cache_, i % c_.kv_len, i % c_.kv_len + 1);
    }
  }
  int64_t steps() const override { return kAppends; }
  bool needs_reset() const override { return cache_.length() > c_.kv_len; }
  void Reset() override { Fill(); }
  // Of beams that changed places halfway, while a fork of them went on from there.
  std::vector<float> Output() override {
    const int64_t half = c_.kv_len / 2;
    cache_.Clear();
    Note(cache_.Append(Slice(Reversed(k_.view()), 0, half), Slice(Reversed(v_.view()), 0, half),
                       parallel()));
    Note(cache_.Reorder(reversal_.data(), c_.batch));
    KvCache fork;
    Note(cache_.Fork(&fork));
    Note(fork.Reorder(parents_.data(), c_.batch));
    Append(&fork, 0, 1);
    Append(&cache_, half, c_.kv_len);
    Attend();
    Fill();
    return out_.Get();
  }

 private:
  std::vector<int32_t> parents_, reversal_;
};

// The file is in a temporary directory, and in the system's page cache if that holds it.
class MapEntry : public MemoryEntry {
 public:
  MapEntry(const Problem& problem, const KvFormat& format, int threads)
      : MemoryEntry(problem, format, threads) {
    namespace fs = std::filesystem;
    std::error_code code;
    const fs::path folder = fs::temp_directory_path(code);
    if (!code) path_ = folder / ("sightline_bench_" + std::to_string(std::random_device()()));
    Note(Save(memory_, path_.c_str()));
    const auto bytes = fs::file_size(path_, code);
    if (!code) bytes_ = static_cast<size_t>(bytes);
    memory_ = CrossMemory();
    if (c_.features.full != 0) options_.check = KvCheck::kFull;
  }
  ~MapEntry() override {
    std::error_code code;
    std::filesystem::remove(path_, code);
  }
  MapEntry(const MapEntry&) = delete;
  MapEntry& operator=(const MapEntry&) = delete;

  void Run() override { Note(Map(path_.c_str(), &memory_, options_)); }
  double kv_bytes() const override { return static_cast<double>(bytes_); }
  double token_bytes() const override { return TokenBytes(bytes_, c_.batch * c_.kv_len); }
  std::vector<float> Output() override {
    Attend();
    return out_.Get();
  }

 private:
  std::filesystem::path path_;
  size_t bytes_ = 0;
  KvMapOptions options_;
};

class SightlineContender : public Contender {
 public:
  explicit SightlineContender(std::string tier) : tier_(std::move(tier)) {
    // What Sightline promises per precision is in docs/contract.md; these only tell right from
    // wrong.
    const std::vector<Offer> known = {
        {"f32", "Q, K, V and O in f32", "", 1e-5},
        {"f16", "Q, K, V and O in f16, K and V packed as f16, products and sums in f32", "", 2e-3},
        {"bf16", "Q, K, V and O in bf16, K and V packed as bf16, sums in f32", "", 2e-2},
        {"i8", "Q, K, V and O in f16, K packed as int8 per token, V as int8 per channel and block",
         "", 1e-1},
        {"i8_rotated", "as i8, with the channels of Q and K balanced and rotated", "", 1e-1},
        {"i8_fine",
         "Q, K, V and O in f16, K packed as int16 per token, V as int8 per channel and block", "",
         1.5e-2},
        {"mixed16", "Q, K, V and O in f16, K packed as int16 per token, V as bf16, sums in f32", "",
         5e-3},
    };
    for (Offer offer : known) {
      offer.not_timed =
          "the plan and its workspace; the inputs are in their element type. Packing K and V is "
          "part "
          "of self and self_causal; before cross, decode_cross and self_causal_prepared the memory "
          "was prepared (the op prepare, which finds the scales and allocates), before decode_self "
          "the cache was filled (the op append)";
      AttentionDesc desc;
      desc.num_heads = desc.num_kv_heads = desc.head_dim = 1;
      desc.tier = tier_.c_str();
      KvFormat format;
      if (!ParseFormat(offer.precision, &format)) continue;
      desc.precision = format.precision;
      desc.rotate_k = format.rotate_k;
      Plan plan;
      if (Plan::Create(desc, &plan).ok()) offers_.push_back(std::move(offer));
    }
  }

  std::string name() const override { return "sightline"; }
  std::string version() const override { return kVersion; }
  std::string tier() const override { return tier_; }
  const std::vector<Offer>& offers() const override { return offers_; }
  bool knows_features() const override { return true; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    KvFormat format;
    format.tier = tier_.c_str();
    if (!ParseFormat(precision, &format)) {
      *why_not = "no precision is called " + precision;
      return nullptr;
    }
    std::unique_ptr<SightlineEntry> entry = MakeEntry(problem, format, threads);
    if (entry->status().ok()) return entry;
    *why_not = entry->status().message();
    return nullptr;
  }

 private:
  static std::unique_ptr<SightlineEntry> MakeEntry(const Problem& problem, const KvFormat& format,
                                                   int threads) {
    switch (problem.c.op) {
      case Op::kSelf:
      case Op::kSelfCausal:
        if (problem.c.features.parts != 0) {
          return std::make_unique<PartsEntry>(problem, format, threads);
        }
        if (problem.c.features.prepared != 0) break;
        return std::make_unique<SelfEntry>(problem, format, threads);
      case Op::kCross:
      case Op::kDecodeCross:
        if (problem.c.features.segments != 0) {
          return std::make_unique<SegmentsEntry>(problem, format, threads);
        }
        break;
      case Op::kDecodeSelf:
        if (problem.c.features.pages != 0) {
          return std::make_unique<PagesEntry>(problem, format, threads);
        }
        if (problem.c.features.continuous != 0) {
          return std::make_unique<ContinuousEntry>(problem, format, threads);
        }
        return std::make_unique<DecodeSelfEntry>(problem, format, threads);
      case Op::kPrepare:
        return std::make_unique<PrepareEntry>(problem, format, threads);
      case Op::kAppend:
        return std::make_unique<AppendEntry>(problem, format, threads);
      case Op::kFork:
        return std::make_unique<ForkEntry>(problem, format, threads);
      case Op::kReorder:
        return std::make_unique<ReorderEntry>(problem, format, threads);
      case Op::kMap:
        return std::make_unique<MapEntry>(problem, format, threads);
    }
    return std::make_unique<MemoryEntry>(problem, format, threads);
  }

  std::string tier_;
  std::vector<Offer> offers_;
};

}  // namespace

std::unique_ptr<Contender> MakeSightline(const std::string& tier) {
  return std::make_unique<SightlineContender>(tier);
}

}  // namespace bench
}  // namespace sightline
