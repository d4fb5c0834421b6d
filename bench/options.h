// The command line.
#ifndef SIGHTLINE_BENCH_OPTIONS_H_
#define SIGHTLINE_BENCH_OPTIONS_H_

#include <string>

namespace sightline {
namespace bench {

struct Options {
  bool help = false;
  bool quick = false;
  bool peers = false;
  bool list = false;
  std::string filter;  // ECMAScript expression that matches somewhere in a row's name; "" = all
  std::string tier;    // "" = the active one, "all" = all that this CPU supports
  int threads = 1;
  std::string json;               // file to write; "" = none
  std::string models = "models";  // folder of model files
};

extern const char kUsage[];

// False, with *error set, if an argument is unknown, lacks its value or has one that is not
// allowed.
bool ParseOptions(int argc, const char* const* argv, Options* options, std::string* error);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_OPTIONS_H_
