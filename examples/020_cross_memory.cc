// The decoder of a speech model as Whisper is one: 1500 frames of an encoder, prepared once for all
// layers, and 5 beams that read them at every step, while their own caches are forked.
//
// What comes out is known. The recording is 15 words of 100 frames: a frame's key is its word's
// pattern of signs, its value the word's number, from 1. A beam that asks for a word by its pattern
// gets its number. Queries of self-attention are 0 and like all tokens alike: a beam gets the mean
// of its own tokens, so that it would be noticed if it had another one's.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <vector>

#include "sightline/attention.h"
using namespace sightline;

namespace {

constexpr int64_t kLayers = 4, kHeads = 8, kDim = 64;
constexpr int64_t kFrames = 1500, kWordFrames = 100, kWords = kFrames / kWordFrames;
constexpr int64_t kBeams = 5, kSteps = 8;
constexpr size_t kRow = kHeads * kDim;

// Rows of all heads, [batch, length, kHeads, kDim].
struct Tensor {
  Tensor(int64_t b, int64_t n) : batch(b), length(n), data(static_cast<size_t>(b * n) * kRow) {}
  TensorView View() {
    return TensorView::Dense(data.data(), DType::kF32, batch, length, kHeads, kDim);
  }
  void Fill(size_t row, float x) { std::fill_n(&data[row * kRow], kRow, x); }
  void FillSigns(size_t row, int64_t word, int64_t layer, float x) {
    uint32_t state = static_cast<uint32_t>(word * kLayers + layer + 1) * 2654435761u;
    for (size_t c = 0; c < kRow; ++c) {
      state = state * 1664525u + 1013904223u;
      data[row * kRow + c] = (state >> 31) != 0 ? x : -x;
    }
  }
  float First(size_t row) const { return data[row * kRow]; }

  int64_t batch, length;
  std::vector<float> data;
};

void Must(const Status& status) {
  if (status.ok()) return;
  puts(status.message());
  exit(1);
}

// Packs the encoder's output for every layer: what any number of steps and beams will read.
void Encode(CrossMemorySet* memories) {
  CrossMemoryDesc desc;
  desc.kv_len = kFrames;
  desc.num_kv_heads = kHeads;
  desc.head_dim = kDim;
  desc.format.precision = Precision::kI8;
  Must(CrossMemorySet::Create(desc, kLayers, memories));
  Tensor k(1, kFrames), v(1, kFrames);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (size_t frame = 0; frame < kFrames; ++frame) {
      const int64_t word = static_cast<int64_t>(frame) / kWordFrames;
      k.FillSigns(frame, word, layer, 1.0f);
      v.Fill(frame, static_cast<float>(word + 1));
    }
    Must(memories->Fill(layer, k.View(), v.View()));
  }
  printf("encoder: %zu KiB in int8 for %d layers, %zu KiB in f32\n", memories->bytes() / 1024,
         static_cast<int>(kLayers), 2 * k.data.size() * size_t{kLayers} * sizeof(float) / 1024);
}

Plan PlanFor(bool causal) {
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = kDim;
  desc.max_batch = kBeams;
  desc.causal = causal;
  desc.precision = Precision::kI8;
  Plan plan;
  Must(Plan::Create(desc, &plan));
  return plan;
}

// Whether everything is as expected.
bool Decode(const CrossMemorySet& memories) {
  const Plan self_plan = PlanFor(true), cross_plan = PlanFor(false);
  KvCacheDesc desc;
  desc.batch = kBeams;
  desc.num_kv_heads = kHeads;
  desc.head_dim = kDim;
  desc.capacity = 448;
  desc.format.precision = Precision::kI8;
  std::array<KvCache, kLayers> caches;
  for (KvCache& cache : caches) Must(KvCache::Create(desc, &cache));

  bool ok = true;
  Tensor q(kBeams, 1), k(kBeams, 1), v(kBeams, 1), out(kBeams, 1);
  std::array<float, kBeams> sums = {};  // of the tokens of every beam
  std::vector<float> lse(kBeams * kHeads), weights(kBeams * kFrames);
  for (int64_t step = 0; step < kSteps; ++step) {
    // From which of the hypotheses before each of the best ones now goes on.
    const int32_t parents[kBeams] = {static_cast<int32_t>(step % kBeams), 4, 0, 0, 2};
    const std::array<float, kBeams> old_sums = sums;
    for (size_t b = 0; b < kBeams; ++b) {
      const float token = static_cast<float>(static_cast<int64_t>(b) * 10 + step);
      v.Fill(b, token);
      sums[b] = old_sums[static_cast<size_t>(parents[b])] + token;
    }
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      KvCache& cache = caches[static_cast<size_t>(layer)];
      Must(cache.Reorder(parents, kBeams));
      Must(cache.Append(k.View(), v.View()));
      for (size_t b = 0; b < kBeams; ++b) q.Fill(b, 0.0f);
      AttentionArgs self;
      self.q = q.View();
      self.cache = &cache;
      self.out = out.View();
      Must(Run(self_plan, self));
      for (size_t b = 0; b < kBeams; ++b) {
        ok &= fabsf(out.First(b) - sums[b] / static_cast<float>(step + 1)) < 0.3f;
      }

      // Beam b asks for the word b places after that of the step.
      for (size_t b = 0; b < kBeams; ++b) {
        q.FillSigns(b, (step + static_cast<int64_t>(b)) % kWords, layer, 4.0f);
      }
      const CrossMemory memory = memories.layer(layer);
      const int32_t alignment_head = 3;
      AttentionArgs cross;
      cross.q = q.View();
      cross.memory = &memory;  // of one sequence: all beams share each load of K and V
      cross.out = out.View();
      if (layer == kLayers - 1) {  // what alignment of words with frames is made from
        cross.lse = TensorView::Dense(lse.data(), DType::kF32, kBeams, 1, kHeads, 1);
        cross.weights.heads = &alignment_head;
        cross.weights.num_heads = 1;
        cross.weights.out = TensorView::Dense(weights.data(), DType::kF32, kBeams, 1, 1, kFrames);
      }
      Must(Run(cross_plan, cross));
      for (size_t b = 0; b < kBeams; ++b) {
        const int64_t word = (step + static_cast<int64_t>(b)) % kWords + 1;
        ok &= fabsf(out.First(b) - static_cast<float>(word)) < 0.1f;
      }
    }
    size_t first = 0, last = kFrames - 1;  // with more than a thousandth of the best beam's weight
    while (first < last && weights[first] < 0.001f) ++first;
    while (first < last && weights[last] < 0.001f) --last;
    ok &= first == static_cast<size_t>(step) * kWordFrames && last == first + kWordFrames - 1;
    printf("step %d: the best beam hears word %.2f, in frames %zu to %zu\n", static_cast<int>(step),
           double{out.First(0)}, first, last);
  }
  return ok;
}

}  // namespace

int main() {
  CrossMemorySet memories;
  Encode(&memories);
  return Decode(memories) ? 0 : 1;
}
