# macOS on Apple's own processors, with Xcode's compilers, on either kind of Mac. A universal library is two builds that lipo joins:
# docs/platforms.md.

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_ARCHITECTURES arm64 CACHE STRING "One architecture")
set(CMAKE_OSX_DEPLOYMENT_TARGET 11.0 CACHE STRING "Oldest macOS")
