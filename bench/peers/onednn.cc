// oneDNN's primitives put together to attention: matmul (Q times K), softmax, matmul (P times V),
// in f32, bf16 and int8.
//
// Scores are stored, so what matters is how many at a time. A decoding step, with a few rows for
// each K/V head, is one batched product over all heads. Otherwise a head's rows are taken in blocks
// whose scores stay in a cache, each block by one thread; oneDNN's own threads would meet at every
// primitive. A causal block multiplies the keys up to its last query's only, half of all in the
// end, and overwrites the hidden scores on its diagonal.
//
// The rows of a block, the layouts of K and V and which of oneDNN's implementations multiplies: the
// fastest of a few, timed on this CPU when a case is entered, for each shape anew. Layouts are
// those in which K and V can be had once and for all: the packed one that the matmul asks for, by
// token, by channel. (Causal blocks need a prefix of the keys: no packed layout.)
//
// int8: Q is quantised per tensor, K per token, V per channel (where heads are batched, with the
// maximum over heads), P from zero to the largest of its block. All scales are static: worked out
// beforehand from these very numbers, which is more than a model's calibration can do. CPUs without
// VNNI add pairs of products in 16 bits, with saturation; there K and V have 6 bits and a sign, so
// that a pair fits beside u8.
#include <math.h>
#include <string.h>
#include <dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <limits>
#include <unordered_map>
#include <utility>

#include "bench/peers/layout.h"
#include "bench/peers/onednn_common.h"
#include "bench/peers/peers.h"
#include "quant/elements.h"

namespace sightline {
namespace bench {
namespace {

using dnnl::matmul;
using dnnl::memory;
using dnnl::primitive_attr;
using dnnl::softmax_forward;
using DType = memory::data_type;
using Args = std::unordered_map<int, memory>;

// Up to so many rows for each K/V head, one batched product over all heads has less overhead than a
// product for each.
constexpr int64_t kMaxBatchedRows = 32;
// Rows of a block: with fewer, what a product does to K and V before it multiplies shows; with
// more, scores leave the caches.
constexpr int64_t kBlockRows[] = {64, 128, 256, 1024};
// The largest probability of more rows leaves most of them fewer of u8's steps: the error doubles
// from 64 rows to 1024.
constexpr int64_t kMaxInt8BlockRows = 256;
// Scores of a block, at most: they are stored.
constexpr int64_t kMaxScores = int64_t{1} << 25;

// Runs of a candidate go on for so long: a decoding step takes microseconds.
constexpr double kMinTuningSeconds = 1e-3;

constexpr int kScalePerColumn = 1 << 2;  // of [batch, channels, keys] or [batch, keys, channels]

struct Precision {
  DType q, kv, p;
};

Precision Parse(const std::string& name) {
  if (name == "f32") return {DType::f32, DType::f32, DType::f32};
  if (name == "bf16") return {DType::bf16, DType::bf16, DType::bf16};
  if (name == "i8") return {DType::s8, DType::s8, DType::u8};
  return {DType::undef, DType::undef, DType::undef};
}

memory Bytes(size_t count) {
  return memory(
      {{static_cast<memory::dim>(std::max<size_t>(count, 1))}, DType::u8, memory::format_tag::a},
      OnednnEngine());
}

unsigned char* At(const memory& buffer, int64_t offset, DType type) {
  return static_cast<unsigned char*>(buffer.get_data_handle()) +
         offset * static_cast<int64_t>(memory::data_type_size(type));
}

memory Floats(const std::vector<float>& values) {
  memory result({{static_cast<memory::dim>(values.size())}, DType::f32, memory::format_tag::a},
                OnednnEngine());
  memcpy(result.get_data_handle(), values.data(), values.size() * sizeof(float));
  return result;
}

// How K or V lies in memory.
enum class Layout { kPacked, kByToken, kByChannel };
constexpr Layout kAllLayouts[] = {Layout::kPacked, Layout::kByToken, Layout::kByChannel};

// How a product with K or V is done.
struct Way {
  memory::desc weights;  // of kPacked
  Layout layout = Layout::kByToken;
  std::string implementation;  // "brg_matmul:avx2", "gemm:jit"
  double seconds = std::numeric_limits<double>::infinity();
};

// Scores of a [batch, rows] block against so many keys, and what becomes of them.
struct Product {
  int64_t batch, rows, keys;
  matmul::primitive_desc qk, pv;
  softmax_forward::primitive_desc softmax;
  matmul run_qk, run_pv;
  softmax_forward run_softmax;
};

// A Product applied to rows of Q, from `row` on, and to K and V of `store`.
struct Item {
  size_t product;
  int64_t row, store;
  bool diagonal;
  float p_scale;
};

// What one thread needs to run items: buffers, and for each product the arguments, whose addresses
// change from item to item.
struct Worker {
  struct Arguments {
    Args qk, softmax, pv;
  };
  dnnl::stream stream{OnednnEngine()};
  memory scores, probabilities, scratchpad, p_scale;
  std::vector<Arguments> arguments;  // [product]
};

class OnednnEntry : public Entry {
 public:
  OnednnEntry(const Problem& problem, const std::string& precision, int threads)
      : c_(problem.c), type_(Parse(precision)), int8_(type_.kv == DType::s8), threads_(threads) {
    const bool masked = c_.causal();
    const int64_t rows = Sharers(c_) * c_.q_len;
    batched_ = !masked && rows <= kMaxBatchedRows;
    MakeItems();
    parallel_items_ = threads_ > 1 && static_cast<int>(items_.size()) > 1;

    QuantiseQ(problem);
    Pack(problem);
    for (int i = 0; i < (parallel_items_ ? threads_ : 1); ++i) workers_.push_back(MakeWorker());
    o_.resize(static_cast<size_t>(c_.q_batch() * c_.q_len * c_.heads * c_.v_head_dim));
    if (int8_) Calibrate();
  }

