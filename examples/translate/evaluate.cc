#include "evaluate.h"

#include <stdio.h>

#include <chrono>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "translator.h"

namespace translate {

using sightline::Precision;

namespace {

struct Pair {
  std::string english;
  std::string french;
};

Status ReadPairs(const std::string& path, size_t limit, std::vector<Pair>* pairs) {
  std::ifstream file(path);
  if (!file) return Status::Error(StatusCode::kInvalidArgument, "cannot be opened");
  std::string line;
  while ((limit == 0 || pairs->size() < limit) && std::getline(file, line)) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) {
      return Status::Error(StatusCode::kInvalidArgument, "line %zu has no tab", pairs->size() + 1);
    }
    pairs->push_back({line.substr(0, tab), line.substr(tab + 1)});
  }
  if (pairs->empty()) return Status::Error(StatusCode::kInvalidArgument, "has no sentences");
  return Status();
}

struct Score {
  size_t exact = 0;
  size_t agrees = 0;  // with the baseline
  double seconds = 0.0;
};

// Fills *texts, which are then the baseline, if it is empty; else compares with it.
Status Evaluate(const Model& model, Precision precision, const Decoding& decoding,
                const std::vector<Pair>& pairs, std::vector<std::string>* baseline, Score* score,
                std::string* tier) {
  Translator translator;
  Status status = Translator::Create(model, precision, &translator, decoding);
  if (!status.ok()) return status;
  *tier = translator.tier();
  std::vector<std::string> english;
  english.reserve(pairs.size());
  for (const Pair& pair : pairs) english.push_back(pair.english);
  const bool fills = baseline->empty();
  const auto start = std::chrono::steady_clock::now();
  std::vector<Translator::Result> results;
  translator.TranslateAll(english, &results);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  score->seconds = elapsed.count();
  for (size_t i = 0; i < pairs.size(); ++i) {
    status = results[i].status;
    if (!status.ok()) {
      return Status::Error(status.code(), "line %zu: %s", i + 1, status.message());
    }
    const std::string& text = results[i].translation.text;
    if (text == pairs[i].french) ++score->exact;
    if (fills) baseline->push_back(text);
    if (text == (*baseline)[i]) ++score->agrees;
  }
  return Status();
}

double Percent(size_t part, size_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

double MinAgree(const Thresholds& thresholds, Precision precision) {
  if (precision == Precision::kF16) return thresholds.agree_f16;
  return precision == Precision::kI8 ? thresholds.agree_i8 : 0.0;
}

}  // namespace

int RunEvaluation(const Options& options, const Model& model, const Console& console) {
  std::vector<Pair> pairs;
  if (Status status = ReadPairs(options.evaluate, options.limit, &pairs); !status.ok()) {
    *console.err << "sightline_translate: " << options.evaluate << ": " << status.message() << '\n';
    return kFailure;
  }

  std::vector<Precision> precisions = options.precisions;
  if (precisions[0] != Precision::kF32) precisions.insert(precisions.begin(), Precision::kF32);
  int exit = kSuccess;
  const auto require = [&](Precision precision, const char* what, double percent, double min) {
    if (percent >= min) return;
    *console.err << "sightline_translate: " << Name(precision) << ' ' << what << " is " << percent
                 << " %, must be " << min << " %\n";
    exit = kFailure;
  };

  std::vector<std::string> baseline;
  for (const Precision precision : precisions) {
    Score score;
    std::string tier;
    Status status = Evaluate(model, precision, options.decoding, pairs, &baseline, &score, &tier);
    if (!status.ok()) {
      *console.err << "sightline_translate: " << options.evaluate << ": " << status.message()
                   << '\n';
      return kFailure;
    }
    const double exact = Percent(score.exact, pairs.size());
    const double agrees = Percent(score.agrees, pairs.size());
    const double speed = static_cast<double>(pairs.size()) / score.seconds;
    char line[192];
    snprintf(line, sizeof(line),
             "%-4s %zu sentences: %zu exact (%.1f %%), %zu as f32 (%.1f %%), %.2f s, "
             "%.0f sentences/s, tier %s\n",
             Name(precision), pairs.size(), score.exact, exact, score.agrees, agrees, score.seconds,
             speed, tier.c_str());
    *console.out << line << std::flush;
    if (precision == Precision::kF32) require(precision, "exact", exact, options.thresholds.exact);
    require(precision, "as f32", agrees, MinAgree(options.thresholds, precision));
  }
  return exit;
}

}  // namespace translate
