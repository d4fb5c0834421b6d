// Encoder and decoder: plain loops for the projections, Sightline for all attention.
//
//   encoder self-attention   K and V as tensors of the call               Plan
//   decoder self-attention   a KvCache for each hypothesis and layer      Plan, causal
//   cross-attention          a CrossMemory for each sentence and layer    Plan
//
// Plans are made once and serve every sentence. A decoder takes a token more of any number of
// hypotheses at a time, of one sentence or of many that have come differently far: attention of a
// layer is one call for all of them. Each hypothesis has caches of its own, whose pages come from
// one pool and are shared with those it was forked from; those of a sentence share its memories.
#ifndef EXAMPLES_TRANSLATE_TRANSFORMER_H_
#define EXAMPLES_TRANSLATE_TRANSFORMER_H_

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "model.h"
#include "sightline/attention.h"
#include "vocabulary.h"

namespace translate {

// The queries and keys that one decoding worked with, from which attention weights can be computed
// afterwards (attention_weights.h). Values have no part in weights.
struct DecoderTrace {
  struct Layer {
    std::vector<float> self_query;   // [steps, d_model]
    std::vector<float> self_key;     // [steps, d_model]
    std::vector<float> cross_query;  // [steps, d_model]
    std::vector<float> cross_key;    // [source_len, d_model]
  };
  size_t steps = 0;
  size_t source_len = 0;
  std::vector<Layer> layers;
};

class Encoder {
 public:
  // `model` must outlive the encoder.
  static Status Create(const Model& model, sightline::Precision precision, Encoder* encoder);

  // 1 to max_len tokens to `memory` [tokens, d_model].
  Status Encode(const std::vector<Token>& tokens, std::vector<float>* memory);

  // Name of the tier that computes attention.
  const char* tier() const { return plan_.tier(); }

 private:
  const Model* model_ = nullptr;
  sightline::Plan plan_;
  // [max_len, d_model] each, but hidden_ [max_len, d_ff].
  std::vector<float> x_, normed_, query_, key_, value_, attended_, hidden_;
};

// A sentence as decoders read it: the output of the encoder, projected and packed for each layer.
// Copies share it.
struct Source {
  std::vector<sightline::CrossMemory> layers;
  size_t bytes = 0;  // of the one block that they are in
};

// What a hypothesis has written so far, as decoders read it: a cache for each layer.
struct History {
  std::vector<sightline::KvCache> layers;

  // Makes *child a history that goes its own way from here. Nothing is copied.
  Status Fork(History* child) const;
};

// History i becomes what number parents[i] was. Nothing is copied: see History::Fork.
Status Reorder(const std::vector<size_t>& parents, std::vector<History>* histories);

class Decoder {
 public:
  // At most so many sentences at a time, with so many hypotheses each. `model` must outlive the
  // decoder.
  static Status Create(const Model& model, sightline::Precision precision, size_t max_sentences,
                       size_t max_hypotheses, Decoder* decoder);

  // Begins a sentence. `memory` [source_len, d_model] is not needed afterwards. *trace, unless
  // null, begins anew with its keys.
  Status Prepare(const std::vector<float>& memory, size_t source_len, Source* source,
                 DecoderTrace* trace = nullptr) const;

  // And a hypothesis, to which nothing belongs yet.
  Status Begin(History* history) const;

  // One token of a hypothesis, with which its history goes on.
  struct Row {
    const Source* source;
    History* history;
    Token token;
  };

  // Consumes a token of each hypothesis, at most max_len of each (kCapacityExceeded beyond), and
  // gives the logits [rows, target_vocabulary] of the next ones. Hypotheses of a sentence are
  // neighbours. What each gets does not depend on the other sentences. *trace, unless null, goes
  // on with the one row there is.
  Status Step(const std::vector<Row>& rows, std::vector<float>* logits,
              DecoderTrace* trace = nullptr);

  // Pages of the pool that histories hold.
  size_t pages_in_use() const { return static_cast<size_t>(pool_.pages_in_use()); }

 private:
  // Attention of the rows normed_ over what `args` says, projected and added to x_.
  Status Attend(const sightline::Plan& plan, const AttentionWeights& weights, size_t rows,
                sightline::AttentionArgs* args);
  // That of every row over its own cache, and that of a sentence's rows over its memory.
  Status AttendSelf(const std::vector<Row>& rows, size_t layer);
  Status AttendCross(const std::vector<Row>& rows, size_t layer);

  const Model* model_ = nullptr;
  sightline::Precision precision_ = sightline::Precision::kF32;
  size_t max_sentences_ = 0;
  size_t max_hypotheses_ = 0;
  sightline::Plan self_plan_;
  sightline::Plan cross_plan_;
  sightline::KvPool pool_;
  std::vector<sightline::KvSegment> segments_;
  std::vector<int32_t> segment_indptr_;
  std::vector<int32_t> q_indptr_;
  // [rows, d_model] each, but hidden_ [rows, d_ff].
  std::vector<float> x_, normed_, query_, key_, value_, attended_, hidden_;
};

// A row-major [rows, d_model] matrix as Sightline's [1, rows, heads, head_dim].
sightline::TensorView ViewOf(const Config& config, size_t rows, float* data);
sightline::ConstTensorView ViewOf(const Config& config, size_t rows, const float* data);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_TRANSFORMER_H_
