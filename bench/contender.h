// The one interface behind which Sightline and its peers are measured. What holds for one holds for
// all: the same numbers go in, the output is compared with the oracle before anything is timed, and
// conversions into the layout that a contender likes best are never timed.
#ifndef SIGHTLINE_BENCH_CONTENDER_H_
#define SIGHTLINE_BENCH_CONTENDER_H_

#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

#include "bench/problem.h"

namespace sightline {
namespace bench {

// One precision that a contender offers. The texts end up in the report beside the figures.
struct Offer {
  std::string precision;  // as in row names: "f32", "f16", "bf16", "i8", "q8_0"
  std::string tensors;    // element types, how they are quantised, the layouts that matter
  std::string not_timed;  // what happens outside the timed region
  double max_rel_l2 = 0;  // it computes something else if the error is larger, and is not timed
};

// A contender made ready for one case: it owns its copy of the inputs in its own layout, and its
// output.
class Entry {
 public:
  virtual ~Entry() = default;

  // The timed part.
  virtual void Run() = 0;

  // A Run is made of so many equal steps; the row's time is that of one.
  virtual int64_t steps() const { return 1; }
  // Whether Reset must be called, untimed, before the next Run.
  virtual bool needs_reset() const { return false; }
  virtual void Reset() {}

  // Another way to the same output, which is measured in turns with Run, for machines change their
  // speed: what it is, "one memory"; empty if there is none.
  virtual std::string beside() const { return ""; }
  virtual void RunBeside() {}

  // The output of the last Run or RunBeside as f32 [q_batch, q_length, heads, v_head_dim], dense.
  // For a store or a share, of an untimed attention over what was stored.
  virtual std::vector<float> Output() = 0;
  // What it gave beside it, of what the case asks for.
  virtual FurtherOutputs Further() { return {}; }

  // Bytes of K and V, as stored, that one step reads (a store: writes; a share: passes on).
  virtual double kv_bytes() const = 0;
  // Bytes that K and V of one token and kv head take where they are stored, with all that goes with
  // them: of a memory or cache as a whole, by its tokens and kv heads. 0 = they are not stored.
  virtual double token_bytes() const { return 0.0; }
  // What the bandwidth roof of a decode or a store counts: a store also reads its input.
  virtual double traffic_bytes() const { return kv_bytes(); }

  // Why the last Run did not compute what it should; empty if it did.
  virtual std::string error() const { return ""; }
};

class Contender {
 public:
  virtual ~Contender() = default;

  virtual std::string name() const = 0;  // "sightline", "xnnpack"
  virtual std::string version() const = 0;
  virtual std::string tier() const { return "own"; }  // peers choose their instructions themselves
  virtual const std::vector<Offer>& offers() const = 0;

  // Whether Enter looks at Case::features. A contender that does not is not asked about cases that
  // have some, nor about shares.
  virtual bool knows_features() const { return false; }

  // Null, with the reason in *why_not, if the contender cannot compute the case. The problem
  // outlives the call only.
  virtual std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision,
                                       int threads, std::string* why_not) = 0;
};

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_CONTENDER_H_