  void Run() override {
    if (c_.op == Op::kPrepare) {
      const OmpThreads threads(threads_);
      for (size_t i = 0; i < packs_.size(); ++i) {
        packs_[i].execute(workers_[0].stream, pack_arguments_[i]);
      }
      workers_[0].stream.wait();
    } else {
      RunItems();
    }
  }

  std::vector<float> Output() override {
    if (c_.op == Op::kPrepare) RunItems();
    return failed_ ? std::vector<float>(o_.size(), NAN) : UngroupO(c_, o_);
  }

  double kv_bytes() const override { return kv_bytes_; }

 private:
  static memory::desc Dense(int64_t batch, int64_t rows, int64_t columns, DType type) {
    return {{batch, rows, columns}, type, memory::format_tag::abc};
  }

  // K as the [channels, keys], V as the [keys, channels] that a product multiplies with: `keys` of
  // kv_len.
  memory::desc Keys(int64_t batch, int64_t keys, Layout layout, DType type) const {
    const memory::dims dims = {batch, c_.head_dim, keys};
    const int64_t head = c_.kv_len * c_.head_dim;
    if (layout == Layout::kPacked) return {dims, type, memory::format_tag::any};
    if (layout == Layout::kByToken) return {dims, type, memory::dims{head, 1, c_.head_dim}};
    return {dims, type, memory::dims{head, c_.kv_len, 1}};
  }
  memory::desc Values(int64_t batch, int64_t keys, Layout layout, DType type) const {
    const memory::dims dims = {batch, keys, c_.v_head_dim};
    const int64_t head = c_.kv_len * c_.v_head_dim;
    if (layout == Layout::kPacked) return {dims, type, memory::format_tag::any};
    if (layout == Layout::kByToken) return {dims, type, memory::dims{head, c_.v_head_dim, 1}};
    return {dims, type, memory::dims{head, 1, c_.kv_len}};
  }

