// One attention problem of a test: shapes, element types, strides and numbers; what it must give;
// and how to have the library compute it.
//
//   Case c;
//   c.q_len = 17; c.kv_len = 65; c.head_dim = 40;
//   Problem problem(c, /*seed=*/1);
//   const Setup setup = {"avx2", Precision::kI8};
//   CHECK_THAT(Attend(problem, setup), IsClose(Expect(problem, setup)));
#ifndef SIGHTLINE_TESTS_SUPPORT_PROBLEM_H_
#define SIGHTLINE_TESTS_SUPPORT_PROBLEM_H_

#include <stdint.h>

#include <array>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "sightline/attention.h"
#include "support/numeric.h"
#include "support/oracle.h"
#include "support/quantized_simulation.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

// Where int8 and f16 lose most: those of the error budget (accuracy_test.cc).
enum class Distribution {
  kGaussian,        // everything normal with variance 1
  kKOutliers,       // four channels of K ten times larger
  kKBias,           // K with a mean per channel, eight times larger in one channel of eight
  kHeavyTail,       // one key takes half of the weight, all the others share the rest
  kHeavyTailVMean,  // the same, and V has a mean per channel
  kPeaky,           // Q four times larger: scores have a standard deviation of 4
  kAllEqual,        // every key and every value the same: weights are all 1 / kv_len
  kOneHot,          // query i meets its own key with a score 40 above the others
};
constexpr Distribution kDistributions[] = {Distribution::kGaussian,       Distribution::kKOutliers,
                                           Distribution::kKBias,          Distribution::kHeavyTail,
                                           Distribution::kHeavyTailVMean, Distribution::kPeaky,
                                           Distribution::kAllEqual,       Distribution::kOneHot};
const char* Name(Distribution distribution);

// A mask or bias of a case, with an element for each query, head and key, or blocks of them.
struct GridCase {
  bool on = false;
  double density = 0.5;           // share of the elements that show their keys
  unsigned varies = kPerElement;  // along the other axes its stride is 0; a sum of Granularity
  int64_t extra_keys = 0;         // beyond those that there are
  Layout layout = Layout::kDense;
};

// What a case asks for beyond plain attention; by default nothing.
struct Features {
  int64_t window_left = -1;
  int64_t window_right = -1;
  int64_t q_start = AttentionArgs::kBottomRight;
  std::vector<int32_t> kv_lens, prefix_lens;  // one for each batch entry of K/V; empty = null
  GridCase mask;
  GridCase blocks;
  int64_t q_block = 64;
  int64_t kv_block = 64;

  // Ragged: queries of the case's q_len, and keys of its kv_len or, without kv_indptr, batch
  // entries of K/V.
  std::vector<int32_t> q_indptr, kv_indptr;

  float softcap = 0.0f;
  GridCase bias;
  DType bias_dtype = DType::kF32;
  RelativeBuckets relative_buckets;
  std::vector<float> alibi_slopes, sinks;  // one for each head; empty = null

  bool lse = false;
  Layout lse_layout = Layout::kDense;

  bool ragged() const { return !q_indptr.empty(); }
  // Whether scores are more than products of Q and K.
  bool modifies_scores() const {
    return softcap != 0.0f || bias.on || relative_buckets.num_buckets != 0 || !alibi_slopes.empty();
  }
  std::string ToString() const;
};

// Keys that are packed together, and the queries that attend to them: a batch entry of K/V, or a
// ragged sequence.
struct KvRun {
  int64_t kv_batch = 0;
  int64_t kv_begin = 0;
  int64_t kv_len = 0;
  int64_t q_begin = 0;
  int64_t q_len = 0;
};

struct Case {
  int64_t q_len = 1;
  int64_t kv_len = 1;
  int64_t head_dim = 16;
  int64_t v_head_dim = 0;  // 0 = head_dim
  int64_t heads = 1;
  int64_t kv_heads = 1;
  int64_t kv_batch = 1;
  int64_t beams = 1;  // q's batch is kv_batch * beams
  bool causal = false;
  float scale = 0.0f;
  DType q_dtype = DType::kF32;
  DType k_dtype = DType::kF32;
  DType v_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  // Granularities of the scales of those that are i8.
  unsigned q_scales = kPerTensor;
  unsigned k_scales = kPerTensor;
  unsigned v_scales = kPerTensor;
  unsigned out_scales = kPerTensor;
  Layout q_layout = Layout::kDense;
  Layout k_layout = Layout::kDense;
  Layout v_layout = Layout::kDense;
  Layout out_layout = Layout::kDense;
  Placement placement = Placement::kAtEnd;  // of all buffers, the workspace included
  Distribution distribution = Distribution::kGaussian;
  float q_gain = 1.0f;  // Q is multiplied by it
  Features features;

  int64_t batch() const { return features.ragged() ? 1 : kv_batch * beams; }
  // Of q, or ragged sequences.
  int64_t NumEntries() const;
  // Of the longest sequence.
  int64_t LongestQLen() const;
  int64_t LongestKvLen() const;
  int64_t value_dim() const { return v_head_dim == 0 ? head_dim : v_head_dim; }
  std::vector<KvRun> Runs() const;
  int64_t MultiplyAdds() const;
  std::string ToString() const;
};

// The tensors of a case, filled.
struct Problem {
  Problem(const Case& description, uint64_t seed);

  Tensor NewOut() const;
  Tensor NewLse() const;

  Case c;
  Tensor q, k, v;
  Tensor mask, blocks;   // i8, whose quanta are the booleans
  Tensor bias;           // [batch, q_len, heads, kv_len and more]
  Tensor relative_bias;  // [1, num_buckets, heads, 1]
  // What the case lists, between guard pages.
  GuardedBuffer kv_lens, prefix_lens, q_indptr, kv_indptr, alibi_slopes, sinks;
};

