#include "demo.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "attention_weights.h"
#include "terminal.h"
#include "transformer.h"
#include "translator.h"
#include "vocabulary.h"

namespace translate {
namespace {

constexpr size_t kMaxWidth = 92;      // of everything that is drawn
constexpr size_t kMarginColumn = 72;  // of remarks at the right

constexpr const char* kSentences[] = {
    "the red car is fast",
    "hello world !",
    "the house is old but it is beautiful .",
    "she does not eat any apples",
    "where is the hotel ?",
    "i think that the small girl is sleeping .",
};

// One sentence, and where it is from.
struct Sentence {
  std::string where;
  std::string text;
};

class Demo {
 public:
  Demo(const Options& options, const Model& model, const Console& console)
      : options_(options), model_(model), console_(console), out_(*console.out) {}

  int Run() {
    for (const sightline::Precision precision : options_.precisions) {
      Translator translator;
      Status status = Translator::Create(model_, precision, &translator, options_.decoding);
      if (!status.ok()) return Fail("", status);
      translators_.push_back(std::move(translator));
    }
    if (!options_.quiet) PrintTitle();

    if (options_.has_words) {
      TranslateSentences({{"", options_.sentence}});
    } else if (!TranslateInput()) {
      for (const char* sentence : kSentences) TranslateSentences({{"", sentence}});
    }
    if (!options_.quiet && !drawn_.empty()) {
      if (Status status = DrawAttention(); !status.ok()) Fail("", status);
      PrintReuse();
    }
    return exit_;
  }

 private:
  int Fail(const std::string& where, const Status& status) {
    out_.flush();  // what went well before comes first, also when both go to one file
    *console_.err << "sightline_translate: " << where << status.message() << '\n';
    return exit_ = kFailure;
  }

  // Whether there was any sentence.
  bool TranslateInput() {
    const bool reads = options_.read_in || (console_.in_has_text && console_.in_has_text());
    if (!reads) return false;
    bool any = false;
    std::vector<Sentence> sentences;
    std::string line;
    for (size_t number = 1; std::getline(*console_.in, line); ++number) {
      if (SplitWords(line).empty()) continue;
      any = true;
      sentences.push_back({"line " + std::to_string(number) + ": ", line});
      if (options_.decoding.batch > 1) continue;
      TranslateSentences(sentences);
      sentences.clear();
    }
    TranslateSentences(sentences);
    return any || options_.read_in;
  }

  void TranslateSentences(const std::vector<Sentence>& sentences) {
    std::vector<std::string> texts;
    texts.reserve(sentences.size());
    for (const Sentence& sentence : sentences) texts.push_back(sentence.text);
    std::vector<std::vector<Translator::Result>> results(translators_.size());
    for (size_t i = 0; i < translators_.size(); ++i) {
      translators_[i].TranslateAll(texts, &results[i]);
    }
    for (size_t s = 0; s < sentences.size(); ++s) {
      std::vector<Translation> translations;
      for (std::vector<Translator::Result>& of_precision : results) {
        if (!of_precision[s].status.ok()) {
          Fail(sentences[s].where, of_precision[s].status);
          break;
        }
        translations.push_back(std::move(of_precision[s].translation));
      }
      if (translations.size() < translators_.size()) continue;
      if (options_.quiet) {
        out_ << translations[0].text << '\n' << std::flush;
      } else {
        PrintTranslations(translations);
      }
      if (drawn_.empty()) drawn_ = std::move(translations);
    }
  }

  void PrintTitle() {
    const Config& config = model_.config;
    out_ << Bold("English to French", console_.colour) << ": " << config.encoder_layers << " + "
         << config.decoder_layers << " layers, " << config.heads << " heads of "
         << config.head_dim() << ", attention by Sightline on tier "
         << Bold(translators_[0].tier(), console_.colour) << "\n\n";
  }