  primitive_attr MatmulAttributes() const {
    primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (int8_) {
      attr.set_scales_mask(DNNL_ARG_SRC, 0);
      attr.set_scales_mask(DNNL_ARG_WEIGHTS, kScalePerColumn);
    }
    return attr;
  }

  matmul::primitive_desc QkOf(int64_t batch, int64_t rows, int64_t keys, const Way& way) const {
    return Find(Dense(batch, rows, c_.head_dim, type_.q), Keys(batch, keys, way.layout, type_.kv),
                Dense(batch, rows, keys, DType::f32), way);
  }
  matmul::primitive_desc PvOf(int64_t batch, int64_t rows, int64_t keys, const Way& way) const {
    return Find(Dense(batch, rows, keys, type_.p), Values(batch, keys, way.layout, type_.kv),
                Dense(batch, rows, c_.v_head_dim, DType::f32), way);
  }
  // The matmul of a Way: its implementation if that one takes the shape, otherwise oneDNN's first
  // choice.
  matmul::primitive_desc Find(const memory::desc& src, const memory::desc& weights,
                              const memory::desc& dst, const Way& way) const {
    const primitive_attr attr = MatmulAttributes();
    matmul::primitive_desc found(OnednnEngine(), src, weights, dst, attr);
    // A packed layout is found by asking anew: oneDNN takes some of its own for a stranger's when
    // they are passed to it.
    const bool packed = way.layout == Layout::kPacked;
    do {
      const bool same = way.implementation == found.impl_info_str();
      if (same && (!packed || found.weights_desc() == way.weights)) return found;
    } while (found.next_impl());
    if (packed)
      throw dnnl::error(dnnl_unimplemented, "blocks of different length disagree on a layout");
    return {OnednnEngine(), src, weights, dst, attr};
  }

  softmax_forward::primitive_desc SoftmaxOf(int64_t batch, int64_t rows, int64_t keys) const {
    primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (int8_) attr.set_scales_mask(DNNL_ARG_DST, 0);
    return {OnednnEngine(),
            dnnl::prop_kind::forward_inference,
            dnnl::algorithm::softmax_accurate,
            Dense(batch, rows, keys, DType::f32),
            Dense(batch, rows, keys, type_.p),
            2,
            attr};
  }

  // Seconds of a primitive on zeros: the best of a few runs.
  template <class PrimitiveDesc>
  static double Time(const PrimitiveDesc& desc, const Args& args) {
    const dnnl::primitive primitive(desc);
    dnnl::stream stream(OnednnEngine());
    double best = std::numeric_limits<double>::infinity();
    double total = 0.0;
    for (int i = 0; i < 4 || total < kMinTuningSeconds; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      primitive.execute(stream, args);
      stream.wait();
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      if (i > 0) best = std::min(best, seconds.count());  // the first is for the caches
      total += seconds.count();
    }
    return best;
  }

  static memory Zeros(const memory::desc& desc) {
    memory result(desc, OnednnEngine());
    if (desc.get_size() > 0) memset(result.get_data_handle(), 0, desc.get_size());
    return result;
  }

