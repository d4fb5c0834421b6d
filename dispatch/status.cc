#include "sightline/status.h"

#include <stdarg.h>
#include <stdio.h>

namespace sightline {

Status Status::Error(StatusCode code, const char* format, ...) {
  Status status;
  status.code_ = code;
  va_list args;
  va_start(args, format);
  const int length = vsnprintf(status.message_, sizeof(status.message_), format, args);
  va_end(args);
  if (length < 0) status.message_[0] = '\0';
  return status;
}

}  // namespace sightline
