// Where the keys of each sequence of a call come from: a stretch of tensors packed for the call, a
// memory or cache, or several of them one after the other.
#ifndef SIGHTLINE_DISPATCH_KEY_SOURCES_H_
#define SIGHTLINE_DISPATCH_KEY_SOURCES_H_

#include <stddef.h>
#include <stdint.h>

#include <algorithm>

#include "dispatch/kernel_table.h"
#include "dispatch/sequences.h"
#include "kv/packed_kv.h"
#include "sightline/attention.h"

namespace sightline {
namespace internal {

// Keys of one sequence that one kernel reads in one go.
struct KeyPart {
  const PrecisionKernels* kernels;
  const PackedShape* shape;
  const PackedOffsets* offsets;
  SequenceKeys keys;
  size_t first_head;  // the kv head of the sequence that they begin with
  size_t begin;       // keys of the sequence's other parts before it
  size_t width;       // its keys,
  size_t count;       // and how many of them may be seen: all or none
  const float* bias;  // [num_heads]; null: none
};

inline const PackedKv* PackedOf(const KvSegment& segment) {
  return segment.memory != nullptr ? KvAccess::Get(*segment.memory) : KvAccess::Get(*segment.cache);
}

inline bool HasSegments(const AttentionArgs& args) {
  return args.segments != nullptr || args.num_segments != 0 || args.num_segment_lists != 0;
}

class KeySources {
 public:
  // Of validated arguments, or as far as they are: q and out need not be.
  explicit KeySources(const AttentionArgs& args) {
    lens_ = args.kv_lens;
    if (args.memory != nullptr || args.cache != nullptr) {
      one_.memory = args.memory;
      one_.cache = args.cache;
      num_segments_ = 1;
    } else if (HasSegments(args)) {
      segments_ = args.segments;
      num_segments_ = static_cast<size_t>(args.num_segments);
      indptr_ = args.segment_indptr;
    } else {
      const int64_t batch = args.kv_indptr != nullptr ? args.num_sequences : args.k.batch;
      spans_ = {static_cast<size_t>(batch), args.k.length, args.kv_indptr, nullptr};
      num_sequences_ = spans_.num_sequences;
      are_tensors_ = true;
      return;
    }
    num_sequences_ = 1;
    if (indptr_ != nullptr) num_sequences_ = static_cast<size_t>(args.num_segment_lists);
    for (size_t i = 0; indptr_ == nullptr && i < num_segments_; ++i) {
      const int64_t batch = PackedOf(segment(i))->geometry().batch;
      if (batch != 1) num_sequences_ = static_cast<size_t>(batch);  // all have the same, or 1
    }
  }

  bool are_tensors() const { return are_tensors_; }
  size_t num_segments() const { return num_segments_; }
  const KvSegment& segment(size_t i) const { return segments_ == nullptr ? one_ : segments_[i]; }

  size_t num_sequences() const { return num_sequences_; }

  // Tensors: where the sequence's keys are in k and v.
  SequenceSpans spans() const {
    SequenceSpans spans = spans_;
    spans.lens = lens_;
    return spans;
  }

  // Segments of a sequence: [begin, end).
  size_t segments_begin(size_t sequence) const {
    return indptr_ == nullptr ? 0 : static_cast<size_t>(indptr_[sequence]);
  }
  size_t segments_end(size_t sequence) const {
    return indptr_ == nullptr ? num_segments_ : static_cast<size_t>(indptr_[sequence + 1]);
  }
  // Keys of one of them that are in use.
  SequenceKeys keys(size_t sequence, size_t i) const {
    const PackedKv& packed = *PackedOf(segment(i));
    SequenceKeys keys = packed.keys(packed.geometry().batch == 1 ? 0 : sequence);
    const int64_t kv_len = segment(i).kv_len;
    if (kv_len >= 0) keys.count = std::min(keys.count, static_cast<size_t>(kv_len));
    return keys;
  }

  // Keys of a sequence before kv_lens cuts them off, and after.
  size_t count_all(size_t sequence) const {
    if (are_tensors()) return spans_.at(sequence).count;
    size_t count = 0;
    for (size_t i = segments_begin(sequence); i < segments_end(sequence); ++i) {
      // A memory may be listed so often that 32 bits cannot count its keys.
      if (__builtin_add_overflow(count, keys(sequence, i).count, &count)) return SIZE_MAX;
    }
    return count;
  }
  size_t count(size_t sequence) const {
    return lens_ != nullptr ? static_cast<size_t>(lens_[sequence]) : count_all(sequence);
  }
  // Of the longest sequence, padding included.
  size_t longest() const {
    if (are_tensors()) return spans_.longest();
    size_t longest = 0;
    for (size_t s = 0; s < num_sequences_; ++s) longest = std::max(longest, count_all(s));
    return longest;
  }

 private:
  KvSegment one_;
  const KvSegment* segments_ = nullptr;  // null: one_
  size_t num_segments_ = 0;
  const int32_t* indptr_ = nullptr;
  SequenceSpans spans_ = {};
  const int32_t* lens_ = nullptr;
  size_t num_sequences_ = 0;
  bool are_tensors_ = false;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_KEY_SOURCES_H_