  double TimeMatmul(const matmul::primitive_desc& desc) const {
    Args args = {{DNNL_ARG_SRC, Zeros(desc.src_desc())},
                 {DNNL_ARG_WEIGHTS, Zeros(desc.weights_desc())},
                 {DNNL_ARG_DST, Zeros(desc.dst_desc())},
                 {DNNL_ARG_SCRATCHPAD, Zeros(desc.scratchpad_desc())}};
    if (int8_) {
      const auto columns = static_cast<size_t>(desc.dst_desc().get_dims()[2]);
      args[DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC] = Floats({1.0f});
      args[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = Floats(std::vector<float>(columns, 1.0f));
    }
    return Time(desc, args);
  }

  double TimeSoftmax(const softmax_forward::primitive_desc& desc) const {
    Args args = {{DNNL_ARG_SRC, Zeros(desc.src_desc())},
                 {DNNL_ARG_DST, Zeros(desc.dst_desc())},
                 {DNNL_ARG_SCRATCHPAD, Zeros(desc.scratchpad_desc())}};
    if (int8_) args[DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST] = Floats({1.0f});
    return Time(desc, args);
  }

  // The fastest way to multiply with the weights that `weights` makes of a layout.
  template <class Weights>
  Way FastestWay(const memory::desc& src, const memory::desc& dst, const Weights& weights) const {
    Way best;
    for (const Layout layout : kAllLayouts) {
      if (layout == Layout::kPacked && !may_pack_) continue;
      try {
        matmul::primitive_desc desc(OnednnEngine(), src, weights(layout), dst, MatmulAttributes());
        do {
          const std::string name = desc.impl_info_str();
          if (name.find("ref") != std::string::npos) continue;  // orders of magnitude slower
          const double seconds = TimeMatmul(desc);
          if (seconds < best.seconds) best = {desc.weights_desc(), layout, name, seconds};
        } while (desc.next_impl());
      } catch (const dnnl::error&) {
        continue;  // not with this layout
      }
    }
    if (best.implementation.empty()) throw dnnl::error(dnnl_unimplemented, "only reference code");
    return best;
  }

  // Decides k_way_ and v_way_ for blocks of so many rows of [batch] heads; returns the seconds of
  // one that sees every key.
  double Tune(int64_t batch, int64_t rows) {
    const int64_t keys = c_.kv_len;
    k_way_ =
        FastestWay(Dense(batch, rows, c_.head_dim, type_.q), Dense(batch, rows, keys, DType::f32),
                   [&](Layout layout) { return Keys(batch, keys, layout, type_.kv); });
    v_way_ =
        FastestWay(Dense(batch, rows, keys, type_.p), Dense(batch, rows, c_.v_head_dim, DType::f32),
                   [&](Layout layout) { return Values(batch, keys, layout, type_.kv); });
    return k_way_.seconds + v_way_.seconds + TimeSoftmax(SoftmaxOf(batch, rows, keys));
  }

  void MakeItems() {
    may_pack_ = !c_.causal();
    try {
      TryMakeItems();
    } catch (const dnnl::error&) {
      if (!may_pack_) throw;
      may_pack_ = false;
      items_.clear();
      products_.clear();
      TryMakeItems();
    }
  }

  void TryMakeItems() {
    const bool masked = c_.causal();
    const int64_t sharers = Sharers(c_);
    if (batched_) {
      const OmpThreads threads(threads_);
      Tune(Groups(c_), sharers * c_.q_len);
      items_.push_back({FindProduct(Groups(c_), sharers * c_.q_len, c_.kv_len), 0, 0, false, 1.0f});
      return;
    }
    const OmpThreads threads(1);
    // Without a mask, rows that share K and V are as good as more queries.
    const int64_t heads = Groups(c_) * (masked ? sharers : 1);
    const int64_t rows = (masked ? 1 : sharers) * c_.q_len;
    const int64_t block = TuneBlocks(heads, rows);
    for (int64_t begin = (rows - 1) / block * block; begin >= 0; begin -= block) {
      const int64_t end = std::min(begin + block, rows);
      const int64_t keys = masked ? c_.kv_len - c_.q_len + end : c_.kv_len;
      const size_t product = FindProduct(1, end - begin, keys);
      for (int64_t head = 0; head < heads; ++head) {
        items_.push_back(
            {product, head * rows + begin, head / (masked ? sharers : 1), masked, 1.0f});
      }
    }
  }

  // Decides the ways, and returns the rows of a block.
  int64_t TuneBlocks(int64_t heads, int64_t rows) {
    int64_t best_block = 0;
    int64_t last = 0;
    double best = std::numeric_limits<double>::infinity();
    Way k_way, v_way;
    for (int64_t block : kBlockRows) {
      block = std::min(block, rows);
      const int64_t blocks = (rows + block - 1) / block;
      // The smallest is always a choice; larger ones must leave work for all threads and fit into
      // memory.
      if (best_block > 0 && (block == last || block * c_.kv_len > kMaxScores ||
                             (int8_ && block > kMaxInt8BlockRows) ||
                             (threads_ > 1 && heads * blocks < 4 * threads_))) {
        break;
      }
      last = block;
      double seconds_per_row = Tune(1, block) / static_cast<double>(block);
      if (c_.causal()) {  // on the diagonal, half of the block is computed in vain
        const auto needed = static_cast<double>(c_.kv_len) - static_cast<double>(c_.q_len) / 2;
        seconds_per_row *= (needed + static_cast<double>(block) / 2) / needed;
      }
      if (seconds_per_row < best) {
        best = seconds_per_row;
        best_block = block;
        k_way = k_way_;
        v_way = v_way_;
      }
    }
    k_way_ = k_way;
    v_way_ = v_way;
    return best_block;
  }

  size_t FindProduct(int64_t batch, int64_t rows, int64_t keys) {
    for (size_t i = 0; i < products_.size(); ++i) {
      if (products_[i].rows == rows && products_[i].keys == keys) return i;
    }
    Product p;
    p.batch = batch;
    p.rows = rows;
    p.keys = keys;
    p.qk = QkOf(batch, rows, keys, k_way_);
    p.softmax = SoftmaxOf(batch, rows, keys);
    p.pv = PvOf(batch, rows, keys, v_way_);
    p.run_qk = matmul(p.qk);
    p.run_softmax = softmax_forward(p.softmax);
    p.run_pv = matmul(p.pv);
    products_.push_back(p);
    return products_.size() - 1;
  }

  void QuantiseQ(const Problem& problem) {
    std::vector<float> q = GroupQ(c_, problem.q);
    q_ = Bytes(q.size() * memory::data_type_size(type_.q));
    q_scale_ = Floats({1.0f});
    if (int8_) {
      float max = 0.0f;
      for (const float x : q) max = std::max(max, fabsf(x));
      const float scale = max > 0.0f ? max / 127.0f : 1.0f;
      for (size_t i = 0; i < q.size(); ++i) {
        *At(q_, static_cast<int64_t>(i), type_.q) =
            static_cast<unsigned char>(static_cast<int8_t>(lrintf(q[i] / scale)));
      }
      q_scale_ = Floats({scale * problem.scale()});
      return;
    }
    for (float& x : q) x *= problem.scale();
    const memory::desc plain({static_cast<memory::dim>(q.size())}, DType::f32,
                             memory::format_tag::a);
    const memory::desc typed({static_cast<memory::dim>(q.size())}, type_.q, memory::format_tag::a);
    memory from(plain, OnednnEngine(), q.data());
    memory to(typed, OnednnEngine(), q_.get_data_handle());
    dnnl::stream stream(OnednnEngine());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
  }

  // One store for each K/V head, or one for all where their products are batched.
  void Pack(const Problem& problem) {
    const OmpThreads threads(threads_);
    const int64_t batch = batched_ ? Groups(c_) : 1;
    k_f32_ = ByHead(c_, problem.k, c_.head_dim);
    v_f32_ = ByHead(c_, problem.v, c_.v_head_dim);
    // Items begin with the block that sees every key.
    const Product& whole = products_[items_[0].product];
    for (int64_t store = 0; store < Groups(c_) / batch; ++store) {
      float* k = k_f32_.data() + store * batch * c_.kv_len * c_.head_dim;
      float* v = v_f32_.data() + store * batch * c_.kv_len * c_.v_head_dim;
      k_scales_.push_back(ScalesOf(k, batch, c_.kv_len, c_.head_dim, /*per_row=*/true));
      v_scales_.push_back(ScalesOf(v, batch, c_.kv_len, c_.v_head_dim, /*per_row=*/false));
      AddPack(Keys(batch, c_.kv_len, Layout::kByToken, DType::f32), k, whole.qk.weights_desc(),
              k_scales_.back(), &k_);
      AddPack(Values(batch, c_.kv_len, Layout::kByToken, DType::f32), v, whole.pv.weights_desc(),
              v_scales_.back(), &v_);
    }
    dnnl::stream stream(OnednnEngine());
    for (size_t i = 0; i < packs_.size(); ++i) packs_[i].execute(stream, pack_arguments_[i]);
    stream.wait();
    if (c_.op == Op::kPrepare) return;
    packs_.clear();
    pack_arguments_.clear();
    k_f32_ = {};
    v_f32_ = {};
  }

  void AddPack(const memory::desc& from, float* values, const memory::desc& to,
               const memory& scales, std::vector<memory>* stores) {
    primitive_attr attr;
    if (int8_) attr.set_scales_mask(DNNL_ARG_DST, kScalePerColumn);
    stores->emplace_back(to, OnednnEngine());
    packs_.emplace_back(
        dnnl::reorder::primitive_desc(OnednnEngine(), from, OnednnEngine(), to, attr));
    pack_arguments_.push_back({{DNNL_ARG_FROM, memory(from, OnednnEngine(), values)},
                               {DNNL_ARG_TO, stores->back()},
                               {DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, scales}});
    kv_bytes_ += static_cast<double>(to.get_size());
  }

  // Scales that bring the largest value of every row, or every channel, to the end of the range.
  memory ScalesOf(const float* x, int64_t batch, int64_t rows, int64_t channels,
                  bool per_row) const {
    std::vector<float> scales(int8_ ? static_cast<size_t>(per_row ? rows : channels) : 1, 0.0f);
    if (!int8_) return Floats(scales);
    const bool vnni = OnednnUsesInt8DotProducts();
    float range = vnni ? 127.0f : 63.0f;
    for (int64_t i = 0; i < batch * rows * channels; ++i) {
      float& scale = scales[static_cast<size_t>(per_row ? i / channels % rows : i % channels)];
      scale = std::max(scale, fabsf(x[i]) / range);
    }
    for (float& scale : scales) {
      if (scale == 0.0f) scale = 1.0f;
    }
    return Floats(scales);
  }

  Worker MakeWorker() const {
    Worker w;
    int64_t scores = 0;
    size_t scratchpad_bytes = 0;
    for (const Product& p : products_) {
      scores = std::max(scores, p.batch * p.rows * p.keys);
      scratchpad_bytes =
          std::max({scratchpad_bytes, p.qk.scratchpad_desc().get_size(),
                    p.softmax.scratchpad_desc().get_size(), p.pv.scratchpad_desc().get_size()});
    }
    w.scores = Bytes(static_cast<size_t>(scores) * sizeof(float));
    w.probabilities = type_.p == DType::f32
                          ? w.scores
                          : Bytes(static_cast<size_t>(scores) * memory::data_type_size(type_.p));
    w.scratchpad = Bytes(scratchpad_bytes);
    w.p_scale = Floats({1.0f});
    for (const Product& p : products_) {
      const auto at = [](const memory::desc& desc, const memory& data) {
        return memory(desc, OnednnEngine(), data.get_data_handle());
      };
      const auto later = [](const memory::desc& desc) {
        return memory(desc, OnednnEngine(), nullptr);
      };
      const auto scales = [](int64_t count) {
        return memory({{count}, DType::f32, memory::format_tag::a}, OnednnEngine(), nullptr);
      };
      w.arguments.push_back({{{DNNL_ARG_SRC, later(p.qk.src_desc())},
                              {DNNL_ARG_WEIGHTS, later(p.qk.weights_desc())},
                              {DNNL_ARG_DST, at(p.qk.dst_desc(), w.scores)},
                              {DNNL_ARG_SCRATCHPAD, at(p.qk.scratchpad_desc(), w.scratchpad)},
                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, q_scale_},
                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scales(p.keys)}},
                             {{DNNL_ARG_SRC, at(p.softmax.src_desc(), w.scores)},
                              {DNNL_ARG_DST, at(p.softmax.dst_desc(), w.probabilities)},
                              {DNNL_ARG_SCRATCHPAD, at(p.softmax.scratchpad_desc(), w.scratchpad)},
                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, w.p_scale}},
                             {{DNNL_ARG_SRC, at(p.pv.src_desc(), w.probabilities)},
                              {DNNL_ARG_WEIGHTS, later(p.pv.weights_desc())},
                              {DNNL_ARG_DST, later(p.pv.dst_desc())},
                              {DNNL_ARG_SCRATCHPAD, at(p.pv.scratchpad_desc(), w.scratchpad)},
                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, w.p_scale},
                              {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scales(c_.v_head_dim)}}});
      if (!int8_) {
        Worker::Arguments& a = w.arguments.back();
        for (Args* args : {&a.qk, &a.softmax, &a.pv}) {
          for (const int arg : {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST}) {
            args->erase(DNNL_ARG_ATTR_SCALES | arg);
          }
        }
      }
    }
    return w;
  }

