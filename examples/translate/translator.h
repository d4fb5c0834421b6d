// A sentence in, a sentence out: tokenise, encode, decode, detokenise.
//
//   Model model;
//   Status status = LoadModel(folder, &model);
//   Translator translator;
//   status = Translator::Create(model, Precision::kI8, &translator);
//   Translation translation;
//   status = translator.Translate("the red car is fast", &translation);
//   puts(translation.text.c_str());  // la voiture rouge est rapide
//
// Many sentences are decoded together, a token of each at a time: when one has finished the next
// takes its place, so that no step waits for the longest (continuous batching). A step reads the
// weights of the model once for all of them.
#ifndef EXAMPLES_TRANSLATE_TRANSLATOR_H_
#define EXAMPLES_TRANSLATE_TRANSLATOR_H_

#include <stddef.h>

#include <string>
#include <string_view>
#include <vector>

#include "model.h"
#include "sightline/tensor.h"
#include "transformer.h"
#include "vocabulary.h"

namespace translate {

struct Translation {
  std::string text;
  std::vector<Token> source;  // ends with <eos>
  std::vector<Token> target;  // without <bos> and <eos>
  bool complete = false;      // false: cut off after max_len tokens
  double score = 0.0;         // mean log-probability of the target's tokens, <eos> included
  size_t decode_steps = 0;    // each reads the cross memories of all layers
  size_t cross_memory_bytes = 0;
};

struct Decoding {
  size_t beams = 1;  // hypotheses of a sentence, from 1, which is greedy
  size_t batch = 1;  // sentences at a time, from 1
};

class Translator {
 public:
  // `model` must outlive the translator.
  static Status Create(const Model& model, sightline::Precision precision, Translator* translator,
                       const Decoding& decoding = {});

  // kInvalidArgument: an empty sentence or unknown words, which are named. kCapacityExceeded: too
  // many words. On error *translation is unchanged.
  Status Translate(std::string_view english, Translation* translation);

  // The same for many; what one sentence becomes does not depend on the others.
  struct Result {
    Status status;
    Translation translation;
  };
  void TranslateAll(const std::vector<std::string>& english, std::vector<Result>* results);

  // Decodes a translation once more, for what its attention weights can be computed from.
  Status Trace(const Translation& translation, DecoderTrace* trace);

  sightline::Precision precision() const { return precision_; }
  const char* tier() const { return encoder_.tier(); }
  // Of the caches: 0 between calls.
  size_t pages_in_use() const { return decoder_.pages_in_use(); }

 private:
  struct Job;

  // Everything until the first step, for the sentence in the job's result.
  Status Start(std::string_view english, Job* job);
  // A token more for each hypothesis of all jobs.
  Status Step(std::vector<Job>* jobs);
  void Finish(const Job& job) const;

  const Model* model_ = nullptr;
  sightline::Precision precision_ = sightline::Precision::kF32;
  Decoding decoding_;
  Encoder encoder_;
  Decoder decoder_;
  std::vector<float> memory_;
  std::vector<float> logits_;
};

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_TRANSLATOR_H_
