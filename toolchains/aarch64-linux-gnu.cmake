# 64-bit ARM Linux with the distribution's cross compiler; tests run under QEMU, as the CPU that the environment names:
# QEMU_CPU=cortex-a53, cortex-a76, max, …

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

find_program(CMAKE_C_COMPILER NAMES aarch64-linux-gnu-gcc aarch64-linux-gnu-gcc-12 REQUIRED)
find_program(CMAKE_CXX_COMPILER NAMES aarch64-linux-gnu-g++ aarch64-linux-gnu-g++-12 REQUIRED)

# Packages of the build machine must not be found by accident.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# The linker knows where the cross C library lives, QEMU has to be told.
find_program(SIGHTLINE_QEMU_AARCH64 NAMES qemu-aarch64-static qemu-aarch64)
if(SIGHTLINE_QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${SIGHTLINE_QEMU_AARCH64};-L;/usr/aarch64-linux-gnu"
    CACHE STRING "Runs a program built for the target")
endif()
