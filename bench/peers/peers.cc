#include "bench/peers/peers.h"

#include <utility>

namespace sightline {
namespace bench {
namespace {

#ifndef SIGHTLINE_BENCH_PEERS
#define SIGHTLINE_BENCH_PEERS 0
#endif

// CMake says which libraries it found.
#ifndef SIGHTLINE_BENCH_HAS_XNNPACK
#define SIGHTLINE_BENCH_HAS_XNNPACK 0
#endif
#ifndef SIGHTLINE_BENCH_HAS_ONEDNN
#define SIGHTLINE_BENCH_HAS_ONEDNN 0
#endif
#ifndef SIGHTLINE_BENCH_HAS_ONEDNN_GRAPH
#define SIGHTLINE_BENCH_HAS_ONEDNN_GRAPH 0
#endif
#ifndef SIGHTLINE_BENCH_HAS_GGML
#define SIGHTLINE_BENCH_HAS_GGML 0
#endif
#ifndef SIGHTLINE_BENCH_HAS_ONNXRUNTIME
#define SIGHTLINE_BENCH_HAS_ONNXRUNTIME 0
#endif

constexpr bool kPeers = SIGHTLINE_BENCH_PEERS != 0;

void Add(std::unique_ptr<Contender> contender, Peers* peers) {
  peers->present.push_back(std::move(contender));
}

void Miss(const char* name, const char* library, Peers* peers) {
  std::string why = "not built in: ";
  why += kPeers ? std::string("CMake found no ") + library : "SIGHTLINE_BENCH_PEERS is off";
  peers->absent.push_back({name, why});
}

}  // namespace

Peers FindPeers() {
  Peers peers;
  Add(MakeNaive(), &peers);
#if SIGHTLINE_BENCH_HAS_XNNPACK
  Add(MakeXnnpack(), &peers);
#else
  Miss("xnnpack", "XNNPACK", &peers);
#endif
#if SIGHTLINE_BENCH_HAS_ONEDNN
  Add(MakeOnednn(), &peers);
#else
  Miss("onednn", "oneDNN", &peers);
#endif
#if SIGHTLINE_BENCH_HAS_ONEDNN_GRAPH
  Add(MakeOnednnGraph(), &peers);
#else
  Miss("onednn_graph", "oneDNN with its Graph API", &peers);
#endif
#if SIGHTLINE_BENCH_HAS_GGML
  Add(MakeGgml(), &peers);
#else
  Miss("ggml", "ggml", &peers);
#endif
#if SIGHTLINE_BENCH_HAS_ONNXRUNTIME
  Add(MakeOnnxRuntime(), &peers);
#else
  Miss("onnxruntime", "ONNX Runtime", &peers);
#endif
  return peers;
}

}  // namespace bench
}  // namespace sightline
