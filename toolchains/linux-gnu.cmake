# What the toolchains of Linux share, each of which says before it includes this
#
#   CMAKE_SYSTEM_PROCESSOR    what the programs run on;
#   SIGHTLINE_TRIPLET         the prefix of the distribution's cross compilers, and the name of its folder in /usr;
#   SIGHTLINE_QEMU            which of QEMU's user-mode emulators runs the programs, if it is installed.
#
# Tests run as the CPU that the environment names, QEMU_CPU=cortex-a53 for example, by default as one that has everything.

set(CMAKE_SYSTEM_NAME Linux)

# Debian and Ubuntu have a package for each version, and one without for the default.
foreach(compiler IN ITEMS C:gcc CXX:g++)
  string(REPLACE ":" ";" compiler ${compiler})
  list(POP_FRONT compiler language)
  find_program(CMAKE_${language}_COMPILER REQUIRED NAMES ${SIGHTLINE_TRIPLET}-${compiler} ${SIGHTLINE_TRIPLET}-${compiler}-14
    ${SIGHTLINE_TRIPLET}-${compiler}-13 ${SIGHTLINE_TRIPLET}-${compiler}-12)
endforeach()

# Packages of the build machine must not be found by accident.
set(CMAKE_FIND_ROOT_PATH /usr/${SIGHTLINE_TRIPLET})
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
