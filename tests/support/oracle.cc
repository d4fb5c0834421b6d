#include "support/oracle.h"

#include <math.h>

#include <algorithm>

namespace sightline {
namespace testing {
namespace {

std::vector<Sequence> SequencesOf(const OracleInput& in) {
  if (!in.sequences.empty()) return in.sequences;
  std::vector<Sequence> sequences;
  if (in.k_dims.batch == 0) return sequences;
  const int64_t beams = in.q_dims.batch / in.k_dims.batch;
  for (int64_t b = 0; b < in.q_dims.batch; ++b) {
    sequences.push_back({b, 0, in.q_dims.length, b / beams, 0, in.k_dims.length, 0, 0, b});
  }
  return sequences;
}

// K of one head and one sequence, [head_dim][kv_len].
class TransposedKeys {
 public:
  explicit TransposedKeys(const OracleInput& in) : in_(in) {}

  // Beams of a sequence have the same keys: these are transposed once.
  void Load(const Sequence& s, int64_t kv_head) {
    const bool same =
        s.kv_batch == batch_ && s.kv_begin == begin_ && s.kv_len == length_ && kv_head == kv_head_;
    if (same) return;
    batch_ = s.kv_batch;
    begin_ = s.kv_begin;
    length_ = s.kv_len;
    kv_head_ = kv_head;
    keys_.resize(static_cast<size_t>(in_.k_dims.dim * length_));
    for (int64_t j = 0; j < length_; ++j) {
      for (int64_t d = 0; d < in_.k_dims.dim; ++d) {
        keys_[static_cast<size_t>(d * length_ + j)] =
            in_.k[in_.k_dims.Index(batch_, begin_ + j, kv_head, d)];
      }
    }
  }
  const double* Channel(int64_t d) const { return keys_.data() + d * length_; }

