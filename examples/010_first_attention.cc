// The smallest whole program: plan, run, print. Causal self-attention of 512 tokens, 8 heads of 64,
// with K and V held in int8.
//
// What comes out is known: all keys are alike, so each query takes the mean of the values that it
// sees. Token j's value is j; query i sees tokens 0 to i and gets i / 2, up to int8's rounding.
#include <stdio.h>

#include <vector>

#include "sightline/attention.h"
using namespace sightline;

int main() {
  constexpr size_t kTokens = 512;
  constexpr size_t kTokenSize = 8 * 64;
  const std::vector<float> q(kTokens * kTokenSize, 1.0f), k(kTokens * kTokenSize, 0.5f);
  std::vector<float> v, out(kTokens * kTokenSize);
  for (size_t token = 0; token < kTokens; ++token) {
    v.insert(v.end(), kTokenSize, static_cast<float>(token));
  }

  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = 8;
  desc.head_dim = 64;
  desc.max_q_len = desc.max_kv_len = 512;
  desc.causal = true;
  desc.precision = Precision::kI8;  // how K and V are held
  Plan plan;
  Status status = Plan::Create(desc, &plan);

  AttentionArgs args;  // any strides; f32, f16, bf16, or int8 with scales
  args.q = ConstTensorView::Dense(q.data(), DType::kF32, 1, 512, 8, 64);
  args.k = ConstTensorView::Dense(k.data(), DType::kF32, 1, 512, 8, 64);
  args.v = ConstTensorView::Dense(v.data(), DType::kF32, 1, 512, 8, 64);
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, 512, 8, 64);
  if (status.ok()) status = Run(plan, args);
  if (!status.ok()) {
    puts(status.message());
    return 1;
  }

  printf("tier %s\n", plan.tier());
  for (const unsigned i : {0u, 100u, 511u}) {
    printf("query %3u: %5.1f, expected %5.1f\n", i, double{out[i * kTokenSize]}, i / 2.0);
  }
  return 0;
}
