// Every public header, and one attention whose result is known: all weights equal, the output is
// V's mean. On two threads of a pthreadpool, if there is one.
#include <sightline/attention.h>
#include <sightline/kv.h>
#include <sightline/parallel.h>
#include <sightline/status.h>
#include <sightline/tensor.h>
#include <sightline/tier.h>
#include <sightline/version.h>
#include <stdio.h>
#if defined(CONSUMER_HAS_POOL)
#include <pthreadpool.h>
#endif

namespace {

using sightline::ConstTensorView;
using sightline::DType;
using sightline::Status;

int Fail(const char* what, const Status& status) {
  fprintf(stderr, "%s: %s\n", what, status.message());
  return 1;
}

}  // namespace

int main() {
  constexpr int kKeys = 3;
  constexpr int kDim = 4;
  const float q[kDim] = {1, 2, 3, 4};
  const float k[kKeys * kDim] = {};
  const float v[kKeys * kDim] = {1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9};
  float out[kDim] = {};

  sightline::AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = 1;
  desc.head_dim = kDim;
  desc.max_workers = 2;
  sightline::Plan plan;
  if (Status status = sightline::Plan::Create(desc, &plan); !status.ok())
    return Fail("plan", status);

  sightline::CrossMemory memory;
  if (Status status = sightline::CrossMemory::Create(
          ConstTensorView::Dense(k, DType::kF32, 1, kKeys, 1, kDim),
          ConstTensorView::Dense(v, DType::kF32, 1, kKeys, 1, kDim), {}, &memory);
      !status.ok()) {
    return Fail("memory", status);
  }
  sightline::AttentionArgs args;
  args.q = ConstTensorView::Dense(q, DType::kF32, 1, 1, 1, kDim);
  args.memory = &memory;
  args.out = sightline::TensorView::Dense(out, DType::kF32, 1, 1, 1, kDim);
#if defined(CONSUMER_HAS_POOL)
  pthreadpool_t pool = pthreadpool_create(2);
#else
  pthreadpool* pool = nullptr;
#endif
  const sightline::ParallelFor parallel = sightline::ParallelForOn(pool);
  const size_t num_workers = pool != nullptr ? 2 : 1;
  if (parallel.num_workers != num_workers) {
    fprintf(stderr, "%zu workers, not %zu\n", parallel.num_workers, num_workers);
    return 1;
  }
  if (Status status = sightline::Run(plan, args, {}, parallel); !status.ok()) {
    return Fail("run", status);
  }
#if defined(CONSUMER_HAS_POOL)
  pthreadpool_destroy(pool);
#endif
  for (int d = 0; d < kDim; ++d) {
    const float error = out[d] - static_cast<float>(3 + d);
    if (error < -1e-5f || error > 1e-5f) {
      fprintf(stderr, "out[%d] is %f, not %d\n", d, static_cast<double>(out[d]), 3 + d);
      return 1;
    }
  }
  printf("Sightline %d.%d.%d on %s, %zu workers\n", SIGHTLINE_VERSION_MAJOR,
         SIGHTLINE_VERSION_MINOR, SIGHTLINE_VERSION_PATCH, plan.tier(), num_workers);
  return 0;
}
