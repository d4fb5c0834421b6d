// Counts how many sentences of a file are translated exactly in each precision, and how many as in
// f32: what rounding K and V costs a whole model, rather than one call.
#ifndef EXAMPLES_TRANSLATE_EVALUATE_H_
#define EXAMPLES_TRANSLATE_EVALUATE_H_

#include "command_line.h"
#include "model.h"

namespace translate {

// kFailure if the file is not one, a sentence cannot be translated or a threshold is missed.
int RunEvaluation(const Options& options, const Model& model, const Console& console);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_EVALUATE_H_
