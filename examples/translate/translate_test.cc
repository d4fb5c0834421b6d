// Every part of the example, and all of it on every tier and in every precision: files that lie,
// sentences that do not fit, and the translations themselves.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "attention_weights.h"
#include "beam_search.h"
#include "command_line.h"
#include "model.h"
#include "safetensors.h"
#include "sightline/tier.h"
#include "terminal.h"
#include "transformer.h"
#include "translator.h"
#include "vocabulary.h"

namespace translate {
namespace {

using sightline::Precision;

const std::string kFolder = SIGHTLINE_TRANSLATE_FOLDER;
constexpr Precision kPrecisions[] = {Precision::kF32,     Precision::kF16, Precision::kBF16,
                                     Precision::kMixed16, Precision::kI8,  Precision::kI8Fine};

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// ---- Safetensors ------------------------------------------------------------------------------

// A file of this header and this many zero bytes of data.
std::string FileOf(const std::string& header, const std::string& data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(uint64_t{header.size()} >> (8 * i) & 0xFF);
  return file + header + data;
}

std::string ErrorOf(const std::string& header, size_t data_bytes) {
  Safetensors file;
  return Safetensors::Parse(FileOf(header, std::string(data_bytes, '\0')), &file).message();
}

constexpr char kSmallHeader[] =
    R"({"__metadata__": {"name\u00e9\ud83d\ude00": "a \"b\" \\ \/ \n"},
        "w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b" : {"data_offsets":[12,20],"dtype":"F32","shape":[2]} , "none":
        {"dtype":"F16","shape":[0],"data_offsets":[20,20]}}   )";

std::string SmallFile() {
  // 1, -2, the smallest subnormal, the largest finite, infinity, -0; 0.5f, -3.0f.
  const unsigned char data[] = {0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00, 0xFF, 0x7B, 0x00, 0x7C,
                                0x00, 0x80, 0x00, 0x00, 0x00, 0x3F, 0x00, 0x00, 0x40, 0xC0};
  return FileOf(kSmallHeader, std::string(reinterpret_cast<const char*>(data), sizeof(data)));
}

TEST_CASE("Safetensors: names, shapes and values", "[safetensors]") {
  Safetensors file;
  const Status status = Safetensors::Parse(SmallFile(), &file);
  INFO(status.message());
  REQUIRE(status.ok());
  const std::string* metadata = file.Metadata("name\xC3\xA9\xF0\x9F\x98\x80");
  REQUIRE(metadata != nullptr);
  CHECK(*metadata == "a \"b\" \\ / \n");
  CHECK(file.Metadata("other") == nullptr);

  std::vector<float> values;
  REQUIRE(file.Get("w", {2, 3}, &values).ok());
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(values == std::vector<float>{1.0f, -2.0f, 0x1p-24f, 65504.0f, infinity, 0.0f});
  CHECK(std::signbit(values[5]));
  REQUIRE(file.Get("b", {2}, &values).ok());
  CHECK(values == std::vector<float>{0.5f, -3.0f});
  REQUIRE(file.Get("none", {0}, &values).ok());
  CHECK(values.empty());
  CHECK_FALSE(file.Get("w", {3, 2}, &values).ok());
  CHECK_FALSE(file.Get("W", {2, 3}, &values).ok());
}

TEST_CASE("Safetensors: every truncation is refused", "[safetensors]") {
  const std::string whole = SmallFile();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    Safetensors file;
    const Status status = Safetensors::Parse(whole.substr(0, bytes), &file);
    INFO(bytes << " bytes: " << status.message());
    CHECK_FALSE(status.ok());
    CHECK(Contains(status.message(), "truncated"));
  }
  Safetensors file;
  CHECK_FALSE(Safetensors::Parse(whole + '\0', &file).ok());
}

