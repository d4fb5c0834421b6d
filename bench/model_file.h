// Reads bench/models/*.txt: the shapes of models, as data.
//
// clang-format off
//   model whisper_tiny   # begins an entry; what follows holds for its rows
//   heads 6
//   kv_heads 6           # default: heads
//   head_dim 64
//   v_head_dim 64        # default: head_dim
//   scale 1              # default: 1 / sqrt(head_dim)
//   self q=1500          # a row: an op of bench/case.h, then q, k (default: q, where there are queries), batch, beams
//   decode_cross k=1500 beams=1,5 quick
//   self q=512 t5=32     # and the Features of bench/case.h: window, prefix, padding, block_mask, softcap, t5, weights,
//   self q=512 mask lse  # segments and pages with a number, the others alone
//   append k=64 q=1,128  # q: tokens of one call; default 1
// clang-format on
//
// A list makes a row of each value. `quick` puts a row into `./run bench --quick`. The report draws
// what models called sweep_... have over their length. An error says file, line, what was given and
// what is allowed.
#ifndef SIGHTLINE_BENCH_MODEL_FILE_H_
#define SIGHTLINE_BENCH_MODEL_FILE_H_

#include <istream>
#include <string>
#include <vector>

#include "bench/case.h"

namespace sightline {
namespace bench {

// Appends the rows of one file to *cases. False, with *error set and *cases unchanged, if the file
// has a mistake.
bool ReadModels(std::istream& file, const std::string& name, std::vector<Case>* cases,
                std::string* error);

// All *.txt of a folder, in the order of their names.
bool ReadModelFolder(const std::string& folder, std::vector<Case>* cases, std::string* error);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_MODEL_FILE_H_
