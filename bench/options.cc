#include "bench/options.h"

#include <stdlib.h>

#include <regex>

namespace sightline {
namespace bench {

const char kUsage[] =
    R"(Measures attention on this CPU, beside what the CPU can do at best.

  --quick         each op and precision once, in less than a minute
  --filter REGEX  only rows whose name matches, for example 'decode_.*/i8' or 'gpt2|llama'
  --tier T        a tier of this CPU, or "all"; otherwise the best, or that of SIGHTLINE_TIER
  --threads N     with so many threads instead of one
  --json FILE     writes everything to FILE, for ./run report
  --peers         other libraries too, if this program was built with them
  --models DIR    the folder that describes the models, by default "models" here or beside the program
  --list          prints the names of the rows and measures nothing

docs/benchmarking.md explains the columns.
)";

bool ParseOptions(int argc, const char* const* argv, Options* options, std::string* error) {
  constexpr int kMaxThreads = 1024;
  Options result;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string flag = arg.substr(0, equals);
    bool* const toggle = flag == "--quick"                  ? &result.quick
                         : flag == "--peers"                ? &result.peers
                         : flag == "--list"                 ? &result.list
                         : flag == "--help" || flag == "-h" ? &result.help
                                                            : nullptr;
    if (toggle != nullptr) {
      if (equals != std::string::npos) {
        *error = flag + " takes no value";
        return false;
      }
      *toggle = true;
      continue;
    }
    std::string threads;
    std::string* const text = flag == "--filter"    ? &result.filter
                              : flag == "--tier"    ? &result.tier
                              : flag == "--json"    ? &result.json
                              : flag == "--models"  ? &result.models
                              : flag == "--threads" ? &threads
                                                    : nullptr;
    if (text == nullptr) {
      *error = "unknown argument '" + arg + "'; --help lists what there is";
      return false;
    }
    if (equals != std::string::npos) {
      *text = arg.substr(equals + 1);
    } else if (i + 1 < argc) {
      *text = argv[++i];
    }
    if (text->empty() || text->rfind("--", 0) == 0) {
      *error = flag + " needs a value";
      return false;
    }
    if (text == &threads) {
      char* end = nullptr;
      const long count = strtol(threads.c_str(), &end, 10);
      if (*end != '\0' || count < 1 || count > kMaxThreads) {
        *error = "--threads '" + threads + "' is no number from 1 to 1024";
        return false;
      }
      result.threads = static_cast<int>(count);
    }
  }
  try {
    static_cast<void>(std::regex(result.filter));
  } catch (const std::regex_error& e) {
    *error = "--filter '" + result.filter + "' is no regular expression: " + e.what();
    return false;
  }
  *options = result;
  return true;
}

}  // namespace bench
}  // namespace sightline
