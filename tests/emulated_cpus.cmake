# The CPUs that QEMU is for the tests: one row each, CPU:TIER[:BYTES], with the tier that has to be chosen there and, where it
# has SVE, the bytes of its vectors. On every one of them run the choice of the tier, an attention and the translator; a tier's
# own tests run on the first with it, since the others run the same code; everything else runs as whatever QEMU_CPU says.
set(SIGHTLINE_EMULATED_CPUS "")
if(CMAKE_CROSSCOMPILING_EMULATOR MATCHES "qemu-aarch64")
  set(SIGHTLINE_EMULATED_CPUS
    cortex-a53:neon
    cortex-a76:neon_dot
    neoverse-n1:neon_dot
    max,sve=off:neon_i8mm
    max,sve-default-vector-length=32:neon_i8mm:32)
elseif(CMAKE_CROSSCOMPILING_EMULATOR MATCHES "qemu-arm")
  set(SIGHTLINE_EMULATED_CPUS
    cortex-a9:scalar  # NEON without multiply-add
    cortex-a7:neon32)
endif()

# The parts of a row.
function(sightline_read_emulated_cpu row cpu tier sve_bytes)
  string(REPLACE ":" ";" parts ${row})
  list(APPEND parts 0)
  list(GET parts 0 first)
  list(GET parts 1 second)
  list(GET parts 2 third)
  set(${cpu} ${first} PARENT_SCOPE)
  set(${tier} ${second} PARENT_SCOPE)
  set(${sve_bytes} ${third} PARENT_SCOPE)
endfunction()

# The environment in which a tier's own tests run: empty where QEMU's CPU does not matter.
function(sightline_find_emulated_cpu wanted environment)
  set(${environment} "" PARENT_SCOPE)
  if(NOT SIGHTLINE_EMULATED_CPUS OR wanted STREQUAL "scalar")
    return()
  endif()
  foreach(row IN LISTS SIGHTLINE_EMULATED_CPUS)
    sightline_read_emulated_cpu(${row} cpu tier sve_bytes)
    if(tier STREQUAL wanted)
      set(${environment} QEMU_CPU=${cpu} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "No CPU of tests/emulated_cpus.cmake has to choose ${wanted}")
endfunction()
