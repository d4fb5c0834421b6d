// What a chat does to its cache: the system prompt is read once and forked for each conversation,
// tokens that a small model guessed are appended at once and rolled back where they were wrong, and
// a long conversation forgets all but its beginning and a window.
//
// Results are compared, bit for bit, with those of caches that got the same tokens without any of
// this.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "sightline/attention.h"
using namespace sightline;

namespace {

constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 64;
constexpr int64_t kGuesses = 4, kWindow = 500, kSinks = 4;

void Must(const Status& status) {
  if (status.ok()) return;
  puts(status.message());
  exit(1);
}

// So many tokens of a text. Where they stand follows from what is before them.
struct Piece {
  uint32_t text;
  int64_t tokens;
};

// Made-up projections of the tokens of a text, which depend on their positions.
std::vector<float> Project(const Piece& piece, int64_t position, int64_t heads, uint32_t seed) {
  std::vector<float> rows;
  for (int64_t i = 0; i < piece.tokens * heads * kDim; ++i) {
    const uint32_t element = static_cast<uint32_t>(position * heads * kDim + i);
    uint32_t x = element * 2654435761u + (3 * piece.text + seed) * 40503u;
    x = (x ^ (x >> 15)) * 2246822519u;
    rows.push_back(static_cast<float>(x >> 8) * 0x1p-23f - 1.0f);
  }
  return rows;
}

void Append(const Piece& piece, KvCache* cache) {
  const std::vector<float> k = Project(piece, cache->length(), kKvHeads, 0);
  const std::vector<float> v = Project(piece, cache->length(), kKvHeads, 1);
  const int64_t n = piece.tokens;
  Must(cache->Append(ConstTensorView::Dense(k.data(), DType::kF32, 1, n, kKvHeads, kDim),
                     ConstTensorView::Dense(v.data(), DType::kF32, 1, n, kKvHeads, kDim)));
}

// Attention of the last tokens of a cache, which are this piece.
std::vector<float> Attend(const Plan& plan, const KvCache& cache, const Piece& last) {
  const int64_t n = last.tokens;
  const std::vector<float> q = Project(last, cache.length() - n, kHeads, 2);
  const int32_t num_sinks = kSinks;
  std::vector<float> out(q.size());
  AttentionArgs args;
  args.q = ConstTensorView::Dense(q.data(), DType::kF32, 1, n, kHeads, kDim);
  args.cache = &cache;
  args.out = TensorView::Dense(out.data(), DType::kF32, 1, n, kHeads, kDim);
  if (cache.length() > kWindow) args.prefix_lens = &num_sinks;  // seen in front of the window
  Must(Run(plan, args));
  return out;
}

KvCacheDesc CacheDesc(int64_t capacity) {
  KvCacheDesc desc;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kDim;
  desc.capacity = capacity;
  desc.format.precision = Precision::kF16;
  desc.page_tokens = 128;
  return desc;
}

// Whether the last token of a cache gets what it gets from one that just got all pieces.
bool IsAsPlain(const char* what, const Plan& plan, const KvCache& cache,
               const std::vector<Piece>& pieces) {
  KvCache plain;
  Must(KvCache::Create(CacheDesc(cache.length()), &plain));
  for (const Piece& piece : pieces) Append(piece, &plain);
  const Piece last = {pieces.back().text, 1};
  const std::vector<float> out = Attend(plan, cache, last);
  const std::vector<float> expected = Attend(plan, plain, last);
  const bool equal = cache.length() == plain.length() &&
                     memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0;
  printf("%s: %d tokens, %s\n", what, static_cast<int>(cache.length()),
         equal ? "the same bits" : "OTHER BITS");
  return equal;
}

// Two conversations with one system prompt, and guesses of which two of four were right.
bool Converse(const Plan& plan) {
  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = kKvHeads;
  pool_desc.head_dim = kDim;
  pool_desc.format.precision = Precision::kF16;
  pool_desc.page_tokens = 128;
  pool_desc.max_pages = 16;
  KvPool pool;
  Must(KvPool::Create(pool_desc, &pool));
  KvCacheDesc desc;
  desc.capacity = 1024;
  desc.pool = &pool;
  KvCache prompt, first, second;
  Must(KvCache::Create(desc, &prompt));
  Append({0, 300}, &prompt);
  const int64_t prompt_pages = pool.pages_in_use();
  Must(prompt.Fork(&first));
  Must(prompt.Fork(&second));
  Append({1, 10}, &first);
  Append({2, 20}, &second);
  const int64_t all_pages = pool.pages_in_use();
  printf("pages of the prompt: %d; with two conversations: %d, of which each has its last\n",
         static_cast<int>(prompt_pages), static_cast<int>(all_pages));

  // One call is for all guesses: causal, each sees those before it. The model agrees with the first
  // two and has its own third token.
  const int64_t length = first.length();
  Append({9, kGuesses}, &first);
  Attend(plan, first, {9, kGuesses});
  Must(first.Truncate(length + 2));
  Append({1, 1}, &first);

  bool ok = prompt_pages == 3 && all_pages == 5;
  ok &= IsAsPlain("after the guesses", plan, first, {{0, 300}, {1, 10}, {9, 2}, {1, 1}});
  ok &= IsAsPlain("the other one", plan, second, {{0, 300}, {2, 20}});
  return ok;
}

// 3000 tokens through a cache that has room for 1024.
bool ConverseForLong(const Plan& plan) {
  KvCacheDesc desc = CacheDesc(1024);
  desc.window_left = kWindow;
  desc.num_sinks = kSinks;
  KvCache cache;
  Must(KvCache::Create(desc, &cache));
  while (cache.length() < 3000) Append({5, 100}, &cache);
  printf("%d tokens went through a cache that holds %zu KiB\n", static_cast<int>(cache.length()),
         cache.bytes() / 1024);
  return IsAsPlain("behind the window", plan, cache, {{5, 3000}});
}

}  // namespace

int main() {
  AttentionDesc desc;
  desc.num_heads = kHeads;
  desc.num_kv_heads = kKvHeads;
  desc.head_dim = kDim;
  desc.max_q_len = kGuesses;
  desc.causal = true;
  desc.window_left = kWindow;
  desc.precision = Precision::kF16;
  Plan plan;
  Must(Plan::Create(desc, &plan));
  const bool ok = Converse(plan);
  return ConverseForLong(plan) && ok ? 0 : 1;
}
