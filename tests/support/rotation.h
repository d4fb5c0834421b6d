// The rotation of K and Q (rotate_k) in plain C++, as a step before they are quantised: f32, in the
// order that docs/contract.md promises, so that quanta come out the same as in every kernel.
//
//  - Size of channel d: f32 sum of |k - center| over the keys of the mean. M: upper median of the
//    sizes, at least 2^-10 of the largest. s = 2^(how many of 3, 24, 192, 1536 times M it reaches).
//
//  - K: (k - center) / (sign * s * B), Q: q * sign * s. B is the largest power of two that divides
//    head_dim.
//
//  - Both: Hadamard transform of every B channels, then x -= 2 mean(x) over the head_dim / B blocks
//    if there are several; what is beyond 1e27 is cut there.
#ifndef SIGHTLINE_TESTS_SUPPORT_ROTATION_H_
#define SIGHTLINE_TESTS_SUPPORT_ROTATION_H_

#include <stddef.h>

#include <vector>

namespace sightline {
namespace testing {

// k: centered rows [n][head_dim], of which the first `center_keys` gave the mean. Rotates them and
// returns sign * s of each channel.
std::vector<float> RotateK(std::vector<float>* k, size_t head_dim, size_t center_keys);

// One finite row of Q. q_factor: what RotateK returned.
void RotateQ(const std::vector<float>& q_factor, std::vector<float>* q);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_ROTATION_H_
