// The program without its main: options in, exit status out. Tests call it with streams of theirs.
#ifndef EXAMPLES_TRANSLATE_COMMAND_LINE_H_
#define EXAMPLES_TRANSLATE_COMMAND_LINE_H_

#include <stddef.h>

#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "sightline/status.h"
#include "sightline/tensor.h"
#include "translator.h"

namespace translate {

using sightline::Status;

// Where a program reads and writes.
struct Console {
  std::istream* in = nullptr;
  std::ostream* out = nullptr;
  std::ostream* err = nullptr;
  bool colour = false;              // of what is drawn on `out`
  bool (*in_has_text)() = nullptr;  // whether `in` is worth reading unasked
};

enum ExitStatus : int {
  kSuccess = 0,
  kFailure = 1,  // of a sentence, a file, a threshold
  kUsage = 2,
};

// Lowest accepted shares in percent; 0 accepts everything.
struct Thresholds {
  double exact = 0.0;  // of f32
  double agree_f16 = 0.0;
  double agree_i8 = 0.0;
};

struct Options {
  std::string folder;  // of the model
  std::vector<sightline::Precision> precisions = {
      sightline::Precision::kF32, sightline::Precision::kF16, sightline::Precision::kI8};
  Decoding decoding;
  bool quiet = false;
  bool help = false;
  bool read_in = false;  // sentences are on standard input, however long they take to come
  std::string sentence;  // the words of the command line, if there are any
  bool has_words = false;
  std::string evaluate;  // a file, or ""
  size_t limit = 0;      // sentences to evaluate; 0 = all
  Thresholds thresholds;
};

// `args` without the program's name. On error the message names the option.
Status ParseOptions(const std::vector<std::string>& args, Options* options);

int RunCommandLine(const std::vector<std::string>& args, const std::string& default_folder,
                   const Console& console);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_COMMAND_LINE_H_