// With the sanitizers: nothing is read that is not there.
TEST_CASE("Safetensors: any byte may be any other", "[safetensors]") {
  const std::string whole = SmallFile();
  size_t refused = 0;
  for (size_t at = 0; at < 8 + sizeof(kSmallHeader) - 1; ++at) {
    for (const int byte :
         {0x00, 0x09, 0x22, 0x2C, 0x30, 0x39, 0x5B, 0x5C, 0x5D, 0x7B, 0x7D, 0xFF}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(byte);
      Safetensors file;
      std::vector<float> values;
      if (Status status = Safetensors::Parse(changed, &file); !status.ok()) {
        ++refused;
        CHECK(strlen(status.message()) > 0);
      } else if (file.Get("w", {2, 3}, &values).ok()) {
        CHECK(values.size() == 6);
      }
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("Safetensors: errors say what is wrong", "[safetensors]") {
  const auto tensor = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  const struct {
    std::string header;
    size_t data_bytes;
    const char* message;
  } cases[] = {
      {"", 0, "header byte 0: expected '{'"},
      {"[]", 0, "header byte 0: expected '{'"},
      {"{} x", 0, "header byte 3: expected the end"},
      {"{\"w\"", 0, "expected ':'"},
      {"{\"w", 0, "expected the end of a string"},
      {"{\"\\u12", 0, "expected four hexadecimal digits"},
      {"{\"\\ud800x\":", 0, "expected a low surrogate"},
      {"{\"\\x\":", 0, "expected an escape that JSON knows"},
      {"{\"__metadata__\":{\"d\":96}}", 0, "expected a string"},
      {tensor(""), 0, "expected dtype, shape and data_offsets"},
      {tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0])"), 2, "two data_offsets"},
      {tensor(R"("dtype":"F16","shape":[-1],"data_offsets":[0,2])"), 2, "an unsigned integer"},
      {tensor(R"("dtype":"F16","shape":[99999999999999999999],"data_offsets":[0,2])"), 2,
       "a smaller number"},
      // Half of what a size_t counts, and one more: twice that is 0.
      {tensor(R"("dtype":"F16","shape":[)" + std::to_string(SIZE_MAX / 2 + 1) +
              R"(,2],"data_offsets":[0,0])"),
       0, "contradicts its shape"},
      {tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0,4])"), 4, "contradicts its shape"},
      {tensor(R"("dtype":"I64","shape":[1],"data_offsets":[0,8])"), 8, "must be F16 or F32"},
      {tensor(R"("dtype":"F16","shape":[1],"data_offsets":[2,0])"), 2, "truncated?"},
      {tensor(R"("dtype":"F16","shape":[1],"data_offsets":[2,4])"), 4, "overlap or leave a gap"},
      {tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0,2],"more":1)"), 2,
       "dtype, shape or data_offsets"},
      {R"({"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},
           "w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})",
       2, "each tensor only once"},
  };
  for (const auto& c : cases) {
    const std::string message = ErrorOf(c.header, c.data_bytes);
    INFO(c.header << "\n  " << message);
    CHECK(Contains(message, c.message));
  }
}

// ---- Vocabulary -------------------------------------------------------------------------------

TEST_CASE("Vocabulary: words and marks", "[vocabulary]") {
  CHECK(SplitWords("  Hello,\tWORLD!?\r\n") ==
        std::vector<std::string>{"hello", ",", "world", "!", "?"});
  CHECK(SplitWords("a.b") == std::vector<std::string>{"a", ".", "b"});
  CHECK(SplitWords("").empty());
  CHECK(SplitWords(" \t\n").empty());
  // Bytes that no text should hold stay what they are.
  CHECK(SplitWords(std::string("a\0b", 3)) == std::vector<std::string>{std::string("a\0b", 3)});
}

TEST_CASE("Vocabulary: the held-out sentences survive tokens", "[vocabulary]") {
  Vocabulary english, french;
  REQUIRE(Vocabulary::Read(kFolder + "/vocab.en.txt", &english).ok());
  REQUIRE(Vocabulary::Read(kFolder + "/vocab.fr.txt", &french).ok());
  std::ifstream file(kFolder + "/heldout.tsv");
  std::string line;
  size_t lines = 0;
  for (; std::getline(file, line); ++lines) {
    const size_t tab = line.find('\t');
    REQUIRE(tab != std::string::npos);
    std::vector<Token> tokens;
    REQUIRE(Tokenize(english, line.substr(0, tab), &tokens).ok());
    REQUIRE(tokens.back() == kEos);
    tokens.pop_back();
    CHECK(Detokenize(english, tokens) == line.substr(0, tab));

    // French has elided words, which are tokens of their own: split after each apostrophe.
    std::string spaced;
    for (const char c : line.substr(tab + 1))
      spaced += c == '\'' ? std::string("' ") : std::string(1, c);
    REQUIRE(Tokenize(french, spaced, &tokens).ok());
    tokens.pop_back();
    CHECK(Detokenize(french, tokens) == line.substr(tab + 1));
  }
  CHECK(lines == 1000);
}

TEST_CASE("Vocabulary: unknown words are named", "[vocabulary]") {
  Vocabulary vocabulary;
  REQUIRE(Vocabulary::Parse("<pad>\n<bos>\n<eos>\ncar\nthe\n", &vocabulary).ok());
  std::vector<Token> tokens;
  REQUIRE(Tokenize(vocabulary, "The car", &tokens).ok());
  CHECK(tokens == std::vector<Token>{4, 3, kEos});

  const auto message = [&](const std::string& text) -> std::string {
    const Status status = Tokenize(vocabulary, text, &tokens);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    return status.message();
  };
  CHECK(Contains(message("the zyzzyva"), "unknown word: \"zyzzyva\""));
  CHECK(Contains(message("a car b"), "unknown words: \"a\", \"b\""));
  CHECK(Contains(message("a b c d e f"), "\"d\" and more"));
  CHECK(Contains(message("<eos>"), "\"<eos>\""));
  CHECK(Contains(message("the \x1b[31mcar"), "\"?[31mcar\""));
  CHECK(Contains(message(""), "empty"));
  std::string accents;
  for (int i = 0; i < 100; ++i) accents += "é";
  CHECK(Contains(message(accents), "é…\""));
  CHECK_FALSE(message(std::string(5000, '\x80') + " " + std::string(5000, '\xFF')).empty());
}

