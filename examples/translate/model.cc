#include "model.h"

#include <stdlib.h>

#include <cmath>
#include <utility>

namespace translate {
namespace {

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;

// Collects what a model needs from a file; after the first error it does nothing more.
class Loader {
 public:
  explicit Loader(const Safetensors& file) : file_(file) {}

  const Status& status() const { return status_; }

  size_t Size(const char* key, size_t max) {
    const std::string* text = Text(key);
    if (text == nullptr) return 1;
    char* end = nullptr;
    const unsigned long value = strtoul(text->c_str(), &end, 10);
    if (text->empty() || *end != '\0' || value < 1 || value > max) {
      Fail(Status::Error(kInvalid, "%s is %.20s, must be 1 to %zu", key, text->c_str(), max));
      return 1;
    }
    return value;
  }

  float Positive(const char* key) {
    const std::string* text = Text(key);
    if (text == nullptr) return 1.0f;
    char* end = nullptr;
    const float value = strtof(text->c_str(), &end);
    if (*end != '\0' || !(value > 0.0f)) {
      Fail(Status::Error(kInvalid, "%s is %.20s, must be positive", key, text->c_str()));
    }
    return value;
  }

  // This program computes one kind of transformer: what the file asks for has to be that.
  void Require(const char* key, const char* value) {
    const std::string* text = Text(key);
    if (text == nullptr || *text == value) return;
    Fail(Status::Error(StatusCode::kUnsupported, "%s is %.40s, must be %s", key, text->c_str(),
                       value));
  }

  std::vector<float> Tensor(const std::string& name, const std::vector<size_t>& shape) {
    std::vector<float> values;
    if (status_.ok()) status_ = file_.Get(name, shape, &values);
    return values;
  }

  Linear Projection(const std::string& name, size_t in, size_t out) {
    Linear linear;
    linear.in = in;
    linear.out = out;
    const std::vector<float> weight = Tensor(name + ".weight", {out, in});
    linear.bias = Tensor(name + ".bias", {out});
    if (status_.ok()) linear.weight = Transposed(weight, out, in);
    return linear;
  }

  LayerNorm Norm(const std::string& name, const Config& config) {
    LayerNorm norm;
    norm.epsilon = config.norm_eps;
    norm.weight = Tensor(name + ".weight", {config.d_model});
    norm.bias = Tensor(name + ".bias", {config.d_model});
    return norm;
  }

  AttentionWeights Attention(const std::string& norm, const std::string& name,
                             const Config& config) {
    const size_t d = config.d_model;
    return {Norm(norm, config), Projection(name + ".query", d, d), Projection(name + ".key", d, d),
            Projection(name + ".value", d, d), Projection(name + ".output", d, d)};
  }

  FeedForwardWeights FeedForwardOf(const std::string& layer, const Config& config) {
    const std::string name = layer + "feed_forward";
    return {Norm(name + "_norm", config),
            {Projection(name + ".up", config.d_model, config.d_ff),
             Projection(name + ".down", config.d_ff, config.d_model)}};
  }

 private:
  const std::string* Text(const char* key) {
    const std::string* text = file_.Metadata(key);
    if (text == nullptr) Fail(Status::Error(kInvalid, "__metadata__ has no %s", key));
    return status_.ok() ? text : nullptr;
  }

  void Fail(const Status& status) {
    if (status_.ok()) status_ = status;
  }

