// Retrieval: passages are prepared once, saved, and mapped by whoever needs them; each question
// attends the instructions, whichever passages were found for it, and its own tokens, in one call
// and without packing or copying any of them again.
//
// What comes out is known. Each passage says one thing: one of its tokens has the key that
// questions about the passage ask for, and the passage's number as its value, where all others have
// 0. So the answer is that number if the passage is among those attended, and near 0 if not.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "sightline/attention.h"
#include "sightline/kv_file.h"
using namespace sightline;

namespace {

constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 64;
constexpr int64_t kPassageTokens[] = {700, 150, 420, 1100};
constexpr size_t kPassages = 4, kQuestionTokens = 12;
constexpr size_t kInstructions = kPassages;  // their number among the texts

void Must(const Status& status) {
  if (status.ok()) return;
  puts(status.message());
  exit(1);
}

// The key of a text: a Walsh function, orthogonal to those of others.
std::vector<float> Signs(size_t text, float size) {
  std::vector<float> signs;
  for (size_t i = 0; i < kDim; ++i) {
    bool negative = false;
    for (size_t bits = i & (text + 1); bits != 0; bits &= bits - 1) negative = !negative;
    signs.push_back(negative ? -size : size);
  }
  return signs;
}

ConstTensorView ViewOf(const std::vector<float>& rows, int64_t heads) {
  const int64_t length = static_cast<int64_t>(rows.size()) / (heads * kDim);
  return ConstTensorView::Dense(rows.data(), DType::kF32, 1, length, heads, kDim);
}

// Packs a text, in whose middle it says what it has to say.
CrossMemory Prepare(size_t text, int64_t tokens) {
  const size_t row = kKvHeads * kDim;
  std::vector<float> k(static_cast<size_t>(tokens) * row), v(k.size());
  const size_t fact = static_cast<size_t>(tokens) / 2 * row;
  const std::vector<float> signs = Signs(text, 1.0f);
  for (size_t i = 0; i < row; ++i) {
    k[fact + i] = signs[i % kDim];
    v[fact + i] = static_cast<float>(text + 1);
  }
  CrossMemory memory;
  Must(CrossMemory::Create(ViewOf(k, kKvHeads), ViewOf(v, kKvHeads), {Precision::kI8}, &memory));
  return memory;
}

// Tokens of a question, which are as good as nothing to look at.
KvCache Question() {
  KvCacheDesc desc;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kDim;
  desc.capacity = 256;
  desc.format.precision = Precision::kI8;
  KvCache cache;
  const std::vector<float> zeros(kQuestionTokens * kKvHeads * kDim);
  Must(KvCache::Create(desc, &cache));
  Must(cache.Append(ViewOf(zeros, kKvHeads), ViewOf(zeros, kKvHeads)));
  return cache;
}

// The last token of the question asks for what passage `about` says, given those found.
std::vector<float> Ask(const Plan& plan, size_t about, const std::vector<size_t>& found,
                       const std::vector<CrossMemory>& texts, const KvCache& question) {
  std::vector<KvSegment> segments(1);
  segments[0].memory = &texts[kInstructions];
  for (const size_t passage : found) {
    segments.emplace_back();
    segments.back().memory = &texts[passage];
  }
  segments.emplace_back();
  segments.back().cache = &question;

  const std::vector<float> signs = Signs(about, 2.0f);
  std::vector<float> q, out(kHeads * kDim);
  for (int64_t h = 0; h < kHeads; ++h) q.insert(q.end(), signs.begin(), signs.end());
  AttentionArgs args;
  args.q = ViewOf(q, kHeads);
  args.segments = segments.data();
  args.num_segments = static_cast<int64_t>(segments.size());
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, 1, kHeads, kDim);
  Must(Run(plan, args));
  return out;
}

}  // namespace

int main() {
  // Once, when passages become known.
  std::vector<CrossMemory> prepared, mapped(kPassages + 1);
  std::vector<std::string> paths;
  for (size_t i = 0; i < kPassages; ++i) prepared.push_back(Prepare(i, kPassageTokens[i]));
  prepared.push_back(Prepare(kInstructions, 200));
  for (size_t i = 0; i < prepared.size(); ++i) {
    paths.push_back("030_rag_segments_" + std::to_string(i) + ".slkv");
    Must(Save(prepared[i], paths[i].c_str()));
  }

  // In any process that answers. The first one comes from far away, and all of it is checked.
  for (size_t i = 0; i < mapped.size(); ++i) {
    KvMapOptions options;
    if (i == 0) options.check = KvCheck::kFull;
    Must(Map(paths[i].c_str(), &mapped[i], options));
    remove(paths[i].c_str());  // what is mapped stays
    printf("text %zu: %d tokens, %zu KiB\n", i, static_cast<int>(mapped[i].kv_len()),
           mapped[i].bytes() / 1024);
  }

  AttentionDesc desc;
  desc.num_heads = kHeads;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kDim;
  desc.causal = true;
  desc.precision = Precision::kI8;
  Plan plan;
  Must(Plan::Create(desc, &plan));
  const KvCache question = Question();
  bool ok = true;
  for (const std::vector<size_t>& found :
       {std::vector<size_t>{0, 2}, {2, 0}, {3}, {1, 3, 0, 2}, {}}) {
    printf("passages");
    for (const size_t passage : found) printf(" %zu", passage);
    printf(found.empty() ? " none say:" : " say:");
    for (size_t about = 0; about < kPassages; ++about) {
      const bool is_there = std::find(found.begin(), found.end(), about) != found.end();
      const std::vector<float> out = Ask(plan, about, found, mapped, question);
      const std::vector<float> same = Ask(plan, about, found, prepared, question);
      ok &= memcmp(out.data(), same.data(), out.size() * sizeof(float)) == 0;
      ok &= fabsf(out[0] - (is_there ? static_cast<float>(about + 1) : 0.0f)) < 0.1f;
      printf(" %.2f", double{fabsf(out[0])});
    }
    printf("\n");
  }
  return ok ? 0 : 1;
}