TEST_CASE("Vocabulary: files that are none", "[vocabulary]") {
  Vocabulary vocabulary;
  for (const char* text :
       {"", "<pad>\n<bos>\n<eos>\n", "<pad>\n<bos>\nthe\ncar\n", "<pad>\n<bos>\n<eos>\ncar\ncar\n",
        "<pad>\n<bos>\n<eos>\n\ncar\n", "<pad>\n<bos>\n<eos>\ncar"}) {
    INFO(text);
    CHECK_FALSE(Vocabulary::Parse(text, &vocabulary).ok());
  }
  CHECK_FALSE(Vocabulary::Read(kFolder + "/no_such_file", &vocabulary).ok());
  CHECK_FALSE(Vocabulary::Read(kFolder, &vocabulary).ok());
}

// ---- Model ------------------------------------------------------------------------------------

TEST_CASE("Model: truncated weights are refused", "[model]") {
  std::string whole;
  REQUIRE(ReadFile(kFolder + "/weights.safetensors", &whole).ok());
  Safetensors file;
  REQUIRE(Safetensors::Parse(whole, &file).ok());
  for (const size_t bytes :
       {size_t{1}, size_t{8}, size_t{100}, size_t{5000}, whole.size() / 2, whole.size() - 1}) {
    const Status status = Safetensors::Parse(whole.substr(0, bytes), &file);
    INFO(bytes << " bytes: " << status.message());
    CHECK(Contains(status.message(), "truncated"));
  }
}

TEST_CASE("Model: another model is refused", "[model]") {
  std::string whole;
  REQUIRE(ReadFile(kFolder + "/weights.safetensors", &whole).ok());
  const struct {
    const char* from;
    const char* to;  // of the same length
    const char* message;
  } changes[] = {
      {"\"d_model\":\"96\"", "\"d_model\":\"95\"", "multiple of heads"},
      {"\"heads\":\"4\"", "\"heads\":\"0\"", "heads is 0"},
      {"\"heads\":\"4\"", "\"heads\":\"x\"", "heads is x"},
      {"\"d_ff\":\"128\"", "\"d_ff\":\"127\"", "feed_forward.up.weight has another shape"},
      {"\"encoder_layers\":\"2\"", "\"encoder_layers\":\"3\"", "no tensor encoder.2."},
      {"\"norm\":\"pre\"", "\"norm\":\"abc\"", "norm is abc, must be pre"},
      {"\"max_len\":", "\"max_lem\":", "no max_len"},
      {"\"decoder_norm.bias\":", "\"decoder_norm.bia_\":", "no tensor decoder_norm.bias"},
  };
  for (const auto& change : changes) {
    std::string changed = whole;
    const size_t at = changed.find(change.from);
    INFO(change.from);
    REQUIRE(at != std::string::npos);
    changed.replace(at, strlen(change.from), change.to);
    Safetensors file;
    REQUIRE(Safetensors::Parse(changed, &file).ok());
    Model model;
    const Status status = LoadWeights(file, &model);
    INFO(status.message());
    CHECK(Contains(status.message(), change.message));
    CHECK(model.encoder.empty());
  }
}

// ---- Beam search ------------------------------------------------------------------------------

// A made-up model: logits that depend on all tokens so far.
constexpr size_t kSmallVocabulary = 5;  // <eos> is one of them
std::vector<float> SmallLogits(const std::vector<Token>& tokens, uint32_t seed) {
  uint32_t state = seed * 2654435761u + 12345u;
  for (const Token token : tokens) state = (state ^ (token + 1)) * 16777619u;
  std::vector<float> logits;
  for (size_t i = 0; i < kSmallVocabulary; ++i) {
    state = state * 1664525u + 1013904223u;
    logits.push_back(static_cast<float>(state >> 16) / 16384.0f);
  }
  return logits;
}

double LogProbability(const std::vector<float>& logits, Token token) {
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(double{logit});
  return double{logits[token]} - std::log(sum);
}

