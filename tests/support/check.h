// Catch2 matchers of the tests: what fails says which element is worst, what it is and what it
// should be.
#ifndef SIGHTLINE_TESTS_SUPPORT_CHECK_H_
#define SIGHTLINE_TESTS_SUPPORT_CHECK_H_

#include <catch2/catch_test_macros.hpp>
#include <catch2/catch_tostring.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_templated.hpp>
#include <string>
#include <vector>

#include "sightline/status.h"
#include "support/problem.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

const char* Name(StatusCode code);

// Relative L2 error and cosine of `out` against `exact`, over all elements.
struct Error {
  double relative_l2 = 0.0;
  double cosine = 0.0;
};
Error ErrorOf(const Tensor& out, const std::vector<double>& exact);

class IsOk : public Catch::Matchers::MatcherBase<Status> {
 public:
  bool match(const Status& status) const override { return status.ok(); }
  std::string describe() const override { return "is ok"; }
};

// The code, a message with `name` as a word of its own in it, and room for no more than it
// promises.
class IsError : public Catch::Matchers::MatcherBase<Status> {
 public:
  IsError(StatusCode code, std::string name) : code_(code), name_(std::move(name)) {}
  bool match(const Status& status) const override;
  std::string describe() const override;

 private:
  StatusCode code_;
  std::string name_;
};

// Every element within the tolerance plus the rounding of its type; NaN exactly where NaN is
// expected. An infinite tolerance allows anything. i8 saturates, and has 0 for NaN.
class IsClose : public Catch::Matchers::MatcherBase<Tensor> {
 public:
  explicit IsClose(const Expected& expected) : expected_(expected) {}
  bool match(const Tensor& out) const override;
  std::string describe() const override;

 private:
  const Expected& expected_;
  mutable std::string worst_;
};

// The same bits everywhere.
class Equals : public Catch::Matchers::MatcherBase<Tensor> {
 public:
  explicit Equals(const Tensor& expected) : expected_(expected) {}
  bool match(const Tensor& out) const override;
  std::string describe() const override;

 private:
  const Tensor& expected_;
  mutable std::string first_;
};

// Checks the output, and lse where the case asks for it, in all precisions and on all tiers that
// can afford the case.
void CheckEverywhere(const Problem& problem, Source source = Source::kTensors);

}  // namespace testing
}  // namespace sightline

namespace Catch {
template <>
struct StringMaker<sightline::testing::Tensor> {
  static std::string convert(const sightline::testing::Tensor& t) { return t.ToString(); }
};
template <>
struct StringMaker<sightline::Status> {
  static std::string convert(const sightline::Status& status) {
    return std::string(sightline::testing::Name(status.code())) + " \"" + status.message() + "\"";
  }
};
}  // namespace Catch

#endif  // SIGHTLINE_TESTS_SUPPORT_CHECK_H_
