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
#include "sightline/tier.h"

namespace sightline {
namespace bench {
namespace {

// Some two dozen rows, and as many of each peer, within a minute.
constexpr Effort kQuickEffort = {0.005, 0.25};
// Roofs that moved more than this say that the CPU's speed changed during the run.
constexpr double kMaxDrift = 0.05;

// How much of a run may get lost.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kSaveInterval{10};

volatile sig_atomic_t interrupted = 0;

// One that takes part, with the roofs that it is held against.
struct Participant {
  std::unique_ptr<Contender> contender;
  Roofs* roofs;
};

using Context = std::map<std::string, std::string>;

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

void PrintRoofs(const Caches& caches, Roofs* roofs) {
  const std::string& tier = roofs->tier();
  printf("roofs, tier %s, threads %d:", tier.c_str(), roofs->threads());
  for (const char* unit : {"fp32_fma", "int8_dot", "int16_dot", "bf16_dot"}) {
    const double rate = roofs->Arithmetic(unit);
    if (rate == 0.0) continue;
    printf("  %s %.1f GOP/s", unit, rate * 1e-9);
  }
  printf("\n                ");
  for (const Roofs::Level& level : Roofs::Levels(caches)) {
    printf("  %s %.1f GB/s", level.name,
           roofs->ReadBandwidth(static_cast<double>(level.footprint_bytes)) * 1e-9);
  }
  printf("\n");
}

void NoteRoofs(const Caches& caches, Roofs* roofs, Context* context) {
  const std::string& tier = roofs->tier();
  for (const char* unit : {"fp32_fma", "int8_dot", "int16_dot", "bf16_dot"}) {
    const double rate = roofs->Arithmetic(unit);
    if (rate > 0.0) (*context)["roof:" + tier + "/" + unit] = Number(rate);
  }
  for (const Roofs::Level& level : Roofs::Levels(caches)) {
    (*context)["read_bandwidth:" + tier + "/" + level.name + "/" +
               std::to_string(level.footprint_bytes)] =
        Number(roofs->ReadBandwidth(static_cast<double>(level.footprint_bytes)));
  }
}

// What the contenders are, and what their times leave out.
void DescribeContenders(const std::vector<Participant>& participants, const Peers& peers,
                        Context* context) {
  for (const Participant& participant : participants) {
    const Contender& contender = *participant.contender;
    const bool is_peer = contender.name() != "sightline";
    const std::string prefix = is_peer ? "peer:" + contender.name() : contender.name();
    (*context)[is_peer ? prefix + "/version" : "sightline"] = contender.version();
    for (const Offer& offer : contender.offers()) {
      (*context)[prefix + "/" + offer.precision + "/tensors"] = offer.tensors;
      (*context)[prefix + "/" + offer.precision + "/not_timed"] = offer.not_timed;
      (*context)["roof_unit:" + participant.roofs->tier() + "/" + offer.precision] =
          participant.roofs->UnitOf(offer.precision);
      if (!is_peer) continue;
      printf("peer %s %s, %s: %s; not timed: %s\n", contender.name().c_str(),
             contender.version().c_str(), offer.precision.c_str(), offer.tensors.c_str(),
             offer.not_timed.c_str());
    }
  }
  for (const AbsentPeer& peer : peers.absent) {
    printf("peer %s is absent: %s\n", peer.name.c_str(), peer.why.c_str());
    (*context)["peer:" + peer.name + "/absent"] = peer.why;
  }
}

int Fail(const std::string& error) {
  std::cerr << error << "\n";
  return 1;
}

int Main(const Options& options) {
  std::string error;
  std::vector<Case> cases;
  if (!ReadModelFolder(options.models, &cases, &error)) return Fail(error);
  const std::vector<std::string> tiers = ChooseTiers(options.tier, &error);
  if (tiers.empty()) return Fail(error);
  if (options.threads > NumCpus()) {
    return Fail("--threads " + std::to_string(options.threads) + ": this process may use " +
                std::to_string(NumCpus()) + " CPUs, and threads that share one tell nothing");
  }

  // Which rows are wanted is decided by their names alone.
  const std::regex filter(options.filter);
  const auto is_wanted = [&](const Case& c, const Contender& contender, const Offer& offer) {
    if (options.quick && !c.quick) return false;
    return std::regex_search(RowName(contender, c, offer.precision, options.threads), filter);
  };
  std::vector<std::unique_ptr<Roofs>> all_roofs;
  std::vector<Participant> participants;
  const auto add = [&](std::unique_ptr<Contender> contender, Roofs* roofs) {
    for (const Case& c : cases) {
      for (const Offer& offer : contender->offers()) {
        if (!is_wanted(c, *contender, offer)) continue;
        participants.push_back({std::move(contender), roofs});
        return;
      }
    }
  };
  for (const std::string& tier : tiers) {
    all_roofs.push_back(std::make_unique<Roofs>(tier, options.threads));
    add(MakeSightline(tier), all_roofs.back().get());
  }
  Peers peers;
  if (options.peers) peers = FindPeers();
  if (!peers.present.empty()) {
    // A peer chooses its instructions itself: it is held against the best tier.
    const std::string best = SupportedTiers().back();
    if (tiers.back() != best) all_roofs.push_back(std::make_unique<Roofs>(best, options.threads));
    for (std::unique_ptr<Contender>& peer : peers.present) {
      add(std::move(peer), all_roofs.back().get());
    }
  }
  if (participants.empty()) return Fail("no row matches; --list prints the names there are");

  if (options.list) {
    for (const Case& c : cases) {
      for (const Participant& participant : participants) {
        for (const Offer& offer : participant.contender->offers()) {
          if (!is_wanted(c, *participant.contender, offer)) continue;
          std::cout << RowName(*participant.contender, c, offer.precision, options.threads) << "\n";
        }
      }
    }
    return 0;
  }

  const std::vector<int> cpus = PinToFastestCpus(options.threads);
  std::string pinned;
  for (const int cpu : cpus) pinned += (pinned.empty() ? "" : " ") + std::to_string(cpu);
  const int measured_cpu = cpus.empty() ? 0 : cpus[0];
  const Caches caches = FindCaches(measured_cpu);
  Context context;
  context["cpu"] = CpuModel();
  context["os"] = OperatingSystem();
  context["compiler"] = Compiler();
  context["build"] = SIGHTLINE_BENCH_BUILD;
  context["governor"] = Governor(measured_cpu);
  context["tier"] = tiers.back();
  context["threads"] = std::to_string(options.threads);
  context["pinned_cpus"] = pinned;
  printf("%s, %s, %s, %s build%s\n", context["cpu"].c_str(), context["os"].c_str(),
         context["compiler"].c_str(), context["build"].c_str(),
         pinned.empty() ? ", not pinned" : (", on CPU " + pinned).c_str());
  if (!context["governor"].empty() && context["governor"] != "performance") {
    printf("The CPU's frequency governor is \"%s\": \"performance\" gives steadier times.\n",
           context["governor"].c_str());
  }
  std::vector<Roofs*> used_roofs;  // participants of one tier are neighbours
  for (const Participant& participant : participants) {
    if (used_roofs.empty() || used_roofs.back() != participant.roofs) {
      used_roofs.push_back(participant.roofs);
    }
  }
  for (Roofs* roofs : used_roofs) PrintRoofs(caches, roofs);
  DescribeContenders(participants, peers, &context);
  if (!options.json.empty() && !WriteJson(options.json, context, {})) {
    return Fail("--json: cannot write " + options.json);
  }

  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    signal(number, [](int received) {
      interrupted = 1;
      signal(received, SIG_DFL);  // a second one does not wait for the row
    });
  }
  PrintTableHead(std::cout);
  std::vector<Row> rows;
  std::vector<Roofs*> row_roofs;                          // of each row
  std::map<std::string, std::set<std::string>> refusals;  // contender and reason -> ops
  bool all_right = true;
  Clock::time_point saved = Clock::now();
  for (const Case& c : cases) {
    std::unique_ptr<Problem> problem;
    for (const Participant& participant : participants) {
      for (const Offer& offer : participant.contender->offers()) {
        if (interrupted != 0 || !is_wanted(c, *participant.contender, offer)) continue;
        const std::string& name = participant.contender->name();
        Row row;
        std::string why_not;
        try {
          if (problem == nullptr) problem = std::make_unique<Problem>(c);
          if (MeasureRow(participant.contender.get(), *problem, offer, participant.roofs,
                         options.quick ? kQuickEffort : Effort(), &row, &why_not)) {
            PrintRow(row, std::cout);
            all_right = all_right && row.error.empty();
            rows.push_back(row);
            row_roofs.push_back(participant.roofs);
          }
        } catch (const std::bad_alloc&) {
          why_not = c.Shape() + " is more than the memory holds";
        } catch (const std::exception& e) {  // a peer's
          why_not = e.what();
        }
        if (why_not.empty()) continue;
        refusals[name + " " + offer.precision + ": " + why_not].insert(Name(c.op));
        all_right = all_right && name != "sightline";
      }
    }
    if (!options.json.empty() && Clock::now() - saved > kSaveInterval) {
      WriteJson(options.json, context, rows);
      saved = Clock::now();
    }
  }

