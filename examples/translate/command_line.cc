#include "command_line.h"

#include <stdint.h>
#include <stdlib.h>

#include "demo.h"
#include "evaluate.h"
#include "model.h"

namespace translate {

using sightline::Precision;
using sightline::StatusCode;

namespace {

// Beyond them nothing becomes better or faster, and decoders allocate for as many.
constexpr long long kMaxBeams = 16;
constexpr long long kMaxBatch = 256;

constexpr char kHelp[] =
    R"(Translates English to French with a small transformer whose attention is Sightline's.

  sightline_translate                  some sentences that come with the program
  sightline_translate the car is red   these words as one sentence
  sightline_translate < sentences      one sentence a line; blank lines are skipped
  sightline_translate -                the same, waiting for the first line

  --precision P          f32, f16, bf16, mixed16, i8 or i8_fine; by default f32, f16 and i8, which are
                         compared
  --beam N               hypotheses that compete, 1 to 16; by default 1, which is greedy decoding
  --batch N              sentences decoded together, 1 to 256, when there are many: lines of
                         standard input are then read before the first is translated; by default 1
  --quiet                translations only, one a line, without pictures
  --model FOLDER         of weights.safetensors, vocab.en.txt and vocab.fr.txt
  --evaluate FILE        count exact translations of a file of "english<TAB>french" lines
  --limit N              evaluate the first N lines
  --min-exact PERCENT    fail if f32 translates fewer of them exactly
  --min-agree-f16 PERCENT, --min-agree-i8 PERCENT
                         fail if fewer translations are those of f32
  --help                 this text

SIGHTLINE_TIER=scalar, sse4, avx2, ... restricts the instructions used, NO_COLOR=1 the colours.
The model knows some hundred words. Exit status: 0, or 1 if anything failed, 2 for a wrong option.
)";

Status ParsePrecision(const std::string& text, std::vector<Precision>* precisions) {
  for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kBF16,
                                    Precision::kMixed16, Precision::kI8, Precision::kI8Fine}) {
    if (text != Name(precision)) continue;
    *precisions = {precision};
    return Status();
  }
  return Status::Error(StatusCode::kInvalidArgument,
                       "--precision is %.40s, must be f32, f16, bf16, mixed16, i8 or i8_fine",
                       text.c_str());
}

Status ParsePercent(const char* option, const std::string& text, double* percent) {
  char* end = nullptr;
  *percent = strtod(text.c_str(), &end);
  if (!text.empty() && *end == '\0' && *percent >= 0.0 && *percent <= 100.0) return Status();
  return Status::Error(StatusCode::kInvalidArgument, "%s is %.40s, must be 0 to 100", option,
                       text.c_str());
}

Status ParseCount(const char* option, const std::string& text, long long most, size_t* count) {
  char* end = nullptr;
  const long long value = strtoll(text.c_str(), &end, 10);
  if (!text.empty() && *end == '\0' && value >= 1 && value <= most) {
    *count = static_cast<size_t>(value);
    return Status();
  }
  return Status::Error(StatusCode::kInvalidArgument, "%s is %.40s, must be 1 to %lld", option,
                       text.c_str(), most);
}

// One that takes a value; false if there is no such option.
bool ParseOption(const std::string& name, const std::string& value, Options* options,
                 Status* status) {
  if (name == "--precision") {
    *status = ParsePrecision(value, &options->precisions);
  } else if (name == "--model") {
    options->folder = value;
  } else if (name == "--evaluate") {
    options->evaluate = value;
  } else if (name == "--limit") {
    *status = ParseCount("--limit", value, INT32_MAX, &options->limit);
  } else if (name == "--beam") {
    *status = ParseCount("--beam", value, kMaxBeams, &options->decoding.beams);
  } else if (name == "--batch") {
    *status = ParseCount("--batch", value, kMaxBatch, &options->decoding.batch);
  } else if (name == "--min-exact") {
    *status = ParsePercent("--min-exact", value, &options->thresholds.exact);
  } else if (name == "--min-agree-f16") {
    *status = ParsePercent("--min-agree-f16", value, &options->thresholds.agree_f16);
  } else if (name == "--min-agree-i8") {
    *status = ParsePercent("--min-agree-i8", value, &options->thresholds.agree_i8);
  } else {
    return false;
  }
  return true;
}

}  // namespace

Status ParseOptions(const std::vector<std::string>& args, Options* options) {
  bool only_words = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (only_words || arg.empty() || arg[0] != '-') {
      if (options->has_words) options->sentence += ' ';
      options->sentence += arg;
      options->has_words = true;
      continue;
    }
    if (arg == "--") {
      only_words = true;
    } else if (arg == "-") {
      options->read_in = true;
    } else if (arg == "--quiet") {
      options->quiet = true;
    } else if (arg == "--help" || arg == "-h") {
      options->help = true;
    } else {
      // --name value or --name=value
      const size_t equals = arg.find('=');
      const std::string name = arg.substr(0, equals);
      const bool has_value = equals != std::string::npos || i + 1 < args.size();
      std::string value;
      if (equals != std::string::npos) {
        value = arg.substr(equals + 1);
      } else if (has_value) {
        value = args[i + 1];
      }
      Status status;
      if (!ParseOption(name, value, options, &status)) {
        return Status::Error(StatusCode::kInvalidArgument, "no option %.60s; --help lists them",
                             arg.c_str());
      }
      if (!has_value) {
        return Status::Error(StatusCode::kInvalidArgument, "%s needs a value", name.c_str());
      }
      if (!status.ok()) return status;
      if (equals == std::string::npos) ++i;
    }
  }
  return Status();
}

int RunCommandLine(const std::vector<std::string>& args, const std::string& default_folder,
                   const Console& console) {
  Options options;
  options.folder = default_folder;
  if (Status status = ParseOptions(args, &options); !status.ok()) {
    *console.err << "sightline_translate: " << status.message() << '\n';
    return kUsage;
  }
  if (options.help) {
    *console.out << kHelp;
    return kSuccess;
  }
  Model model;
  if (Status status = LoadModel(options.folder, &model); !status.ok()) {
    *console.err << "sightline_translate: " << options.folder << '/' << status.message() << '\n';
    return kFailure;
  }
  return options.evaluate.empty() ? RunDemo(options, model, console)
                                  : RunEvaluation(options, model, console);
}

}  // namespace translate
