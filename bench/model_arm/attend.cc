// One attention of 8 heads of 64, as often as asked for: what count_instructions.py counts the
// instructions of, under QEMU.
//
//   attend self PRECISION TIMES     512 tokens to each other, K and V packed by each call
//   attend decode PRECISION TIMES   one query to 1500 keys that were packed before
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <iterator>
#include <vector>

#include "sightline/attention.h"
using namespace sightline;

namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kDims = 64;

ConstTensorView Tokens(const std::vector<float>& x, int64_t count) {
  return ConstTensorView::Dense(x.data(), DType::kF32, 1, count, kHeads, kDims);
}

Status Attend(bool decodes, Precision precision, int times) {
  const int64_t queries = decodes ? 1 : 512;
  const int64_t keys = decodes ? 1500 : 512;
  // Scores differ, so that softmax has something to do.
  std::vector<float> x(static_cast<size_t>(keys * kHeads * kDims)), out(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i * i % 10007));

  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = kDims;
  desc.max_q_len = queries;
  desc.max_kv_len = keys;
  desc.precision = precision;
  Plan plan;
  Status status = Plan::Create(desc, &plan);
  AttentionArgs args;
  args.q = Tokens(x, queries);
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, queries, kHeads, kDims);
  CrossMemory memory;
  if (decodes) {
    KvFormat format;
    format.precision = precision;
    if (status.ok())
      status = CrossMemory::Create(Tokens(x, keys), Tokens(x, keys), format, &memory);
    args.memory = &memory;
  } else {
    args.k = args.v = Tokens(x, keys);
  }
  for (int i = 0; i < times && status.ok(); ++i) status = Run(plan, args);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const bool decodes = strcmp(argv[1], "decode") == 0;
  if (!decodes && strcmp(argv[1], "self") != 0) return 2;
  const char* const names[] = {"f32", "f16", "i8", "i8_fine", "bf16", "mixed16"};
  size_t index = 0;
  while (index < std::size(names) && strcmp(names[index], argv[2]) != 0) ++index;
  if (index == std::size(names)) return 2;
  const Status status = Attend(decodes, static_cast<Precision>(index), atoi(argv[3]));
  if (status.ok()) return 0;
  puts(status.message());
  return 1;
}