  for (const auto& [reason, ops] : refusals) {
    std::string list;
    for (const std::string& op : ops) list += (list.empty() ? "" : " ") + op;
    std::cout << "not measured (" << list << "): " << reason << "\n";
    context["not_measured:" + reason] = list;
  }
  // Roofs only rise when they are measured again, so that fractions become what they should have
  // been.
  for (Roofs* roofs : used_roofs) {
    const double drift = roofs->Remeasure();
    NoteRoofs(caches, roofs, &context);
    context["roof_drift:" + roofs->tier()] = Number(drift);
    if (drift < -kMaxDrift || drift > kMaxDrift) {
      printf(
          "The fp32 roof of tier %s is %+.0f %% from what it was at the start: the CPU changed its "
          "speed or had other work, so take fractions of this run with care.\n",
          roofs->tier().c_str(), 100 * drift);
    }
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].error.empty()) rows[i].roof = FractionOfRoof(rows[i], row_roofs[i]);
  }
  if (!options.json.empty() && !WriteJson(options.json, context, rows)) {
    return Fail("--json: cannot write " + options.json);
  }
  return all_right && !rows.empty() && interrupted == 0 ? 0 : 1;
}

}  // namespace
}  // namespace bench
}  // namespace sightline

int main(int argc, char** argv) {
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
  namespace fs = std::filesystem;
  const fs::path beside = fs::path(argv[0]).parent_path() / "models";
  if (options.models == "models" && !fs::exists("models") && fs::exists(beside)) {
    options.models = beside.string();
  }
  return sightline::bench::Main(options);
}
