// One attention by a contender of the benchmark, as often as asked for, and then compared with the
// exact result: what count_peers.py counts the instructions of, under QEMU.
//
//   attend_as                                     lists all: contender, precision, version
//   attend_as CONTENDER PRECISION SHAPE TIMES     prints the relative L2 error
//
// Standard output says what is wrong: exit status 1 = the contender cannot compute that, 2 = it
// computed something else, or there is no such contender.
#include <stdio.h>
#include <stdlib.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/contender.h"
#include "bench/peers/peers.h"
#include "bench/problem.h"
#include "bench/sightline_contender.h"
#include "sightline/tier.h"

namespace sightline {
namespace bench {
namespace {

// A token's attention to 1500 keys that are already there, or that of 512 tokens to each other.
bool ParseShape(const std::string& shape, Case* c) {
  c->heads = c->kv_heads = 8;
  c->head_dim = c->v_head_dim = 64;
  if (shape == "self") {
    c->op = Op::kSelf;
    c->q_len = c->kv_len = 512;
  } else if (shape == "decode") {
    c->op = Op::kDecodeSelf;
    c->q_len = 1;
    c->kv_len = 1500;
  } else {
    return false;
  }
  return true;
}

constexpr int kRefused = 1;
constexpr int kWrong = 2;

int Fail(const std::string& why, int exit_status = kWrong) {
  puts(why.c_str());
  return exit_status;
}

int Main(const std::vector<std::string>& words) {
  const char* tier = nullptr;
  const Status status = GetActiveTier(&tier);
  if (!status.ok()) return Fail(status.message());
  std::vector<std::unique_ptr<Contender>> contenders = FindPeers().present;
  contenders.insert(contenders.begin(), MakeSightline(tier));

  if (words.empty()) {
    for (const std::unique_ptr<Contender>& contender : contenders) {
      for (const Offer& offer : contender->offers()) {
        printf("%s %s %s\n", contender->name().c_str(), offer.precision.c_str(),
               contender->version().c_str());
      }
    }
    return 0;
  }
  Case c;
  if (words.size() != 4 || !ParseShape(words[2], &c)) {
    return Fail("expected: CONTENDER PRECISION self|decode TIMES");
  }
  for (const std::unique_ptr<Contender>& contender : contenders) {
    for (const Offer& offer : contender->offers()) {
      if (contender->name() != words[0] || offer.precision != words[1]) continue;
      const Problem problem(c);
      std::string why_not;
      const std::unique_ptr<Entry> entry =
          contender->Enter(problem, offer.precision, /*threads=*/1, &why_not);
      if (entry == nullptr) return Fail(why_not, kRefused);
      for (int i = 0; i < atoi(words[3].c_str()); ++i) entry->Run();
      if (!entry->error().empty()) return Fail(entry->error());
      const double error = RelativeL2(problem, entry->Output());
      printf("%.2g\n", error);
      return error <= offer.max_rel_l2 ? 0 : Fail("is more than the precision explains");
    }
  }
  return Fail("no " + words[0] + " with " + words[1] + " is built in");
}

}  // namespace
}  // namespace bench
}  // namespace sightline

int main(int argc, char** argv) try {
  return sightline::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
} catch (const std::exception& e) {  // a peer's
  return sightline::bench::Fail(e.what());
}
