// The benchmark program. From here the call path goes down to what is timed:
//
//   models/*.txt -> model_file   which cases there are
//   case, problem                one case: its name, its numbers, its exact result
//   contender                    who computes it: sightline_contender, peers/
//   row -> measure               check against the oracle, then Google Benchmark
//   roofs -> roof_kernels        what the CPU can do at best
//   output                       the table and the JSON for ./run report
#include <signal.h>
#include <stdio.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <regex>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bench/contender.h"
#include "bench/machine.h"
#include "bench/model_file.h"
#include "bench/options.h"
#include "bench/output.h"
#include "bench/peers/peers.h"
#include "bench/roofs.h"
#include "bench/row.h"
#include "bench/sightline_contender.h"
#include "dispatch/cpu_features.h"
#include "sightline/tier.h"

namespace sightline {
namespace bench {
namespace {

// Some hundred rows, and some dozen of each peer, within a minute.
constexpr Effort kQuickEffort = {0.01, 0.5};
// Roofs that moved more than this say that the CPU's speed changed during the run.
constexpr double kMaxDrift = 0.05;
// How much of a run may get lost.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kSaveInterval{10};

constexpr const char* kUnits[] = {"fp32_fma", "int8_dot", "int16_dot", "bf16_dot"};

volatile sig_atomic_t interrupted = 0;
void Interrupt(int signal_number) {
  interrupted = 1;
  signal(signal_number, SIG_DFL);  // a second one does not wait for the row
}

// From the plainest to the best.
std::vector<std::string> SupportedTiers() {
  std::vector<std::string> tiers;
  for (size_t i = 0; i < NumTiers(); ++i) {
    if (GetTier(i).supported) tiers.push_back(GetTier(i).name);
  }
  return tiers;
}

// The tiers that the option asks for; empty, with *error set, if they cannot run here.
std::vector<std::string> ChooseTiers(const std::string& option, std::string* error) {
  if (option == "all") return SupportedTiers();
  Status status = option.empty() ? Status() : SetActiveTier(option.c_str());
  const char* name = nullptr;
  if (status.ok()) status = GetActiveTier(&name);
  if (status.ok()) return {name};
  *error = status.message();
  return {};
}

std::string Number(double x) {
  char text[32];
  snprintf(text, sizeof(text), "%.6g", x);
  return text;
}

std::string Join(const std::set<std::string>& words) {
  std::string result;
  for (const std::string& word : words) result += (result.empty() ? "" : " ") + word;
  return result;
}

// One run of the program.
class Benchmark {
 public:
  explicit Benchmark(const Options& options) : options_(options), filter_(options.filter) {}

  // Finds out what there is to measure. False, with *error set, if that is nothing.
  bool Select(std::string* error);
  void List() const;

  // Say, and note for the JSON, where and what is measured.
  void DescribeMachine();
  void DescribeContenders();

  // Measures all rows, or those until an interruption.
  void Measure();
  // Adds what is only known afterwards.
  void Finish();
  // False if the file cannot be written; true if none is wanted.
  bool Save() const { return options_.json.empty() || WriteJson(options_.json, context_, rows_); }

  bool all_right() const { return all_right_ && !rows_.empty() && interrupted == 0; }

 private:
  // One that takes part, with the roofs that it is held against.
  struct Participant {
    std::unique_ptr<Contender> contender;
    Roofs* roofs;
  };

  // Which rows are wanted is decided by their names alone.
  bool IsWanted(const Case& c, const Contender& contender, const Offer& offer) const {
    if (options_.quick && !c.quick) return false;
    return std::regex_search(RowName(contender, c, offer.precision, options_.threads), filter_);
  }
  Roofs* AddRoofs(const std::string& tier) {
    roofs_.push_back(std::make_unique<Roofs>(tier, options_.threads));
    return roofs_.back().get();
  }
  void AddIfWanted(std::unique_ptr<Contender> contender, Roofs* roofs);
  // The row of an offer, unless *why_not says why there is none.
  void MeasureOffer(const Case& c, const Participant& participant, const Offer& offer,
                    std::unique_ptr<Problem>* problem, std::string* why_not);

  const Options options_;
  const std::regex filter_;
  std::vector<Case> cases_;
  std::vector<std::unique_ptr<Roofs>> roofs_;
  std::vector<Participant> participants_;
  std::vector<AbsentPeer> absent_;