// Advances until done, with the logits of each hypothesis; also checks what parents say.
Hypothesis Search(size_t width, size_t max_len, uint32_t seed) {
  BeamSearch search(width, max_len);
  std::vector<std::vector<Token>> live(1);
  while (!search.done()) {
    REQUIRE(search.num_live() == live.size());
    std::vector<float> logits;
    for (const std::vector<Token>& tokens : live) {
      const std::vector<float> row = SmallLogits(tokens, seed);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    std::vector<size_t> parents;
    search.Advance(logits.data(), kSmallVocabulary, &parents);
    std::vector<std::vector<Token>> next;
    for (size_t i = 0; i < parents.size(); ++i) {
      REQUIRE(parents[i] < live.size());
      next.push_back(live[parents[i]]);
      next.back().push_back(search.last(i));
    }
    live = next;
  }
  return search.best();
}

// Every hypothesis there is.
void SearchAll(const Hypothesis& from, size_t max_len, uint32_t seed, Hypothesis* best) {
  const std::vector<float> logits = SmallLogits(from.tokens, seed);
  for (Token token = 0; token < kSmallVocabulary; ++token) {
    Hypothesis next = from;
    next.log_probability += LogProbability(logits, token);
    next.complete = token == kEos;
    if (next.complete) {
      if (!best->complete || next.score() > best->score()) *best = next;
    } else if (next.tokens.size() + 1 < max_len) {
      next.tokens.push_back(token);
      SearchAll(next, max_len, seed, best);
    }
  }
}

TEST_CASE("Beam search: a wide one finds the best there is", "[beam_search]") {
  constexpr size_t kMaxLen = 5;
  size_t narrow_found = 0;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Hypothesis best;
    SearchAll({}, kMaxLen, seed, &best);
    const Hypothesis found = Search(2000, kMaxLen, seed);
    INFO("seed " << seed);
    CHECK(found.complete);
    CHECK(found.tokens == best.tokens);
    CHECK(std::fabs(found.log_probability - best.log_probability) < 1e-5);
    if (Search(4, kMaxLen, seed).tokens == best.tokens) ++narrow_found;
  }
  CHECK(narrow_found >= 25);
  CHECK(narrow_found < 50);
}

TEST_CASE("Beam search: a width of 1 takes the largest logit", "[beam_search]") {
  constexpr size_t kMaxLen = 7;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Hypothesis greedy;
    while (greedy.tokens.size() < kMaxLen) {
      const std::vector<float> logits = SmallLogits(greedy.tokens, seed);
      const Token token =
          static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      greedy.log_probability += LogProbability(logits, token);
      greedy.complete = token == kEos;
      if (greedy.complete) break;
      greedy.tokens.push_back(token);
    }
    const Hypothesis found = Search(1, kMaxLen, seed);
    INFO("seed " << seed);
    CHECK(found.tokens == greedy.tokens);
    CHECK(found.complete == greedy.complete);
    CHECK(std::fabs(found.score() - greedy.score()) < 1e-5);
  }
}

TEST_CASE("Beam search: equals, and logits that are no numbers", "[beam_search]") {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<size_t> parents;

  BeamSearch equals(2, 8);
  const std::vector<float> zeros(2 * kSmallVocabulary, 0.0f);
  equals.Advance(zeros.data(), kSmallVocabulary, &parents);
  CHECK(parents == std::vector<size_t>{0, 0});
  CHECK(equals.last(0) == 0);
  CHECK(equals.last(1) == 1);
  equals.Advance(zeros.data(), kSmallVocabulary, &parents);
  CHECK(parents == std::vector<size_t>{0, 0});

  for (const float x : {nan, infinity, -infinity}) {
    BeamSearch search(3, 4);
    const std::vector<float> logits(3 * kSmallVocabulary, x);
    while (!search.done()) search.Advance(logits.data(), kSmallVocabulary, &parents);
    CHECK(search.best().tokens.size() <= 4);
  }
}

// ---- Translator -------------------------------------------------------------------------------

const Model& TrainedModel() {
  static const Model model = [] {
    Model loaded;
    const Status status = LoadModel(kFolder, &loaded);
    INFO(status.message());
    REQUIRE(status.ok());
    return loaded;
  }();
  return model;
}

std::string Words(size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += "the ";
  return text;
}

TEST_CASE("Translator: every tier and precision", "[translator]") {
  for (size_t tier = 0; tier < sightline::NumTiers(); ++tier) {
    const sightline::TierInfo info = sightline::GetTier(tier);
    if (!info.supported) continue;
    REQUIRE(sightline::SetActiveTier(info.name).ok());
    for (const Precision precision : kPrecisions) {
      INFO(info.name << ", " << Name(precision));
      Translator translator;
      REQUIRE(Translator::Create(TrainedModel(), precision, &translator).ok());
      CHECK(std::string(translator.tier()) == info.name);
      Translation translation;
      REQUIRE(translator.Translate("the red car is fast", &translation).ok());
      CHECK(translation.text == "la voiture rouge est rapide");
      CHECK(translation.complete);
      CHECK(translation.decode_steps == 6);
      CHECK(translation.cross_memory_bytes > 0);
      REQUIRE(translator.Translate("Hello world!", &translation).ok());
      CHECK(translation.text == "bonjour le monde !");
    }
  }
  REQUIRE(sightline::SetActiveTier(nullptr).ok());
}

