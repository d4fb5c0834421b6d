// What this machine can do at best, measured in this process: the denominators of the counter
// `roof`.
#ifndef SIGHTLINE_BENCH_ROOFS_H_
#define SIGHTLINE_BENCH_ROOFS_H_

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <string>
#include <vector>

#include "bench/machine.h"

namespace sightline {
namespace bench {

// Of one tier with so many threads running at once. Everything is measured when it is first asked
// for, as the best of several attempts: a peak is what was reached, not what a disturbed attempt
// reached.
class Roofs {
 public:
  // The tier must be supported. `threads` >= 1.
  Roofs(std::string tier, int threads);

  const std::string& tier() const { return tier_; }
  int threads() const { return threads_; }

  // Units: "fp32_fma", "int8_dot", "int16_dot", "bf16_dot". Operations per second; 0 if the tier
  // has no such instruction.
  double Arithmetic(const std::string& unit);
  // The unit that computes a precision: bf16, mixed16 and i8 have dot products where the tier has
  // them, all else is f32.
  std::string UnitOf(const std::string& precision);

  // Bytes per second that reading a footprint over and over gives; footprints are rounded down to
  // steps of two per octave, which errs on the side of a faster memory and a lower fraction.
  double ReadBandwidth(double footprint_bytes);

  // A footprint for each level of the memory: half of each cache, and DRAM at eight times the last
  // one.
  struct Level {
    const char* name;
    size_t footprint_bytes;
  };
  static std::vector<Level> Levels(const Caches& caches);

  // Measures once more what has been asked for, and keeps the better figure of each: a disturbance
  // lowers a roof, nothing raises it. Returns by what fraction the fp32 peak is off now.
  double Remeasure();

 private:
  std::string MixedUnit();
  double MeasureArithmetic(const std::string& unit) const;
  double MeasureBandwidth(size_t footprint) const;

  std::string tier_;
  int threads_;
  std::map<std::string, double> arithmetic_;
  std::map<size_t, double> bandwidth_;
};

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_ROOFS_H_
