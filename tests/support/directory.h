// Files of tests.
#ifndef SIGHTLINE_TESTS_SUPPORT_DIRECTORY_H_
#define SIGHTLINE_TESTS_SUPPORT_DIRECTORY_H_

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

namespace sightline {
namespace testing {

using Bytes = std::vector<unsigned char>;

// A directory of the test's own, gone with all that is in it when the test ends.
class Directory {
 public:
  Directory() {
    const char* base = getenv("TMPDIR");
    path_ = std::string(base != nullptr ? base : "/tmp") + "/sightline_test_XXXXXX";
    REQUIRE(mkdtemp(path_.data()) != nullptr);
  }
  ~Directory() {
    for (const std::string& name : Names()) {
      if (unlink((*this / name).c_str()) != 0) rmdir((*this / name).c_str());
    }
    rmdir(path_.c_str());
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    DIR* directory = opendir(path_.c_str());
    while (const dirent* entry = directory == nullptr ? nullptr : readdir(directory)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (directory != nullptr) closedir(directory);
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::string path_;
};

inline Bytes ReadAll(const std::string& path) {
  Bytes bytes;
  FILE* file = fopen(path.c_str(), "rb");
  REQUIRE(file != nullptr);
  unsigned char buffer[4096];
  while (const size_t count = fread(buffer, 1, sizeof(buffer), file)) {
    bytes.insert(bytes.end(), buffer, buffer + count);
  }
  fclose(file);
  return bytes;
}

inline void WriteAll(const std::string& path, const Bytes& bytes) {
  unlink(path.c_str());  // ext4 brings a file that was emptied and filled to the disk at once
  FILE* file = fopen(path.c_str(), "wb");
  REQUIRE(file != nullptr);
  REQUIRE(fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  REQUIRE(fclose(file) == 0);
}

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_DIRECTORY_H_
