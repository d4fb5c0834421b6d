// The file that K and V are saved to, as bytes.
#ifndef SIGHTLINE_TESTS_SUPPORT_SAVED_H_
#define SIGHTLINE_TESTS_SUPPORT_SAVED_H_

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

#include "sightline/kv_file.h"
#include "support/check.h"
#include "support/directory.h"

namespace sightline {
namespace testing {

template <class Kv>
Bytes SavedBytes(const Kv& kv) {
  const Directory directory;
  REQUIRE_THAT(Save(kv, (directory / "kv").c_str()), IsOk());
  CHECK(directory.Names() == std::vector<std::string>{"kv"});
  return ReadAll(directory / "kv");
}

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_SAVED_H_
