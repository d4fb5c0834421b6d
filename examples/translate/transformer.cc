#include "transformer.h"

#include <algorithm>
#include <utility>

namespace translate {

using sightline::AttentionArgs;
using sightline::AttentionDesc;
using sightline::ConstTensorView;
using sightline::CrossMemory;
using sightline::DType;
using sightline::KvCache;
using sightline::KvCacheDesc;
using sightline::Plan;
using sightline::Precision;
using sightline::TensorView;

namespace {

AttentionDesc DescOf(const Config& config, Precision precision) {
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = static_cast<int64_t>(config.heads);
  desc.head_dim = static_cast<int64_t>(config.head_dim());
  desc.precision = precision;
  return desc;
}

template <class View, typename Data>
View DenseView(const Config& config, size_t rows, Data* data) {
  return View::Dense(data, DType::kF32, 1, static_cast<int64_t>(rows),
                     static_cast<int64_t>(config.heads), static_cast<int64_t>(config.head_dim()));
}

void Record(const std::vector<float>& row, std::vector<float>* rows) {
  rows->insert(rows->end(), row.begin(), row.end());
}

}  // namespace

TensorView ViewOf(const Config& config, size_t rows, float* data) {
  return DenseView<TensorView>(config, rows, data);
}

ConstTensorView ViewOf(const Config& config, size_t rows, const float* data) {
  return DenseView<ConstTensorView>(config, rows, data);
}

// ---- Encoder ----------------------------------------------------------------------------------

Status Encoder::Create(const Model& model, Precision precision, Encoder* encoder) {
  const Config& config = model.config;
  Encoder result;
  result.model_ = &model;
  AttentionDesc desc = DescOf(config, precision);
  desc.max_q_len = desc.max_kv_len = static_cast<int64_t>(config.max_len);
  if (Status status = Plan::Create(desc, &result.plan_); !status.ok()) return status;
  for (std::vector<float>* rows : {&result.x_, &result.normed_, &result.query_, &result.key_,
                                   &result.value_, &result.attended_}) {
    rows->resize(config.max_len * config.d_model);
  }
  result.hidden_.resize(config.max_len * config.d_ff);
  *encoder = std::move(result);
  return Status();
}

Status Encoder::Encode(const std::vector<Token>& tokens, std::vector<float>* memory) {
  const Config& config = model_->config;
  const size_t rows = tokens.size();
  const size_t d = config.d_model;
  if (rows == 0 || rows > config.max_len) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "the sentence has %zu tokens with its end, must be 1 to %zu", rows,
                         config.max_len);
  }
  for (size_t i = 0; i < rows; ++i) {
    model_->Embed(model_->source_embedding, tokens[i], i, &x_[i * d]);
  }
  for (const EncoderLayerWeights& layer : model_->encoder) {
    const AttentionWeights& attention = layer.attention;
    attention.norm.Apply(x_.data(), rows, normed_.data());
    attention.query.Apply(normed_.data(), rows, query_.data());
    attention.key.Apply(normed_.data(), rows, key_.data());
    attention.value.Apply(normed_.data(), rows, value_.data());

    AttentionArgs args;
    args.q = ViewOf(config, rows, query_.data());
    args.k = ViewOf(config, rows, key_.data());
    args.v = ViewOf(config, rows, value_.data());
    args.out = ViewOf(config, rows, attended_.data());
    if (Status status = Run(plan_, args); !status.ok()) return status;

    attention.output.Apply(attended_.data(), rows, normed_.data());
    Add(normed_.data(), rows * d, x_.data());

    layer.feed_forward.norm.Apply(x_.data(), rows, normed_.data());
    layer.feed_forward.feed_forward.Apply(normed_.data(), rows, hidden_.data(), attended_.data());
    Add(attended_.data(), rows * d, x_.data());
  }
  memory->resize(rows * d);
  model_->encoder_norm.Apply(x_.data(), rows, memory->data());
  return Status();
}

// ---- Decoder ----------------------------------------------------------------------------------

