// As in Android's C library: what dispatch/cpu_features.cc uses.
#pragma once
#define PROP_VALUE_MAX 92
extern "C" int __system_property_get(const char* name, char* value);
