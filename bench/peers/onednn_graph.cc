// oneDNN's Graph API: the scaled dot-product attention pattern as one compiled partition, of which
// a Run is one execution.
//
// The pattern is MatMul, Multiply (the scale), for a causal mask Add, SoftMax, MatMul. What oneDNN
// has of it for CPUs computes the scores of a whole head, hidden ones too, one head per thread;
// with no more heads than twice the threads it falls back to a primitive for each node. Any other
// layout than dense [head][token][channel] it would copy to that first.
//
// Rows of Q that share K and V are rows of one head while they are few. If they are many, one
// head's scores at a time stay closer to the cache: a fifth dimension, which oneDNN needs 3.9 for.
//
// int8: Dequantize in front of the products and Quantize behind softmax and behind the whole, which
// this pattern demands. It knows one static scale for each tensor; they are worked out beforehand
// from these very numbers. P has to be signed as Q is, or it is cut off at half of its range. CPUs
// without VNNI add pairs of products in 16 bits, with saturation; there K and V have 6 bits and a
// sign.
//
// Seen to work: 3.12.1, f32 and int8 on AVX2.
#include <math.h>
#include <string.h>
#include <oneapi/dnnl/dnnl.hpp>
#include <oneapi/dnnl/dnnl_graph.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "bench/peers/layout.h"
#include "bench/peers/onednn_common.h"
#include "bench/peers/peers.h"
#include "quant/elements.h"

namespace sightline {
namespace bench {
namespace {

using dnnl::graph::logical_tensor;
using dnnl::graph::op;
using DType = logical_tensor::data_type;
using Dims = logical_tensor::dims;

// Up to so many rows of Q for each head of K and V, they are rows of one head to oneDNN.
constexpr int64_t kFewRows = 32;

// With fewer heads than that there are no threads that take one each, and all scores are stored.
bool OneHeadPerThread(int64_t heads, int threads) { return heads > 2 * threads; }

double ScoreBytes(const Case& c, int threads) {
  const int64_t heads = c.q_batch() * c.heads;
  const int64_t at_a_time = OneHeadPerThread(heads, threads) ? threads : heads;
  return static_cast<double>(at_a_time * c.q_len * c.kv_len) * static_cast<double>(sizeof(float));
}

// A graph in the making. Its nodes are identified by numbers, as are its tensors.
class Graph {
 public:
  logical_tensor NewTensor(DType type, const Dims& dims) {
    return logical_tensor(id_++, type, dims, logical_tensor::layout_type::strided);
  }

  template <typename SetAttributes>
  logical_tensor Add(op::kind kind, const std::vector<logical_tensor>& inputs, DType type,
                     const Dims& dims, const SetAttributes& set_attributes) {
    const size_t id = id_++;
    op node(id, kind, std::to_string(id));
    set_attributes(&node);
    const logical_tensor output = NewTensor(type, dims);
    node.add_inputs(inputs);
    node.add_outputs({output});
    graph_.add_op(node);
    return output;
  }
  logical_tensor Add(op::kind kind, const std::vector<logical_tensor>& inputs, DType type,
                     const Dims& dims) {
    return Add(kind, inputs, type, dims, [](op*) {});
  }
  // Between f32 and s8, with one scale for the tensor.
  logical_tensor Convert(op::kind kind, const logical_tensor& input, DType type, const Dims& dims,
                         float scale) {
    return Add(kind, {input}, type, dims, [&](op* node) {
      node->set_attr<std::string>(op::attr::qtype, "per_tensor");
      node->set_attr<std::vector<float>>(op::attr::scales, {scale});
      node->set_attr<std::vector<int64_t>>(op::attr::zps, {0});
    });
  }

  std::vector<dnnl::graph::partition> Partitions() {
    graph_.finalize();
    return graph_.get_partitions();
  }

