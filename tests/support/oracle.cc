#include "support/oracle.h"

#include <math.h>

#include <algorithm>

namespace sightline {
namespace testing {

int64_t VisibleKeys(Mask mask, int64_t q_len, int64_t kv_len, int64_t i) {
  if (mask == Mask::kNone) return kv_len;
  return std::clamp<int64_t>(kv_len - q_len + i + 1, 0, kv_len);
}

double EffectiveScale(float scale, int64_t head_dim) {
  return scale == 0.0f ? 1.0 / sqrt(static_cast<double>(head_dim)) : static_cast<double>(scale);
}

OracleOutput ComputeOracle(const OracleInput& in) {
  const int64_t batch = in.q_dims.batch;
  const int64_t q_len = in.q_dims.length;
  const int64_t heads = in.q_dims.heads;
  const int64_t kv_len = in.k_dims.length;
  const int64_t head_dim = in.q_dims.dim;
  const int64_t v_head_dim = in.v_dims.dim;
  const int64_t group = heads / in.k_dims.heads;
  const int64_t beams = in.k_dims.batch == 0 ? 1 : batch / in.k_dims.batch;

  OracleOutput result;
  result.dims = {batch, q_len, heads, v_head_dim};
  const size_t num_elements = static_cast<size_t>(result.dims.NumElements());
  result.out.assign(num_elements, 0.0);
  result.abs_out.assign(num_elements, 0.0);
  result.score_bound.assign(static_cast<size_t>(batch * q_len * heads), 0.0);
  for (int64_t i = 0; i < q_len; ++i) {
    result.visible.push_back(VisibleKeys(in.mask, q_len, kv_len, i));
  }
  for (const double x : in.v) {
    if (isfinite(x)) result.max_abs_v = std::max(result.max_abs_v, fabs(x));
  }

  std::vector<int64_t> queries = in.queries;
  for (int64_t i = 0; in.queries.empty() && i < q_len; ++i) queries.push_back(i);

  const size_t n = static_cast<size_t>(kv_len);
  std::vector<double> k_by_dim(n * static_cast<size_t>(head_dim));  // [head_dim][kv_len]
  std::vector<double> score(n);
  std::vector<double> magnitude(n);
  for (int64_t b = 0; b < in.k_dims.batch; ++b) {
    for (int64_t g = 0; g < in.k_dims.heads; ++g) {
      for (int64_t j = 0; j < kv_len; ++j) {
        for (int64_t d = 0; d < head_dim; ++d) {
          k_by_dim[static_cast<size_t>(d * kv_len + j)] = in.k[in.k_dims.Index(b, j, g, d)];
        }
      }
      for (int64_t qb = b * beams; qb < (b + 1) * beams; ++qb) {
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          for (const int64_t i : queries) {
            const size_t seen = static_cast<size_t>(result.visible[static_cast<size_t>(i)]);
            if (seen == 0) continue;
            std::fill(score.begin(), score.end(), 0.0);
            std::fill(magnitude.begin(), magnitude.end(), 0.0);
            for (int64_t d = 0; d < head_dim; ++d) {
              const double x = in.scale * in.q[in.q_dims.Index(qb, i, h, d)];
              const double abs_x = fabs(x);
              const double* keys = k_by_dim.data() + d * kv_len;
              for (size_t j = 0; j < seen; ++j) {
                score[j] += x * keys[j];
                magnitude[j] += abs_x * fabs(keys[j]);
              }
            }
            // NaN fails every comparison, so that it never becomes the maximum but reaches the sum.
            double max = -HUGE_VAL;
            double bound = 0.0;
            for (size_t j = 0; j < seen; ++j) {
              if (score[j] > max) max = score[j];
              bound = std::max(bound, magnitude[j]);
            }
            double sum = 0.0;
            for (size_t j = 0; j < seen; ++j) {
              score[j] = exp(score[j] - max);
              sum += score[j];
            }
            const size_t row = result.dims.Index(qb, i, h, 0);
            for (size_t j = 0; j < seen; ++j) {
              const double p = score[j] / sum;
              const double* value = in.v.data() + in.v_dims.Index(b, static_cast<int64_t>(j), g, 0);
              for (size_t c = 0; c < static_cast<size_t>(v_head_dim); ++c) {
                result.out[row + c] += p * value[c];
                result.abs_out[row + c] += p * fabs(value[c]);
              }
            }
            result.score_bound[static_cast<size_t>((qb * q_len + i) * heads + h)] = bound;
          }
        }
      }
    }
  }
  return result;
}

}  // namespace testing
}  // namespace sightline
