#include "support/check.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "support/numeric.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

bool IsWordCharacter(char c) { return isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

bool HasWord(const std::string& text, const std::string& word) {
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || !IsWordCharacter(text[at - 1])) &&
        (end == text.size() || !IsWordCharacter(text[end]))) {
      return true;
    }
  }
  return false;
}

// "[0, 16, 1, 3]"
std::string IndexString(const Dims& n, size_t i) {
  const int64_t at = static_cast<int64_t>(i);
  const int64_t d = at % n.dim;
  const int64_t h = at / n.dim % n.heads;
  const int64_t l = at / (n.dim * n.heads) % n.length;
  const int64_t b = at / (n.dim * n.heads * n.length);
  return "[" + std::to_string(b) + ", " + std::to_string(l) + ", " + std::to_string(h) + ", " +
         std::to_string(d) + "]";
}

}  // namespace

const char* Name(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "kOk";
    case StatusCode::kInvalidArgument:
      return "kInvalidArgument";
    case StatusCode::kUnsupported:
      return "kUnsupported";
    case StatusCode::kOutOfMemory:
      return "kOutOfMemory";
    case StatusCode::kCapacityExceeded:
      return "kCapacityExceeded";
    case StatusCode::kBusy:
      return "kBusy";
    case StatusCode::kIoError:
      return "kIoError";
    case StatusCode::kCorrupt:
      return "kCorrupt";
  }
  return "?";
}

Error ErrorOf(const Tensor& out, const std::vector<double>& exact) {
  const std::vector<double> actual = out.ToDoubles();
  double difference = 0.0, dot = 0.0, norm_actual = 0.0, norm_exact = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (actual[i] - exact[i]) * (actual[i] - exact[i]);
    dot += actual[i] * exact[i];
    norm_actual += actual[i] * actual[i];
    norm_exact += exact[i] * exact[i];
  }
  return {sqrt(difference / norm_exact), dot / sqrt(norm_actual * norm_exact)};
}

bool IsError::match(const Status& status) const {
  return status.code() == code_ && HasWord(status.message(), name_) &&
         strlen(status.message()) < static_cast<size_t>(Status::kMaxMessageBytes);
}

std::string IsError::describe() const {
  return std::string("is ") + Name(code_) + " and names " + name_;
}

bool IsClose::match(const Tensor& out) const {
  const std::vector<double> actual = out.ToDoubles();
  const std::vector<double> scales = out.Scales();
  if (actual.size() != expected_.value.size()) {
    worst_ = ": other size";
    return false;
  }
  // The largest error in units of its tolerance; a misplaced NaN is worse than any number.
  double worst = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    double value = expected_.value[i];
    if (out.dtype() == DType::kI8) {
      const double largest = 127.0 * scales[i];
      value = isnan(value) ? 0.0 : std::clamp(value, -largest, largest);
    }
    const double allowed =
        expected_.tolerance[i] +
        StorageError(out.dtype(), fabs(value) + expected_.tolerance[i], scales[i]);
    double excess = fabs(actual[i] - value) / allowed;
    if (isnan(value) || isnan(actual[i])) {
      excess = isnan(value) && isnan(actual[i]) ? 0.0 : HUGE_VAL;
    } else if (actual[i] == value) {
      excess = 0.0;  // also where no error is allowed
    }
    if (expected_.tolerance[i] == HUGE_VAL) excess = 0.0;
    if (excess <= worst) continue;
    worst = excess;
    char text[160];
    snprintf(text, sizeof(text), ": actual %.9g, expected %.9g, error %.3g, allowed %.3g",
             actual[i], value, fabs(actual[i] - value), allowed);
    worst_ = " at " + IndexString(expected_.dims, i) + text;
  }
  return worst <= 1.0;
}

std::string IsClose::describe() const { return "is within its tolerance; worst" + worst_; }

bool Equals::match(const Tensor& out) const {
  if (SameBits(out, expected_)) return true;
  const std::vector<double> actual = out.ToDoubles();
  const std::vector<double> expected = expected_.ToDoubles();
  for (size_t i = 0; i < actual.size() && actual.size() == expected.size(); ++i) {
    if (memcmp(&actual[i], &expected[i], sizeof(double)) == 0) continue;
    char text[100];
    snprintf(text, sizeof(text), ": actual %.9g, expected %.9g", actual[i], expected[i]);
    first_ = " at " + IndexString(out.dims(), i) + text;
    break;
  }
  return false;
}

std::string Equals::describe() const { return "has the same bits; first difference" + first_; }

void CheckEverywhere(const Problem& problem, Source source) {
  Expectations expectations(problem);
  INFO(problem.c.ToString() << ", source " << static_cast<int>(source));
  for (const Precision precision : kPrecisions) {
    for (const char* tier : TiersOf(precision)) {
      if (!IsAffordable(problem.c, tier) || !TakesTurn(tier)) continue;
      INFO("precision " << Name(precision) << ", tier " << tier);
      const Setup setup = {tier, precision, source};
      const Expected& expected = expectations(setup);
      Tensor lse;
      CHECK_THAT(Attend(problem, setup, &lse), IsClose(expected));
      if (problem.c.features.lse) CHECK_THAT(lse, IsClose(expected.Lse()));
    }
  }
}

}  // namespace testing
}  // namespace sightline