 private:
  dnnl::graph::graph graph_{dnnl::engine::kind::cpu};
  size_t id_ = 0;
};

float Largest(const std::vector<float>& x) {
  float largest = std::numeric_limits<float>::min();
  for (const float value : x) largest = std::max(largest, fabsf(value));
  return largest;
}

// The probabilities of one row of Q, as far as they are not 0.
std::vector<float> Probabilities(const Problem& p, const Problem::Row& row) {
  const Case& c = p.c;
  const int64_t keys = c.causal() ? c.kv_len - c.q_len + row.query + 1 : c.kv_len;
  const int64_t kv_head = row.head / (c.heads / c.kv_heads);
  const float* q =
      p.q.data() + ((row.batch * c.q_len + row.query) * c.heads + row.head) * c.head_dim;
  std::vector<float> s;
  for (int64_t j = 0; j < keys; ++j) {
    const float* k =
        p.k.data() + ((row.batch / c.beams * c.kv_len + j) * c.kv_heads + kv_head) * c.head_dim;
    float sum = 0.0f;
    for (int64_t d = 0; d < c.head_dim; ++d) sum += q[d] * k[d];
    s.push_back(sum * p.scale());
  }
  const float max = *std::max_element(s.begin(), s.end());
  float total = 0.0f;
  for (float& x : s) total += x = expf(x - max);
  for (float& x : s) x /= total;
  return s;
}

// The scale that leaves the least squared error in the probabilities of the sampled rows. With a
// causal mask a few of them are near 1 and most far below the step that this would mean.
float BestProbabilityScale(const Problem& p) {
  std::array<double, 24> errors{};
  const auto scale = [](size_t i) { return exp2f(-0.5f * static_cast<float>(i)) / 127.0f; };
  for (const Problem::Row& row : p.exact) {
    for (const float x : Probabilities(p, row)) {
      for (size_t i = 0; i < errors.size(); ++i) {
        const float kept = std::min(127.0f, nearbyintf(x / scale(i))) * scale(i);
        errors[i] += static_cast<double>((x - kept) * (x - kept));
      }
    }
  }
  const auto best = std::min_element(errors.begin(), errors.end());
  return scale(static_cast<size_t>(best - errors.begin()));
}

float LargestOutput(const Problem& p) {
  double largest = static_cast<double>(std::numeric_limits<float>::min());
  for (const Problem::Row& row : p.exact) {
    for (const double x : row.value) largest = std::max(largest, fabs(x));
  }
  return static_cast<float>(largest);
}

std::vector<char> Encode(const std::vector<float>& x, DType type, float scale) {
  const size_t width = type == DType::f32 ? 4 : type == DType::bf16 ? 2 : 1;
  std::vector<char> result(x.size() * width);
  for (size_t i = 0; i < x.size(); ++i) {
    char* to = result.data() + i * width;
    if (type == DType::f32) {
      memcpy(to, &x[i], width);
    } else if (type == DType::bf16) {
      const uint16_t value = internal::BF16FromF32(x[i]);
      memcpy(to, &value, width);
    } else {
      *to = static_cast<char>(lrintf(std::clamp(x[i] / scale, -127.0f, 127.0f)));
    }
  }
  return result;
}

class OnednnGraphEntry : public Entry {
 public:
  // Without fused() afterwards, oneDNN did not recognise the pattern.
  OnednnGraphEntry(const Problem& p, DType type, int threads)
      : c_(p.c), type_(type), threads_(threads) {
    const bool int8 = type == DType::s8;
    const bool causal = c_.causal();
    const bool one_head =
        !causal && OneHeadPerThread(Groups(c_), threads) && Sharers(c_) * c_.q_len <= kFewRows;
    const int64_t sharers = one_head ? 1 : Sharers(c_);
    const int64_t rows = one_head ? Sharers(c_) * c_.q_len : c_.q_len;
    const auto dims = [&](int64_t group, int64_t length, int64_t width) {
      Dims result = {c_.batch, c_.kv_heads, length, width};
      if (sharers != 1) result.insert(result.begin() + 2, group);
      return result;
    };
    const Dims q_dims = dims(sharers, rows, c_.head_dim);
    const Dims k_dims = dims(1, c_.kv_len, c_.head_dim);
    const Dims v_dims = dims(1, c_.kv_len, c_.v_head_dim);
    const Dims s_dims = dims(sharers, rows, c_.kv_len);
    const Dims o_dims = dims(sharers, rows, c_.v_head_dim);

    float q_scale = 1.0f, k_scale = 1.0f, v_scale = 1.0f, p_scale = 1.0f;
    if (int8) {
      const float top = OnednnUsesInt8DotProducts() ? 127.0f : 63.0f;
      q_scale = Largest(p.q) / 127.0f;
      k_scale = Largest(p.k) / top;
      v_scale = Largest(p.v) / top;
      p_scale = BestProbabilityScale(p);
      o_scale_ = LargestOutput(p) / 127.0f;
    }

    // Scores are f32 always, other tensors f32 or bf16 outside of the quantised ones.
    const DType plain = type == DType::bf16 ? DType::bf16 : DType::f32;
    Graph graph;
    std::vector<logical_tensor> inputs;
    const auto input = [&](DType t, const Dims& d, const std::vector<float>& x, float scale) {
      inputs.push_back(graph.NewTensor(t, d));
      buffers_.push_back(Encode(x, t, scale));
      return inputs.back();
    };
    const auto quantised = [&](const Dims& d, const std::vector<float>& x, float scale) {
      const logical_tensor t = input(type, d, x, scale);
      return int8 ? graph.Convert(op::kind::Dequantize, t, plain, d, scale) : t;
    };
    const logical_tensor q = quantised(q_dims, GroupQ(c_, p.q), q_scale);
    const logical_tensor k = quantised(k_dims, ByHead(c_, p.k, c_.head_dim), k_scale);
    logical_tensor s = graph.Add(op::kind::MatMul, {q, k}, DType::f32, s_dims, [](op* node) {
      node->set_attr<bool>(op::attr::transpose_b, true);
    });
    const logical_tensor scale = input(plain, {1}, {p.scale()}, 1.0f);
    s = graph.Add(op::kind::Multiply, {s, scale}, DType::f32, s_dims);
    if (causal) {
      Dims mask_dims(s_dims.size(), 1);
      mask_dims[mask_dims.size() - 2] = rows;
      mask_dims[mask_dims.size() - 1] = c_.kv_len;
      const logical_tensor mask = input(plain, mask_dims, CausalMask(), 1.0f);
      s = graph.Add(op::kind::Add, {s, mask}, DType::f32, s_dims);
    }
    logical_tensor probabilities = graph.Add(op::kind::SoftMax, {s}, plain, s_dims, [](op* node) {
      node->set_attr<int64_t>(op::attr::axis, -1);
    });
    if (int8) {
      probabilities = graph.Convert(op::kind::Quantize, probabilities, type, s_dims, p_scale);
      probabilities = graph.Convert(op::kind::Dequantize, probabilities, plain, s_dims, p_scale);
    }
    const logical_tensor v = quantised(v_dims, ByHead(c_, p.v, c_.v_head_dim), v_scale);
    logical_tensor o = graph.Add(op::kind::MatMul, {probabilities, v}, plain, o_dims);
    if (int8) o = graph.Convert(op::kind::Quantize, o, type, o_dims, o_scale_);

    const std::vector<dnnl::graph::partition> partitions = graph.Partitions();
    fused_ = partitions.size() == 1 && partitions[0].is_supported();
    if (!fused_) return;
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs_.emplace_back(inputs[i], OnednnEngine(), buffers_[i].data());
    }
    out_.resize(o.get_mem_size());
    outputs_.emplace_back(o, OnednnEngine(), out_.data());
    const OmpThreads use(threads_);
    stream_ = dnnl::stream(OnednnEngine());
    compiled_ = partitions[0].compile(inputs, {o}, OnednnEngine());
    Run();  // if it throws, it does so here
  }

