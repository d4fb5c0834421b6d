# WebAssembly, in Node: Emscripten's own file does the work. One thread, and so no pthreadpool.

find_program(SIGHTLINE_EMCC NAMES emcc REQUIRED HINTS $ENV{EMSDK}/upstream/emscripten)
file(REAL_PATH ${SIGHTLINE_EMCC} emcc)
get_filename_component(emscripten ${emcc} DIRECTORY)
include(${emscripten}/cmake/Modules/Platform/Emscripten.cmake)

# Node has a fetch of its own since 18, which older versions of Emscripten take for a browser's.
find_program(SIGHTLINE_NODE NAMES node nodejs)
if(SIGHTLINE_NODE)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${SIGHTLINE_NODE};--no-experimental-fetch" CACHE STRING "Runs a program built for the target" FORCE)
endif()

# Catch2 and the library's allocations need exceptions, tests more than 16 MiB, and files are those of the machine.
set(CMAKE_CXX_FLAGS_INIT "-fexceptions")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-fexceptions -sALLOW_MEMORY_GROWTH=1 -sNODERAWFS=1 -sEXIT_RUNTIME=1")
