// Align: attention weights to a path of tokens through frames.
//
// The heads of a batch entry are added up, one after the other, in a matrix of aligned tokens times
// frames; then its costs take its place, cell by cell, and the path is found from them backwards.
//
// Cost: the weights are read twice, once for mean and deviation, once to be added. A median of
// width 7 is 18 exchanges of vectors, half of the time or more. Memory: the matrix, 4 bytes per
// cell. Steps of the path are not stored: the way back compares the same costs again, for the
// tokens + frames cells it visits.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "dispatch/kernel_table.h"
#include "dispatch/validate.h"
#include "kv/prepare.h"
#include "quant/elements.h"
#include "sightline/alignment.h"

namespace sightline {
namespace internal {
namespace {

constexpr size_t kMaxWidth = static_cast<size_t>(AlignmentArgs::kMaxMedianWidth);

// Frames that are sorted side by side: 4 vectors of SSE or NEON, enough to hide the latency of
// minimum and maximum, and kMaxWidth of them stay in L1.
constexpr size_t kLanes = 16;

// What a valid call comes to, and its scratch.
struct Problem {
  Problem(const AlignmentArgs& args, const Workspace& workspace)
      : num_tokens(static_cast<size_t>(args.weights.length)),
        num_heads(static_cast<size_t>(args.weights.heads)),
        num_frames(static_cast<size_t>(args.weights.dim)),
        first(static_cast<size_t>(args.skip_first)),
        num_aligned(num_tokens - first - static_cast<size_t>(args.skip_last)),
        standardize(args.standardize),
        width(static_cast<size_t>(args.median_width)) {
    // There is nothing to reflect in a row that is no longer than the half of a window: as in
    // Whisper, it stays as it is.
    if (num_frames <= width / 2) width = 1;
    mean = static_cast<double*>(workspace.data);
    inverse_deviation = mean + num_frames;
    costs = reinterpret_cast<float*>(inverse_deviation + num_frames);
    row = costs + num_aligned * num_frames;
  }

  size_t num_tokens;
  size_t num_heads;
  size_t num_frames;
  size_t first;  // token that is aligned, and
  size_t num_aligned;
  bool standardize;
  size_t width;  // of the median

