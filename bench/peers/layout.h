// The order in which the peers of this folder keep rows: head by head, and together those rows of Q
// that read the same K and V, be it as beams of a sequence or as heads of a group.
//
//   K, V   [batch][kv_heads][kv_len]
//   Q, O   [batch][kv_heads][sharers][q_len], sharers = beams * heads / kv_heads
#ifndef SIGHTLINE_BENCH_PEERS_LAYOUT_H_
#define SIGHTLINE_BENCH_PEERS_LAYOUT_H_

#include <stdint.h>

#include <algorithm>
#include <vector>

#include "bench/case.h"

namespace sightline {
namespace bench {

// What an adapter may allocate beside Q, K, V and O, be it a mask or all scores at once: a small
// machine must not be killed for a peer's sake.
constexpr double kMaxExtraBytes = 0x1p31;

// Row heads of K and V, and how many rows of Q each serves for every query.
inline int64_t Groups(const Case& c) { return c.batch * c.kv_heads; }
inline int64_t Sharers(const Case& c) { return c.beams * (c.heads / c.kv_heads); }

// `x` of K or V, [batch, length, kv_heads, dim] in a Problem.
inline std::vector<float> ByHead(const Case& c, const std::vector<float>& x, int64_t dim) {
  std::vector<float> result(x.size());
  float* to = result.data();
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.kv_heads; ++h) {
      for (int64_t l = 0; l < c.kv_len; ++l) {
        to = std::copy_n(x.data() + ((b * c.kv_len + l) * c.kv_heads + h) * dim, dim, to);
      }
    }
  }
  return result;
}

// Calls f(row in the order of a Problem, row in the order above) for every row of Q.
template <typename F>
void ForEachRow(const Case& c, const F& f) {
  const int64_t group = c.heads / c.kv_heads;
  for (int64_t b = 0; b < c.q_batch(); ++b) {
    for (int64_t l = 0; l < c.q_len; ++l) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t kv_head = b / c.beams * c.kv_heads + h / group;
        const int64_t sharer = b % c.beams * group + h % group;
        f((b * c.q_len + l) * c.heads + h, (kv_head * Sharers(c) + sharer) * c.q_len + l);
      }
    }
  }
}

inline std::vector<float> GroupQ(const Case& c, const std::vector<float>& q) {
  std::vector<float> result(q.size());
  ForEachRow(c, [&](int64_t from, int64_t to) {
    std::copy_n(q.data() + from * c.head_dim, c.head_dim, result.data() + to * c.head_dim);
  });
  return result;
}

inline std::vector<float> UngroupO(const Case& c, const std::vector<float>& o) {
  std::vector<float> result(o.size());
  ForEachRow(c, [&](int64_t to, int64_t from) {
    std::copy_n(o.data() + from * c.v_head_dim, c.v_head_dim, result.data() + to * c.v_head_dim);
  });
  return result;
}

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_PEERS_LAYOUT_H_