  void PrintTranslations(const std::vector<Translation>& translations) {
    out_ << "  " << Dim(SourceText(translations[0]), console_.colour) << '\n';
    const bool agree = std::all_of(
        translations.begin(), translations.end(),
        [&](const Translation& other) { return other.target == translations[0].target; });
    std::string names;
    for (const Translator& translator : translators_) {
      names += std::string(names.empty() ? "" : " = ") + Name(translator.precision());
    }
    for (size_t i = 0; i < (agree ? 1 : translations.size()); ++i) {
      std::string text = "  " + translations[i].text;
      if (!translations[i].complete) text += " … (cut off)";
      const size_t fill = kMarginColumn - std::min(Width(text) + 2, kMarginColumn) + 2;
      out_ << Bold(text, console_.colour) << std::string(fill, ' ')
           << Dim(agree ? names : Name(translators_[i].precision()), console_.colour) << '\n';
    }
    out_ << '\n' << std::flush;
  }

  // The sentence as the model reads it.
  std::string SourceText(const Translation& translation) const {
    std::string text;
    for (size_t i = 0; i + 1 < translation.source.size(); ++i) {
      text += (i > 0 ? " " : "") + model_.english.word(translation.source[i]);
    }
    return text;
  }

  void PrintHeading(const std::string& heading, const std::string& explanation) {
    out_ << Bold(heading, console_.colour) << ": " << explanation << "\n\n";
  }

  Status DrawAttention() {
    DecoderTrace trace;
    AttentionWeightsReader reader;
    Status status = translators_[0].Trace(drawn_[0], &trace);
    if (status.ok()) status = AttentionWeightsReader::Create(model_.config, &reader);
    if (!status.ok()) return status;
    std::vector<WeightMap> self_maps(trace.layers.size()), cross_maps(trace.layers.size());
    for (size_t layer = 0; layer < trace.layers.size(); ++layer) {
      status = reader.SelfAttention(trace, layer, &self_maps[layer]);
      if (status.ok()) status = reader.CrossAttention(trace, layer, &cross_maps[layer]);
      if (!status.ok()) return status;
    }

    // The decoder reads <bos> and its own words, and writes the words and <eos>.
    std::vector<std::string> written, read = {"<bos>"}, source;
    for (const Token token : drawn_[0].target) {
      written.push_back(model_.french.word(token));
      read.push_back(written.back());
    }
    written.push_back("<eos>");
    for (const Token token : drawn_[0].source) {
      source.push_back(model_.english.word(token));
    }

    PrintHeading("Causal mask",
                 "decoder self-attention, each word (row) over itself and those before");
    DrawHeatMap(Mean(self_maps), read, read, kMaxWidth, console_.colour, out_);
    out_ << '\n';
    PrintHeading("Alignment", "cross-attention, each French word (row) over the English ones");
    DrawHeatMap(Mean(cross_maps), written, source, kMaxWidth, console_.colour, out_);
    out_ << '\n';
    DrawLegend(console_.colour, out_);
    out_ << '\n';
    return Status();
  }

  void PrintReuse() {
    const std::vector<Translation>& translations = drawn_;
    PrintHeading("Reuse", "encoder K and V, packed once for the sentence, serve all " +
                              std::to_string(translations[0].decode_steps) + " decode steps");
    for (size_t i = 0; i < translations.size(); ++i) {
      const size_t bytes = translations[i].cross_memory_bytes;
      out_ << "  " << FitLeft(Name(translators_[i].precision()), 4)
           << FitRight(std::to_string(bytes), 7) << " bytes";
      if (i == 0) {
        out_ << " in " << model_.config.decoder_layers
             << " cross memories, one for each layer, of whole blocks of tokens";
      }
      if (i > 0)
        out_ << FitRight(std::to_string(bytes * 100 / BytesOf(translations[0])), 5) << " %";
      out_ << '\n';
    }
    out_ << std::flush;
  }

  static size_t BytesOf(const Translation& translation) {
    return std::max<size_t>(translation.cross_memory_bytes, 1);
  }

  const Options& options_;
  const Model& model_;
  const Console& console_;
  std::ostream& out_;
  std::vector<Translator> translators_;
  std::vector<Translation> drawn_;  // the first sentence, by each translator
  int exit_ = kSuccess;
};

}  // namespace

int RunDemo(const Options& options, const Model& model, const Console& console) {
  return Demo(options, model, console).Run();
}

}  // namespace translate