TEST_CASE("Translator: sentences that do not fit", "[translator]") {
  for (const Precision precision : kPrecisions) {
    Translator translator;
    REQUIRE(Translator::Create(TrainedModel(), precision, &translator).ok());
    Translation translation;
    REQUIRE(translator.Translate("hello world !", &translation).ok());

    const Status too_long = translator.Translate(Words(32), &translation);
    CHECK(too_long.code() == StatusCode::kCapacityExceeded);
    CHECK(std::string(too_long.message()) ==
          "the sentence has 32 words and marks, the model takes at most 31");
    CHECK(Contains(translator.Translate(" \t", &translation).message(), "empty"));
    CHECK(Contains(translator.Translate("the zyzzyva", &translation).message(), "zyzzyva"));
    CHECK(translation.text == "bonjour le monde !");  // errors change nothing

    // The longest there can be; whatever it becomes, it ends.
    REQUIRE(translator.Translate(Words(31), &translation).ok());
    CHECK(translation.decode_steps <= 32);
    CHECK(translation.complete == (translation.target.size() < translation.decode_steps));
    // And the translator is as good as new.
    REQUIRE(translator.Translate("the red car is fast", &translation).ok());
    CHECK(translation.text == "la voiture rouge est rapide");
  }
}

TEST_CASE("Translator: a decoder takes max_len tokens", "[translator]") {
  Decoder decoder;
  const Config& config = TrainedModel().config;
  REQUIRE(Decoder::Create(TrainedModel(), Precision::kI8, 1, 1, &decoder).ok());
  const std::vector<float> memory(config.d_model, 0.5f);
  Source source;
  History history;
  std::vector<float> logits;
  REQUIRE(decoder.Prepare(memory, 1, &source).ok());
  REQUIRE(decoder.Begin(&history).ok());
  const std::vector<Decoder::Row> rows = {{&source, &history, kBos}};
  for (size_t i = 0; i < config.max_len; ++i) REQUIRE(decoder.Step(rows, &logits).ok());
  CHECK(logits.size() == config.target_vocabulary);
  CHECK(decoder.Step(rows, &logits).code() == StatusCode::kCapacityExceeded);
  CHECK(decoder.Step({rows[0], rows[0]}, &logits).code() == StatusCode::kCapacityExceeded);
  CHECK(decoder.pages_in_use() == config.decoder_layers);
  REQUIRE(decoder.Begin(&history).ok());
  CHECK(decoder.pages_in_use() == 0);
  CHECK(decoder.Step(rows, &logits).ok());
}

// Held-out sentences from all over the file.
std::vector<std::string> HeldOut(size_t every) {
  std::ifstream file(kFolder + "/heldout.tsv");
  std::vector<std::string> sentences;
  std::string line;
  for (size_t i = 0; std::getline(file, line); ++i) {
    if (i % every == 0) sentences.push_back(line.substr(0, line.find('\t')));
  }
  REQUIRE(sentences.size() > 1);
  return sentences;
}

// One hypothesis of one sentence by the decoder alone: `given`, or else the largest logits.
Hypothesis DecodePlainly(const std::string& english, const std::vector<Token>* given) {
  const Config& config = TrainedModel().config;
  Encoder encoder;
  Decoder decoder;
  REQUIRE(Encoder::Create(TrainedModel(), Precision::kF32, &encoder).ok());
  REQUIRE(Decoder::Create(TrainedModel(), Precision::kF32, 1, 1, &decoder).ok());
  std::vector<Token> tokens;
  std::vector<float> memory, logits;
  Source source;
  History history;
  REQUIRE(Tokenize(TrainedModel().english, english, &tokens).ok());
  REQUIRE(encoder.Encode(tokens, &memory).ok());
  REQUIRE(decoder.Prepare(memory, tokens.size(), &source).ok());
  REQUIRE(decoder.Begin(&history).ok());
  Hypothesis result;
  for (Token last = kBos; result.tokens.size() < config.max_len; last = result.tokens.back()) {
    REQUIRE(decoder.Step({{&source, &history, last}}, &logits).ok());
    const size_t length = result.tokens.size();
    Token token =
        static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (given != nullptr) token = length < given->size() ? (*given)[length] : Token{kEos};
    result.log_probability += LogProbability(logits, token);
    result.complete = token == kEos;
    if (result.complete) break;
    result.tokens.push_back(token);
  }
  return result;
}

TEST_CASE("Translator: one beam is greedy, more are no worse", "[translator]") {
  Translator greedy, beams;
  REQUIRE(Translator::Create(TrainedModel(), Precision::kF32, &greedy, {1, 1}).ok());
  REQUIRE(Translator::Create(TrainedModel(), Precision::kF32, &beams, {4, 1}).ok());
  std::vector<std::string> sentences = HeldOut(50);
  sentences.push_back(Words(9));  // of which the model is not sure
  sentences.push_back(Words(31));
  size_t differ = 0;
  for (const std::string& sentence : sentences) {
    INFO(sentence);
    Translation one, four;
    REQUIRE(greedy.Translate(sentence, &one).ok());
    const Hypothesis expected = DecodePlainly(sentence, nullptr);
    CHECK(one.target == expected.tokens);
    CHECK(one.complete == expected.complete);
    CHECK(std::fabs(one.score - expected.score()) < 1e-4);

    REQUIRE(beams.Translate(sentence, &four).ok());
    if (one.complete) CHECK(four.score > one.score - 1e-4);
    differ += four.target != one.target ? 1 : 0;
    // Caches that were forked and reordered held what they should.
    const Hypothesis again = DecodePlainly(sentence, &four.target);
    CHECK(four.complete == again.complete);
    CHECK(std::fabs(four.score - again.score()) < 1e-4);
  }
  CHECK(differ > 0);
  Translator none;
  CHECK_FALSE(Translator::Create(TrainedModel(), Precision::kF32, &none, {0, 1}).ok());
  CHECK_FALSE(Translator::Create(TrainedModel(), Precision::kF32, &none, {1, 0}).ok());
}

