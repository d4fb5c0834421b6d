// Rows whose keys are packed in more than one precision: each precision's kernels leave an output
// over their keys alone, with its lse, and these are joined as
//
//   lse = log(e^lse1 + e^lse2)      O = e^(lse1 - lse) O1 + e^(lse2 - lse) O2
//
// which is softmax over all keys. Cost: a pass over O for each change of precision.
#ifndef SIGHTLINE_DISPATCH_MERGE_H_
#define SIGHTLINE_DISPATCH_MERGE_H_

#include <stddef.h>

#include "dispatch/kernel_table.h"

namespace sightline {
namespace internal {

class PartialRows {
 public:
  static size_t Bytes(size_t v_head_dim);

  // In Bytes(v_head_dim) bytes; not used, and null, where there is one precision.
  PartialRows(unsigned char* memory, size_t v_head_dim);

  // Makes a task leave its output here.
  void Redirect(AttendTask* task) const;
  // Joins that with what is here already. rows: the task as it was.
  void Add(const AttendTask& rows);
  // Writes the rows to where the task wants them.
  void Store(const AttendTask& rows) const;

 private:
  size_t v_head_dim_;
  float* o_;      // [kTaskRows][v_head_dim]
  float* lse_;    // [kTaskRows]
  float* new_o_;  // of the last precision
  float* new_lse_;
  bool has_rows_ = false;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_MERGE_H_
