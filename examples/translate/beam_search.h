// Beam search: which hypotheses of a translation go on, given the decoder's logits. What goes with
// them, caches above all, is the caller's, who is told where each came from.
//
//   BeamSearch search(4, max_len);
//   while (!search.done()) {
//     ...                                              // a token more for each: search.last(i)
//     search.Advance(logits, vocabulary, &parents);    // [search.num_live(), vocabulary]
//     ...                                              // hypothesis i goes on from parents[i]
//   }
//   search.best().tokens
//
// Of all continuations of the live hypotheses the `width` likeliest go on. One that ends with <eos>
// and is among them has finished; its score is the mean log-probability of its tokens, <eos>
// included, or the longest would never win. The search is done when `width` have finished, or no
// live one can have a better score any more. A width of 1 is greedy decoding.
#ifndef EXAMPLES_TRANSLATE_BEAM_SEARCH_H_
#define EXAMPLES_TRANSLATE_BEAM_SEARCH_H_

#include <stddef.h>

#include <vector>

#include "vocabulary.h"

namespace translate {

struct Hypothesis {
  std::vector<Token> tokens;     // without <bos> and <eos>
  bool complete = false;         // ended with <eos>
  double log_probability = 0.0;  // of all tokens, <eos> included

  double score() const;
};

class BeamSearch {
 public:
  // At least 1 hypothesis, of at least 1 token, <eos> included.
  BeamSearch(size_t width, size_t max_len);

  // At first one, which has nothing but <bos>; then up to `width`, the likeliest first.
  size_t num_live() const { return live_.size(); }
  Token last(size_t i) const { return live_[i].tokens.empty() ? kBos : live_[i].tokens.back(); }

  // `logits` [num_live(), vocabulary] of the next tokens. (*parents)[i] is what the hypothesis that
  // is now live as number i was before. Among equals the earlier parent and the smaller token come
  // first; NaN counts as minus infinity.
  void Advance(const float* logits, size_t vocabulary, std::vector<size_t>* parents);

  bool done() const;
  // The finished hypothesis with the best score; the likeliest live one if none has finished.
  const Hypothesis& best() const;

 private:
  struct Candidate {
    double log_probability;
    size_t parent;
    Token token;
  };

  // Adds the likeliest continuations of one live hypothesis to candidates_.
  void Continue(size_t parent, const float* logits, size_t vocabulary);

  size_t width_;
  size_t max_len_;
  size_t length_ = 0;  // tokens of every live hypothesis
  std::vector<Hypothesis> live_;
  std::vector<Hypothesis> finished_;
  std::vector<Candidate> candidates_;
};

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_BEAM_SEARCH_H_
