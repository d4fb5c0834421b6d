// File: sightline/version.h
// The library's version, for compile-time checks. CMake reads it from here.
#ifndef SIGHTLINE_VERSION_H_
#define SIGHTLINE_VERSION_H_

#define SIGHTLINE_VERSION_MAJOR 0
#define SIGHTLINE_VERSION_MINOR 1
#define SIGHTLINE_VERSION_PATCH 0

#endif  // SIGHTLINE_VERSION_H_
