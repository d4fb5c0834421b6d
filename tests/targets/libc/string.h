// For check_toolchain.cmake, where there is no C library: what dispatch/arm_features.cc uses.
#pragma once
#include <stddef.h>
extern "C" {
int strncmp(const char* a, const char* b, size_t count);
size_t strlen(const char* text);
}
