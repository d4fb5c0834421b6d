// For check_toolchain.cmake, where there is no C library: what dispatch/arm_features.cc and
// cpu_features.cc use.
#pragma once
#include <stddef.h>
extern "C" {
void* memcpy(void* to, const void* from, size_t count);
int strcmp(const char* a, const char* b);
int strncmp(const char* a, const char* b, size_t count);
size_t strlen(const char* text);
}
