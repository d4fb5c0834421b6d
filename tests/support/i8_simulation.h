// The int8 scheme in plain C++, so that kernels can be held to it and not only to a loose error
// budget. Integers (stored bytes, dot products, P times V) come out exactly as in every kernel; f32
// steps that decide about a rounding are done in f32, in the kernels' order; all the rest is
// double.
//
//  - Element: NaN -> 0, then clamped to +-1e27.
//
//  - Center, per channel: f32 sum over keys in ascending order / their number; every n-th key, so
//  that
//    there are at most 256.
//
//  - K, per token: x = k - center, q = round(x * (127 / max|x|)), scale = max|x| / 127.
//
//  - V, per channel and 128 keys: the same.
//
//  - Q, per row: the same without a center.
//
//  - Score, in powers of two: S = (float(q . k) * (q_scale * scale * log2 e)) * k_scale.
//
//  - Tile of 128 keys: m = max S, p = 2^(S - m), P = round(255 p) as u8.
//
//  - Output: sum over tiles of 2^(m - max m) * v_scale * (P . V) / 255, divided by the same sum of
//    the unrounded p, + v's center.
//
// Rounding is to nearest, ties to even.
#ifndef SIGHTLINE_TESTS_SUPPORT_I8_SIMULATION_H_
#define SIGHTLINE_TESTS_SUPPORT_I8_SIMULATION_H_

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace sightline {
namespace testing {

constexpr size_t kI8TileKeys = 128;

// K and V of one sequence and one head, quantised.
struct I8Head {
  size_t kv_len = 0;
  size_t head_dim = 0;
  size_t v_head_dim = 0;
  std::vector<int8_t> k;        // [kv_len][head_dim]
  std::vector<int8_t> v;        // [kv_len][v_head_dim]
  std::vector<float> k_scale;   // [kv_len]
  std::vector<float> v_scale;   // [ceil(kv_len / kI8TileKeys)][v_head_dim]
  std::vector<float> k_center;  // [head_dim]
  std::vector<float> v_center;  // [v_head_dim]
  std::vector<float> q_factor;  // [head_dim] if K is rotated, or empty; see rotation.h
};

// k is [kv_len][head_dim], v is [kv_len][v_head_dim]. The centers are means over the first
// `center_keys` keys: all of them, but for a KvCache at most 128.
I8Head QuantizeI8(const std::vector<float>& k, const std::vector<float>& v, size_t kv_len,
                  size_t head_dim, size_t v_head_dim, size_t center_keys, bool rotate_k = false);

// One query over the first `visible` keys. q is [head_dim], value and tolerance are [v_head_dim].
//
// tolerance bounds |kernel - value| before the output is stored:
//
//  - 2^x of the kernels is good to about 2e-7. Where 255 p is so close to a half that this decides
//    the rounding, P may differ by one; each such key may move the output by its
//    |V| * v_scale / 255.
//
//  - Sums of p run over up to `visible` f32 terms of one sign, products over one term per tile, and
//    every rescaling rounds once: (visible + 8 tiles + 16) u on the sum of magnitudes.
void AttendI8(const I8Head& head, const float* q, size_t visible, float scale_log2e, double* value,
              double* tolerance);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_I8_SIMULATION_H_