// What the oracle needs to know about the case: see there. The masks refer to the problem.
Masks MasksOf(const Problem& problem);
// One for each run, or for each of its beams.
std::vector<Sequence> SequencesOf(const Case& c);

constexpr std::array<Precision, 6> kPrecisions = {Precision::kF32,  Precision::kF16,
                                                  Precision::kI8,   Precision::kI8Fine,
                                                  Precision::kBF16, Precision::kMixed16};
// Where K, where V is integers, which know no NaN.
bool HasQuantizedK(Precision precision);
bool HasQuantizedV(Precision precision);

// How the library is asked to solve it.
enum class Source { kTensors, kMemory, kCache };

struct Setup {
  const char* tier = nullptr;
  Precision precision = Precision::kF32;
  Source source = Source::kTensors;
  ParallelFor parallel = {};
  bool rotate_k = false;
  std::function<void(AttentionArgs&)> amend = {};  // adds to what is asked of Run
};

AttentionDesc DescOf(const Case& c, const Setup& setup);
// All but lse.
AttentionArgs TensorArgs(const Problem& problem, const Tensor& out);
// Of a ragged batch's those of one sequence, which has so many queries.
BlockMask OfSequence(BlockMask mask, size_t sequence, int64_t q_len);
CrossMemory MemoryOf(const Problem& problem, const Setup& setup);
// A cache that got all tokens of the problem in one Append.
KvCache CacheOf(const Problem& problem, const Setup& setup);

// Creates a plan (and a memory or cache) and runs it with a workspace between guard pages that is
// full of NaN. Fails the test if the library reports an error, runs another tier or writes into a
// gap. *lse: of a case that asks for it.
Tensor Attend(const Problem& problem, const Setup& setup, Tensor* lse = nullptr);

// The same over a cache that the caller has filled.
Tensor AttendCache(const Problem& problem, const Setup& setup, const KvCache& cache);
// The same, but returns what went wrong; empty = nothing.
std::string TryAttend(const Problem& problem, const Setup& setup, Tensor* out, Tensor* lse);

// How Q and P meet bf16: in f32, rounded to it, or P straight from sums
// (kernels/softmax_bf16-inl.h).
enum class BF16Arithmetic { kNone, kRounded, kDirect };

// What a setup's tier does in a quantised precision with the rows of the first run; of floats the
// default.
QuantMethod QuantMethodOf(const Case& c, const Setup& setup);
// The same for so many rows that share K and V, and how they meet bf16.
QuantMethod QuantMethodOf(int64_t num_rows, const Setup& setup);
BF16Arithmetic BF16ArithmeticOf(int64_t num_rows, const Setup& setup);

// Errors of fixed point: steps by which a score may be off, and the largest relative one of 2^x.
double StepsOff(const Features& f);
double TableError(const QuantMethod& quant);

// What comes out, and how far off it may be before it is stored as an element of the output.
struct Expected {
  Dims dims;
  std::vector<double> value;      // in the order of Dims::Index
  std::vector<double> tolerance;  // the same
  std::vector<double> lse;        // [batch][q_len][heads]
  std::vector<double> lse_tolerance;
  // Of simulations: [batch][q_len][heads][kv_len], QuantResult::scores as logits.
  std::vector<double> softmax_scores;
  FixedPointPaths paths;  // how the simulation got there

  Expected Lse() const;  // as of a tensor
};

// Scores that weights are made of once more, from the same quanta or roundings of Q and K.
struct ExpectedScores {
  Dims dims;                      // [batch, q_len, heads, kv_len]
  std::vector<double> value;      // see OracleOutput::scores
  std::vector<double> tolerance;  // [batch][q_len][heads]
};

// V in floats: the oracle on what the precision leaves of Q, K and V, with tolerances derived in
// problem.cc. i8, i8_fine: the simulation of what the tier does with them, or, where scores are
// modified, also the oracle.
Expected Expect(const Problem& problem, const Setup& setup);

// The same for many setups: what tiers have in common is computed once. The problem has to outlive
// it, unchanged.
class Expectations {
 public:
  explicit Expectations(const Problem& problem) : problem_(problem) {}
  const Expected& operator()(const Setup& setup);
  const ExpectedScores& Scores(const Setup& setup);

  // On what an expectation depends beside the problem: how the keys of a run are held and its rows
  // computed, which depends on their number.
  struct Arithmetic {
    QuantMethod quant;
    int64_t num_keys = 0;  // of the run, as they are quantised together
    int64_t center_keys = 0;
    BF16Arithmetic bf16 = BF16Arithmetic::kNone;
  };
  struct Method {
    Precision precision;
    std::vector<Arithmetic> runs;  // as Case::Runs()
  };

 private:
  friend Expected Expect(const Problem& problem, const Setup& setup);
  static Method MethodOf(const Case& c, const Setup& setup);
  static Expected Compute(const Problem& problem, const Method& method);

  const Problem& problem_;
  std::deque<std::pair<Method, Expected>> known_;
  std::deque<std::pair<Method, ExpectedScores>> known_scores_;
};

// The oracle on what the element types left of the inputs, whatever the precision; no tolerance.
std::vector<double> ExactOutput(const Problem& problem);

// The first num_keys of K and V of one head of a run (a batch entry of K/V, unless ragged) as the
// simulation stores them; see QuantizeHead.
QuantHead QuantizeHeadOf(const Problem& problem, int64_t run, int64_t head,
                         const QuantMethod& method, int64_t num_keys, int64_t center_keys);

// The centers' keys of a KvCache with so many tokens.
int64_t CacheCenterKeys(int64_t length);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_PROBLEM_H_
