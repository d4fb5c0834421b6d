#include "terminal.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace translate {
namespace {

// From dark to light: xterm's numbers of a ramp through blue, violet, red and orange to yellow.
constexpr int kRamp[] = {233, 17, 18, 54, 90, 126, 161, 197, 203, 209, 215, 221, 229};
constexpr int kFirstLight = 8;  // index in kRamp from where the percentage is written in black

constexpr const char* kShades[] = {" ", "░", "▒", "▓", "█"};

constexpr size_t kMinCellWidth = 4;    // " 99 "
constexpr size_t kMinNarrowWidth = 2;  // a shade and a gap
constexpr size_t kIndent = 2;

bool ContinuesCharacter(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Step 0 ... count - 1 for a weight of 0 ... 1; NaN is the darkest.
size_t StepOf(float weight, size_t count) {
  if (!(weight > 0.0f)) return 0;
  const float step = std::min(weight, 1.0f) * static_cast<float>(count - 1);
  return static_cast<size_t>(std::lround(step));
}

std::string Cut(std::string_view text, size_t width) {
  if (Width(text) <= width) return std::string(text);
  if (width == 0) return std::string();
  size_t columns = 0;
  size_t bytes = 0;
  for (; bytes < text.size(); ++bytes) {
    if (!ContinuesCharacter(text[bytes]) && ++columns == width) break;
  }
  return std::string(text.substr(0, bytes)) + "…";
}

std::string Escaped(const char* code, std::string_view text) {
  return std::string("\x1b[") + code + "m" + std::string(text) + "\x1b[0m";
}

std::string Centred(const std::string& text, size_t width) {
  const size_t left = (width - std::min(width, Width(text))) / 2;
  return FitLeft(std::string(left, ' ') + text, width);
}

// Names of narrow columns, written from top to bottom and ending at the map.
void DrawUprightNames(const std::vector<std::string>& names, size_t left, size_t width,
                      std::ostream& out) {
  std::vector<std::vector<std::string>> letters;
  size_t height = 0;
  for (const std::string& name : names) {
    letters.emplace_back();
    for (const char c : name) {
      if (!ContinuesCharacter(c) || letters.back().empty()) letters.back().emplace_back();
      letters.back().back() += c;
    }
    height = std::max(height, letters.back().size());
  }
  for (size_t line = 0; line < height; ++line) {
    std::string text(left, ' ');
    for (const std::vector<std::string>& name : letters) {
      const size_t skipped = height - name.size();
      text += Centred(line < skipped ? "" : name[line - skipped], width);
    }
    out << text << '\n';
  }
}

std::string Cell(float weight, size_t width, bool colour) {
  if (weight == 0.0f) return Dim(Centred("·", width), colour);
  if (colour) {
    const size_t step = StepOf(weight, std::size(kRamp));
    const std::string code = std::string(step >= kFirstLight ? "38;5;16" : "38;5;253") + ";48;5;" +
                             std::to_string(kRamp[step]);
    std::string percent = std::to_string(std::lround(weight * 100.0f));
    if (percent == "0" || percent.size() >= width) percent.clear();
    return Escaped(code.c_str(), Centred(percent, width));
  }
  std::string cell;
  for (size_t i = 1; i < width; ++i) cell += kShades[StepOf(weight, std::size(kShades))];
  return cell + ' ';
}

}  // namespace

size_t Width(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !ContinuesCharacter(c); }));
}

std::string FitLeft(std::string_view text, size_t width) {
  const std::string cut = Cut(text, width);
  return cut + std::string(width - Width(cut), ' ');
}

std::string FitRight(std::string_view text, size_t width) {
  const std::string cut = Cut(text, width);
  return std::string(width - Width(cut), ' ') + cut;
}

std::string Bold(std::string_view text, bool colour) {
  return colour ? Escaped("1", text) : std::string(text);
}

std::string Dim(std::string_view text, bool colour) {
  return colour ? Escaped("2", text) : std::string(text);
}

void DrawHeatMap(const WeightMap& map, const std::vector<std::string>& row_names,
                 const std::vector<std::string>& column_names, size_t max_width, bool colour,
                 std::ostream& out) {
  size_t name_width = 0;
  for (const std::string& name : row_names) name_width = std::max(name_width, Width(name));
  name_width = std::min(name_width, max_width / 4);
  const size_t left = kIndent + name_width + 1;

  // Columns as wide as their words, unless all of them together are too wide.
  std::vector<size_t> widths;
  widths.reserve(column_names.size());
  for (const std::string& name : column_names) {
    widths.push_back(std::max(Width(name) + 2, kMinCellWidth));
  }
  if (left + std::accumulate(widths.begin(), widths.end(), size_t{0}) <= max_width) {
    std::string heading(left, ' ');
    for (size_t i = 0; i < widths.size(); ++i) heading += Centred(column_names[i], widths[i]);
    out << heading << '\n';
  } else {
    const size_t fair = (max_width - left) / widths.size();
    widths.assign(widths.size(), std::max(std::min(fair, kMinCellWidth), kMinNarrowWidth));
    DrawUprightNames(column_names, left, widths[0], out);
  }

  for (size_t row = 0; row < map.rows; ++row) {
    out << std::string(kIndent, ' ') << FitRight(row_names[row], name_width) << ' ';
    for (size_t column = 0; column < map.columns; ++column) {
      out << Cell(map.at(row, column), widths[column], colour);
    }
    out << '\n';
  }
}

void DrawLegend(bool colour, std::ostream& out) {
  out << std::string(kIndent, ' ') << "weight 0 ";
  if (colour) {
    for (const int shade : kRamp) {
      out << Escaped(("48;5;" + std::to_string(shade)).c_str(), "  ");
    }
  } else {
    for (const char* shade : kShades) out << shade << shade << shade;
  }
  out << " 1, · masked\n";
}

}  // namespace translate
