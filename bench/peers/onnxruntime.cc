// ONNX Runtime's attention operators of the com.microsoft domain, on its CPU provider, in f32.
//
//   MultiHeadAttention    where every query sees every key. A head of K and V is a sequence with
//   one
//                         head to it, and all that reads it are rows of that sequence's Q: nothing
//                         is left to transpose, and shared K and V are read once. K and V in three
//                         dimensions it copies first and then computes in blocks; in four it copies
//                         nothing, which is faster for few rows.
//   GroupQueryAttention   with a causal mask, and for one query if no heads share K and V. It adds
//                         the call's own tokens to the cache as it goes, in place, here always the
//                         same ones.
//
// The model, one node, is written to memory as the protocol buffer that ONNX is. Inputs and output
// are bound to buffers once.
//
// Seen to work: 1.22.0, 1.23.2, 1.30.0. Causal attention is much faster in the last one.
#include <onnxruntime_cxx_api.h>
#include <stdio.h>
#include <string.h>

#include <exception>
#include <utility>

#include "bench/peers/layout.h"
#include "bench/peers/peers.h"

namespace sightline {
namespace bench {
namespace {

// A message of a protocol buffer: a sequence of fields, each with its number.
class Message {
 public:
  Message& Int(int field, int64_t value) {
    Tag(field, 0);
    Varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& Float(int field, float value) {
    Tag(field, 5);
    char little_endian[4];
    memcpy(little_endian, &value, 4);
    bytes_.append(little_endian, 4);
    return *this;
  }
  Message& Bytes(int field, const std::string& value) {
    Tag(field, 2);
    Varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& Sub(int field, const Message& value) { return Bytes(field, value.bytes_); }

  const std::string& bytes() const { return bytes_; }

 private:
  void Tag(int field, unsigned wire_type) { Varint(static_cast<unsigned>(field) << 3 | wire_type); }
  void Varint(uint64_t x) {
    for (; x >= 0x80; x >>= 7) bytes_ += static_cast<char>(x | 0x80);
    bytes_ += static_cast<char>(x);
  }

  std::string bytes_;
};

struct Tensor {
  std::string name;  // "" for an optional input that is left out
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  std::vector<int64_t> dims;
  void* data = nullptr;

  int64_t size() const {
    int64_t result = 1;
    for (const int64_t dim : dims) result *= dim;
    return result;
  }
  Ort::Value Value() const {
    static const Ort::MemoryInfo cpu =
        Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    const bool is_float = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    const size_t bytes = static_cast<size_t>(size()) * (is_float ? sizeof(float) : sizeof(int32_t));
    return Ort::Value::CreateTensor(cpu, data, bytes, dims.data(), dims.size(), type);
  }
};

// An ONNX model of one node. The field numbers are those of onnx.proto.
struct Node {
  static constexpr int64_t kIrVersion = 8, kOpset = 17;  // any that attributes and types fit
  static constexpr int64_t kFloat = 1, kInt = 2;         // types of attributes

  std::string op;
  std::vector<Tensor> inputs, outputs;
  std::vector<std::pair<std::string, int64_t>> attributes;
  float scale = 0;

  std::string Model() const {
    const std::string domain = "com.microsoft";
    Message node, graph;
    for (const Tensor& t : inputs) node.Bytes(1, t.name);
    for (const Tensor& t : outputs) node.Bytes(2, t.name);
    node.Bytes(4, op).Bytes(7, domain);
    for (const auto& [name, value] : attributes) {
      node.Sub(5, Message().Bytes(1, name).Int(3, value).Int(20, kInt));
    }
    node.Sub(5, Message().Bytes(1, "scale").Float(2, scale).Int(20, kFloat));
    graph.Sub(1, node).Bytes(2, "attention");
    for (const Tensor& t : inputs) {
      if (!t.name.empty()) graph.Sub(11, Describe(t));
    }
    for (const Tensor& t : outputs) graph.Sub(12, Describe(t));
    return Message()
        .Int(1, kIrVersion)
        .Sub(7, graph)
        .Sub(8, Message().Bytes(1, "").Int(2, kOpset))
        .Sub(8, Message().Bytes(1, domain).Int(2, 1))
        .bytes();
  }

 private:
  static Message Describe(const Tensor& t) {
    Message shape;
    for (const int64_t dim : t.dims) shape.Sub(1, Message().Int(1, dim));
    const Message tensor_type = Message().Int(1, t.type).Sub(2, shape);
    return Message().Bytes(1, t.name).Sub(2, Message().Sub(1, tensor_type));
  }
};

class OnnxRuntimeEntry : public Entry {
 public:
  // With more rows of Q than that, MultiHeadAttention's copy of K and V pays off.
  static constexpr int64_t kFewRows = 32;

  OnnxRuntimeEntry(const Ort::Env& env, const Problem& p, bool cached, int threads) : c_(p.c) {
    Node node = cached ? Cached(p) : Plain(p);
    node.scale = p.scale();
    const std::string model = node.Model();

    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.SetInterOpNumThreads(1);
    options.SetExecutionMode(ORT_SEQUENTIAL);
    options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
    session_ = Ort::Session(env, model.data(), model.size(), options);
    binding_ = Ort::IoBinding(session_);
    for (const Tensor& t : node.inputs) {
      if (!t.name.empty()) binding_.BindInput(t.name.c_str(), t.Value());
    }
    for (const Tensor& t : node.outputs) binding_.BindOutput(t.name.c_str(), t.Value());
    Run();
  }

  void Run() override { session_.Run(options_, binding_); }

  std::vector<float> Output() override { return grouped_ ? UngroupO(c_, out_) : out_; }

  double kv_bytes() const override {
    return static_cast<double>(c_.KvElements()) * static_cast<double>(sizeof(float));
  }

 private:
  static Tensor Floats(const char* name, std::vector<int64_t> dims, std::vector<float>* data) {
    Tensor tensor{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, std::move(dims), nullptr};
    data->resize(static_cast<size_t>(tensor.size()));
    tensor.data = data->data();
    return tensor;
  }
  static Tensor Ints(const char* name, std::vector<int64_t> dims, std::vector<int32_t>* data) {
    return {name, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, std::move(dims), data->data()};
  }

  Node Plain(const Problem& p) {
    grouped_ = true;
    q_ = GroupQ(c_, p.q);
    k_ = ByHead(c_, p.k, c_.head_dim);
    v_ = ByHead(c_, p.v, c_.v_head_dim);
    const int64_t rows = Sharers(c_) * c_.q_len;
    std::vector<int64_t> k_dims = {Groups(c_), c_.kv_len, c_.head_dim};
    std::vector<int64_t> v_dims = {Groups(c_), c_.kv_len, c_.v_head_dim};
    if (rows <= kFewRows) {
      k_dims.insert(k_dims.begin() + 1, 1);
      v_dims.insert(v_dims.begin() + 1, 1);
    }

    Node node;
    node.op = "MultiHeadAttention";
    node.inputs = {Floats("query", {Groups(c_), rows, c_.head_dim}, &q_),
                   Floats("key", k_dims, &k_), Floats("value", v_dims, &v_)};
    node.outputs = {Floats("output", {Groups(c_), rows, c_.v_head_dim}, &out_)};
    node.attributes = {{"num_heads", 1}};
    return node;
  }

  // The queries' own tokens, the last q_len, are handed over; those before them are in the cache.
  Node Cached(const Problem& p) {
    const int64_t width = c_.kv_heads * c_.head_dim;
    const int64_t past = c_.kv_len - c_.q_len;
    q_ = p.q;
    k_ = ByHead(c_, p.k, c_.head_dim);
    v_ = ByHead(c_, p.v, c_.head_dim);
    for (int64_t b = 0; b < c_.batch; ++b) {
      const auto add_last = [&](const std::vector<float>& from, std::vector<float>* to) {
        const auto end = from.begin() + (b + 1) * c_.kv_len * width;
        to->insert(to->end(), end - c_.q_len * width, end);
      };
      add_last(p.k, &new_k_);
      add_last(p.v, &new_v_);
    }
    last_key_.assign(static_cast<size_t>(c_.batch), static_cast<int32_t>(c_.kv_len - 1));
    num_keys_ = {static_cast<int32_t>(c_.kv_len)};

    const std::vector<int64_t> new_dims = {c_.batch, c_.q_len, width};
    const std::vector<int64_t> cache_dims = {c_.batch, c_.kv_heads, c_.kv_len, c_.head_dim};
    const std::vector<int64_t> q_dims = {c_.batch, c_.q_len, c_.heads * c_.head_dim};
    Node node;
    node.op = "GroupQueryAttention";
    node.inputs = {Floats("query", q_dims, &q_),
                   Floats("key", new_dims, &new_k_),
                   Floats("value", new_dims, &new_v_),
                   Tensor(),
                   Tensor(),
                   Ints("seqlens_k", {c_.batch}, &last_key_),
                   Ints("total_sequence_length", {1}, &num_keys_)};
    if (past != 0) {
      node.inputs[3] = Floats("past_key", cache_dims, &k_);
      node.inputs[4] = Floats("past_value", cache_dims, &v_);
    }
    node.outputs = {Floats("output", q_dims, &out_), Floats("present_key", cache_dims, &k_),
                    Floats("present_value", cache_dims, &v_)};
    node.attributes = {{"num_heads", c_.heads}, {"kv_num_heads", c_.kv_heads}};
    return node;
  }

  Case c_;
  bool grouped_ = false;  // whether Q and O are in the order of bench/peers/layout.h
  std::vector<float> q_, k_, v_, new_k_, new_v_, out_;
  std::vector<int32_t> last_key_, num_keys_;
  Ort::Session session_{nullptr};
  Ort::IoBinding binding_{nullptr};
  Ort::RunOptions options_;
};

// GroupQueryAttention stores the scores of all heads. 1.30 was seen to keep to blocks; for those
// between 1.23 and it nothing is known.
double ScoreBytes(const Case& c) {
  int major = 0, minor = 0;
  if (sscanf(OrtGetApiBase()->GetVersionString(), "%d.%d", &major, &minor) == 2 &&
      (major > 1 || minor >= 30)) {
    return 0.0;
  }
  const int64_t scores = c.batch * c.heads * c.q_len * c.kv_len;
  return static_cast<double>(scores) * static_cast<double>(sizeof(float));
}

class OnnxRuntime : public Contender {
 public:
  std::string name() const override { return "onnxruntime"; }
  std::string version() const override { return OrtGetApiBase()->GetVersionString(); }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    const Case& c = problem.c;
    const bool causal = c.causal();
    const bool as_wide = c.v_head_dim == c.head_dim;
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
      *why_not = "the library is older than the headers it was compiled with";
    } else if (precision != offers_[0].precision) {
      *why_not = "no such precision";
    } else if (IsStore(c.op)) {
      *why_not = "only attention is measured";
    } else if (causal && !as_wide) {
      *why_not = "GroupQueryAttention wants V as wide as K";
    } else if (causal && (c.beams != 1 || c.q_len > c.kv_len)) {
      *why_not = "GroupQueryAttention wants a key for every query, and takes no beams";
    } else if (causal && c.batch != 1 && c.q_len != 1 && c.q_len != c.kv_len) {
      *why_not = "GroupQueryAttention wants one sequence if several queries find a cache";
    } else if (causal && ScoreBytes(c) > kMaxExtraBytes) {
      *why_not = "it would store more than 2 GiB of scores";
    } else {
      const bool cached =
          causal || (c.op == Op::kDecodeSelf && c.heads == c.kv_heads && c.beams == 1 && as_wide);
      try {
        static const Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "sightline_bench");
        return std::make_unique<OnnxRuntimeEntry>(env, problem, cached, threads);
      } catch (const std::exception& error) {
        *why_not = error.what();
      }
    }
    return nullptr;
  }

 private:
  const std::vector<Offer> offers_ = {
      {"f32",
       "Q, K, V and O in f32. MultiHeadAttention, head-major: [head][token][channel]. Causal, and "
       "for one query if no heads share K and V, GroupQueryAttention: Q and O "
       "[token][head][channel], head-major cache, to which every run adds the queries' own tokens.",
       "Bringing the tensors into that order; creating the session and binding its inputs and "
       "outputs.",
       1e-5}};
};

}  // namespace

std::unique_ptr<Contender> MakeOnnxRuntime() { return std::make_unique<OnnxRuntime>(); }

}  // namespace bench
}  // namespace sightline
