// Which words a decoding looked at: the softmax weights, computed after the fact.
//
// Attention returns weights times V. With V the identity, one row [0 ... 1 ... 0] for each key,
// that product is the weights themselves, out[b, i, h, :] being those of query i. So a second call
// with the queries and keys of the first gives them exactly, with nothing but the public interface;
// it costs one pass over a sentence, paid only for a sentence that is drawn.
#ifndef EXAMPLES_TRANSLATE_ATTENTION_WEIGHTS_H_
#define EXAMPLES_TRANSLATE_ATTENTION_WEIGHTS_H_

#include <stddef.h>

#include <vector>

#include "model.h"
#include "sightline/attention.h"
#include "transformer.h"

namespace translate {

// Weights averaged over heads: row i belongs to decode step i, each column to a key, each row sums
// to 1.
struct WeightMap {
  size_t rows = 0;
  size_t columns = 0;
  std::vector<float> values;  // [rows, columns]

  float at(size_t row, size_t column) const { return values[row * columns + column]; }
};

class AttentionWeightsReader {
 public:
  static Status Create(const Config& config, AttentionWeightsReader* reader);

  // The decoder's causal self-attention of one layer: [steps, steps], 0 where masked. One causal
  // call over the whole sentence, which has to see what the steps saw one by one.
  Status SelfAttention(const DecoderTrace& trace, size_t layer, WeightMap* map) const;

  // Cross-attention of one layer: [steps, source_len].
  Status CrossAttention(const DecoderTrace& trace, size_t layer, WeightMap* map) const;

 private:
  Status Read(const sightline::Plan& plan, const std::vector<float>& query, size_t q_len,
              const std::vector<float>& key, size_t kv_len, WeightMap* map) const;

  Config config_;
  sightline::Plan causal_plan_;
  sightline::Plan cross_plan_;
  std::vector<float> identity_;  // [max_len, max_len]
};

// The mean of maps of one size, of which there is at least one.
WeightMap Mean(const std::vector<WeightMap>& maps);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_ATTENTION_WEIGHTS_H_
