// The sequences of a call: which queries and which keys belong together. A padded batch has one for
// each batch entry of K and V, a ragged one as many as it says.
#ifndef SIGHTLINE_DISPATCH_SEQUENCES_H_
#define SIGHTLINE_DISPATCH_SEQUENCES_H_

#include <stddef.h>
#include <stdint.h>

namespace sightline {
namespace internal {

// Part of one batch entry of a tensor along its length.
struct TokenSpan {
  size_t batch;
  size_t begin;
  size_t count;
};

// The rows of every sequence in q, or in k and v.
struct SequenceSpans {
  size_t num_sequences;
  int64_t length;         // of the tensor
  const int32_t* indptr;  // ragged: [num_sequences + 1]; null: each sequence is a batch entry
  const int32_t* lens;    // [num_sequences]: so many are in use; null: all

  TokenSpan at(size_t sequence) const {
    TokenSpan span = {sequence, 0, static_cast<size_t>(length)};
    if (indptr != nullptr) {
      const size_t begin = static_cast<size_t>(indptr[sequence]);
      span = {0, begin, static_cast<size_t>(indptr[sequence + 1]) - begin};
    }
    if (lens != nullptr) span.count = static_cast<size_t>(lens[sequence]);
    return span;
  }

  // Of the longest sequence, padding included.
  size_t longest() const {
    if (indptr == nullptr) return static_cast<size_t>(length);
    int32_t longest = 0;
    for (size_t s = 0; s < num_sequences; ++s) {
      const int32_t count = indptr[s + 1] - indptr[s];
      if (count > longest) longest = count;
    }
    return static_cast<size_t>(longest);
  }
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_SEQUENCES_H_
