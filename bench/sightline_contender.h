// Sightline behind the interface of the benchmark, one contender for each tier.
#ifndef SIGHTLINE_BENCH_SIGHTLINE_CONTENDER_H_
#define SIGHTLINE_BENCH_SIGHTLINE_CONTENDER_H_

#include <memory>
#include <string>

#include "bench/contender.h"

namespace sightline {
namespace bench {

// `tier` must be supported here.
std::unique_ptr<Contender> MakeSightline(const std::string& tier);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_SIGHTLINE_CONTENDER_H_
