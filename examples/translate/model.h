// The trained model: hyper-parameters, weights, vocabularies. Loaded once, then only read, by the
// encoders and decoders of all precisions.
#ifndef EXAMPLES_TRANSLATE_MODEL_H_
#define EXAMPLES_TRANSLATE_MODEL_H_

#include <stddef.h>

#include <string>
#include <vector>

#include "layers.h"
#include "safetensors.h"
#include "sightline/status.h"
#include "vocabulary.h"

namespace translate {

struct Config {
  size_t source_vocabulary = 0;
  size_t target_vocabulary = 0;
  size_t d_model = 0;
  size_t heads = 0;
  size_t d_ff = 0;
  size_t encoder_layers = 0;
  size_t decoder_layers = 0;
  size_t max_len = 0;  // tokens on either side, <bos> or <eos> included
  float norm_eps = 0.0f;

  size_t head_dim() const { return d_model / heads; }
};

struct AttentionWeights {
  LayerNorm norm;  // of the residual stream, before query (and in self-attention key and value)
  Linear query;
  Linear key;
  Linear value;
  Linear output;
};

struct FeedForwardWeights {
  LayerNorm norm;
  FeedForward feed_forward;
};

struct EncoderLayerWeights {
  AttentionWeights attention;
  FeedForwardWeights feed_forward;
};

struct DecoderLayerWeights {
  AttentionWeights self_attention;
  AttentionWeights cross_attention;
  FeedForwardWeights feed_forward;
};

struct Model {
  Config config;
  std::vector<float> source_embedding;  // [source_vocabulary, d_model]
  std::vector<float> target_embedding;  // [target_vocabulary, d_model]
  std::vector<float> positions;         // [max_len, d_model]
  std::vector<EncoderLayerWeights> encoder;
  LayerNorm encoder_norm;
  std::vector<DecoderLayerWeights> decoder;
  LayerNorm decoder_norm;
  Linear logits;  // the target embedding once more, no bias

  Vocabulary english;
  Vocabulary french;

  // x = embedding[token] * sqrt(d_model) + positions[position]
  void Embed(const std::vector<float>& embedding, Token token, size_t position, float* x) const;
};

// Everything but the vocabularies. On error *model is unchanged.
Status LoadWeights(const Safetensors& file, Model* model);

// weights.safetensors, vocab.en.txt and vocab.fr.txt of a folder. On error *model is unchanged and
// the message begins with the name of the file.
Status LoadModel(const std::string& folder, Model* model);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_MODEL_H_