  void RunItems() {
    try {
      if (!parallel_items_) {
        const OmpThreads threads(threads_);
        for (const Item& item : items_) RunItem(item, &workers_[0]);
        return;
      }
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
      for (size_t i = 0; i < items_.size(); ++i) {
        try {
          RunItem(items_[i], &workers_[static_cast<size_t>(omp_get_thread_num())]);
        } catch (const dnnl::error&) {
          failed_ = true;
        }
      }
    } catch (const dnnl::error&) {
      failed_ = true;
    }
  }

  void RunItem(const Item& item, Worker* w) {
    const Product& p = products_[item.product];
    Worker::Arguments& a = w->arguments[item.product];
    Scores(item, w);
    if (int8_) {
      *static_cast<float*>(w->p_scale.get_data_handle()) = item.p_scale;
      a.pv[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS].set_data_handle(
          v_scales_[static_cast<size_t>(item.store)].get_data_handle());
    }
    p.run_softmax.execute(w->stream, a.softmax);
    a.pv[DNNL_ARG_WEIGHTS].set_data_handle(v_[static_cast<size_t>(item.store)].get_data_handle());
    a.pv[DNNL_ARG_DST].set_data_handle(o_.data() + item.row * c_.v_head_dim);
    p.run_pv.execute(w->stream, a.pv);
  }

