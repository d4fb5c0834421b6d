// Encoder and decoder: plain loops for the projections, Sightline for all attention.
//
//   encoder self-attention   K and V as tensors of the call        Plan
//   decoder self-attention   one KvCache for each layer            Plan, causal
//   cross-attention          one CrossMemory for each layer        Plan
//
// Plans are made once and serve every sentence; caches are cleared and refilled; a cross memory is
// prepared once for each sentence and read at every step. Nothing else outlives a call.
#ifndef EXAMPLES_TRANSLATE_TRANSFORMER_H_
#define EXAMPLES_TRANSLATE_TRANSFORMER_H_

#include <stddef.h>

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

class Decoder {
 public:
  // `model` must outlive the decoder.
  static Status Create(const Model& model, sightline::Precision precision, Decoder* decoder);

  // Begins a sentence. `memory` [source_len, d_model] is not needed afterwards. What the decoding
  // works with is added to *trace unless that is null.
  Status Start(const std::vector<float>& memory, size_t source_len, DecoderTrace* trace = nullptr);

  // Consumes one token, at most max_len of them after Start (kCapacityExceeded beyond), and gives
  // the most likely next one.
  Status Step(Token token, Token* next);

  // Of the cross memories of all layers, for the sentence begun last.
  size_t cross_memory_bytes() const;

 private:
  // Attention of the row normed_ over a cache or a memory, projected and added to x_.
  Status Attend(const sightline::Plan& plan, const AttentionWeights& weights,
                const sightline::KvCache* cache, const sightline::CrossMemory* memory);

  const Model* model_ = nullptr;
  sightline::Precision precision_ = sightline::Precision::kF32;
  sightline::Plan self_plan_;
  sightline::Plan cross_plan_;
  std::vector<sightline::KvCache> caches_;        // one for each layer
  std::vector<sightline::CrossMemory> memories_;  // one for each layer
  DecoderTrace* trace_ = nullptr;
  size_t position_ = 0;
  // [d_model] each, but hidden_ [d_ff] and logits_ [target_vocabulary].
  std::vector<float> x_, normed_, query_, key_, value_, attended_, hidden_, logits_;
};

// A row-major [rows, d_model] matrix as Sightline's [1, rows, heads, head_dim].
sightline::TensorView ViewOf(const Config& config, size_t rows, float* data);
sightline::ConstTensorView ViewOf(const Config& config, size_t rows, const float* data);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_TRANSFORMER_H_