// Translates all at once and compares with `expected`, one by one; one that is not there fails.
void CheckBatch(Translator* translator, const std::vector<std::string>& sentences,
                const std::map<std::string, Translation>& expected) {
  std::vector<Translator::Result> results;
  translator->TranslateAll(sentences, &results);
  REQUIRE(results.size() == sentences.size());
  for (size_t i = 0; i < sentences.size(); ++i) {
    INFO(sentences[i]);
    const auto found = expected.find(sentences[i]);
    REQUIRE(results[i].status.ok() == (found != expected.end()));
    if (found == expected.end()) continue;
    const Translation& translation = results[i].translation;
    CHECK(translation.text == found->second.text);
    CHECK(translation.target == found->second.target);
    CHECK(translation.complete == found->second.complete);
    CHECK(translation.score == found->second.score);
    CHECK(translation.decode_steps == found->second.decode_steps);
  }
  CHECK(translator->pages_in_use() == 0);
}

std::map<std::string, Translation> OneByOne(Translator* translator,
                                            const std::vector<std::string>& sentences) {
  std::map<std::string, Translation> expected;
  for (const std::string& sentence : sentences) {
    Translation translation;
    if (translator->Translate(sentence, &translation).ok()) expected[sentence] = translation;
    CHECK(translator->pages_in_use() == 0);
  }
  return expected;
}

TEST_CASE("Translator: a batch is what its sentences are one by one", "[translator]") {
  std::vector<std::string> sentences = HeldOut(40);
  sentences.insert(sentences.begin() + 3, "the zyzzyva");
  sentences.insert(sentences.begin() + 7, {"", Words(40), Words(31)});
  const std::vector<std::string> reversed(sentences.rbegin(), sentences.rend());
  for (const size_t beams : {size_t{1}, size_t{4}}) {
    Translator single;
    REQUIRE(Translator::Create(TrainedModel(), Precision::kF32, &single, {beams, 1}).ok());
    const std::map<std::string, Translation> expected = OneByOne(&single, sentences);
    CHECK(expected.size() == sentences.size() - 3);
    for (const size_t batch : {size_t{1}, size_t{2}, size_t{7}, size_t{32}, size_t{100}}) {
      INFO(beams << " beams, batch " << batch);
      Translator translator;
      REQUIRE(
          Translator::Create(TrainedModel(), Precision::kF32, &translator, {beams, batch}).ok());
      CheckBatch(&translator, sentences, expected);
      CheckBatch(&translator, reversed, expected);
      CheckBatch(&translator, {}, expected);
    }
  }
}

TEST_CASE("Translator: batches on every tier and in every precision", "[translator]") {
  const std::vector<std::string> sentences = HeldOut(125);
  for (size_t tier = 0; tier < sightline::NumTiers(); ++tier) {
    const sightline::TierInfo info = sightline::GetTier(tier);
    if (!info.supported) continue;
    REQUIRE(sightline::SetActiveTier(info.name).ok());
    for (const Precision precision : kPrecisions) {
      INFO(info.name << ", " << Name(precision));
      Translator single, translator;
      REQUIRE(Translator::Create(TrainedModel(), precision, &single, {3, 1}).ok());
      REQUIRE(Translator::Create(TrainedModel(), precision, &translator, {3, 5}).ok());
      CHECK(std::string(translator.tier()) == info.name);
      CheckBatch(&translator, sentences, OneByOne(&single, sentences));
    }
  }
  REQUIRE(sightline::SetActiveTier(nullptr).ok());
}

// ---- Attention weights ------------------------------------------------------------------------

// The same in double precision, by the textbook.
std::vector<double> Softmax(const Config& config, const std::vector<float>& query, size_t row,
                            const std::vector<float>& key, size_t keys) {
  const size_t d = config.d_model;
  const size_t head_dim = config.head_dim();
  std::vector<double> mean(keys, 0.0);
  for (size_t head = 0; head < config.heads; ++head) {
    std::vector<double> weights;
    double sum = 0.0;
    for (size_t i = 0; i < keys; ++i) {
      double score = 0.0;
      for (size_t c = head * head_dim; c < (head + 1) * head_dim; ++c) {
        score += double{query[row * d + c]} * double{key[i * d + c]};
      }
      weights.push_back(std::exp(score / std::sqrt(static_cast<double>(head_dim))));
      sum += weights.back();
    }
    for (size_t i = 0; i < keys; ++i) {
      mean[i] += weights[i] / sum / static_cast<double>(config.heads);
    }
  }
  return mean;
}

