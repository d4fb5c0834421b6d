#include "translator.h"

#include <utility>

namespace translate {

Status Translator::Create(const Model& model, sightline::Precision precision,
                          Translator* translator) {
  Translator result;
  result.model_ = &model;
  result.precision_ = precision;
  Status status = Encoder::Create(model, precision, &result.encoder_);
  if (status.ok()) status = Decoder::Create(model, precision, &result.decoder_);
  if (status.ok()) *translator = std::move(result);
  return status;
}

Status Translator::Translate(std::string_view english, Translation* translation,
                             DecoderTrace* trace) {
  Translation result;
  Status status = Tokenize(model_->english, english, &result.source);
  if (!status.ok()) return status;
  const size_t max_len = model_->config.max_len;
  if (result.source.size() > max_len) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "the sentence has %zu words and marks, the model takes at most %zu",
                         result.source.size() - 1, max_len - 1);
  }
  status = encoder_.Encode(result.source, &memory_);
  if (status.ok()) status = decoder_.Start(memory_, result.source.size(), trace);
  Token token = kBos;
  while (status.ok() && result.decode_steps < max_len) {
    status = decoder_.Step(token, &token);
    ++result.decode_steps;
    if (token == kEos) {
      result.complete = true;
      break;
    }
    result.target.push_back(token);
  }
  if (!status.ok()) return status;
  result.text = Detokenize(model_->french, result.target);
  result.cross_memory_bytes = decoder_.cross_memory_bytes();
  *translation = std::move(result);
  return Status();
}

}  // namespace translate
