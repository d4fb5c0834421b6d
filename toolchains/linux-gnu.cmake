# What the toolchains of Linux share, each of which says before it includes this
#
#   CMAKE_SYSTEM_PROCESSOR    what the programs run on;
#   SIGHTLINE_TRIPLET         the prefix of the distribution's cross compilers, and the name of its folder in /usr;
#   SIGHTLINE_QEMU            which of QEMU's user-mode emulators runs the programs, if it is installed.
#
# Tests run as the CPU that the environment names, QEMU_CPU=cortex-a53 for example, by default as one that has everything.

set(CMAKE_SYSTEM_NAME Linux)

# Debian and Ubuntu have a package for each version, and one without for the default.
find_program(CMAKE_C_COMPILER REQUIRED NAMES ${SIGHTLINE_TRIPLET}-gcc ${SIGHTLINE_TRIPLET}-gcc-14 ${SIGHTLINE_TRIPLET}-gcc-13
  ${SIGHTLINE_TRIPLET}-gcc-12)
find_program(CMAKE_CXX_COMPILER REQUIRED NAMES ${SIGHTLINE_TRIPLET}-g++ ${SIGHTLINE_TRIPLET}-g++-14 ${SIGHTLINE_TRIPLET}-g++-13
  ${SIGHTLINE_TRIPLET}-g++-12)

# Packages of the build machine must not be found by accident; those of a -DCMAKE_FIND_ROOT_PATH go first. CMake reads this file
# more than once.
list(APPEND CMAKE_FIND_ROOT_PATH /usr/${SIGHTLINE_TRIPLET})
list(REMOVE_DUPLICATES CMAKE_FIND_ROOT_PATH)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# The linker knows where the cross C library lives, QEMU has to be told.
find_program(SIGHTLINE_EMULATOR NAMES ${SIGHTLINE_QEMU}-static ${SIGHTLINE_QEMU})
if(SIGHTLINE_EMULATOR)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${SIGHTLINE_EMULATOR};-L;/usr/${SIGHTLINE_TRIPLET}"
    CACHE STRING "Runs a program built for the target")
endif()