  Caches caches_;
  std::map<std::string, std::string> context_;
  std::vector<Row> rows_;
  std::vector<Roofs*> row_roofs_;                          // of each row
  std::map<std::string, std::set<std::string>> refusals_;  // contender and reason -> ops
  bool all_right_ = true;
};

bool Benchmark::Select(std::string* error) {
  if (!ReadModelFolder(options_.models, &cases_, error)) return false;
  const std::vector<std::string> tiers = ChooseTiers(options_.tier, error);
  if (tiers.empty()) return false;
  if (options_.threads > NumCpus()) {
    *error = "--threads " + std::to_string(options_.threads) + ": this process may use " +
             std::to_string(NumCpus()) + " CPUs, and threads that share one tell nothing";
    return false;
  }
  context_["tier"] = tiers.back();
  for (const std::string& tier : tiers) AddIfWanted(MakeSightline(tier), AddRoofs(tier));

  Peers peers;
  if (options_.peers) peers = FindPeers();
  absent_ = std::move(peers.absent);
  if (!peers.present.empty()) {
    // A peer chooses its instructions itself: it is held against the best tier.
    const std::string best = SupportedTiers().back();
    Roofs* roofs = tiers.back() == best ? roofs_.back().get() : AddRoofs(best);
    for (std::unique_ptr<Contender>& peer : peers.present) AddIfWanted(std::move(peer), roofs);
  }

  // Roofs that no one is held against are not measured.
  const auto is_unused = [this](const std::unique_ptr<Roofs>& roofs) {
    return std::none_of(participants_.begin(), participants_.end(),
                        [&](const Participant& p) { return p.roofs == roofs.get(); });
  };
  roofs_.erase(std::remove_if(roofs_.begin(), roofs_.end(), is_unused), roofs_.end());
  if (participants_.empty()) *error = "no row matches; --list prints the names there are";
  return !participants_.empty();
}

void Benchmark::AddIfWanted(std::unique_ptr<Contender> contender, Roofs* roofs) {
  for (const Case& c : cases_) {
    for (const Offer& offer : contender->offers()) {
      if (!IsWanted(c, *contender, offer)) continue;
      participants_.push_back({std::move(contender), roofs});
      return;
    }
  }
}

void Benchmark::List() const {
  for (const Case& c : cases_) {
    for (const Participant& participant : participants_) {
      for (const Offer& offer : participant.contender->offers()) {
        if (!IsWanted(c, *participant.contender, offer)) continue;
        std::cout << RowName(*participant.contender, c, offer.precision, options_.threads) << "\n";
      }
    }
  }
}

void Benchmark::DescribeMachine() {
  const std::vector<int> cpus = PinToFastestCpus(options_.threads);
  std::string pinned;
  for (const int cpu : cpus) pinned += (pinned.empty() ? "" : " ") + std::to_string(cpu);
  const int measured_cpu = cpus.empty() ? 0 : cpus[0];
  caches_ = FindCaches(measured_cpu);
  const std::string governor = Governor(measured_cpu);
  context_["cpu"] = CpuModel();
  context_["os"] = OperatingSystem();
  context_["compiler"] = Compiler();
  context_["build"] = SIGHTLINE_BENCH_BUILD;
  context_["governor"] = governor;
  context_["threads"] = std::to_string(options_.threads);
  context_["pinned_cpus"] = pinned;
  const size_t sve_bits = 8 * internal::SveVectorBytes();
  if (sve_bits != 0) context_["sve_bits"] = std::to_string(sve_bits);
  std::cout << context_["cpu"] << ", " << context_["os"] << ", " << context_["compiler"] << ", "
            << context_["build"] << " build, "
            << (pinned.empty() ? "not pinned" : "on CPU " + pinned) << "\n";
  if (!governor.empty() && governor != "performance") {
    std::cout << "The CPU's frequency governor is \"" << governor
              << "\": \"performance\" gives steadier times.\n";
  }
  for (const std::unique_ptr<Roofs>& roofs : roofs_) {
    printf("roofs, tier %s, threads %d:", roofs->tier().c_str(), roofs->threads());
    for (const char* unit : kUnits) {
      const double rate = roofs->Arithmetic(unit);
      if (rate > 0.0) printf("  %s %.1f GOP/s", unit, rate * 1e-9);
    }
    printf("\n                ");
    for (const Roofs::Level& level : Roofs::Levels(caches_)) {
      printf("  %s %.1f GB/s", level.name,
             roofs->ReadBandwidth(static_cast<double>(level.footprint_bytes)) * 1e-9);
    }
    printf("\n");
  }
}

void Benchmark::DescribeContenders() {
  for (const Participant& participant : participants_) {
    const Contender& contender = *participant.contender;
    const bool is_peer = contender.name() != "sightline";
    const std::string prefix = is_peer ? "peer:" + contender.name() : contender.name();
    context_[is_peer ? prefix + "/version" : "sightline"] = contender.version();
    for (const Offer& offer : contender.offers()) {
      const std::string key = prefix + "/" + offer.precision;
      context_[key + "/tensors"] = offer.tensors;
      context_[key + "/not_timed"] = offer.not_timed;
      context_["roof_unit:" + participant.roofs->tier() + "/" + offer.precision] =
          participant.roofs->UnitOf(offer.precision);
      if (!is_peer) continue;
      std::cout << "peer " << contender.name() << " " << contender.version() << ", "
                << offer.precision << ": " << offer.tensors << " Not timed: " << offer.not_timed
                << "\n";
    }
  }
  for (const AbsentPeer& peer : absent_) {
    std::cout << "peer " << peer.name << " is absent: " << peer.why << "\n";
    context_["peer:" + peer.name + "/absent"] = peer.why;
  }
}

void Benchmark::Measure() {
  PrintTableHead(std::cout);
  Clock::time_point saved = Clock::now();
  for (const Case& c : cases_) {
    std::unique_ptr<Problem> problem;  // shared by all who are measured on it
    for (const Participant& participant : participants_) {
      for (const Offer& offer : participant.contender->offers()) {
        if (interrupted != 0 || !IsWanted(c, *participant.contender, offer)) continue;
        std::string why_not;
        MeasureOffer(c, participant, offer, &problem, &why_not);
        if (why_not.empty()) continue;
        const std::string& name = participant.contender->name();
        refusals_[name + " " + offer.precision + ": " + why_not].insert(c.OpName());
        all_right_ = all_right_ && name != "sightline";
      }
    }
    if (Clock::now() - saved > kSaveInterval) {
      Save();
      saved = Clock::now();
    }
  }
}

void Benchmark::MeasureOffer(const Case& c, const Participant& participant, const Offer& offer,
                             std::unique_ptr<Problem>* problem, std::string* why_not) {
  Row row;
  const Case plain = c.Plain();
  const std::string plain_name =
      RowName(*participant.contender, plain, offer.precision, options_.threads);
  const bool has_plain =
      c.has_features() && std::any_of(rows_.begin(), rows_.end(), [&](const Row& other) {
        return other.name == plain_name && other.error.empty();
      });
  try {
    if (*problem == nullptr) *problem = std::make_unique<Problem>(c);
    if (!MeasureRow(participant.contender.get(), **problem, offer, participant.roofs,
                    options_.quick ? kQuickEffort : Effort(), &row, why_not,
                    has_plain ? &plain : nullptr)) {
      return;
    }
  } catch (const std::bad_alloc&) {
    *why_not = c.Shape() + " is more than the memory holds";
    return;
  } catch (const std::exception& e) {  // a peer's
    *why_not = e.what();
    return;
  }
  PrintRow(row, std::cout);
  all_right_ = all_right_ && row.error.empty();
  rows_.push_back(row);
  row_roofs_.push_back(participant.roofs);
}

void Benchmark::Finish() {
  for (const auto& [reason, ops] : refusals_) {
    std::cout << "not measured (" << Join(ops) << "): " << reason << "\n";
    context_["not_measured:" + reason] = Join(ops);
  }
  // Roofs only rise when they are measured again: fractions become what they should have been.
  for (const std::unique_ptr<Roofs>& roofs : roofs_) {
    const double drift = roofs->Remeasure();
    context_["roof_drift:" + roofs->tier()] = Number(drift);
    for (const char* unit : kUnits) {
      const double rate = roofs->Arithmetic(unit);
      if (rate > 0.0) context_["roof:" + roofs->tier() + "/" + unit] = Number(rate);
    }
    for (const Roofs::Level& level : Roofs::Levels(caches_)) {
      context_["read_bandwidth:" + roofs->tier() + "/" + level.name + "/" +
               std::to_string(level.footprint_bytes)] =
          Number(roofs->ReadBandwidth(static_cast<double>(level.footprint_bytes)));
    }
    if (drift > -kMaxDrift && drift < kMaxDrift) continue;
    printf(
        "The fp32 roof of tier %s is %+.0f %% from what it was at the start: the CPU changed its "
        "speed "
        "or had other work, so take fractions of this run with care.\n",
        roofs->tier().c_str(), 100 * drift);
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].error.empty()) rows_[i].roof = FractionOfRoof(rows_[i], row_roofs_[i]);
  }
}

int Fail(const std::string& error) {
  std::cerr << error << "\n";
  return 1;
}

int Main(const Options& options) {
  Benchmark benchmark(options);
  std::string error;
  if (!benchmark.Select(&error)) return Fail(error);
  if (options.list) {
    benchmark.List();
    return 0;
  }
  const std::string unwritable = "--json: cannot write " + options.json;
  benchmark.DescribeMachine();
  benchmark.DescribeContenders();
  if (!benchmark.Save()) return Fail(unwritable);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) signal(number, &Interrupt);
  benchmark.Measure();
  benchmark.Finish();
  if (!benchmark.Save()) return Fail(unwritable);
  return benchmark.all_right() ? 0 : 1;
}

}  // namespace
}  // namespace bench
}  // namespace sightline

int main(int argc, char** argv) try {
  namespace fs = std::filesystem;
  sightline::bench::Options options;
  std::string error;
  if (!sightline::bench::ParseOptions(argc, argv, &options, &error)) {
    return sightline::bench::Fail(error);
  }
  if (options.help) {
    std::cout << sightline::bench::kUsage;
    return 0;
  }
  // Whoever unpacked the program beside its models may call it from anywhere.
  std::error_code code;
  const fs::path beside = fs::path(argv[0]).parent_path() / "models";
  if (options.models == "models" && !fs::exists("models", code) && fs::exists(beside, code)) {
    options.models = beside.string();
  }
  return sightline::bench::Main(options);
} catch (const std::exception& e) {  // a roof's buffer that the memory does not hold, for example
  return sightline::bench::Fail(e.what());
}
