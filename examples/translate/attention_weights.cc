#include "attention_weights.h"

#include <stdint.h>

#include <utility>

namespace translate {

using sightline::AttentionArgs;
using sightline::AttentionDesc;
using sightline::ConstTensorView;
using sightline::DType;
using sightline::Plan;
using sightline::TensorView;

Status AttentionWeightsReader::Create(const Config& config, AttentionWeightsReader* reader) {
  AttentionWeightsReader result;
  result.config_ = config;
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = static_cast<int64_t>(config.heads);
  desc.head_dim = static_cast<int64_t>(config.head_dim());
  // One column for each key there can be; those beyond the actual keys stay 0.
  desc.v_head_dim = static_cast<int64_t>(config.max_len);
  desc.max_q_len = desc.max_kv_len = static_cast<int64_t>(config.max_len);
  if (Status status = Plan::Create(desc, &result.cross_plan_); !status.ok()) return status;
  desc.causal = true;
  if (Status status = Plan::Create(desc, &result.causal_plan_); !status.ok()) return status;
  result.identity_.resize(config.max_len * config.max_len);
  for (size_t i = 0; i < config.max_len; ++i) result.identity_[i * config.max_len + i] = 1.0f;
  *reader = std::move(result);
  return Status();
}

Status AttentionWeightsReader::SelfAttention(const DecoderTrace& trace, size_t layer,
                                             WeightMap* map) const {
  const DecoderTrace::Layer& traced = trace.layers[layer];
  return Read(causal_plan_, traced.self_query, trace.steps, traced.self_key, trace.steps, map);
}

Status AttentionWeightsReader::CrossAttention(const DecoderTrace& trace, size_t layer,
                                              WeightMap* map) const {
  const DecoderTrace::Layer& traced = trace.layers[layer];
  return Read(cross_plan_, traced.cross_query, trace.steps, traced.cross_key, trace.source_len,
              map);
}

Status AttentionWeightsReader::Read(const Plan& plan, const std::vector<float>& query, size_t q_len,
                                    const std::vector<float>& key, size_t kv_len,
                                    WeightMap* map) const {
  const size_t heads = config_.heads;
  const size_t columns = config_.max_len;
  std::vector<float> out(q_len * heads * columns);

  AttentionArgs args;
  args.q = ViewOf(config_, q_len, query.data());
  args.k = ViewOf(config_, kv_len, key.data());
  // All heads read the same identity: no distance between one head and the next.
  ConstTensorView identity =
      ConstTensorView::Dense(identity_.data(), DType::kF32, 1, static_cast<int64_t>(kv_len), 1,
                             static_cast<int64_t>(columns));
  identity.heads = static_cast<int64_t>(heads);
  identity.head_stride = 0;
  args.v = identity;
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, static_cast<int64_t>(q_len),
                               static_cast<int64_t>(heads), static_cast<int64_t>(columns));
  if (Status status = Run(plan, args); !status.ok()) return status;

  map->rows = q_len;
  map->columns = kv_len;
  map->values.assign(q_len * kv_len, 0.0f);
  for (size_t row = 0; row < q_len; ++row) {
    for (size_t head = 0; head < heads; ++head) {
      const float* weights = &out[(row * heads + head) * columns];
      for (size_t column = 0; column < kv_len; ++column) {
        map->values[row * kv_len + column] += weights[column] / static_cast<float>(heads);
      }
    }
  }
  return Status();
}

WeightMap Mean(const std::vector<WeightMap>& maps) {
  WeightMap mean = maps[0];
  for (size_t i = 0; i < mean.values.size(); ++i) {
    for (size_t m = 1; m < maps.size(); ++m) mean.values[i] += maps[m].values[i];
    mean.values[i] /= static_cast<float>(maps.size());
  }
  return mean;
}

}  // namespace translate
