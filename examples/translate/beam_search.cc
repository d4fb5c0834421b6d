#include "beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

namespace translate {
namespace {

constexpr double kImpossible = -std::numeric_limits<double>::infinity();

bool HasLowerScore(const Hypothesis& a, const Hypothesis& b) { return a.score() < b.score(); }

}  // namespace

double Hypothesis::score() const {
  const size_t length = tokens.size() + (complete ? 1 : 0);
  return length == 0 ? 0.0 : log_probability / static_cast<double>(length);
}

BeamSearch::BeamSearch(size_t width, size_t max_len) : width_(width), max_len_(max_len), live_(1) {}

void BeamSearch::Continue(size_t parent, const float* logits, size_t vocabulary) {
  const float largest = *std::max_element(logits, logits + vocabulary);
  double sum = 0.0;
  for (size_t i = 0; i < vocabulary; ++i) sum += double{std::exp(logits[i] - largest)};
  const double log_sum = double{largest} + std::log(sum);

  // One more than go on, for one of them may be <eos>. Sorted, and of equal ones the first comes
  // first.
  const size_t most = std::min(width_ + 1, vocabulary);
  const size_t begin = candidates_.size();
  for (size_t i = 0; i < vocabulary; ++i) {
    double log_probability = live_[parent].log_probability + (double{logits[i]} - log_sum);
    if (std::isnan(log_probability)) log_probability = kImpossible;
    if (candidates_.size() == begin + most) {
      if (log_probability <= candidates_.back().log_probability) continue;
      candidates_.pop_back();
    }
    size_t at = candidates_.size();
    while (at > begin && candidates_[at - 1].log_probability < log_probability) --at;
    candidates_.insert(candidates_.begin() + static_cast<std::ptrdiff_t>(at),
                       {log_probability, parent, static_cast<Token>(i)});
  }
}

void BeamSearch::Advance(const float* logits, size_t vocabulary, std::vector<size_t>* parents) {
  candidates_.clear();
  for (size_t i = 0; i < live_.size(); ++i) Continue(i, logits + i * vocabulary, vocabulary);
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return std::make_tuple(-a.log_probability, a.parent, a.token) <
           std::make_tuple(-b.log_probability, b.parent, b.token);
  });

  std::vector<Hypothesis> next;
  parents->clear();
  for (size_t rank = 0; rank < candidates_.size() && next.size() < width_; ++rank) {
    const Candidate& candidate = candidates_[rank];
    const bool complete = candidate.token == kEos;
    if (complete && rank >= width_) continue;
    Hypothesis hypothesis = live_[candidate.parent];
    hypothesis.log_probability = candidate.log_probability;
    hypothesis.complete = complete;
    if (complete) {
      finished_.push_back(std::move(hypothesis));
      continue;
    }
    hypothesis.tokens.push_back(candidate.token);
    next.push_back(std::move(hypothesis));
    parents->push_back(candidate.parent);
  }
  live_ = std::move(next);
  ++length_;
}

bool BeamSearch::done() const {
  if (length_ >= max_len_ || live_.empty() || finished_.size() >= width_) return true;
  // Log-probabilities only fall, and at best are spread over as many tokens as there can be.
  return !finished_.empty() &&
         best().score() >= live_[0].log_probability / static_cast<double>(max_len_);
}

const Hypothesis& BeamSearch::best() const {
  if (finished_.empty()) return live_[0];
  return *std::max_element(finished_.begin(), finished_.end(), HasLowerScore);
}

}  // namespace translate
