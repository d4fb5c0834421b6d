# Compiles the tiers of a target whose system is not here, and looks at what their objects export: as much as can be done
# without its headers, of which tiers need none.
#
#   cmake -DCLANG=clang++-19 -DNM=llvm-nm-19 -DTRIPLE=arm64-apple-ios14 -DPROCESSOR=arm64 -DPOINTER_BYTES=8 -DHIGHWAY=…
#         -DWORK_DIR=… ["-DONLY=avx2,avx512"] [-DPYTHON=python3 -DOBJDUMP=llvm-objdump-19] -P check_target.cmake
#
# ONLY these tiers, where the others are of the same instructions and fewer. With PYTHON and OBJDUMP their loops of products have to
# keep their sums in registers (../disassembly/check_register_blocks.py).

cmake_minimum_required(VERSION 3.25)
set(source ${CMAKE_CURRENT_LIST_DIR}/../..)
set(CMAKE_SYSTEM_PROCESSOR ${PROCESSOR})
set(CMAKE_SIZEOF_VOID_P ${POINTER_BYTES})
set(CMAKE_CXX_COMPILER_ID Clang)
include(${source}/cmake/tiers.cmake)
if(NOT SIGHTLINE_TIERS)
  message(FATAL_ERROR "No tiers for ${PROCESSOR} with pointers of ${POINTER_BYTES} bytes")
endif()
if(ONLY)
  string(REPLACE "," ";" only ${ONLY})
  foreach(tier IN LISTS only)
    if(NOT tier IN_LIST SIGHTLINE_TIERS)
      message(FATAL_ERROR "${PROCESSOR} has no tier ${tier}, its tiers are ${SIGHTLINE_TIERS}")
    endif()
  endforeach()
  set(SIGHTLINE_TIERS ${only})
endif()
file(MAKE_DIRECTORY ${WORK_DIR})
foreach(tier IN LISTS SIGHTLINE_TIERS)
  sightline_get_tier_compilation(${tier} definitions options)
  list(TRANSFORM definitions PREPEND -D)
  execute_process(COMMAND ${CLANG} --target=${TRIPLE} -ffreestanding -nostdlibinc -std=c++17 -Wall -Wextra -Wconversion -Werror
    -fvisibility=hidden -fvisibility-inlines-hidden
    -I${source} -I${source}/include -isystem ${HIGHWAY} -isystem ${CMAKE_CURRENT_LIST_DIR}/libc ${definitions} ${options}
    -c ${source}/kernels/tier.cc -o ${WORK_DIR}/${tier}.o COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${CMAKE_COMMAND} -DNM=${NM} -DTIER=${tier} -DGETTER=GetTable -DOBJECTS=${WORK_DIR}/${tier}.o
    -P ${source}/cmake/check_tier_symbols.cmake COMMAND_ERROR_IS_FATAL ANY)
  message(STATUS "${TRIPLE}: ${tier} compiles")
  if(PYTHON)
    execute_process(COMMAND ${PYTHON} ${CMAKE_CURRENT_LIST_DIR}/../disassembly/check_register_blocks.py ${OBJDUMP} ${tier}
      ${WORK_DIR}/${tier}.o COMMAND_ERROR_IS_FATAL ANY)
  endif()
endforeach()