TEST_CASE("Weights: V = identity gives them exactly", "[weights]") {
  const Config& config = TrainedModel().config;
  Translator translator;
  REQUIRE(Translator::Create(TrainedModel(), Precision::kF32, &translator).ok());
  Translation translation;
  DecoderTrace trace;
  REQUIRE(translator.Translate("the red car is fast", &translation).ok());
  REQUIRE(translator.Trace(translation, &trace).ok());
  REQUIRE(trace.steps == 6);
  REQUIRE(trace.source_len == 6);
  AttentionWeightsReader reader;
  REQUIRE(AttentionWeightsReader::Create(config, &reader).ok());

  std::vector<WeightMap> cross_maps(trace.layers.size());
  for (size_t layer = 0; layer < trace.layers.size(); ++layer) {
    const DecoderTrace::Layer& traced = trace.layers[layer];
    WeightMap self;
    REQUIRE(reader.SelfAttention(trace, layer, &self).ok());
    WeightMap& cross = cross_maps[layer];
    REQUIRE(reader.CrossAttention(trace, layer, &cross).ok());
    for (size_t row = 0; row < trace.steps; ++row) {
      const std::vector<double> self_row =
          Softmax(config, traced.self_query, row, traced.self_key, row + 1);
      const std::vector<double> cross_row =
          Softmax(config, traced.cross_query, row, traced.cross_key, trace.source_len);
      for (size_t column = 0; column < 6; ++column) {
        INFO("layer " << layer << ", row " << row << ", column " << column);
        CHECK(std::fabs(double{cross.at(row, column)} - cross_row[column]) < 1e-5);
        if (column <= row) {
          CHECK(std::fabs(double{self.at(row, column)} - self_row[column]) < 1e-5);
        } else {
          CHECK(self.at(row, column) == 0.0f);
        }
      }
    }
  }

  // "voiture" looks at "car", "rouge" at "red": French order, English places.
  const WeightMap mean = Mean(cross_maps);
  CHECK(mean.at(1, 2) > 0.5f);
  CHECK(mean.at(2, 1) > 0.5f);
}

// ---- Terminal ---------------------------------------------------------------------------------

TEST_CASE("Terminal: accented words are as wide as they look", "[terminal]") {
  CHECK(Width("élève") == 5);
  CHECK(FitLeft("où", 4) == "où  ");
  CHECK(FitRight("où", 4) == "  où");
  CHECK(FitLeft("éléphants", 4) == "élé…");
  CHECK(FitLeft("œuf", 3) == "œuf");
  CHECK(FitLeft("a", 0).empty());
  CHECK(Bold("a", false) == "a");
}

// What is left of a text without its escape sequences.
std::string WithoutEscapes(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      i = text.find('m', i);
      REQUIRE(i != std::string::npos);
    } else {
      plain += text[i];
    }
  }
  return plain;
}

TEST_CASE("Terminal: heat maps are rectangles that fit", "[terminal]") {
  for (const size_t columns : {size_t{1}, size_t{6}, size_t{20}, size_t{32}}) {
    WeightMap map;
    map.rows = 3;
    map.columns = columns;
    map.values.assign(map.rows * columns, 0.0f);
    for (size_t i = 0; i < map.values.size(); ++i) {
      map.values[i] = static_cast<float>(i) / static_cast<float>(map.values.size() - 1);
    }
    const std::vector<std::string> rows = {"à", "éléphant", "<eos>"};
    std::vector<std::string> names(columns, "élève");
    names[0] = "où";
    for (const bool colour : {false, true}) {
      std::ostringstream out;
      DrawHeatMap(map, rows, names, 92, colour, out);
      std::istringstream lines(WithoutEscapes(out.str()));
      std::string line;
      size_t width = 0;
      while (std::getline(lines, line)) {
        INFO(columns << " columns, colour " << colour << ": " << line);
        if (width == 0) width = Width(line);
        CHECK(Width(line) == width);
        CHECK(width <= 92);
      }
      CHECK(width > 0);
      CHECK(Contains(out.str(), "·"));
    }
  }
}

// ---- Command line -----------------------------------------------------------------------------

struct Outcome {
  int status = 0;
  std::string out;
  std::string err;
};