  bool fused() const { return fused_; }

  void Run() override {
    const OmpThreads use(threads_);
    compiled_.execute(stream_, inputs_, outputs_);
    stream_.wait();
  }

  std::vector<float> Output() override {
    std::vector<float> out(static_cast<size_t>(c_.q_batch() * c_.q_len * c_.heads * c_.v_head_dim));
    for (size_t i = 0; i < out.size(); ++i) {
      if (type_ == DType::f32) {
        memcpy(&out[i], out_.data() + 4 * i, 4);
      } else if (type_ == DType::bf16) {
        uint16_t x;
        memcpy(&x, out_.data() + 2 * i, 2);
        out[i] = internal::F32FromBF16(x);
      } else {
        out[i] = static_cast<float>(static_cast<signed char>(out_[i])) * o_scale_;
      }
    }
    return UngroupO(c_, out);
  }

  double kv_bytes() const override {
    const double width = type_ == DType::f32 ? 4 : type_ == DType::bf16 ? 2 : 1;
    return width * static_cast<double>(c_.KvElements());
  }

 private:
  std::vector<float> CausalMask() const {
    std::vector<float> mask(static_cast<size_t>(c_.q_len * c_.kv_len), -INFINITY);
    for (int64_t i = 0; i < c_.q_len; ++i) {
      std::fill_n(mask.begin() + i * c_.kv_len, c_.kv_len - c_.q_len + i + 1, 0.0f);
    }
    return mask;
  }

