// Translates sentences in every precision and draws, for the first of them, what attention did.
#ifndef EXAMPLES_TRANSLATE_DEMO_H_
#define EXAMPLES_TRANSLATE_DEMO_H_

#include "command_line.h"
#include "model.h"

namespace translate {

// The words of the command line, else the lines of standard input, else sentences of its own.
// kFailure if a sentence could not be translated; the others are, all the same.
int RunDemo(const Options& options, const Model& model, const Console& console);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_DEMO_H_