  void Scores(const Item& item, Worker* w) {
    const Product& p = products_[item.product];
    Args& args = w->arguments[item.product].qk;
    args[DNNL_ARG_SRC].set_data_handle(At(q_, item.row * c_.head_dim, type_.q));
    args[DNNL_ARG_WEIGHTS].set_data_handle(k_[static_cast<size_t>(item.store)].get_data_handle());
    if (int8_) {
      args[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS].set_data_handle(
          k_scales_[static_cast<size_t>(item.store)].get_data_handle());
    }
    p.run_qk.execute(w->stream, args);
    if (!item.diagonal) return;
    float* scores = static_cast<float*>(w->scores.get_data_handle());
    for (int64_t i = 0; i < p.rows; ++i) {
      std::fill(scores + i * p.keys + p.keys - p.rows + i + 1, scores + (i + 1) * p.keys,
                -INFINITY);
    }
  }

  // The largest probability of every block is what u8 spans there.
  void Calibrate() {
    const OmpThreads threads(threads_);
    Worker& w = workers_[0];
    std::unordered_map<size_t, softmax_forward> exact;  // of a product
    for (Item& item : items_) {
      Scores(item, &w);
      const Product& p = products_[item.product];
      if (exact.count(item.product) == 0) {
        exact[item.product] = softmax_forward(softmax_forward::primitive_desc(
            OnednnEngine(), dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate,
            p.softmax.src_desc(), p.softmax.src_desc(), 2));
      }
      const memory scores(p.softmax.src_desc(), OnednnEngine(), w.scores.get_data_handle());
      exact[item.product].execute(w.stream, {{DNNL_ARG_SRC, scores}, {DNNL_ARG_DST, scores}});
      w.stream.wait();
      const float* probabilities = static_cast<float*>(scores.get_data_handle());
      item.p_scale =
          *std::max_element(probabilities, probabilities + p.batch * p.rows * p.keys) / 255.0f;
    }
  }

