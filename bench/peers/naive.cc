// Attention as anyone would write it down: three loops over rows, in f32, without a thought for
// tiles or vectors. What the compiler makes of it is its own affair; a dot product stays scalar,
// because floating-point sums must not be reordered.
//
// Each row of scores is as long as K and read three times. One head after another is handed to
// plain threads.
#include <math.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "bench/peers/layout.h"
#include "bench/peers/peers.h"

namespace sightline {
namespace bench {
namespace {

// Some seconds; what a repetition may take.
constexpr double kMaxOperations = 4e9;

class NaiveEntry : public Entry {
 public:
  NaiveEntry(const Problem& problem, int threads)
      : c_(problem.c),
        scale_(problem.scale()),
        threads_(threads),
        q_(GroupQ(c_, problem.q)),
        k_(ByHead(c_, problem.k, c_.head_dim)),
        v_(ByHead(c_, problem.v, c_.v_head_dim)),
        o_(static_cast<size_t>(c_.q_batch() * c_.q_len * c_.heads * c_.v_head_dim)) {}

  void Run() override {
    const int64_t num_heads = Groups(c_) * Sharers(c_);
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      std::vector<float> scores(static_cast<size_t>(c_.kv_len));
      for (int64_t head = next++; head < num_heads; head = next++) Head(head, scores.data());
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads_; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }

  std::vector<float> Output() override { return UngroupO(c_, o_); }
  double kv_bytes() const override { return static_cast<double>(c_.KvElements()) * sizeof(float); }

 private:
  void Head(int64_t head, float* scores) {
    const float* k = k_.data() + head / Sharers(c_) * c_.kv_len * c_.head_dim;
    const float* v = v_.data() + head / Sharers(c_) * c_.kv_len * c_.v_head_dim;
    for (int64_t i = 0; i < c_.q_len; ++i) {
      const float* q = q_.data() + (head * c_.q_len + i) * c_.head_dim;
      float* o = o_.data() + (head * c_.q_len + i) * c_.v_head_dim;
      int64_t visible = c_.kv_len;
      if (c_.causal()) {
        visible = std::clamp<int64_t>(c_.kv_len - c_.q_len + i + 1, 0, c_.kv_len);
      }

      float max = -INFINITY;
      for (int64_t j = 0; j < visible; ++j) {
        float sum = 0.0f;
        for (int64_t d = 0; d < c_.head_dim; ++d) sum += q[d] * k[j * c_.head_dim + d];
        scores[j] = sum * scale_;
        max = std::max(max, scores[j]);
      }
      float total = 0.0f;
      for (int64_t j = 0; j < visible; ++j) {
        scores[j] = expf(scores[j] - max);
        total += scores[j];
      }
      std::fill_n(o, c_.v_head_dim, 0.0f);
      for (int64_t j = 0; j < visible; ++j) {
        const float p = scores[j] / total;
        for (int64_t d = 0; d < c_.v_head_dim; ++d) o[d] += p * v[j * c_.v_head_dim + d];
      }
    }
  }

  Case c_;
  float scale_;
  int threads_;
  std::vector<float> q_, k_, v_, o_;
};

class Naive : public Contender {
 public:
  std::string name() const override { return "naive"; }
  std::string version() const override { return "C++ loops"; }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    if (precision != "f32") {
      *why_not = "f32 only";
    } else if (IsStore(problem.c.op)) {
      *why_not = "stores nothing: it reads K and V as they are";
    } else if (problem.c.Operations() > kMaxOperations) {
      *why_not = "more than 4e9 operations would take too long";
    } else {
      return std::make_unique<NaiveEntry>(problem, threads);
    }
    return nullptr;
  }

 private:
  const std::vector<Offer> offers_ = {{"f32",
                                       "Q, K, V and O in f32, one head after another, "
                                       "[head][token][channel]. Compiled for any CPU of "
                                       "the architecture.",
                                       "Bringing the tensors into that order.", 1e-5}};
};

}  // namespace

std::unique_ptr<Contender> MakeNaive() { return std::make_unique<Naive>(); }

}  // namespace bench
}  // namespace sightline