  double* mean;               // [num_frames]
  double* inverse_deviation;  // [num_frames]
  float* costs;               // [num_aligned, num_frames]: the sum over heads, then costs
  float* row;                 // [num_frames + width - 1]
};

// One NaN would reach every path: it is no evidence, like a weight of 0.
float WeightAt(const Row& row, size_t frame) {
  const float weight = LoadElement(row, frame);
  return isfinite(weight) ? weight : 0.0f;
}

// Mean and deviation of each frame over all tokens, in one pass. Differences are taken from the
// first token's weight: it is at most sqrt(num_tokens) deviations from the mean, so that their
// squares keep all digits that count, and weights that are all the same give exactly 0.
void FindStatistics(const Problem& p, const SourceRows& weights) {
  float* first = p.row;
  for (size_t f = 0; f < p.num_frames; ++f) first[f] = WeightAt(RowAt(weights, 0), f);
  double* sum = p.mean;
  double* sum_of_squares = p.inverse_deviation;
  std::fill_n(sum, p.num_frames, 0.0);
  std::fill_n(sum_of_squares, p.num_frames, 0.0);
  for (size_t token = 1; token < p.num_tokens; ++token) {
    const Row row = RowAt(weights, token);
    for (size_t f = 0; f < p.num_frames; ++f) {
      const double difference = double{WeightAt(row, f)} - double{first[f]};
      sum[f] += difference;
      sum_of_squares[f] += difference * difference;
    }
  }
  const double n = static_cast<double>(p.num_tokens);
  for (size_t f = 0; f < p.num_frames; ++f) {
    const double mean_difference = sum[f] / n;
    const double variance = sum_of_squares[f] / n - mean_difference * mean_difference;
    p.mean[f] = double{first[f]} + mean_difference;
    p.inverse_deviation[f] = variance > 0.0 ? 1.0 / sqrt(variance) : 0.0;
  }
}

// Of numbers that are to stay as they are.
void FillNeutralStatistics(const Problem& p) {
  std::fill_n(p.mean, p.num_frames, 0.0);
  std::fill_n(p.inverse_deviation, p.num_frames, 1.0);
}

// One token's weights to p.row, reflected at both ends: 2 1 [0 1 2 … n-1] n-2 n-3.
void LoadStandardized(const Problem& p, const Row& weights) {
  const size_t half = p.width / 2;
  float* row = p.row + half;
  for (size_t f = 0; f < p.num_frames; ++f) {
    const double difference = double{WeightAt(weights, f)} - p.mean[f];
    row[f] = static_cast<float>(difference * p.inverse_deviation[f]);
  }
  float* last = row + p.num_frames - 1;
  for (size_t i = 1; i <= half; ++i) {
    p.row[half - i] = row[i];
    last[i] = *(last - i);
  }
}

// Lane by lane. GCC makes vectors of std::min and std::max, but not of a comparison of our own.
void SortPair(float* low, float* high) {
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const float a = low[lane];
    const float b = high[lane];
    low[lane] = std::min(a, b);
    high[lane] = std::max(a, b);
  }
}

// Adds to each frame the median of its window: a bubble sort that stops once the upper half, and
// with it the middle, is in place.
void AddMedians(const Problem& p, float* sums) {
  const size_t middle = p.width / 2;
  float window[kMaxWidth][kLanes] = {};
  for (size_t begin = 0; begin < p.num_frames; begin += kLanes) {
    const size_t lanes = std::min(kLanes, p.num_frames - begin);
    for (size_t i = 0; i < p.width; ++i) {
      memcpy(window[i], p.row + begin + i, lanes * sizeof(float));
    }
    for (size_t end = p.width; end-- > middle;) {
      for (size_t i = 0; i < end; ++i) SortPair(window[i], window[i + 1]);
    }
    for (size_t lane = 0; lane < lanes; ++lane) sums[begin + lane] += window[middle][lane];
  }
}

void AddHead(const Problem& p, const SourceRows& weights) {
  if (p.standardize) {
    FindStatistics(p, weights);
  } else {
    FillNeutralStatistics(p);
  }
  for (size_t token = 0; token < p.num_aligned; ++token) {
    LoadStandardized(p, RowAt(weights, p.first + token));
    AddMedians(p, p.costs + token * p.num_frames);
  }
}

// How far the step into a cell went: 0 or 1 of each.
struct Step {
  size_t tokens;
  size_t frames;
};

// The step into a cell other than {0, 0}. Of three costs the smallest, ties as Whisper breaks them:
// if it is no single one of the first two, the token goes on, even where that costs more.
Step StepInto(const Problem& p, size_t token, size_t frame) {
  constexpr Step kBoth = {1, 1};
  constexpr Step kToken = {1, 0};
  constexpr Step kFrame = {0, 1};
  if (token == 0) return kFrame;
  if (frame == 0) return kToken;
  const float* above = p.costs + (token - 1) * p.num_frames + frame;
  const float both_cost = above[-1];
  const float token_cost = above[0];
  const float frame_cost = above[static_cast<ptrdiff_t>(p.num_frames) - 1];
  if (both_cost < token_cost && both_cost < frame_cost) return kBoth;
  if (token_cost < both_cost && token_cost < frame_cost) return kToken;
  return kFrame;
}

// From sums to the cost of the cheapest path into each cell, in f32 as in Whisper: minus the mean
// over heads, on top of the cell the path comes from.
void AccumulateCosts(const Problem& p) {
  const float num_heads = static_cast<float>(p.num_heads);
  for (size_t token = 0; token < p.num_aligned; ++token) {
    for (size_t frame = 0; frame < p.num_frames; ++frame) {
      float* cell = p.costs + token * p.num_frames + frame;
      *cell = -(*cell / num_heads);
      if (token == 0 && frame == 0) continue;
      const Step step = StepInto(p, token, frame);
      *cell += *(cell - step.tokens * p.num_frames - step.frames);
    }
  }
}

// Backwards from the last cell. The last frame written for a token is its first. Path may be null.
size_t FollowPath(const Problem& p, int32_t* first_frame, AlignmentStep* path) {
  size_t token = p.num_aligned - 1;
  size_t frame = p.num_frames - 1;
  size_t length = 0;
  for (;;) {
    const AlignmentStep step = {static_cast<int32_t>(token), static_cast<int32_t>(frame)};
    first_frame[token] = step.frame;
    if (path != nullptr) path[length] = step;
    ++length;
    if (token == 0 && frame == 0) break;
    const Step back = StepInto(p, token, frame);
    token -= back.tokens;
    frame -= back.frames;
  }
  if (path != nullptr) std::reverse(path, path + length);
  return length;
}

void AlignEntry(const Problem& p, const AlignmentArgs& args, size_t batch) {
  std::fill_n(p.costs, p.num_aligned * p.num_frames, 0.0f);
  for (size_t head = 0; head < p.num_heads; ++head) {
    AddHead(p, SourceRowsOf(args.weights, batch, head));
  }
  AccumulateCosts(p);
  AlignmentStep* path = args.path;
  if (path != nullptr) path += batch * (p.num_aligned + p.num_frames - 1);
  const size_t length = FollowPath(p, args.first_frame + batch * p.num_aligned, path);
  if (path != nullptr) args.path_lens[batch] = static_cast<int64_t>(length);
}

}  // namespace
}  // namespace internal

size_t AlignmentWorkspaceBytes(const AlignmentArgs& args) {
  if (!internal::ValidateAlignmentShape(args).ok()) return 0;
  const uint64_t num_frames = static_cast<uint64_t>(args.weights.dim);
  const uint64_t num_aligned =
      static_cast<uint64_t>(args.weights.length - args.skip_first - args.skip_last);
  if (args.weights.batch == 0 || num_aligned == 0) return 0;
  // Below 2^64 for counts up to kMaxCount.
  const uint64_t bytes_per_frame = 2 * sizeof(double) + (num_aligned + 1) * sizeof(float);
  const uint64_t median_bytes = static_cast<uint64_t>(args.median_width - 1) * sizeof(float);
  return internal::AddressableBytes(num_frames * bytes_per_frame + median_bytes);
}

Status Align(const AlignmentArgs& args, const Workspace& workspace) {
  const size_t needed_bytes = AlignmentWorkspaceBytes(args);
  if (Status status = internal::ValidateAlignment(args, workspace, needed_bytes); !status.ok()) {
    return status;
  }
  const size_t batch_size = static_cast<size_t>(args.weights.batch);
  if (needed_bytes == 0) {  // no token to align
    if (args.path_lens != nullptr) std::fill_n(args.path_lens, batch_size, 0);
    return Status();
  }
  const internal::Problem problem(args, workspace);
  for (size_t batch = 0; batch < batch_size; ++batch) internal::AlignEntry(problem, args, batch);
  return Status();
}

}  // namespace sightline