 private:
  const OracleInput& in_;
  std::vector<double> keys_;
  int64_t batch_ = -1, begin_ = -1, length_ = -1, kv_head_ = -1;
};

// One query of one head: its place, and for each key of the sequence what is known.
struct Row {
  int64_t batch, query, i, head, kv_head;  // i: of the sequence, query: of the batch entry
  size_t index;                            // in [batch][q_len][heads]
  std::vector<unsigned char> seen;
  std::vector<double> score;
  std::vector<double> magnitude;
};

// Of keys [begin, end).
void Multiply(const OracleInput& in, const TransposedKeys& keys, size_t begin, size_t end,
              Row* row) {
  std::fill(row->score.begin(), row->score.end(), 0.0);
  std::fill(row->magnitude.begin(), row->magnitude.end(), 0.0);
  for (int64_t d = 0; d < in.q_dims.dim; ++d) {
    const double x = in.scale * in.q[in.q_dims.Index(row->batch, row->query, row->head, d)];
    const double abs_x = fabs(x);
    const double* channel = keys.Channel(d);
    double* score = row->score.data();
    double* magnitude = row->magnitude.data();
    for (size_t j = begin; j < end; ++j) {
      score[j] += x * channel[j];
      magnitude[j] += abs_x * fabs(channel[j]);
    }
  }
}

// What softcap leaves of an error of `error`.
double CappedError(double softcap, double score, double error) {
  if (softcap == 0.0 || !isfinite(score)) return error;
  return softcap * (tanh((score + error) / softcap) - tanh((score - error) / softcap));
}

// What becomes of the score of a key that is seen.
void Modify(const OracleInput& in, const Sequence& s, const Row& row, int64_t j, double* score,
            double* magnitude) {
  const auto add = [&](double x) {
    *score += x;
    if (isfinite(x)) *magnitude += fabs(x);
  };
  if (in.softcap != 0.0) *score = in.softcap * tanh(*score / in.softcap);
  *magnitude = isfinite(*score) ? fabs(*score) : 0.0;
  const size_t head = static_cast<size_t>(row.head);
  const int64_t relative = j - PositionOf(in, s, row.i);
  if (in.bias) add(in.bias(row.batch, row.query, row.head, j));
  if (!in.relative_bias.empty()) {
    const size_t bucket = static_cast<size_t>(RelativeBucket(in.relative_buckets, relative));
    add(in.relative_bias[bucket * static_cast<size_t>(in.q_dims.heads) + head]);
  }
  if (!in.alibi_slopes.empty()) {
    add(-in.alibi_slopes[head] * fabs(static_cast<double>(relative)));
  }
}

void ComputeRow(const OracleInput& in, const Sequence& s, const TransposedKeys& keys, Row* row,
                OracleOutput* result) {
  const size_t n = static_cast<size_t>(s.kv_len);
  int64_t num_seen = 0;
  row->seen.resize(n);
  row->score.resize(n);
  row->magnitude.resize(n);
  size_t first_seen = n;
  size_t seen_end = 0;
  for (size_t j = 0; j < n; ++j) {
    row->seen[j] = Sees(in, s, row->i, row->head, static_cast<int64_t>(j)) ? 1 : 0;
    if (row->seen[j] == 0) continue;
    num_seen += 1;
    first_seen = std::min(first_seen, j);
    seen_end = j + 1;
  }
  result->visible[row->index] = num_seen;
  const double sink = in.sinks.empty() ? -HUGE_VAL : in.sinks[static_cast<size_t>(row->head)];
  result->lse[row->index] = sink;
  if (num_seen == 0) return;

  Multiply(in, keys, first_seen, seen_end, row);
  const double offset = in.score_offset.empty() ? 0.0 : in.score_offset[row->index];
  const double offset_bound = in.score_offset.empty() ? 0.0 : in.score_offset_bound[row->index];
  double bound = 0.0;
  double error = 0.0;
  double magnitude_bound = 0.0;
  double max = sink;
  bool any = false;
  for (size_t j = 0; j < n; ++j) {
    if (row->seen[j] == 0) continue;
    row->score[j] += offset;
    const double sum = row->magnitude[j] + offset_bound;
    bound = std::max(bound, sum);
    error = std::max(error, CappedError(in.softcap, row->score[j], in.score_unit * sum));
    Modify(in, s, *row, static_cast<int64_t>(j), &row->score[j], &row->magnitude[j]);
    magnitude_bound = std::max(magnitude_bound, row->magnitude[j]);
    // NaN fails every comparison, so that it never becomes the maximum but reaches the sum.
    if (row->score[j] > max) max = row->score[j];
    any = any || row->score[j] != -HUGE_VAL;
    if (in.keeps_scores) {
      result->scores[row->index * static_cast<size_t>(in.k_dims.length) + j] = row->score[j];
    }
  }
  result->score_bound[row->index] = bound;
  result->score_error[row->index] = error;
  result->magnitude_bound[row->index] = magnitude_bound;
  if (!any) return;

  double sum = 0.0;
  for (size_t j = 0; j < n; ++j) {
    if (row->seen[j] == 0) continue;
    row->score[j] = exp(row->score[j] - max);
    sum += row->score[j];
  }
  const double all = sum + (sink == -HUGE_VAL ? 0.0 : exp(sink - max));
  result->key_share[row->index] = sum / all;
  result->lse[row->index] = max + log(all);

  const size_t dim = static_cast<size_t>(in.v_dims.dim);
  const size_t first = row->index * dim;
  const size_t tile = s.tile_keys == 0 ? n : static_cast<size_t>(s.tile_keys);
  for (size_t begin = 0; begin < n; begin += tile) {
    const size_t end = std::min(begin + tile, n);
    double largest = 0.0;
    for (size_t j = begin; j < end; ++j) {
      if (row->seen[j] != 0) largest = std::max(largest, row->score[j] / all);
    }
    for (size_t j = begin; j < end; ++j) {
      if (row->seen[j] == 0) continue;
      const double p = row->score[j] / all;
      const double* value =
          in.v.data() +
          in.v_dims.Index(s.kv_batch, s.kv_begin + static_cast<int64_t>(j), row->kv_head, 0);
      for (size_t c = 0; c < dim; ++c) {
        result->out[first + c] += p * value[c];
        result->abs_out[first + c] += p * fabs(value[c]);
      }
      if (s.tile_keys == 0) continue;
      result->tile_share[row->index] += largest;
      for (size_t c = 0; c < dim; ++c) {
        result->tile_abs_out[first + c] += largest * fabs(value[c]);
      }
    }
  }
}

}  // namespace

int64_t PositionOf(const Masks& masks, const Sequence& s, int64_t i) {
  return (masks.q_start == AttentionArgs::kBottomRight ? s.kv_len - s.q_len : masks.q_start) + i;
}

bool Sees(const Masks& masks, const Sequence& s, int64_t i, int64_t h, int64_t j) {
  if (j >= s.kv_len) return false;
  if (j >= s.prefix_len) {
    const int64_t ahead = j - PositionOf(masks, s, i);
    if (masks.causal && ahead > 0) return false;
    if (masks.window_left >= 0 && -ahead > masks.window_left) return false;
    if (masks.window_right >= 0 && ahead > masks.window_right) return false;
  }
  if (masks.mask && !masks.mask(s.q_batch, s.q_begin + i, h, j)) return false;
  return !masks.blocks || masks.blocks(s.blocks_batch, i / masks.q_block, h, j / masks.kv_block);
}

int64_t RelativeBucket(const RelativeBuckets& buckets, int64_t relative) {
  int64_t n = buckets.num_buckets;
  int64_t base = 0;
  int64_t distance = std::max<int64_t>(-relative, 0);
  if (buckets.bidirectional) {
    n /= 2;
    base = relative > 0 ? n : 0;
    distance = relative < 0 ? -relative : relative;
  }
  const int64_t max_exact = n / 2;
  if (n == 1) return base;
  if (distance < max_exact) return base + distance;
  const float steps = logf(static_cast<float>(distance) / static_cast<float>(max_exact));
  const float all_steps = static_cast<float>(
      log(static_cast<double>(buckets.max_distance) / static_cast<double>(max_exact)));
  const float bucket = steps / all_steps * static_cast<float>(n - max_exact);
  return base + std::min(n - 1, max_exact + static_cast<int64_t>(bucket));
}

double EffectiveScale(float scale, int64_t head_dim) {
  return scale == 0.0f ? 1.0 / sqrt(static_cast<double>(head_dim)) : static_cast<double>(scale);
}

OracleOutput ComputeOracle(const OracleInput& in) {
  const int64_t heads = in.q_dims.heads;
  const int64_t group = heads / in.k_dims.heads;

  OracleOutput result;
  result.dims = {in.q_dims.batch, in.q_dims.length, heads, in.v_dims.dim};
  const size_t num_elements = static_cast<size_t>(result.dims.NumElements());
  const size_t num_rows = static_cast<size_t>(in.q_dims.batch * in.q_dims.length * heads);
  result.out.assign(num_elements, 0.0);
  result.abs_out.assign(num_elements, 0.0);
  result.lse.assign(num_rows, -HUGE_VAL);
  result.key_share.assign(num_rows, 0.0);
  result.score_bound.assign(num_rows, 0.0);
  result.score_error.assign(num_rows, 0.0);
  result.magnitude_bound.assign(num_rows, 0.0);
  result.visible.assign(num_rows, 0);
  result.tile_abs_out.assign(num_elements, 0.0);
  result.tile_share.assign(num_rows, 0.0);
  if (in.keeps_scores) {
    result.scores.assign(num_rows * static_cast<size_t>(in.k_dims.length), -HUGE_VAL);
  }
  for (const double x : in.v) {
    if (isfinite(x)) result.max_abs_v = std::max(result.max_abs_v, fabs(x));
  }

  Row row = {};
  TransposedKeys keys(in);
  const std::vector<Sequence> sequences = SequencesOf(in);
  for (row.kv_head = 0; row.kv_head < in.k_dims.heads; ++row.kv_head) {
    for (const Sequence& s : sequences) {
      std::vector<int64_t> queries = in.queries;
      for (int64_t i = 0; in.queries.empty() && i < s.q_len; ++i) queries.push_back(i);
      keys.Load(s, row.kv_head);
      row.batch = s.q_batch;
      for (row.head = row.kv_head * group; row.head < (row.kv_head + 1) * group; ++row.head) {
        for (const int64_t i : queries) {
          row.i = i;
          row.query = s.q_begin + i;
          row.index =
              static_cast<size_t>((s.q_batch * in.q_dims.length + row.query) * heads + row.head);
          ComputeRow(in, s, keys, &row, &result);
        }
      }
    }
  }
  return result;
}

}  // namespace testing
}  // namespace sightline
