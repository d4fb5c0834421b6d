# macOS on Intel's processors, with Xcode's compilers, on either kind of Mac. A universal library is two builds that lipo joins:
# docs/platforms.md.

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_OSX_ARCHITECTURES x86_64 CACHE STRING "One architecture")
set(CMAKE_OSX_DEPLOYMENT_TARGET 10.15 CACHE STRING "Oldest macOS")
