// oneDNN's primitives put together to attention: matmul (Q times K), softmax, matmul (P times V), in f32, bf16 and int8.
//
// Scores are stored, so what matters is how many at a time. A decoding step, with a few rows for each K/V head, is one batched
// product over all heads. Otherwise a head's rows are taken in blocks whose scores stay in the L2 cache, each block by one
// thread; oneDNN's own threads would meet at every primitive, and a whole head's scores go to DRAM and back.
//
// Without a mask K and V are weights in the layout that the matmul asks for. A causal block of queries multiplies the keys up to
// its last query's only, half of all, and overwrites the hidden scores on its diagonal; each block needs other keys, which a
// packed layout cannot offer: K and V stay as they are, and are packed by every product.
//
// int8: Q is quantised per tensor, K per token, V per channel (where heads are batched, with the maximum over heads), P from
// zero to the largest of the block. All scales are static: worked out beforehand from these very numbers, which is more than a
// model's calibration can do. CPUs without VNNI add pairs of products in 16 bits, with saturation; there K and V have 6 bits
// and a sign, so that a pair fits beside u8.
#include <dnnl.hpp>
#include <math.h>
#include <omp.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>

#include "bench/peers/layout.h"
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

// Up to so many rows for each K/V head, one batched product over all heads has less overhead than a product for each.
constexpr int64_t kMaxBatchedRows = 32;
// Blocks of queries: below, packing K and V for each block shows; above, nothing is gained.
constexpr int64_t kMinBlockRows = 64;
constexpr int64_t kMaxBlockRows = 256;

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

bool Has(dnnl::cpu_isa isa) {
  const auto wanted = static_cast<unsigned>(isa);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}

