// As in glibc and Android's C library: what dispatch/cpu_features.cc uses.
#pragma once
#define AT_HWCAP 16
extern "C" unsigned long getauxval(unsigned long type);
