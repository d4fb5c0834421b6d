// The libraries that Sightline is compared with. One file each, behind bench/contender.h; CMake
// compiles those it finds.
#ifndef SIGHTLINE_BENCH_PEERS_PEERS_H_
#define SIGHTLINE_BENCH_PEERS_PEERS_H_

#include <memory>
#include <string>
#include <vector>

#include "bench/contender.h"

namespace sightline {
namespace bench {

struct AbsentPeer {
  std::string name;
  std::string why;  // "not built in: CMake found no ggml"
};

struct Peers {
  std::vector<std::unique_ptr<Contender>> present;
  std::vector<AbsentPeer> absent;
};

Peers FindPeers();

// One for each file of this folder.
std::unique_ptr<Contender> MakeNaive();
std::unique_ptr<Contender> MakeXnnpack();
std::unique_ptr<Contender> MakeOnednn();
std::unique_ptr<Contender> MakeOnednnGraph();
std::unique_ptr<Contender> MakeGgml();
std::unique_ptr<Contender> MakeOnnxRuntime();

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_PEERS_PEERS_H_
