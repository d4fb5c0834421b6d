// File: sightline/alignment.h
// When each token was spoken: a path of tokens through frames that never goes back, along the
// weights of a cross-attention, by dynamic time warping (Sakoe & Chiba 1978). It is how Whisper
// finds the times of its words.
//
//   AlignmentArgs args;                                // 12 tokens, 6 heads, 200 frames
//   args.weights = ConstTensorView::Dense(weights, DType::kF32, 1, 12, 6, 200);
//   args.first_frame = first_frame;                    // int32_t[12]
//   Workspace workspace = {scratch, bytes};            // at least AlignmentWorkspaceBytes(args)
//   Status status = Align(args, workspace);            // token i begins at frame first_frame[i]
//
// Formula, and how Whisper's steps translate: docs/alignment.md.
#ifndef SIGHTLINE_ALIGNMENT_H_
#define SIGHTLINE_ALIGNMENT_H_

#include <stddef.h>
#include <stdint.h>

#include "sightline/attention.h"
#include "sightline/status.h"
#include "sightline/tensor.h"

namespace sightline {

// A cell of the path. Tokens count from the first that is aligned.
struct AlignmentStep {
  int32_t token;
  int32_t frame;
};

// One call's tensors and options. `aligned` tokens are those that skip_first and skip_last leave.
struct AlignmentArgs {
  // [batch, tokens, heads, frames] of any element type: attention weights of the heads that follow
  // what is spoken. What is not finite counts as 0.
  ConstTensorView weights;

  // Tokens at either end that take part in the mean and deviation below, but not in the path:
  // Whisper's prompt and its last token.
  int64_t skip_first = 0;
  int64_t skip_last = 0;  // together at most all of them

  // Makes the weights of each frame and head have mean 0 and deviation 1 over all tokens, so that
  // frames that every token looks at do not attract the path. Equal weights become 0.
  bool standardize = true;
  // Then takes the median of so many neighbouring frames: odd, 1 to kMaxMedianWidth; 1 = off.
  int64_t median_width = 7;
  static constexpr int64_t kMaxMedianWidth = 31;

  int32_t* first_frame = nullptr;  // [batch, aligned]: where the path enters each token

  // Optional, both or none: the path itself, from {0, 0} to {aligned - 1, frames - 1}. Room for
  // aligned + frames - 1 steps per batch entry, of which path_lens says how many are written.
  AlignmentStep* path = nullptr;  // [batch, aligned + frames - 1]
  int64_t* path_lens = nullptr;   // [batch]; 0 where no token is aligned
};

// Bytes of workspace that Align needs: 4 for each aligned token and frame, 20 for each frame and
// 4 * (median_width - 1). Looks at the shape of `weights` and the options alone; 0 for those that
// Align refuses.
size_t AlignmentWorkspaceBytes(const AlignmentArgs& args);

// Aligns batch entry after batch entry, in time proportional to the weights. Re-entrant; allocates
// nothing. Outputs and workspace must not share memory with each other or with the weights. On
// error, which is always kInvalidArgument, nothing is written.
Status Align(const AlignmentArgs& args, const Workspace& workspace);

}  // namespace sightline

#endif  // SIGHTLINE_ALIGNMENT_H_