Outcome RunWith(const std::vector<std::string>& args, const std::string& in = "",
                const std::string& folder = kFolder) {
  std::istringstream in_stream(in);
  std::ostringstream out, err;
  Console console;
  console.in = &in_stream;
  console.out = &out;
  console.err = &err;
  console.in_has_text = [] { return true; };
  Outcome outcome;
  outcome.status = RunCommandLine(args, folder, console);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

TEST_CASE("Command line: words, lines, and neither", "[command_line]") {
  Outcome outcome = RunWith({"--quiet", "the", "red", "car", "is", "fast"});
  CHECK(outcome.status == kSuccess);
  CHECK(outcome.out == "la voiture rouge est rapide\n");
  CHECK(outcome.err.empty());

  outcome = RunWith({"--quiet", "--precision=i8"}, "\nhello world !\n  \nThe red car is fast");
  CHECK(outcome.status == kSuccess);
  CHECK(outcome.out == "bonjour le monde !\nla voiture rouge est rapide\n");

  for (const char* batch : {"--batch=1", "--batch=2"}) {
    outcome = RunWith({"--quiet", "--beam", "4", batch}, "Hello world!\n\nthe zyzzyva\nhello .");
    CHECK(outcome.status == kFailure);
    CHECK(outcome.out == "bonjour le monde !\nbonjour .\n");
    CHECK(Contains(outcome.err, "line 3: unknown word"));
  }

  for (const char* nothing : {"", "\n\n"}) {
    outcome = RunWith({}, nothing);
    CHECK(outcome.status == kSuccess);
    CHECK(outcome.err.empty());
    for (const char* part : {"la voiture rouge est rapide", "bonjour le monde !", "f32 = f16 = i8",
                             "Causal mask", "Alignment", "Reuse", "tier"}) {
      INFO(part);
      CHECK(Contains(outcome.out, part));
    }
    CHECK_FALSE(Contains(outcome.out, "\x1b"));
  }
  CHECK(RunWith({"-"}).out.size() < RunWith({}).out.size());
}

TEST_CASE("Command line: what goes wrong is said", "[command_line]") {
  const struct {
    std::vector<std::string> args;
    int status;
    std::string message;
  } cases[] = {
      {{"the", "zyzzyva"}, kFailure, "unknown word: \"zyzzyva\""},
      {{""}, kFailure, "the sentence is empty"},
      {{Words(40)}, kFailure, "at most 31"},
      {{"--model", "/nowhere"}, kFailure, "/nowhere/weights.safetensors: cannot be opened"},
      {{"--evaluate", "/nowhere.tsv"}, kFailure, "/nowhere.tsv: cannot be opened"},
      {{"--evaluate", kFolder + "/vocab.en.txt"}, kFailure, "line 1 has no tab"},
      {{"--evaluate"}, kUsage, "--evaluate needs a value"},
      {{"--precision", "f64"}, kUsage, "must be f32, f16, bf16, mixed16"},
      {{"--limit", "0"}, kUsage, "--limit is 0"},
      {{"--beam=0"}, kUsage, "--beam is 0, must be 1 to 16"},
      {{"--batch", "257"}, kUsage, "--batch is 257, must be 1 to 256"},
      {{"--min-exact=101"}, kUsage, "--min-exact is 101"},
      {{"--frobnicate"}, kUsage, "no option --frobnicate"},
  };
  for (const auto& c : cases) {
    const Outcome outcome = RunWith(c.args);
    INFO(outcome.err);
    CHECK(outcome.status == c.status);
    CHECK(Contains(outcome.err, c.message));
  }

  // The other lines are translated all the same.
  const Outcome outcome = RunWith({"--quiet"}, "the zyzzyva\nhello world !\n");
  CHECK(outcome.status == kFailure);
  CHECK(outcome.out == "bonjour le monde !\n");
  CHECK(Contains(outcome.err, "line 1: unknown word"));
}

TEST_CASE("Command line: evaluation", "[command_line]") {
  const std::string file = kFolder + "/heldout.tsv";
  Outcome outcome = RunWith({"--evaluate", file, "--limit", "10", "--min-exact", "90"});
  INFO(outcome.out << outcome.err);
  CHECK(outcome.status == kSuccess);
  CHECK(Contains(outcome.out, "f32  10 sentences"));
  CHECK(Contains(outcome.out, "i8   10 sentences"));
  CHECK(RunWith({"--evaluate", file, "--limit=40", "--beam=4", "--batch=16", "--min-exact=98",
                 "--min-agree-i8=98"})
            .status == kSuccess);

  // One of two is expected to be something else.
  const std::string half = "translate_test_half.tsv";
  std::ofstream(half) << "hello world !\tbonjour le monde !\nhello world !\tau revoir !\n";
  CHECK(RunWith({"--evaluate", half, "--min-exact=50", "--min-agree-i8=100"}).status == kSuccess);
  outcome = RunWith({"--evaluate", half, "--min-exact=51"});
  CHECK(outcome.status == kFailure);
  CHECK(Contains(outcome.err, "f32 exact is 50 %, must be 51 %"));
  CHECK(RunWith({"--evaluate", half, "--min-exact=51", "--limit=1"}).status == kSuccess);
  remove(half.c_str());
}

TEST_CASE("Command line: help", "[command_line]") {
  const Outcome outcome = RunWith({"--help"});
  CHECK(outcome.status == kSuccess);
  CHECK(Contains(outcome.out, "--evaluate FILE"));
}

}  // namespace
}  // namespace translate
