#include "bench/output.h"

#include <benchmark/benchmark.h>
#include <stdio.h>

#include <fstream>
#include <set>

namespace sightline {
namespace bench {
namespace {

using Run = benchmark::BenchmarkReporter::Run;

Run RunOf(const Row& row) {
  Run run;
  run.run_name.function_name = row.name;
  run.run_type = Run::RT_Aggregate;
  run.aggregate_name = "median";
  run.aggregate_unit = benchmark::kTime;
  run.report_label = row.label;
  run.time_unit = benchmark::kMicrosecond;
  run.family_index = 0;
  run.per_family_instance_index = 0;
  if (!row.error.empty()) {
    run.skipped = benchmark::internal::SkippedWithError;
    run.skip_message = row.error;
    return run;
  }
  run.iterations = row.timing.iterations;
  run.repetitions = row.timing.repetitions;
  run.real_accumulated_time = row.timing.real_seconds * static_cast<double>(run.iterations);
  run.cpu_accumulated_time = row.timing.cpu_seconds * static_cast<double>(run.iterations);
  run.counters["ops"] = row.ops;
  run.counters["roof"] = row.roof;
  run.counters["kv_bytes"] = row.kv_bytes;
  run.counters["rel_l2"] = row.rel_l2;
  run.counters["spread"] = row.timing.spread;
  if (row.token_bytes > 0.0) run.counters["token_bytes"] = row.token_bytes;
  if (!row.plain.empty()) {
    run.counters["time_ratio"] = row.time_ratio;
    run.counters["pair_ratio"] = row.pair_ratio;
  }
  return run;
}

}  // namespace

void PrintTableHead(std::ostream& out) {
  char line[256];
  snprintf(line, sizeof(line), "%13s %13s %8s %9s  %s\n", "time", "speed", "roof", "error", "row");
  out << line;
}

void PrintRow(const Row& row, std::ostream& out) {
  char line[256];
  if (!row.error.empty()) {
    snprintf(line, sizeof(line), "%45s  ", "");
    out << line << row.name << "\n" << line << "  " << row.error << "\n" << std::flush;
    return;
  }
  // What a decode or a store is judged by is how fast it goes through K and V, a share by its time.
  const bool in_bytes = IsDecode(row.op) || IsStore(row.op);
  const double speed = in_bytes ? row.kv_bytes / row.timing.seconds : row.ops;
  if (IsShare(row.op)) {
    snprintf(line, sizeof(line), "%10.3f us %22s %9.1e  ", row.timing.seconds * 1e6, "",
             row.rel_l2);
  } else {
    snprintf(line, sizeof(line), "%10.1f us %7.1f %-5s %6.1f %% %9.1e  ", row.timing.seconds * 1e6,
             speed * 1e-9, in_bytes ? "GB/s" : "GOP/s", row.roof * 100, row.rel_l2);
  }
  out << line << row.name;
  if (!row.plain.empty()) {
    snprintf(line, sizeof(line), "  (%.3f of the time of %s", row.time_ratio, row.plain.c_str());
    out << line;
    if (row.pair_ratio != row.time_ratio) {
      snprintf(line, sizeof(line), ", %.3f for each visible pair", row.pair_ratio);
      out << line;
    }
    out << ")";
  }
  if (!row.label.empty()) out << "  (" << row.label << ")";
  out << "\n" << std::flush;
}

bool WriteJson(const std::string& path, const std::map<std::string, std::string>& context,
               const std::vector<Row>& rows) {
  static std::set<std::string> known;  // as long as Google Benchmark's own list of them
  for (const auto& [key, value] : context) {
    if (known.insert(key).second) benchmark::AddCustomContext(key, value);
  }
  const std::string partial = path + ".partial";
  std::ofstream out(partial);
  benchmark::JSONReporter reporter;
  reporter.SetOutputStream(&out);
  reporter.SetErrorStream(&out);
  reporter.ReportContext(benchmark::BenchmarkReporter::Context());
  std::vector<Run> runs;
  runs.reserve(rows.size());
  for (const Row& row : rows) runs.push_back(RunOf(row));
  if (!runs.empty()) reporter.ReportRuns(runs);
  reporter.Finalize();
  out.close();
  return out && rename(partial.c_str(), path.c_str()) == 0;
}

}  // namespace bench
}  // namespace sightline
