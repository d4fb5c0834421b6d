# WebAssembly, in Node: Emscripten's own file does the work. One thread, and so no pthreadpool.

find_program(SIGHTLINE_EMCC NAMES emcc REQUIRED HINTS $ENV{EMSDK}/upstream/emscripten)
file(REAL_PATH ${SIGHTLINE_EMCC} sightline_emscripten)
get_filename_component(sightline_emscripten ${sightline_emscripten} DIRECTORY)
file(STRINGS ${sightline_emscripten}/emscripten-version.txt sightline_version LIMIT_COUNT 1)
string(REGEX MATCH "[0-9.]+" sightline_version "${sightline_version}")

# Node has a fetch of its own since 18, which Emscripten took for a browser's until 3.1.11. Older versions of Node do not know the
# option, nor do some newer ones, with which such an Emscripten does not go.
find_program(SIGHTLINE_NODE NAMES node nodejs)
if(SIGHTLINE_NODE AND NOT DEFINED CMAKE_CROSSCOMPILING_EMULATOR)
  set(sightline_node ${SIGHTLINE_NODE})
  if(sightline_version VERSION_LESS 3.1.11)
    execute_process(COMMAND ${SIGHTLINE_NODE} --no-experimental-fetch --version
      RESULT_VARIABLE sightline_failed OUTPUT_QUIET ERROR_QUIET)
    if(NOT sightline_failed)
      list(APPEND sightline_node --no-experimental-fetch)
    endif()
  endif()
  set(CMAKE_CROSSCOMPILING_EMULATOR "${sightline_node}" CACHE STRING "Runs a program built for the target")
endif()
include(${sightline_emscripten}/cmake/Modules/Platform/Emscripten.cmake)

# Catch2 and the library's allocations need exceptions, tests more than 16 MiB; files and the environment are those of the machine.
# 5 MiB of stack, which was what there is until 3.1.27 made it 64 KiB and called it differently: kernels keep their blocks there.
set(sightline_stack STACK_SIZE)
if(sightline_version VERSION_LESS 3.1.27)
  set(sightline_stack TOTAL_STACK)
endif()
set(CMAKE_CXX_FLAGS_INIT "-fexceptions")
set(CMAKE_EXE_LINKER_FLAGS_INIT
  "-fexceptions -sALLOW_MEMORY_GROWTH=1 -sNODERAWFS=1 -sEXIT_RUNTIME=1 -s${sightline_stack}=5242880 \
--pre-js \"${CMAKE_CURRENT_LIST_DIR}/emscripten_environment.js\"")
foreach(sightline_variable IN ITEMS sightline_emscripten sightline_version sightline_node sightline_failed sightline_stack)
  unset(${sightline_variable})
endforeach()
unset(sightline_variable)
