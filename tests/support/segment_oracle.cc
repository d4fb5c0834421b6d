#include "support/segment_oracle.h"

#include <math.h>

#include <algorithm>

#include "support/quantized_simulation.h"

namespace sightline {
namespace testing {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double u = kF32Unit;

// How a row's kernels compute with a part.
struct PartMethod {
  std::vector<double> q;  // as it meets the stored keys
  double center = 0.0;    // what K's center adds to each score
  double center_bound = 0.0;
  double p_error = 0.0;         // relative, of each weight
  double tile_error = 0.0;      // of the largest weight of a tile, in the numerator
  double tile_sum_error = 0.0;  // and in the denominator
  double lowest = 0.0;          // weights below may be 0
  size_t tile_keys = kScaleTileKeys;
};

// One key that a row sees.
struct SeenKey {
  size_t index;  // in the sequence
  size_t part;
  size_t key;  // in the part
  double score;
  double score_error;
  double magnitude;
  double weight = 0.0;
};

struct RowPlace {
  const Sequence* sequence;
  int64_t i, head, kv_head;
  size_t run;
  int64_t num_rows;  // that share K and V and see the same parts
};

double StepFactor(const QuantMethod& quant, const StoredHead& head, size_t count, double scale,
                  double max_q) {
  double largest = 0.0;
  for (size_t key = 0; key < count; ++key) largest = std::max(largest, head.k_step[key]);
  const double q_step = max_q / LargestQuantaOf(quant, head.head_dim).q;
  const int shift = SumShift(quant, head.head_dim);
  const double factor = fabs(scale) * q_step * kLog2E * largest * ldexp(64.0, shift);
  double steps = 1.0;
  if (factor < 31.0 / 32.0) return steps;
  for (int e = 1; e <= 9 && factor >= steps; ++e) steps *= 2.0;
  return steps;
}

void SetErrors(const SegmentInput& in, const StoredPart& part, const StoredHead& head,
               const RowPlace& row, const QuantMethod& quant, double max_q, PartMethod* method) {
  const Setup setup = {in.tier, head.precision};
  method->lowest = ldexp(1.0, -100);
  const BF16Arithmetic bf16 = BF16ArithmeticOf(row.num_rows, setup);
  if (bf16 == BF16Arithmetic::kRounded) method->p_error = kBF16Unit;
  if (bf16 == BF16Arithmetic::kDirect) {
    method->p_error = exp2(1.0 / 256.0) - 1.0 + kBF16Unit;
    method->lowest = ldexp(1.0, -70);
  }
  if (!HasQuantizedV(head.precision)) return;
  method->tile_keys = quant.p_tile_keys;
  method->tile_error = (0.5 + 1e-4) / quant.max_p;
  if (quant.exp2.empty()) return;
  Features f;
  f.softcap = in.softcap;
  f.alibi_slopes = in.alibi_slopes;
  f.relative_buckets = in.relative_buckets;
  const double scale = EffectiveScale(in.scale, static_cast<int64_t>(head.head_dim));
  const double steps = StepsOff(f) * StepFactor(quant, head, part.count, scale, max_q);
  method->p_error = exp2(steps / 64.0) - 1.0 + TableError(quant);
  method->tile_sum_error = 2.0 / quant.exp2[0];
  method->tile_error += method->tile_sum_error;
}

PartMethod MethodOf(const SegmentInput& in, const StoredPart& part, const RowPlace& row) {
  const StoredHead& head = (*part.heads)[static_cast<size_t>(row.kv_head)];
  const Setup setup = {in.tier, head.precision, Source::kMemory, {}, head.rotate_k};
  const double scale = EffectiveScale(in.scale, static_cast<int64_t>(head.head_dim));
  PartMethod method;
  for (size_t d = 0; d < head.head_dim; ++d) {
    const int64_t l = row.sequence->q_begin + row.i;
    const double x =
        static_cast<double>(in.q->Get(row.sequence->q_batch, l, row.head, static_cast<int64_t>(d)));
    method.q.push_back(x);
    method.center += scale * x * static_cast<double>(head.k_center[d]);
    method.center_bound += fabs(scale * x * static_cast<double>(head.k_center[d]));
  }
  double max_q = 0.0;
  QuantMethod quant;
  if (HasQuantizedK(head.precision)) {
    quant = QuantMethodOf(row.num_rows, setup);
    QuantHead rotation;
    rotation.head_dim = head.head_dim;
    rotation.q_factor = head.q_factor;
    // Where no key is there, nothing says how K is rotated, and nothing is multiplied.
    if (!head.rotate_k || !head.q_factor.empty()) {
      QuantizeQuery(rotation, quant, 0.0f, method.q.data());
    }
    for (const double x : method.q) max_q = std::max(max_q, fabs(x));
  } else if (BF16ArithmeticOf(row.num_rows, setup) != BF16Arithmetic::kNone) {
    const float gain = static_cast<float>(scale * kLog2E);
    for (double& x : method.q) {
      x = static_cast<double>(RoundThrough(DType::kBF16, static_cast<float>(x) * gain)) /
          static_cast<double>(gain);
    }
  }
  SetErrors(in, part, head, row, quant, max_q, &method);
  return method;
}

double CappedError(double softcap, double score, double error) {
  if (softcap == 0.0 || !isfinite(score)) return error;
  return softcap * (tanh((score + error) / softcap) - tanh((score - error) / softcap)) +
         8.0 * u * softcap;
}

// Relative error of exp(s) for an error of s, which may be as large as a bias of 1e30: of weights
// that are 0 then.
double ExpError(double error) { return expm1(std::min(error, 100.0)); }

// Softcap and biases; part_bias: beyond the largest one of the row's parts.
void Modify(const SegmentInput& in, const RowPlace& row, double part_bias, SeenKey* seen) {
  const double softcap = static_cast<double>(in.softcap);
  seen->score_error = CappedError(softcap, seen->score, seen->score_error);
  if (softcap != 0.0) seen->score = softcap * tanh(seen->score / softcap);
  seen->magnitude = fabs(seen->score);
  const auto add = [&](double x) {
    seen->score += x;
    if (isfinite(x)) seen->magnitude += fabs(x);
  };
  const Sequence& s = *row.sequence;
  const int64_t j = static_cast<int64_t>(seen->index);
  const int64_t relative = j - PositionOf(in, s, row.i);
  const size_t head = static_cast<size_t>(row.head);
  const size_t num_heads = static_cast<size_t>(in.q->dims().heads);
  if (in.bias) add(in.bias(s.q_batch, s.q_begin + row.i, row.head, j));
  if (!in.relative_bias.empty()) {
    const auto bucket = static_cast<size_t>(RelativeBucket(in.relative_buckets, relative));
    add(static_cast<double>(in.relative_bias[bucket * num_heads + head]));
  }
  if (!in.alibi_slopes.empty()) {
    add(-static_cast<double>(in.alibi_slopes[head]) * fabs(static_cast<double>(relative)));
  }
  add(part_bias);
  seen->score_error += 8.0 * u * seen->magnitude;
}

double BiasOf(const StoredPart& part, const RowPlace& row) {
  return part.bias.empty() ? 0.0 : static_cast<double>(part.bias[static_cast<size_t>(row.head)]);
}

// True if a part is hidden from some heads of a group and not from the others: each is then
// attended by itself.
bool IsDivided(const std::vector<StoredPart>& parts, int64_t kv_head, int64_t group) {
  return std::any_of(parts.begin(), parts.end(), [=](const StoredPart& part) {
    if (part.bias.empty()) return false;
    const auto begin = part.bias.begin() + static_cast<ptrdiff_t>(kv_head * group);
    const auto hidden = std::count(begin, begin + static_cast<ptrdiff_t>(group), -HUGE_VALF);
    return hidden != 0 && hidden != group;
  });
}

// The largest bias of parts with a key that a row sees; 0 if it sees none. Softmax has no use for
// what all scores have in common, and kernels must not let it round them.
double LargestBias(const SegmentInput& in, const RowPlace& row) {
  double largest = -HUGE_VAL;
  size_t begin = 0;
  for (const StoredPart& part : in.parts[row.run]) {
    const StoredHead& head = (*part.heads)[static_cast<size_t>(row.kv_head)];
    const double bias = BiasOf(part, row);
    for (size_t key = 0; bias > largest && key < part.count; ++key) {
      const int64_t index = static_cast<int64_t>(begin + key);
      if (head.present[key] && Sees(in, *row.sequence, row.i, row.head, index)) largest = bias;
    }
    begin += part.count;
  }
  return largest == -HUGE_VAL ? 0.0 : largest;
}

// The keys of all parts that a row sees, with scores beyond `largest_bias`.
std::vector<SeenKey> SeenKeysOf(const SegmentInput& in, const RowPlace& row,
                                const std::vector<PartMethod>& methods, double largest_bias) {
  const std::vector<StoredPart>& parts = in.parts[row.run];
  std::vector<SeenKey> keys;
  size_t begin = 0;
  for (size_t p = 0; p < parts.size(); begin += parts[p].count, ++p) {
    const StoredHead& head = (*parts[p].heads)[static_cast<size_t>(row.kv_head)];
    const double bias = BiasOf(parts[p], row);
    if (bias == -HUGE_VAL) continue;
    const double scale = EffectiveScale(in.scale, static_cast<int64_t>(head.head_dim));
    for (size_t key = 0; key < parts[p].count; ++key) {
      if (!head.present[key]) continue;
      const size_t index = begin + key;
      if (!Sees(in, *row.sequence, row.i, row.head, static_cast<int64_t>(index))) continue;
      double sum = 0.0;
      double bound = 0.0;
      for (size_t d = 0; d < head.head_dim; ++d) {
        const double product = methods[p].q[d] * head.k[key * head.head_dim + d];
        sum += product;
        bound += fabs(product);
      }
      SeenKey seen = {index, p, key, scale * sum + methods[p].center, 0.0, 0.0};
      const double unit = (static_cast<double>(head.head_dim) + 8.0) * u;
      seen.score_error = unit * (fabs(scale) * bound + methods[p].center_bound);
      Modify(in, row, bias - largest_bias, &seen);
      keys.push_back(seen);
    }
  }
  return keys;
}

// Weights of the keys, and lse.
double SetWeights(double sink, std::vector<SeenKey>* keys) {
  double max = sink;
  for (const SeenKey& key : *keys) max = std::max(max, key.score);
  if (max == -HUGE_VAL) return max;
  double sum = sink == -HUGE_VAL ? 0.0 : exp(sink - max);
  for (const SeenKey& key : *keys) sum += exp(key.score - max);
  const double lse = max + log(sum);
  for (SeenKey& key : *keys) key.weight = exp(key.score - lse);
  return lse;
}

// Sums over the keys of a row, and how far off they may be; comments are at the oracle's tolerance
// in problem.cc, of which this is the same, key by key.
struct RowSums {
  std::vector<double> value, error;
  double sum_error = 0.0;
  double lowest = 0.0;
};

RowSums SumRow(const std::vector<StoredPart>& parts, const RowPlace& row,
               const std::vector<PartMethod>& methods, const std::vector<SeenKey>& keys,
               double common_error, size_t dim) {
  const auto head_of = [&](size_t p) -> const StoredHead& {
    return (*parts[p].heads)[static_cast<size_t>(row.kv_head)];
  };
  RowSums sums;
  sums.value.assign(dim, 0.0);
  sums.error.assign(dim, 0.0);
  const double n = static_cast<double>(keys.size());
  for (size_t i = 0; i < keys.size();) {
    // Keys of one tile.
    const PartMethod& method = methods[keys[i].part];
    const StoredHead& head = head_of(keys[i].part);
    size_t end = i;
    double largest = 0.0;
    while (end < keys.size() && keys[end].part == keys[i].part &&
           keys[end].key / method.tile_keys == keys[i].key / method.tile_keys) {
      largest = std::max(largest, keys[end++].weight);
    }
    for (; i < end; ++i) {
      const double w = keys[i].weight;
      const double error = ExpError(keys[i].score_error) + method.p_error + common_error + n * u;
      sums.sum_error += w * error + method.tile_sum_error * largest + method.lowest;
      for (size_t c = 0; c < dim; ++c) {
        const double v = head.v[keys[i].key * dim + c];
        const double center = static_cast<double>(head.v_center[c]);
        sums.value[c] += w * (v + center);
        sums.error[c] += w * error * (fabs(v) + fabs(center)) + 4.0 * u * w * fabs(center) +
                         (method.tile_error * largest + method.lowest) * fabs(v) +
                         (method.tile_sum_error * largest + method.lowest) * fabs(center);
      }
    }
  }
  return sums;
}

class Computation {
 public:
  explicit Computation(const SegmentInput& in) : in_(in) {
    const Dims& q = in.q->dims();
    int64_t longest = 0;
    for (const std::vector<StoredPart>& parts : in.parts) {
      int64_t length = 0;
      for (const StoredPart& part : parts) length += static_cast<int64_t>(part.count);
      lengths_.push_back(length);
      longest = std::max(longest, length);
    }
    result_.out.dims = {q.batch, q.length, q.heads, in.v_head_dim};
    result_.weights.dims = {q.batch, q.length, q.heads, longest};
    for (Expected* e : {&result_.out, &result_.weights}) {
      e->value.assign(static_cast<size_t>(e->dims.NumElements()), 0.0);
      e->tolerance = e->value;
    }
    result_.second_pass_tolerance = result_.weights.tolerance;
    const size_t num_rows = static_cast<size_t>(q.batch * q.length * q.heads);
    result_.out.lse.assign(num_rows, -HUGE_VAL);
    result_.out.lse_tolerance.assign(num_rows, 0.0);
    result_.empty.assign(num_rows, true);
  }

