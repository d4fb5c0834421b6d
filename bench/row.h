// One line of the result: who computed which case in which precision, how fast, and how exactly.
#ifndef SIGHTLINE_BENCH_ROW_H_
#define SIGHTLINE_BENCH_ROW_H_

#include <string>

#include "bench/contender.h"
#include "bench/measure.h"
#include "bench/roofs.h"

namespace sightline {
namespace bench {

struct Row {
  std::string name;
  Op op = Op::kSelf;
  std::string op_name;  // with features
  Timing timing;
  double ops = 0.0;          // Case::Operations per second
  double roof = 0.0;         // see FractionOfRoof
  double kv_bytes = 0.0;     // Entry::kv_bytes
  double rel_l2 = 0.0;       // of the output, the larger one if there are further outputs
  double token_bytes = 0.0;  // Entry::token_bytes
  // Beside what Entry::beside says, or Case::Plain, measured in turns: times as much time, and
  // times as much time for each operation, and so for each visible pair. 0 = there is neither.
  double time_ratio = 0.0;
  double pair_ratio = 0.0;
  std::string plain;  // what, or its op
  std::string label;  // remarks: a large spread
  std::string error;  // the row does not count, because

  std::string unit;            // of Roofs::Arithmetic; "" for decodes, stores and shares
  double traffic_bytes = 0.0;  // Entry::traffic_bytes; 0 for shares
};

// Speed as a fraction of what the CPU can do: of the unit's operations for prefill, of the
// bandwidth of reading that many bytes for decodes and stores; 0 for shares, which have no roof.
double FractionOfRoof(const Row& row, Roofs* roofs);

// "[peer:NAME/]op/model/precision/shape/tier:T/threads:N"
std::string RowName(const Contender& contender, const Case& c, const std::string& precision,
                    int threads);

// Compares an output with the oracle, then measures. False, with *why_not set, if the contender
// does not compute such a case at all. plain: what the row is compared with, unless its entry has
// something beside it; null: nothing. Its output is not looked at: it has a row of its own.
bool MeasureRow(Contender* contender, const Problem& problem, const Offer& offer, Roofs* roofs,
                const Effort& effort, Row* row, std::string* why_not, const Case* plain = nullptr);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_ROW_H_