// The threads of this thread's parallel regions and of primitives created or executed meanwhile.
class OmpThreads {
 public:
  explicit OmpThreads(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~OmpThreads() { omp_set_num_threads(before_); }
  OmpThreads(const OmpThreads&) = delete;
  OmpThreads& operator=(const OmpThreads&) = delete;

 private:
  int before_;
};

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory Bytes(size_t count) {
  return memory({{static_cast<memory::dim>(std::max<size_t>(count, 1))}, DType::u8,
                 memory::format_tag::a},
                Engine());
}

unsigned char* At(const memory& buffer, int64_t offset, DType type) {
  return static_cast<unsigned char*>(buffer.get_data_handle()) +
         offset * static_cast<int64_t>(memory::data_type_size(type));
}

memory Floats(const std::vector<float>& values) {
  memory result({{static_cast<memory::dim>(values.size())}, DType::f32, memory::format_tag::a},
                Engine());
  memcpy(result.get_data_handle(), values.data(), values.size() * sizeof(float));
  return result;
}

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

// What one thread needs to run items: buffers, and for each product the arguments, whose addresses change from item to item.
struct Worker {
  struct Arguments {
    Args qk, softmax, pv;
  };
  dnnl::stream stream{Engine()};
  memory scores, probabilities, scratchpad, p_scale;
  std::vector<Arguments> arguments;  // [product]
};

class OnednnEntry : public Entry {
 public:
  OnednnEntry(const Problem& problem, const std::string& precision, int threads)
      : c_(problem.c), type_(Parse(precision)), int8_(type_.kv == DType::s8), threads_(threads) {
    const bool masked = c_.mask() == Mask::kCausal;
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

  // "brg:avx512_core_vnni", "gemm:jit": which of oneDNN's implementations it is.
  std::string implementation() const { return products_[0].qk.impl_info_str(); }

 private:
  static memory::desc Dense(int64_t batch, int64_t rows, int64_t columns, DType type) {
    return {{batch, rows, columns}, type, memory::format_tag::abc};
  }
  // K, stored [keys][channels], as the [channels, keys] that a product multiplies with.
  static memory::desc Transposed(int64_t batch, int64_t rows, int64_t columns, DType type) {
    return {{batch, rows, columns}, type, memory::format_tag::acb};
  }

  void MakeItems() {
    const OmpThreads threads(1);
    const int64_t sharers = Sharers(c_);
    if (batched_) {
      const OmpThreads all(threads_);
      items_.push_back({FindProduct(Groups(c_), sharers * c_.q_len, c_.kv_len), 0, 0, false, 1.0f});
      return;
    }
    const bool masked = c_.mask() == Mask::kCausal;
    // Without a mask, rows that share K and V are as good as more queries.
    const int64_t heads = Groups(c_) * (masked ? sharers : 1);
    const int64_t rows = (masked ? 1 : sharers) * c_.q_len;
    const int64_t block = BlockRows();
    for (int64_t begin = (rows - 1) / block * block; begin >= 0; begin -= block) {
      const int64_t end = std::min(begin + block, rows);
      const int64_t keys = masked ? c_.kv_len - c_.q_len + end : c_.kv_len;
      const size_t product = FindProduct(1, end - begin, keys);
      for (int64_t head = 0; head < heads; ++head) {
        items_.push_back({product, head * rows + begin, head / (masked ? sharers : 1), masked, 1.0f});
      }
    }
  }

  int64_t BlockRows() const {
    if (const char* e = getenv("ODN_ROWS")) return atoi(e);
    int64_t cache_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (cache_bytes <= 0) cache_bytes = 512 * 1024;
    const int64_t fit = cache_bytes / 2 / (c_.kv_len * static_cast<int64_t>(sizeof(float)));
    return std::clamp(fit / 16 * 16, kMinBlockRows, kMaxBlockRows);
  }

  size_t FindProduct(int64_t batch, int64_t rows, int64_t keys) {
    for (size_t i = 0; i < products_.size(); ++i) {
      if (products_[i].rows == rows && products_[i].keys == keys) return i;
    }
    Product p;
    p.batch = batch;
    p.rows = rows;
    p.keys = keys;
    primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    primitive_attr softmax_attr;
    softmax_attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (int8_) {
      attr.set_scales_mask(DNNL_ARG_SRC, 0);
      attr.set_scales_mask(DNNL_ARG_WEIGHTS, kScalePerColumn);
      softmax_attr.set_scales_mask(DNNL_ARG_DST, 0);
    }
    memory::desc k({batch, c_.head_dim, keys}, type_.kv, memory::format_tag::any);
    memory::desc v({batch, keys, c_.v_head_dim}, type_.kv, memory::format_tag::any);
    if (c_.mask() == Mask::kCausal) {
      k = Transposed(batch, c_.head_dim, keys, type_.kv);
      v = Dense(batch, keys, c_.v_head_dim, type_.kv);
    } else if (!products_.empty()) {  // one layout for all blocks
      k = products_[0].qk.weights_desc();
      v = products_[0].pv.weights_desc();
    }
    if (const char* e = getenv("ODN_PLAIN")) {
      if (e[0] == '1') k = Transposed(batch, c_.head_dim, keys, type_.kv);
      if (e[0] == '2') k = Dense(batch, c_.head_dim, keys, type_.kv);
      v = Dense(batch, keys, c_.v_head_dim, type_.kv);
    }
    const memory::desc scores = Dense(batch, rows, keys, DType::f32);
    const memory::desc probabilities = Dense(batch, rows, keys, type_.p);
    p.qk = matmul::primitive_desc(Engine(), Dense(batch, rows, c_.head_dim, type_.q), k, scores, attr);
    p.softmax = softmax_forward::primitive_desc(Engine(), dnnl::prop_kind::forward_inference,
                                                dnnl::algorithm::softmax_accurate, scores,
                                                probabilities, 2, softmax_attr);
    p.pv = matmul::primitive_desc(Engine(), probabilities, v,
                                  Dense(batch, rows, c_.v_head_dim, DType::f32), attr);
    if (const char* e = getenv("ODN_NEXT")) {
      for (int i = 0; i < atoi(e); ++i) { p.qk.next_impl(); p.pv.next_impl(); }
    }
    if (getenv("ODN_VERBOSE")) fprintf(stderr, "[%s %s %s b%ld r%ld k%ld]\n", p.qk.impl_info_str(), p.softmax.impl_info_str(), p.pv.impl_info_str(), batch, rows, keys);
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
    const memory::desc plain({static_cast<memory::dim>(q.size())}, DType::f32, memory::format_tag::a);
    const memory::desc typed({static_cast<memory::dim>(q.size())}, type_.q, memory::format_tag::a);
    memory from(plain, Engine(), q.data());
    memory to(typed, Engine(), q_.get_data_handle());
    dnnl::stream stream(Engine());
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
      AddPack(Transposed(batch, c_.head_dim, c_.kv_len, DType::f32), k, whole.qk.weights_desc(),
              k_scales_.back(), &k_);
      AddPack(Dense(batch, c_.kv_len, c_.v_head_dim, DType::f32), v, whole.pv.weights_desc(),
              v_scales_.back(), &v_);
    }
    dnnl::stream stream(Engine());
    for (size_t i = 0; i < packs_.size(); ++i) packs_[i].execute(stream, pack_arguments_[i]);
    stream.wait();
    if (c_.op == Op::kPrepare) return;
    packs_.clear();
    pack_arguments_.clear();
    k_f32_ = {};
    v_f32_ = {};
  }

