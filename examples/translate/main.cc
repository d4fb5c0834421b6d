// sightline_translate: finds out what kind of terminal there is; command_line.cc does the rest.
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "command_line.h"

namespace {

// Whether something is piped in. Those who start programs do not always close what these inherit:
// nobody should wait for a pipe that stays silent, unless asked to by "-".
bool StandardInputHasText() {
  constexpr int kPatienceMs = 2000;
  if (isatty(STDIN_FILENO)) return false;
  pollfd input = {STDIN_FILENO, POLLIN, 0};
  return poll(&input, 1, kPatienceMs) > 0 && (input.revents & POLLIN) != 0;
}

bool IsSet(const char* variable) {
  const char* value = getenv(variable);
  return value != nullptr && *value != '\0';
}

}  // namespace

int main(int argc, char** argv) {
  translate::Console console;
  console.in = &std::cin;
  console.out = &std::cout;
  console.err = &std::cerr;
  console.colour = isatty(STDOUT_FILENO) && !IsSet("NO_COLOR");
  console.in_has_text = StandardInputHasText;
  return translate::RunCommandLine(std::vector<std::string>(argv + (argc > 0), argv + argc),
                                   SIGHTLINE_TRANSLATE_FOLDER, console);
}
