// As in glibc and Android's C library: what dispatch/cpu_features.cc uses.
#pragma once
extern "C" int prctl(int option, ...);
