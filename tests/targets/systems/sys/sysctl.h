// As in Apple's C library: what dispatch/cpu_features.cc uses.
#pragma once
#include <stddef.h>
extern "C" int sysctlbyname(const char* name, void* old_value, size_t* old_bytes, void* new_value,
                            size_t new_bytes);
