// One self-attention of 512 tokens, 8 heads of 64, as often as asked for: what
// count_instructions.py counts the instructions of, under QEMU.
//
//   attend PRECISION TIMES
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <iterator>
#include <vector>

#include "sightline/attention.h"
using namespace sightline;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  constexpr size_t kTokens = 512;
  constexpr size_t kHeads = 8;
  constexpr size_t kDims = 64;
  const char* const names[] = {"f32", "f16", "i8", "i8_fine", "bf16", "mixed16"};
  size_t index = 0;
  while (index < std::size(names) && strcmp(names[index], argv[1]) != 0) ++index;
  if (index == std::size(names)) return 2;

  // Scores differ, so that softmax has something to do.
  std::vector<float> x(kTokens * kHeads * kDims), out(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i * i % 10007));

  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = kDims;
  desc.max_q_len = desc.max_kv_len = kTokens;
  desc.precision = static_cast<Precision>(index);
  Plan plan;
  Status status = Plan::Create(desc, &plan);
  AttentionArgs args;
  args.q = args.k = args.v =
      ConstTensorView::Dense(x.data(), DType::kF32, 1, kTokens, kHeads, kDims);
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, kTokens, kHeads, kDims);
  for (int i = 0; i < atoi(argv[2]) && status.ok(); ++i) status = Run(plan, args);
  if (!status.ok()) {
    puts(status.message());
    return 1;
  }
  return 0;
}