  void AddPack(const memory::desc& from, float* values, const memory::desc& to, const memory& scales,
               std::vector<memory>* stores) {
    primitive_attr attr;
    if (int8_) attr.set_scales_mask(DNNL_ARG_DST, kScalePerColumn);
    stores->emplace_back(to, Engine());
    packs_.emplace_back(
        dnnl::reorder::primitive_desc(Engine(), from, Engine(), to, attr));
    pack_arguments_.push_back({{DNNL_ARG_FROM, memory(from, Engine(), values)},
                               {DNNL_ARG_TO, stores->back()},
                               {DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, scales}});
    kv_bytes_ += static_cast<double>(to.get_size());
  }

  // Scales that bring the largest value of every row, or every channel, to the end of the range.
  memory ScalesOf(const float* x, int64_t batch, int64_t rows, int64_t channels, bool per_row) const {
    std::vector<float> scales(int8_ ? static_cast<size_t>(per_row ? rows : channels) : 1, 0.0f);
    if (!int8_) return Floats(scales);
    const bool vnni = Has(dnnl::cpu_isa::avx512_core_vnni) || Has(dnnl::cpu_isa::avx2_vnni);
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
      scratchpad_bytes = std::max({scratchpad_bytes, p.qk.scratchpad_desc().get_size(),
                                   p.softmax.scratchpad_desc().get_size(),
                                   p.pv.scratchpad_desc().get_size()});
    }
    w.scores = Bytes(static_cast<size_t>(scores) * sizeof(float));
    w.probabilities = type_.p == DType::f32
                          ? w.scores
                          : Bytes(static_cast<size_t>(scores) * memory::data_type_size(type_.p));
    w.scratchpad = Bytes(scratchpad_bytes);
    w.p_scale = Floats({1.0f});
    for (const Product& p : products_) {
      const auto at = [](const memory::desc& desc, const memory& data) {
        return memory(desc, Engine(), data.get_data_handle());
      };
      const memory nowhere;
      const auto later = [](const memory::desc& desc) { return memory(desc, Engine(), nullptr); };
      const auto scales = [](int64_t count) {
        return memory({{count}, DType::f32, memory::format_tag::a}, Engine(), nullptr);
      };
      w.arguments.push_back(
          {{{DNNL_ARG_SRC, later(p.qk.src_desc())},
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
      std::fill(scores + i * p.keys + p.keys - p.rows + i + 1, scores + (i + 1) * p.keys, -INFINITY);
    }
  }

  // The largest probability of some rows of every block is what u8 spans there.
  void Calibrate() {
    constexpr int64_t kSamples = 16;
    const OmpThreads threads(threads_);
    for (Item& item : items_) {
      Scores(item, &workers_[0]);
      const Product& p = products_[item.product];
      const int64_t rows = p.batch * p.rows;
      const int64_t samples = std::min(kSamples, rows);
      float largest = 0.0f;
      for (int64_t i = 0; i < samples; ++i) {
        const int64_t row = samples == 1 ? 0 : i * (rows - 1) / (samples - 1);
        const float* s = static_cast<float*>(workers_[0].scores.get_data_handle()) + row * p.keys;
        const float max = *std::max_element(s, s + p.keys);
        double sum = 0.0;
        for (int64_t j = 0; j < p.keys; ++j) sum += static_cast<double>(expf(s[j] - max));
        largest = std::max(largest, static_cast<float>(1.0 / sum));
      }
      item.p_scale = largest / 255.0f;
    }
  }

  Case c_;
  Precision type_;
  bool int8_;
  int threads_;
  bool batched_ = false;
  bool parallel_items_ = false;
  bool failed_ = false;
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
  std::string version() const override {
    const dnnl_version_t* v = dnnl_version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch);
  }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    const Case& c = problem.c;
    if (Parse(precision).q == DType::undef) {
      *why_not = "f32, bf16 and int8 only";
    } else if (c.op == Op::kAppend) {
      *why_not = "has no cache to append to";
    } else if (c.mask() == Mask::kCausal && c.kv_len < c.q_len) {
      *why_not = "its softmax has no rows without a visible key";
    } else if (precision == "bf16" && !Has(dnnl::cpu_isa::avx512_core_bf16)) {
      *why_not = "this CPU has no bf16 dot product that oneDNN uses";
    } else {
      try {
        auto entry = std::make_unique<OnednnEntry>(problem, precision, threads);
        if (entry->implementation().rfind("ref", 0) != 0) return entry;
        *why_not = "oneDNN has only its reference code for this CPU";
      } catch (const dnnl::error& error) {
        *why_not = std::string("oneDNN: ") + error.what();
      }
    }
    return nullptr;
  }

 private:
  const std::vector<Offer> offers_ = {
      {"f32", "f32", "conv", 1e-5},
      {"bf16", "bf16", "conv", 2e-2},
      {"i8", "i8", "conv", 0.5},
  };
};

}  // namespace

std::unique_ptr<Contender> MakeOnednn() { return std::make_unique<Onednn>(); }

}  // namespace bench
}  // namespace sightline
