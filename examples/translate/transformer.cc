#include "transformer.h"

#include <algorithm>
#include <utility>

namespace translate {

using sightline::AttentionArgs;
using sightline::AttentionDesc;
using sightline::ConstTensorView;
using sightline::CrossMemoryDesc;
using sightline::CrossMemorySet;
using sightline::DType;
using sightline::KvCache;
using sightline::KvCacheDesc;
using sightline::KvPool;
using sightline::KvPoolDesc;
using sightline::Plan;
using sightline::Precision;
using sightline::TensorView;

namespace {

// Of a page of the decoder's caches: the smallest there is, which takes all that it reads.
constexpr int64_t kPageTokens = 128;

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

void Record(const std::vector<float>& row, size_t size, std::vector<float>* rows) {
  rows->insert(rows->end(), row.begin(), row.begin() + static_cast<std::ptrdiff_t>(size));
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

Status History::Fork(History* child) const {
  History result;
  result.layers.resize(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    if (Status status = layers[i].Fork(&result.layers[i]); !status.ok()) return status;
  }
  *child = std::move(result);
  return Status();
}

Status Reorder(const std::vector<size_t>& parents, std::vector<History>* histories) {
  std::vector<size_t> children(histories->size(), 0);
  for (const size_t parent : parents) ++children[parent];
  std::vector<History> result(parents.size());
  for (size_t i = 0; i < parents.size(); ++i) {
    History& parent = (*histories)[parents[i]];
    if (--children[parents[i]] == 0) {  // the last one need not share
      result[i] = std::move(parent);
    } else if (Status status = parent.Fork(&result[i]); !status.ok()) {
      return status;
    }
  }
  *histories = std::move(result);
  return Status();
}

Status Decoder::Create(const Model& model, Precision precision, size_t max_sentences,
                       size_t max_hypotheses, Decoder* decoder) {
  const Config& config = model.config;
  const size_t max_rows = max_sentences * max_hypotheses;
  Decoder result;
  result.model_ = &model;
  result.precision_ = precision;
  result.max_sentences_ = max_sentences;
  result.max_hypotheses_ = max_hypotheses;

  // Keys are packed already: the default of max_kv_len. Hypotheses are queries of their sentence.
  AttentionDesc desc = DescOf(config, precision);
  desc.max_batch = static_cast<int64_t>(max_sentences);
  desc.max_q_len = static_cast<int64_t>(max_hypotheses);
  if (Status status = Plan::Create(desc, &result.cross_plan_); !status.ok()) return status;
  desc.max_batch = static_cast<int64_t>(max_rows);
  desc.max_q_len = 1;
  desc.causal = true;
  if (Status status = Plan::Create(desc, &result.self_plan_); !status.ok()) return status;

  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = desc.num_kv_heads;
  pool_desc.head_dim = desc.head_dim;
  pool_desc.format.precision = precision;
  pool_desc.page_tokens = kPageTokens;
  const int64_t pages_of_cache =
      (static_cast<int64_t>(config.max_len) + kPageTokens - 1) / kPageTokens;
  pool_desc.max_pages = static_cast<int64_t>(max_rows * model.decoder.size()) * pages_of_cache;
  if (Status status = KvPool::Create(pool_desc, &result.pool_); !status.ok()) return status;

  for (std::vector<float>* rows : {&result.x_, &result.normed_, &result.query_, &result.key_,
                                   &result.value_, &result.attended_}) {
    rows->resize(max_rows * config.d_model);
  }
  result.hidden_.resize(max_rows * config.d_ff);
  *decoder = std::move(result);
  return Status();
}

Status Decoder::Prepare(const std::vector<float>& memory, size_t source_len, Source* source,
                        DecoderTrace* trace) const {
  const Config& config = model_->config;
  if (trace != nullptr) {
    *trace = DecoderTrace();
    trace->source_len = source_len;
    trace->layers.resize(model_->decoder.size());
  }
  CrossMemoryDesc desc;
  desc.kv_len = static_cast<int64_t>(source_len);
  desc.num_kv_heads = static_cast<int64_t>(config.heads);
  desc.head_dim = static_cast<int64_t>(config.head_dim());
  desc.format.precision = precision_;
  CrossMemorySet set;
  Status status = CrossMemorySet::Create(desc, static_cast<int64_t>(model_->decoder.size()), &set);
  if (!status.ok()) return status;

  Source result;
  std::vector<float> key(source_len * config.d_model);
  std::vector<float> value(source_len * config.d_model);
  for (size_t i = 0; i < model_->decoder.size(); ++i) {
    const AttentionWeights& cross = model_->decoder[i].cross_attention;
    const int64_t layer = static_cast<int64_t>(i);
    cross.key.Apply(memory.data(), source_len, key.data());
    cross.value.Apply(memory.data(), source_len, value.data());
    status = set.Fill(layer, ViewOf(config, source_len, key.data()),
                      ViewOf(config, source_len, value.data()));
    if (!status.ok()) return status;
    result.layers.push_back(set.layer(layer));
    if (trace != nullptr) trace->layers[i].cross_key = key;
  }
  result.bytes = set.bytes();
  *source = std::move(result);
  return Status();
}

Status Decoder::Begin(History* history) const {
  KvCacheDesc desc;
  desc.capacity = static_cast<int64_t>(model_->config.max_len);
  desc.pool = &pool_;
  History result;
  result.layers.resize(model_->decoder.size());
  for (KvCache& cache : result.layers) {
    if (Status status = KvCache::Create(desc, &cache); !status.ok()) return status;
  }
  *history = std::move(result);
  return Status();
}

Status Decoder::Step(const std::vector<Row>& rows, std::vector<float>* logits,
                     DecoderTrace* trace) {
  const Config& config = model_->config;
  const size_t d = config.d_model;
  if (rows.size() > max_sentences_ * max_hypotheses_) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "the decoder takes %zu hypotheses at a time, not %zu",
                         max_sentences_ * max_hypotheses_, rows.size());
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t position = static_cast<size_t>(rows[i].history->layers[0].length());
    if (position >= config.max_len) {
      return Status::Error(StatusCode::kCapacityExceeded,
                           "the decoder has taken all its %zu tokens", config.max_len);
    }
    model_->Embed(model_->target_embedding, rows[i].token, position, &x_[i * d]);
  }
  for (size_t i = 0; i < model_->decoder.size(); ++i) {
    const DecoderLayerWeights& layer = model_->decoder[i];

    layer.self_attention.norm.Apply(x_.data(), rows.size(), normed_.data());
    Status status = AttendSelf(rows, i);
    if (!status.ok()) return status;
    if (trace != nullptr) {
      Record(query_, d, &trace->layers[i].self_query);
      Record(key_, d, &trace->layers[i].self_key);
    }

    layer.cross_attention.norm.Apply(x_.data(), rows.size(), normed_.data());
    status = AttendCross(rows, i);
    if (!status.ok()) return status;
    if (trace != nullptr) Record(query_, d, &trace->layers[i].cross_query);

    layer.feed_forward.norm.Apply(x_.data(), rows.size(), normed_.data());
    layer.feed_forward.feed_forward.Apply(normed_.data(), rows.size(), hidden_.data(),
                                          attended_.data());
    Add(attended_.data(), rows.size() * d, x_.data());
  }
  if (trace != nullptr) ++trace->steps;

