// Where rows go: a table on the terminal, and Google Benchmark's JSON, which ./run report and
// Google Benchmark's own tools read. docs/benchmarking.md describes the fields.
#ifndef SIGHTLINE_BENCH_OUTPUT_H_
#define SIGHTLINE_BENCH_OUTPUT_H_

#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "bench/row.h"

namespace sightline {
namespace bench {

void PrintTableHead(std::ostream& out);
void PrintRow(const Row& row, std::ostream& out);

// Replaces `path` in one step, so that it never holds half of a result. False if it cannot be
// written. `context` is added to what Google Benchmark says of the machine; a key keeps the value
// it was first written with.
bool WriteJson(const std::string& path, const std::map<std::string, std::string>& context,
               const std::vector<Row>& rows);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_OUTPUT_H_