  Case c_;
  Precision type_;
  bool int8_;
  int threads_;
  bool batched_ = false;
  bool parallel_items_ = false;
  bool failed_ = false;
  bool may_pack_ = false;
  Way k_way_, v_way_;
  std::vector<Product> products_;
  std::vector<Item> items_;
  std::vector<Worker> workers_;

  memory q_, q_scale_;
  std::vector<float> k_f32_, v_f32_;
  std::vector<memory> k_, v_, k_scales_, v_scales_;  // [store]
  std::vector<dnnl::reorder> packs_;
  std::vector<Args> pack_arguments_;
  double kv_bytes_ = 0;
  std::vector<float> o_;
};

class Onednn : public Contender {
 public:
  std::string name() const override { return "onednn"; }
  std::string version() const override { return OnednnVersion(); }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    const Case& c = problem.c;
    if (Parse(precision).q == DType::undef) {
      *why_not = "f32, bf16 and int8 only";
    } else if (c.op == Op::kAppend) {
      *why_not = "has no cache to append to";
    } else if (c.causal() && c.kv_len < c.q_len) {
      *why_not = "its softmax has no rows without a visible key";
    } else if (precision == "bf16" && !OnednnUsesBf16()) {
      *why_not = "this CPU has no bf16 dot product that oneDNN uses";
    } else if (threads != 1 && !kOnednnHasOmp) {
      *why_not = "this oneDNN was built for other threads than OpenMP's";
    } else {
      try {
        return std::make_unique<OnednnEntry>(problem, precision, threads);
      } catch (const dnnl::error& error) {
        *why_not = std::string("oneDNN: ") + error.what();
      }
    }
    return nullptr;
  }

 private:
  const std::vector<Offer> offers_ = {
      {"f32",
       "matmul, softmax, matmul on blocks of rows. Q, K, V, O and scores in f32; K and V in the "
       "fastest "
       "of oneDNN's packed layout, by token and by channel. Causal blocks stop at their last key.",
       "Folding the softmax scale into Q; bringing K and V into their layout (that is prepare), "
       "also "
       "where a decoder would have to do so for every token; choosing blocks, layouts and kernels.",
       1e-5},
      {"bf16",
       "matmul, softmax, matmul on blocks of rows. Q, K, V and P in bf16, scores and O in f32; K "
       "and V "
       "in the fastest of oneDNN's packed layout, by token and by channel. Causal blocks stop at "
       "their "
       "last key.",
       "Converting Q with the softmax scale folded in; converting K and V into their layout (that "
       "is "
       "prepare), also where a decoder would have to do so for every token; choosing blocks, "
       "layouts "
       "and kernels.",
       2e-2},
      {"i8",
       "matmul, softmax, matmul on blocks of rows. Q in s8 per tensor, K in s8 per token, V in s8 "
       "per "
       "channel (6 bits and a sign without VNNI), P in u8 per block, scores and O in f32; K and V "
       "in "
       "the fastest of oneDNN's packed layout, by token and by channel. Causal blocks stop at "
       "their "
       "last key.",
       "All scales are static and come from these very numbers, P's too; quantising Q; quantising "
       "K "
       "and V into their layout (that is prepare), also where a decoder would have to do so for "
       "every "
       "token; choosing blocks, layouts and kernels.",
       0.5},
  };
};

}  // namespace

std::unique_ptr<Contender> MakeOnednn() { return std::make_unique<Onednn>(); }

}  // namespace bench
}  // namespace sightline