Status Decoder::Create(const Model& model, Precision precision, Decoder* decoder) {
  const Config& config = model.config;
  Decoder result;
  result.model_ = &model;
  result.precision_ = precision;

  // One query at a time, over keys that are packed already: the defaults of max_q_len and
  // max_kv_len.
  AttentionDesc desc = DescOf(config, precision);
  if (Status status = Plan::Create(desc, &result.cross_plan_); !status.ok()) return status;
  desc.causal = true;
  if (Status status = Plan::Create(desc, &result.self_plan_); !status.ok()) return status;

  KvCacheDesc cache_desc;
  cache_desc.num_kv_heads = desc.num_kv_heads;
  cache_desc.head_dim = desc.head_dim;
  cache_desc.capacity = static_cast<int64_t>(config.max_len);
  cache_desc.format.precision = precision;
  result.caches_.resize(model.decoder.size());
  result.memories_.resize(model.decoder.size());
  for (KvCache& cache : result.caches_) {
    if (Status status = KvCache::Create(cache_desc, &cache); !status.ok()) return status;
  }

  for (std::vector<float>* row : {&result.x_, &result.normed_, &result.query_, &result.key_,
                                  &result.value_, &result.attended_}) {
    row->resize(config.d_model);
  }
  result.hidden_.resize(config.d_ff);
  result.logits_.resize(config.target_vocabulary);
  *decoder = std::move(result);
  return Status();
}

Status Decoder::Start(const std::vector<float>& memory, size_t source_len, DecoderTrace* trace) {
  const Config& config = model_->config;
  position_ = 0;
  for (KvCache& cache : caches_) cache.Clear();
  trace_ = trace;
  if (trace_ != nullptr) {
    *trace_ = DecoderTrace();
    trace_->source_len = source_len;
    trace_->layers.resize(model_->decoder.size());
  }

  std::vector<float> key(source_len * config.d_model);
  std::vector<float> value(source_len * config.d_model);
  for (size_t i = 0; i < memories_.size(); ++i) {
    const AttentionWeights& cross = model_->decoder[i].cross_attention;
    cross.key.Apply(memory.data(), source_len, key.data());
    cross.value.Apply(memory.data(), source_len, value.data());
    const Status status =
        CrossMemory::Create(ViewOf(config, source_len, key.data()),
                            ViewOf(config, source_len, value.data()), {precision_}, &memories_[i]);
    if (!status.ok()) return status;
    if (trace_ != nullptr) trace_->layers[i].cross_key = key;
  }
  return Status();
}

Status Decoder::Step(Token token, Token* next) {
  const Config& config = model_->config;
  if (position_ >= config.max_len) {
    return Status::Error(StatusCode::kCapacityExceeded, "the decoder has taken all its %zu tokens",
                         config.max_len);
  }
  model_->Embed(model_->target_embedding, token, position_, x_.data());
  for (size_t i = 0; i < model_->decoder.size(); ++i) {
    const DecoderLayerWeights& layer = model_->decoder[i];

    const AttentionWeights& self = layer.self_attention;
    self.norm.Apply(x_.data(), 1, normed_.data());
    self.key.Apply(normed_.data(), 1, key_.data());
    self.value.Apply(normed_.data(), 1, value_.data());
    Status status =
        caches_[i].Append(ViewOf(config, 1, key_.data()), ViewOf(config, 1, value_.data()));
    if (status.ok()) status = Attend(self_plan_, self, &caches_[i], nullptr);
    if (!status.ok()) return status;
    if (trace_ != nullptr) {
      Record(query_, &trace_->layers[i].self_query);
      Record(key_, &trace_->layers[i].self_key);
    }

    layer.cross_attention.norm.Apply(x_.data(), 1, normed_.data());
    status = Attend(cross_plan_, layer.cross_attention, nullptr, &memories_[i]);
    if (!status.ok()) return status;
    if (trace_ != nullptr) Record(query_, &trace_->layers[i].cross_query);

    layer.feed_forward.norm.Apply(x_.data(), 1, normed_.data());
    layer.feed_forward.feed_forward.Apply(normed_.data(), 1, hidden_.data(), attended_.data());
    Add(attended_.data(), x_.size(), x_.data());
  }
  ++position_;
  if (trace_ != nullptr) trace_->steps = position_;

  model_->decoder_norm.Apply(x_.data(), 1, normed_.data());
  model_->logits.Apply(normed_.data(), 1, logits_.data());
  *next = static_cast<Token>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
  return Status();
}

Status Decoder::Attend(const Plan& plan, const AttentionWeights& weights, const KvCache* cache,
                       const CrossMemory* memory) {
  const Config& config = model_->config;
  weights.query.Apply(normed_.data(), 1, query_.data());
  AttentionArgs args;
  args.q = ViewOf(config, 1, query_.data());
  args.cache = cache;
  args.memory = memory;
  args.out = ViewOf(config, 1, attended_.data());
  if (Status status = Run(plan, args); !status.ok()) return status;
  weights.output.Apply(attended_.data(), 1, normed_.data());
  Add(normed_.data(), x_.size(), x_.data());
  return Status();
}

size_t Decoder::cross_memory_bytes() const {
  size_t bytes = 0;
  for (const CrossMemory& memory : memories_) bytes += memory.bytes();
  return bytes;
}

}  // namespace translate