  logits->resize(rows.size() * config.target_vocabulary);
  model_->decoder_norm.Apply(x_.data(), rows.size(), normed_.data());
  model_->logits.Apply(normed_.data(), rows.size(), logits->data());
  return Status();
}

Status Decoder::AttendSelf(const std::vector<Row>& rows, size_t layer) {
  const Config& config = model_->config;
  const AttentionWeights& weights = model_->decoder[layer].self_attention;
  weights.key.Apply(normed_.data(), rows.size(), key_.data());
  weights.value.Apply(normed_.data(), rows.size(), value_.data());
  segments_.clear();
  segment_indptr_ = {0};
  for (size_t i = 0; i < rows.size(); ++i) {
    KvCache& cache = rows[i].history->layers[layer];
    const Status status = cache.Append(ViewOf(config, 1, &key_[i * config.d_model]),
                                       ViewOf(config, 1, &value_[i * config.d_model]));
    if (!status.ok()) return status;
    segments_.push_back({nullptr, &cache});
    segment_indptr_.push_back(static_cast<int32_t>(segments_.size()));
  }
  // Every row is a batch entry of its own, whose keys are one cache.
  AttentionArgs args;
  args.q = ViewOf(config, rows.size(), query_.data());
  args.out = ViewOf(config, rows.size(), attended_.data());
  args.q.batch = args.out.batch = static_cast<int64_t>(rows.size());
  args.q.length = args.out.length = 1;
  args.q.batch_stride = args.q.length_stride;
  args.out.batch_stride = args.out.length_stride;
  return Attend(self_plan_, weights, rows.size(), &args);
}

Status Decoder::AttendCross(const std::vector<Row>& rows, size_t layer) {
  const Config& config = model_->config;
  segments_.clear();
  segment_indptr_ = {0};
  q_indptr_ = {0};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i > 0 && rows[i].source == rows[i - 1].source) {
      ++q_indptr_.back();
      continue;
    }
    segments_.push_back({&rows[i].source->layers[layer]});
    segment_indptr_.push_back(static_cast<int32_t>(segments_.size()));
    q_indptr_.push_back(static_cast<int32_t>(i + 1));
  }
  // A ragged batch of sentences: the rows of each are its queries, its keys are one memory.
  AttentionArgs args;
  args.q = ViewOf(config, rows.size(), query_.data());
  args.out = ViewOf(config, rows.size(), attended_.data());
  args.num_sequences = static_cast<int64_t>(segments_.size());
  args.q_indptr = q_indptr_.data();
  return Attend(cross_plan_, model_->decoder[layer].cross_attention, rows.size(), &args);
}

Status Decoder::Attend(const Plan& plan, const AttentionWeights& weights, size_t rows,
                       AttentionArgs* args) {
  weights.query.Apply(normed_.data(), rows, query_.data());
  args->segments = segments_.data();
  args->num_segments = args->num_segment_lists = static_cast<int64_t>(segments_.size());
  args->segment_indptr = segment_indptr_.data();
  if (Status status = Run(plan, *args); !status.ok()) return status;
  weights.output.Apply(attended_.data(), rows, normed_.data());
  Add(normed_.data(), rows * model_->config.d_model, x_.data());
  return Status();
}

}  // namespace translate
