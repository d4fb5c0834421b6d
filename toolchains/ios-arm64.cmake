# iOS and iPadOS from 14 on, with Xcode's compilers, on a Mac. Every iPhone since the 5s is 64-bit ARM.

set(CMAKE_SYSTEM_NAME iOS)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_ARCHITECTURES arm64 CACHE STRING "One architecture")
set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0 CACHE STRING "Oldest iOS")