  SegmentOutput Run() {
    const Dims& q = in_.q->dims();
    const int64_t group = q.heads / in_.kv_heads;
    for (size_t r = 0; r < in_.parts.size(); ++r) {
      for (int64_t beam = 0; beam < in_.beams; ++beam) {
        Sequence s;
        s.q_batch = s.blocks_batch = static_cast<int64_t>(r) * in_.beams + beam;
        s.q_len = q.length;
        s.kv_len = lengths_[r];
        if (!in_.prefix_lens.empty()) s.prefix_len = in_.prefix_lens[r];
        for (int64_t h = 0; h < q.heads; ++h) {
          const int64_t sharing = IsDivided(in_.parts[r], h / group, group) ? 1 : group;
          for (int64_t i = 0; i < q.length; ++i) {
            ComputeRow({&s, i, h, h / group, r, q.length * in_.beams * sharing});
          }
        }
      }
    }
    return std::move(result_);
  }

 private:
  void ComputeRow(const RowPlace& row) {
    const std::vector<StoredPart>& parts = in_.parts[row.run];
    std::vector<PartMethod> methods;
    for (const StoredPart& part : parts) methods.push_back(MethodOf(in_, part, row));
    const double largest_bias = LargestBias(in_, row);
    std::vector<SeenKey> keys = SeenKeysOf(in_, row, methods, largest_bias);
    const double sink = in_.sinks.empty()
                            ? -HUGE_VAL
                            : static_cast<double>(in_.sinks[static_cast<size_t>(row.head)]);
    const size_t at = result_.out.dims.Index(row.sequence->q_batch, row.i, row.head, 0) /
                      static_cast<size_t>(result_.out.dims.dim);
    const double lse = SetWeights(sink - largest_bias, &keys);  // without the bias
    result_.out.lse[at] = lse + largest_bias;
    result_.empty[at] = keys.empty();
    if (lse == -HUGE_VAL) return;

    // References move from part to part, by scores as large as those that have some weight.
    double magnitude = fabs(lse);
    if (isfinite(sink)) magnitude += fabs(sink) + fabs(sink - largest_bias);
    for (const SeenKey& key : keys) {
      if (key.weight > 1e-12) magnitude = std::max(magnitude, key.magnitude + key.score_error);
    }
    const double moves = static_cast<double>(parts.size()) + 1.0;
    const double rescalings = 1.0 + ceil(static_cast<double>(keys.size()) / 128.0) + 2.0 * moves;
    const double common = 4.0 * u * rescalings + 4.0 * u * moves * magnitude;
    const RowSums sums =
        SumRow(parts, row, methods, keys, common, static_cast<size_t>(in_.v_head_dim));
    result_.out.lse_tolerance[at] =
        sums.sum_error + common + 8.0 * u * (fabs(lse) + fabs(largest_bias) + magnitude);
    for (size_t c = 0; c < sums.value.size(); ++c) {
      const size_t element = at * sums.value.size() + c;
      result_.out.value[element] = sums.value[c];
      result_.out.tolerance[element] = sums.error[c] + (sums.sum_error + common + 4.0 * u) *
                                                           (fabs(sums.value[c]) + sums.error[c]);
    }
    StoreWeights(at, keys, largest_bias, MayWait(row) ? methods[0] : PartMethod());
  }

