# Configures Sightline by the preset of a target whose system is not here, as its users would, and compiles what asks that system
# about the CPU. Clang stands for its compilers, libc/ and systems/ for its headers; there is nothing to link with.
#
#   cmake -DPRESET=android-arm64 -DTIERS=neon,neon_dot,neon_i8mm -DFLAG=android24 -DSYMBOLS=getauxval -DC_COMPILER=clang-19
#         -DCXX_COMPILER=clang++-19 -DNM=llvm-nm-19 -DHIGHWAY=… -DABSEIL=… -DWORK_DIR=… -P check_toolchain.cmake
#
#   TIERS    that have to be built, in this order;
#   FLAG     has to be among the compiler's, as a regular expression: what the toolchain makes of its versions;
#   SYMBOLS  of the system that detection has to call.

cmake_minimum_required(VERSION 3.25)
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH source)
cmake_path(GET source PARENT_PATH source)
file(REMOVE_RECURSE ${WORK_DIR})
set(build ${WORK_DIR}/build)

# Somebody's own settings are not what is tested.
foreach(variable IN ITEMS ANDROID_NDK_HOME ANDROID_NDK_ROOT ANDROID_NDK CC CXX CFLAGS CXXFLAGS CMAKE_TOOLCHAIN_FILE)
  unset(ENV{${variable}})
endforeach()
set(ENV{CMAKE_GENERATOR} "Unix Makefiles")  # which presets that need Ninja have to overrule

set(flags "-ffreestanding -nostdlibinc -isystem ${CMAKE_CURRENT_LIST_DIR}/libc -isystem ${CMAKE_CURRENT_LIST_DIR}/systems")
set(options -DFETCHCONTENT_SOURCE_DIR_HIGHWAY=${HIGHWAY} -DFETCHCONTENT_SOURCE_DIR_ABSEIL=${ABSEIL}
  -DSIGHTLINE_PTHREADPOOL=OFF -DSIGHTLINE_WERROR=ON -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY)
if(PRESET STREQUAL "android-arm64")
  set(ENV{ANDROID_NDK_ROOT} ${CMAKE_CURRENT_LIST_DIR}/ndk)
elseif(PRESET MATCHES "^android")
  list(APPEND options -DSIGHTLINE_ANDROID_NDK=${CMAKE_CURRENT_LIST_DIR}/ndk)
elseif(PRESET MATCHES "^(ios|macos)")
  # Xcode's Clang is one for Apple's systems, told which by CMake.
  set(sdk ${WORK_DIR}/MacOSX.sdk)
  if(PRESET MATCHES "^ios")
    set(sdk ${WORK_DIR}/iPhoneOS.sdk)
  endif()
  file(MAKE_DIRECTORY ${sdk})
  list(APPEND options -G Ninja -DCMAKE_OSX_SYSROOT=${sdk} -DCMAKE_C_FLAGS=--target=arm64-apple-darwin)
  string(APPEND flags " --target=arm64-apple-darwin")
endif()
if(PRESET MATCHES "^windows")  # names its compilers
  file(MAKE_DIRECTORY ${WORK_DIR}/bin)
  file(CREATE_LINK ${C_COMPILER} ${WORK_DIR}/bin/clang SYMBOLIC)
  file(CREATE_LINK ${CXX_COMPILER} ${WORK_DIR}/bin/clang++ SYMBOLIC)
  set(ENV{PATH} "${WORK_DIR}/bin:$ENV{PATH}")
else()
  list(APPEND options -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER})
endif()
execute_process(COMMAND ${CMAKE_COMMAND} --preset ${PRESET} -B ${build} "-DCMAKE_CXX_FLAGS=${flags}" ${options}
  WORKING_DIRECTORY ${source} COMMAND_ERROR_IS_FATAL ANY)

file(STRINGS ${build}/generated/sightline_tiers.inc tiers)
list(TRANSFORM tiers REPLACE ".*ROW.([a-z0-9_]+),.*" "\\1")
list(REMOVE_ITEM tiers scalar)
list(JOIN tiers "," tiers)
if(NOT tiers STREQUAL TIERS)
  message(FATAL_ERROR "The tiers of ${PRESET} are \"${tiers}\" rather than \"${TIERS}\"")
endif()
file(STRINGS ${build}/compile_commands.json command REGEX "command.*cpu_features.cc")
if(NOT command MATCHES "${FLAG}")
  message(FATAL_ERROR "No ${FLAG} in ${command}")
endif()

# What Android's developers do: configure again, in a shell that does not know where the NDK is.
unset(ENV{ANDROID_NDK_ROOT})
execute_process(COMMAND ${CMAKE_COMMAND} ${build} COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)

set(folder CMakeFiles/sightline.dir/dispatch)
if(PRESET MATCHES "^windows")
  set(extension obj)
else()
  set(extension o)
endif()
foreach(name IN ITEMS arm_features cpu_features)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${build} --target ${folder}/${name}.cc.${extension} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
execute_process(COMMAND ${NM} --undefined-only ${build}/${folder}/cpu_features.cc.${extension}
  OUTPUT_VARIABLE undefined COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "," ";" SYMBOLS "${SYMBOLS}")
foreach(symbol IN LISTS SYMBOLS)
  if(NOT undefined MATCHES "[ _]${symbol}\n")
    message(FATAL_ERROR "cpu_features.cc for ${PRESET} does not call ${symbol}, but\n${undefined}")
  endif()
endforeach()