  Case c_;
  DType type_;
  int threads_;
  bool fused_ = false;
  float o_scale_ = 1.0f;
  std::vector<std::vector<char>> buffers_;
  std::vector<char> out_;
  std::vector<dnnl::graph::tensor> inputs_, outputs_;
  dnnl::graph::compiled_partition compiled_;
  dnnl::stream stream_;
};

class OnednnGraph : public Contender {
 public:
  std::string name() const override { return "onednn_graph"; }
  std::string version() const override { return OnednnVersion(); }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    const Case& c = problem.c;
    const auto type = std::find_if(types_.begin(), types_.end(),
                                   [&](const auto& t) { return precision == t.first; });
    if (type == types_.end()) {
      *why_not = "no such precision";
    } else if (IsStore(c.op)) {
      *why_not = "only attention is measured";
    } else if (c.causal() && c.kv_len < c.q_len) {
      *why_not = "its softmax has no rows without a visible key";
    } else if (type->second == DType::bf16 && !OnednnUsesBf16()) {
      *why_not = "this CPU has no bf16 arithmetic that oneDNN uses";
    } else if (ScoreBytes(c, threads) > kMaxExtraBytes) {
      *why_not = "it would store more than 2 GiB of scores";
    } else if (threads != 1 && !kOnednnHasOmp) {
      *why_not = "this oneDNN was built for other threads than OpenMP's";
    } else {
      try {
        auto entry = std::make_unique<OnednnGraphEntry>(problem, type->second, threads);
        if (entry->fused()) return entry;
        *why_not = "oneDNN does not take the graph as one partition";
      } catch (const dnnl::error& error) {
        *why_not = std::string("oneDNN: ") + error.what();
      }
    }
    return nullptr;
  }

 private:
  const std::vector<std::pair<std::string, DType>> types_ = {
      {"f32", DType::f32}, {"bf16", DType::bf16}, {"i8", DType::s8}};
  const std::vector<Offer> offers_ = {
      {"f32",
       "Q, K, V and O in f32, [head][token][channel]. A causal mask is an added tensor: hidden "
       "scores are computed too.",
       "Bringing the tensors into that order; making the mask and compiling the partition.", 1e-5},
      {"bf16",
       "Q, K, V, P and O in bf16, scores in f32, [head][token][channel]. A causal mask is an added "
       "tensor: hidden scores are computed too.",
       "Converting the tensors and bringing them into that order; making the mask and compiling "
       "the partition.",
       2e-2},
      {"i8",
       "Q, K, V, P and O in signed 8 bits with one static scale for each tensor, worked out from "
       "the same numbers; scores in f32; [head][token][channel]. A causal mask is an added tensor: "
       "hidden scores are computed too.",
       "Finding the scales, quantising the tensors and bringing them into that order; making the "
       "mask and compiling the partition; bringing O back to f32.",
       0.5},
  };
};

}  // namespace

std::unique_ptr<Contender> MakeOnednnGraph() { return std::make_unique<OnednnGraph>(); }

}  // namespace bench
}  // namespace sightline
