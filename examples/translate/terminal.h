// Drawing with text: widths of accented words, colours, heat maps.
//
// In colour, cells are 256-colour backgrounds with the weight in percent; without, the shades
// " ░▒▓█". Words are Latin letters, each as wide as one column.
#ifndef EXAMPLES_TRANSLATE_TERMINAL_H_
#define EXAMPLES_TRANSLATE_TERMINAL_H_

#include <stddef.h>

#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "attention_weights.h"

namespace translate {

// Columns that a UTF-8 text occupies.
size_t Width(std::string_view text);

// `text` cut (with "…") or filled with spaces to `width` columns.
std::string FitLeft(std::string_view text, size_t width);
std::string FitRight(std::string_view text, size_t width);

// What the escape sequences are around `text`; just `text` without colour.
std::string Bold(std::string_view text, bool colour);
std::string Dim(std::string_view text, bool colour);

// Draws weights in 0 ... 1, rows named on the left, columns above; if that makes it wider than
// `max_width`, with narrow columns and their names written from top to bottom.
// Where a weight is exactly 0, as masks leave it, a dot is drawn.
void DrawHeatMap(const WeightMap& map, const std::vector<std::string>& row_names,
                 const std::vector<std::string>& column_names, size_t max_width, bool colour,
                 std::ostream& out);

// What the shades mean.
void DrawLegend(bool colour, std::ostream& out);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_TERMINAL_H_