  // True if weights may be left on the way.
  bool MayWait(const RowPlace& row) const {
    const bool modifies =
        in_.softcap != 0.0f || in_.bias || !in_.relative_bias.empty() || !in_.alibi_slopes.empty();
    return in_.parts[row.run].size() == 1 && in_.q->dims().heads == in_.kv_heads && !modifies;
  }

  // Of a second pass, which compares scores with lse; on the way those of quantised V are of scores
  // in fixed point, which are clamped 16 octaves below the largest or farther.
  void StoreWeights(size_t at, const std::vector<SeenKey>& keys, double largest_bias,
                    const PartMethod& on_the_way) {
    const bool is_fixed_point = on_the_way.tile_sum_error != 0.0;
    const double known = fabs(result_.out.lse[at]) + fabs(largest_bias);
    for (const SeenKey& key : keys) {
      if (key.score == -HUGE_VAL) continue;
      const size_t element = at * static_cast<size_t>(result_.weights.dims.dim) + key.index;
      const double difference =
          key.score_error + result_.out.lse_tolerance[at] + 8.0 * u * (known + key.magnitude);
      result_.weights.value[element] = key.weight;
      const double tolerance = key.weight * (ExpError(difference) + 4.0 * u) + ldexp(1.0, -100);
      result_.second_pass_tolerance[element] = tolerance;
      result_.weights.tolerance[element] = tolerance;
      if (!is_fixed_point) continue;
      result_.weights.tolerance[element] += key.weight * on_the_way.p_error + ldexp(1.0, -16);
    }
  }

