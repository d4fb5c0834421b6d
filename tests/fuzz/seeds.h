// Inputs that a fuzzer begins with, written by the fuzzer itself.
#ifndef SIGHTLINE_TESTS_FUZZ_SEEDS_H_
#define SIGHTLINE_TESTS_FUZZ_SEEDS_H_

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

namespace sightline {
namespace testing {

// Into the FOLDER of the argument --write-seeds=FOLDER, if it is there. libFuzzer, which ignores
// it, reads its corpus later. Ends the program if a file cannot be written.
inline void WriteSeeds(const std::vector<std::vector<unsigned char>>& seeds, int argc,
                       const char* const* argv) {
  constexpr char kOption[] = "--write-seeds=";
  constexpr size_t kOptionLength = sizeof(kOption) - 1;
  for (int i = 1; i < argc; ++i) {
    if (strncmp(argv[i], kOption, kOptionLength) != 0) continue;
    for (size_t s = 0; s < seeds.size(); ++s) {
      const std::string path = std::string(argv[i] + kOptionLength) + "/seed-" + std::to_string(s);
      FILE* file = fopen(path.c_str(), "wb");
      if (file == nullptr || fwrite(seeds[s].data(), 1, seeds[s].size(), file) != seeds[s].size() ||
          fclose(file) != 0) {
        perror(path.c_str());
        exit(1);
      }
    }
  }
}

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_FUZZ_SEEDS_H_
