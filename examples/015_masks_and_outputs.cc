// What T5, Mistral and Whisper add to attention: an encoder's ragged batch with a bias by distance,
// a decoder's causal window with a softcap, and a cross-attention's weights of two heads, along
// which tokens are aligned with frames.
//
// What comes out is known. The first two have queries of 0, which like all keys alike, and a key's
// value is its position: rows are means of the positions that they see, weighted by the bias.
#include <math.h>
#include <stdio.h>

#include <vector>

#include "sightline/alignment.h"
#include "sightline/attention.h"
using namespace sightline;

namespace {

constexpr int64_t kHeads = 4;
constexpr int64_t kDim = 16;

struct Tensor {  // [1, length, kHeads, kDim] of zeros
  explicit Tensor(int64_t n) : length(n), data(static_cast<size_t>(n * kHeads * kDim)) {}
  TensorView View() { return TensorView::Dense(data.data(), DType::kF32, 1, length, kHeads, kDim); }
  float& At(int64_t i, int64_t h, int64_t d) {
    return data[static_cast<size_t>((i * kHeads + h) * kDim + d)];
  }
  void SetRow(int64_t i, int64_t x) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t d = 0; d < kDim; ++d) At(i, h, d) = static_cast<float>(x);
    }
  }

  int64_t length;
  std::vector<float> data;
};

Status Attend(AttentionDesc desc, AttentionArgs args, Tensor& q, Tensor& k, Tensor& v,
              Tensor& out) {
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = kDim;
  desc.max_q_len = q.length;
  desc.max_kv_len = k.length;
  Plan plan;
  Status status = Plan::Create(desc, &plan);
  args.q = q.View();
  args.k = k.View();
  args.v = v.View();
  args.out = out.View();
  return status.ok() ? Run(plan, args) : status;
}

// Sequences of 3 and 5 tokens; a key weighs three times as much where it is the query's own.
Status Encode() {
  const int32_t indptr[] = {0, 3, 8};
  Tensor q(8), k(8), v(8), out(8);
  for (int64_t i = 0; i < 8; ++i) v.SetRow(i, i < 3 ? i : i - 3);
  std::vector<float> table(32 * kHeads);  // bucket 0 is that of distance 0
  for (size_t h = 0; h < kHeads; ++h) table[h] = logf(3.0f);

  AttentionDesc desc;
  desc.max_batch = 2;
  desc.scale = 1.0f;
  desc.relative_buckets = {32, 128, true};
  AttentionArgs args;
  args.num_sequences = 2;
  args.q_indptr = args.kv_indptr = indptr;
  args.relative_bias = table.data();
  const Status status = Attend(desc, args, q, k, v, out);
  printf("encoder: %.2f %.2f, expected 0.60 1.43\n", double{out.At(0, 0, 0)},
         double{out.At(3, 0, 0)});
  return status;
}

// 8 tokens, of which each sees itself and three before it.
Status Decode() {
  Tensor q(8), k(8), v(8), out(8);
  for (int64_t i = 0; i < 8; ++i) v.SetRow(i, i);
  AttentionDesc desc;
  desc.causal = true;
  desc.window_left = 3;
  desc.softcap = 50.0f;
  const Status status = Attend(desc, {}, q, k, v, out);
  printf("decoder: %.2f %.2f, expected 0.50 5.50\n", double{out.At(1, 0, 0)},
         double{out.At(7, 0, 0)});
  return status;
}

// 4 tokens over 12 frames, three for each; heads 1 and 3 look at them.
Status AlignTokens() {
  Tensor q(4), k(12), v(12), out(4);
  const int32_t heads[] = {1, 3};
  for (const int32_t head : heads) {
    for (int64_t i = 0; i < 4; ++i) q.At(i, head, i) = 16.0f;
    for (int64_t f = 0; f < 12; ++f) k.At(f, head, f / 3) = 1.0f;
  }
  float lse[4 * kHeads], weights[4 * 2 * 12];
  AttentionArgs args;
  args.lse = TensorView::Dense(lse, DType::kF32, 1, 4, kHeads, 1);
  args.weights.heads = heads;
  args.weights.num_heads = 2;
  args.weights.out = TensorView::Dense(weights, DType::kF32, 1, 4, 2, 12);
  Status status = Attend({}, args, q, k, v, out);
  if (!status.ok()) return status;

  int32_t first_frame[4];
  alignas(Workspace::kAlignmentBytes) unsigned char scratch[1024];
  AlignmentArgs alignment;
  alignment.weights = args.weights.out;
  alignment.median_width = 1;
  alignment.first_frame = first_frame;
  status = Align(alignment, {scratch, sizeof(scratch)});
  if (!status.ok()) return status;
  printf("tokens begin at frames %d %d %d %d, expected 0 3 6 9\n", static_cast<int>(first_frame[0]),
         static_cast<int>(first_frame[1]), static_cast<int>(first_frame[2]),
         static_cast<int>(first_frame[3]));
  return status;
}

}  // namespace

int main() {
  for (const auto part : {Encode, Decode, AlignTokens}) {
    const Status status = part();
    if (!status.ok()) {
      puts(status.message());
      return 1;
    }
  }
  return 0;
}
