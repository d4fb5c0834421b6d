# Windows on 64-bit ARM, with Clang and lld for Microsoft's libraries, from a prompt of Visual Studio that knows them
# (vcvarsall x64_arm64), by Ninja: Visual Studio's generator would take its own compiler all the same. clang++ rather than clang-cl:
# the same compiler, which then takes the options that ours are.

set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR ARM64)
set(CMAKE_C_COMPILER clang)
set(CMAKE_CXX_COMPILER clang++)
set(CMAKE_C_COMPILER_TARGET aarch64-pc-windows-msvc)
set(CMAKE_CXX_COMPILER_TARGET aarch64-pc-windows-msvc)