  const SegmentInput& in_;
  std::vector<int64_t> lengths_;
  SegmentOutput result_;
};

}  // namespace

SegmentOutput ComputeSegments(const SegmentInput& in) { return Computation(in).Run(); }

Expected MassOf(const SegmentOutput& output, int64_t batch, int64_t heads) {
  const Expected& weights = output.weights;
  Expected mass;
  mass.dims = {batch, 1, heads, weights.dims.dim};
  mass.value.assign(static_cast<size_t>(mass.dims.NumElements()), 0.0);
  mass.tolerance = mass.value;
  double num_terms = 1.0;
  for (int64_t b = 0; b < weights.dims.batch; ++b) {
    for (int64_t l = 0; l < weights.dims.length; ++l) {
      for (int64_t h = 0; h < weights.dims.heads; ++h, num_terms += 1.0) {
        for (int64_t j = 0; j < weights.dims.dim; ++j) {
          const size_t to = mass.dims.Index(b / (weights.dims.batch / batch), 0,
                                            h / (weights.dims.heads / heads), j);
          const size_t from = weights.dims.Index(b, l, h, j);
          mass.value[to] += weights.value[from];
          mass.tolerance[to] += output.second_pass_tolerance[from];
        }
      }
    }
  }
  for (size_t i = 0; i < mass.value.size(); ++i) {
    mass.tolerance[i] += num_terms * u * (mass.value[i] + mass.tolerance[i]);
  }
  return mass;
}

}  // namespace testing
}  // namespace sightline
