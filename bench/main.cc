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
#include <string.h>

#include <fstream>
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

volatile sig_atomic_t interrupted = 0;

// One that takes part, with the roofs that it is held against.
struct Participant {
  std::unique_ptr<Contender> contender;
  Roofs* roofs;
};

// The tiers that the option asks for; empty, with *error set, if they cannot run here.
std::vector<std::string> ChooseTiers(const std::string& option, std::string* error) {
  if (option == "all") {
    std::vector<std::string> tiers;
    for (size_t i = 0; i < NumTiers(); ++i) {
      if (GetTier(i).supported) tiers.push_back(GetTier(i).name);
    }
    return tiers;
  }
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

void DescribeRoofs(Roofs* roofs, std::map<std::string, std::string>* context) {
  printf("roofs, tier %s, threads %d:", roofs->tier().c_str(), roofs->threads());
  for (const char* unit : {"fp32_fma", "int8_dot", "int16_dot", "bf16_dot"}) {
    const double rate = roofs->Arithmetic(unit);
    if (rate == 0.0) continue;
    printf("  %s %.1f GOP/s", unit, rate * 1e-9);
    (*context)["roof:" + roofs->tier() + "/" + unit] = Number(rate);
  }
  printf("\n                ");
  for (const Roofs::Level& level : Roofs::Levels()) {
    const double rate = roofs->ReadBandwidth(static_cast<double>(level.footprint_bytes));
    printf("  %s %.1f GB/s", level.name, rate * 1e-9);
    (*context)["read_bandwidth:" + std::string(level.name) + "/" +
               std::to_string(level.footprint_bytes)] = Number(rate);
  }
  printf("\n");
}

// The fraction by which a roof differs from what it was.
double Drift(Roofs* roofs) {
  Roofs now(roofs->tier(), roofs->threads());
  return now.Arithmetic("fp32_fma") / roofs->Arithmetic("fp32_fma") - 1.0;
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

  std::ofstream json;
  if (!options.json.empty()) {
    json.open(options.json);
    if (!json) return Fail("--json: cannot write " + options.json);
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
  for (std::unique_ptr<Contender>& peer : peers.present) {
    add(std::move(peer), all_roofs.back().get());
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

  std::map<std::string, std::string> context;
  const std::vector<int> cpus = PinToFastestCpus(options.threads);
  std::string pinned;
  for (const int cpu : cpus) pinned += (pinned.empty() ? "" : " ") + std::to_string(cpu);
  context["cpu"] = CpuModel();
  context["os"] = OperatingSystem();
  context["compiler"] = Compiler();
  context["tier"] = tiers.back();
  context["threads"] = std::to_string(options.threads);
  context["pinned_cpus"] = pinned;
  printf("%s, %s, %s%s\n", context["cpu"].c_str(), context["os"].c_str(),
         context["compiler"].c_str(),
         pinned.empty() ? ", not pinned" : (", on CPU " + pinned).c_str());
  std::vector<Roofs*> used_roofs;  // participants of one tier are neighbours
  for (const Participant& participant : participants) {
    if (used_roofs.empty() || used_roofs.back() != participant.roofs) {
      used_roofs.push_back(participant.roofs);
    }
  }
  for (Roofs* roofs : used_roofs) DescribeRoofs(roofs, &context);

  for (const Participant& participant : participants) {
    const Contender& contender = *participant.contender;
    const bool is_peer = contender.name() != "sightline";
    const std::string prefix = is_peer ? "peer:" + contender.name() : contender.name();
    context[is_peer ? prefix + "/version" : "sightline"] = contender.version();
    for (const Offer& offer : contender.offers()) {
      context[prefix + "/" + offer.precision + "/tensors"] = offer.tensors;
      context[prefix + "/" + offer.precision + "/not_timed"] = offer.not_timed;
      if (!is_peer) continue;
      printf("peer %s %s, %s: %s%s%s\n", contender.name().c_str(), contender.version().c_str(),
             offer.precision.c_str(), offer.tensors.c_str(),
             offer.not_timed.empty() ? "" : "; not timed: ", offer.not_timed.c_str());
    }
  }
  for (const AbsentPeer& peer : peers.absent) {
    printf("peer %s is absent: %s\n", peer.name.c_str(), peer.why.c_str());
    context["peer:" + peer.name + "/absent"] = peer.why;
  }

  signal(SIGINT, [](int) { interrupted = 1; });
  PrintTableHead(std::cout);
  std::vector<Row> rows;
  std::map<std::string, std::set<std::string>> refusals;  // contender and reason -> ops
  for (const Case& c : cases) {
    std::unique_ptr<Problem> problem;
    for (const Participant& participant : participants) {
      for (const Offer& offer : participant.contender->offers()) {
        if (interrupted != 0 || !is_wanted(c, *participant.contender, offer)) continue;
        Row row;
        std::string why_not;
        try {
          if (problem == nullptr) problem = std::make_unique<Problem>(c);
          if (MeasureRow(participant.contender.get(), *problem, offer, participant.roofs,
                         options.quick ? kQuickEffort : Effort(), &row, &why_not)) {
            PrintRow(row, std::cout);
            rows.push_back(row);
            continue;
          }
        } catch (const std::bad_alloc&) {
          why_not = "out of memory for " + std::string(c.model) + "/" + c.Shape();
        }
        refusals[participant.contender->name() + " " + offer.precision + ": " + why_not].insert(
            Name(c.op));
      }
    }
  }

  for (const auto& [reason, ops] : refusals) {
    std::cout << "not measured (";
    for (const std::string& op : ops) std::cout << (op == *ops.begin() ? "" : ", ") << op;
    std::cout << "): " << reason << "\n";
  }
  for (Roofs* roofs : used_roofs) {
    const double drift = Drift(roofs);
    context["roof_drift:" + roofs->tier()] = Number(drift);
    if (drift < -kMaxDrift || drift > kMaxDrift) {
      printf(
          "The fp32 roof of tier %s is %+.0f %% from what it was at the start: the CPU changed its "
          "speed, so compare fractions of this run with care.\n",
          roofs->tier().c_str(), 100 * drift);
    }
  }
  if (json.is_open()) {
    WriteJson(context, rows, json);
    json.close();
    if (!json) return Fail("--json: cannot write " + options.json);
  }
  bool all_right = !rows.empty() && interrupted == 0;
  for (const Row& row : rows) all_right = all_right && row.error.empty();
  return all_right ? 0 : 1;
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
  return sightline::bench::Main(options);
}