  const Safetensors& file_;
  Status status_;
};

Config ReadConfig(Loader* loader) {
  Config config;
  config.source_vocabulary = loader->Size("source_vocabulary", 1 << 20);
  config.target_vocabulary = loader->Size("target_vocabulary", 1 << 20);
  config.d_model = loader->Size("d_model", 1 << 14);
  config.heads = loader->Size("heads", config.d_model);
  config.d_ff = loader->Size("d_ff", 1 << 16);
  config.encoder_layers = loader->Size("encoder_layers", 64);
  config.decoder_layers = loader->Size("decoder_layers", 64);
  config.max_len = loader->Size("max_len", 512);
  config.norm_eps = loader->Positive("norm_eps");
  loader->Require("norm", "pre");
  loader->Require("activation", "relu");
  loader->Require("positions", "sinusoidal");
  loader->Require("embedding_scale", "sqrt(d_model)");
  loader->Require("output_projection", "target_embedding");
  loader->Require("pad", "0");
  loader->Require("bos", "1");
  loader->Require("eos", "2");
  return config;
}

// [max_len, d_model]: sine and cosine of position / 10000^(2i / d_model) in channels 2i and 2i + 1.
std::vector<float> SinusoidalPositions(const Config& config) {
  std::vector<float> positions(config.max_len * config.d_model);
  for (size_t p = 0; p < config.max_len; ++p) {
    for (size_t c = 0; c < config.d_model; ++c) {
      const double exponent = static_cast<double>(c - c % 2) / static_cast<double>(config.d_model);
      const double angle = static_cast<double>(p) / std::pow(10000.0, exponent);
      positions[p * config.d_model + c] =
          static_cast<float>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  }
  return positions;
}

Status In(const char* file, const Status& status) {
  return Status::Error(status.code(), "%s: %s", file, status.message());
}

}  // namespace

void Model::Embed(const std::vector<float>& embedding, Token token, size_t position,
                  float* x) const {
  const size_t d = config.d_model;
  const float scale = std::sqrt(static_cast<float>(d));
  for (size_t c = 0; c < d; ++c) {
    x[c] = embedding[token * d + c] * scale + positions[position * d + c];
  }
}

Status LoadWeights(const Safetensors& file, Model* model) {
  Loader loader(file);
  Model result;
  const Config config = result.config = ReadConfig(&loader);
  if (loader.status().ok() && config.d_model % config.heads != 0) {
    return Status::Error(kInvalid, "d_model is %zu, must be a multiple of heads, which is %zu",
                         config.d_model, config.heads);
  }
  result.source_embedding =
      loader.Tensor("source_embedding.weight", {config.source_vocabulary, config.d_model});
  result.target_embedding =
      loader.Tensor("target_embedding.weight", {config.target_vocabulary, config.d_model});
  for (size_t i = 0; i < config.encoder_layers && loader.status().ok(); ++i) {
    const std::string layer = "encoder." + std::to_string(i) + ".";
    result.encoder.push_back(
        {loader.Attention(layer + "attention_norm", layer + "attention", config),
         loader.FeedForwardOf(layer, config)});
  }
  for (size_t i = 0; i < config.decoder_layers && loader.status().ok(); ++i) {
    const std::string layer = "decoder." + std::to_string(i) + ".";
    result.decoder.push_back(
        {loader.Attention(layer + "self_norm", layer + "self_attention", config),
         loader.Attention(layer + "cross_norm", layer + "cross_attention", config),
         loader.FeedForwardOf(layer, config)});
  }
  result.encoder_norm = loader.Norm("encoder_norm", config);
  result.decoder_norm = loader.Norm("decoder_norm", config);
  if (!loader.status().ok()) return loader.status();

  result.positions = SinusoidalPositions(config);
  result.logits.in = config.d_model;
  result.logits.out = config.target_vocabulary;
  result.logits.weight =
      Transposed(result.target_embedding, config.target_vocabulary, config.d_model);
  result.logits.bias.assign(config.target_vocabulary, 0.0f);
  result.english = std::move(model->english);
  result.french = std::move(model->french);
  *model = std::move(result);
  return Status();
}

Status LoadModel(const std::string& folder, Model* model) {
  constexpr const char* kWeights = "weights.safetensors";
  constexpr const char* kEnglish = "vocab.en.txt";
  constexpr const char* kFrench = "vocab.fr.txt";
  Model result;
  Safetensors file;
  Status status = Safetensors::Read(folder + "/" + kWeights, &file);
  if (status.ok()) status = LoadWeights(file, &result);
  if (!status.ok()) return In(kWeights, status);
  status = Vocabulary::Read(folder + "/" + kEnglish, &result.english);
  if (!status.ok()) return In(kEnglish, status);
  status = Vocabulary::Read(folder + "/" + kFrench, &result.french);
  if (!status.ok()) return In(kFrench, status);
  const struct {
    const char* file;
    size_t words;
    size_t rows;
  } sizes[] = {{kEnglish, result.english.size(), result.config.source_vocabulary},
               {kFrench, result.french.size(), result.config.target_vocabulary}};
  for (const auto& size : sizes) {
    if (size.words == size.rows) continue;
    return Status::Error(kInvalid, "%s: has %zu lines, but the weights are for %zu", size.file,
                         size.words, size.rows);
  }
  *model = std::move(result);
  return Status();
}

}  // namespace translate
