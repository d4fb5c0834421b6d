// Every peer that is built in computes what it should, on the shapes that trip adapters up.
#include <catch2/catch_test_macros.hpp>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "bench/peers/peers.h"
#include "bench/problem.h"

namespace sightline {
namespace bench {
namespace {

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&cases](Op op, int64_t batch, int64_t beams, int64_t heads, int64_t kv_heads,
                            int64_t head_dim, int64_t q_len, int64_t kv_len) {
    Case c;
    c.op = op;
    c.model = "peers";
    c.batch = batch;
    c.beams = beams;
    c.heads = heads;
    c.kv_heads = kv_heads;
    c.head_dim = c.v_head_dim = head_dim;
    c.q_len = q_len;
    c.kv_len = kv_len;
    cases.push_back(c);
  };
  add(Op::kSelf, 1, 1, 2, 2, 64, 128, 128);
  add(Op::kSelf, 2, 1, 3, 3, 32, 37, 37);
  add(Op::kSelf, 1, 1, 2, 2, 80, 100, 100);
  add(Op::kSelfCausal, 1, 1, 2, 2, 64, 128, 128);
  add(Op::kSelfCausal, 2, 1, 4, 2, 128, 65, 65);
  add(Op::kSelfCausal, 1, 1, 4, 1, 64, 33, 97);
  add(Op::kSelfCausal, 1, 1, 2, 2, 64, 600, 600);
  add(Op::kCross, 1, 1, 4, 4, 64, 19, 201);
  add(Op::kCross, 2, 1, 8, 2, 128, 5, 77);
  add(Op::kDecodeSelf, 1, 1, 8, 2, 64, 1, 333);
  add(Op::kDecodeSelf, 3, 1, 4, 1, 256, 1, 50);
  add(Op::kDecodeCross, 1, 1, 6, 6, 64, 1, 500);
  add(Op::kDecodeCross, 1, 5, 6, 6, 64, 1, 499);
  add(Op::kDecodeCross, 2, 3, 4, 2, 64, 1, 130);
  add(Op::kPrepare, 1, 1, 4, 2, 64, 1, 130);
  add(Op::kAppend, 1, 1, 4, 2, 64, 1, 130);
  return cases;
}

TEST_CASE("Peers compute attention or refuse with a reason", "[peers]") {
  const Peers peers = FindPeers();
  REQUIRE_FALSE(peers.present.empty());
  for (const std::unique_ptr<Contender>& peer : peers.present) {
    CHECK_FALSE(peer->version().empty());
    REQUIRE_FALSE(peer->offers().empty());
    for (const Offer& offer : peer->offers()) {
      CHECK_FALSE(offer.tensors.empty());
      CHECK_FALSE(offer.not_timed.empty());
      int served = 0;
      std::set<std::string> refusals;
      for (const int threads : {1, 2}) {
        for (const Case& c : Cases()) {
          INFO(peer->name() << " " << offer.precision << " " << Name(c.op) << " " << c.Shape()
                            << " threads " << threads);
          const Problem problem(c);
          std::string why_not;
          const std::unique_ptr<Entry> entry =
              peer->Enter(problem, offer.precision, threads, &why_not);
          if (entry == nullptr) {
            CHECK_FALSE(why_not.empty());
            refusals.insert(why_not);
            continue;
          }
          ++served;
          entry->Run();
          CHECK(RelativeL2(problem, entry->Output()) <= offer.max_rel_l2);
          // Once more: nothing is left over from the first run.
          if (entry->needs_reset()) entry->Reset();
          entry->Run();
          CHECK(RelativeL2(problem, entry->Output()) <= offer.max_rel_l2);
          CHECK(entry->error().empty());
          CHECK(entry->kv_bytes() > 0.0);
        }
      }
      std::string reasons;
      for (const std::string& reason : refusals) reasons += "\n  " + reason;
      INFO(peer->name() << " " << offer.precision << " refuses:" << reasons);
      CHECK(served + static_cast<int>(refusals.size()) > 0);
      if (served == 0) WARN(peer->name() << " " << offer.precision << " serves nothing" << reasons);
    }
  }
}

TEST_CASE("Absent peers are named with a reason", "[peers]") {
  const Peers peers = FindPeers();
  std::set<std::string> names;
  for (const std::unique_ptr<Contender>& peer : peers.present) names.insert(peer->name());
  for (const AbsentPeer& peer : peers.absent) {
    names.insert(peer.name);
    CHECK_FALSE(peer.why.empty());
  }
  CHECK(names ==
        std::set<std::string>{"naive", "xnnpack", "onednn", "onednn_graph", "ggml", "onnxruntime"});
}

}  // namespace
}  // namespace bench
}  // namespace sightline
