// A sentence in, a sentence out: tokenise, encode, decode greedily, detokenise.
//
//   Model model;
//   Status status = LoadModel(folder, &model);
//   Translator translator;
//   status = Translator::Create(model, Precision::kI8, &translator);
//   Translation translation;
//   status = translator.Translate("the red car is fast", &translation);
//   puts(translation.text.c_str());  // la voiture rouge est rapide
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
  size_t decode_steps = 0;    // each reads the cross memories of all layers
  size_t cross_memory_bytes = 0;
};

class Translator {
 public:
  // `model` must outlive the translator.
  static Status Create(const Model& model, sightline::Precision precision, Translator* translator);

  // kInvalidArgument: an empty sentence or unknown words, which are named. kCapacityExceeded: too
  // many words. *trace, unless null, gets what the attention weights can be computed from.
  Status Translate(std::string_view english, Translation* translation,
                   DecoderTrace* trace = nullptr);

  sightline::Precision precision() const { return precision_; }
  const char* tier() const { return encoder_.tier(); }

 private:
  const Model* model_ = nullptr;
  sightline::Precision precision_ = sightline::Precision::kF32;
  Encoder encoder_;
  Decoder decoder_;
  std::vector<float> memory_;
};

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_TRANSLATOR_H_
