# Stands for the file of this name in an Android NDK, for tests: refuses what that would not understand, and makes Clang, which has to
# be named, one for the triple that the ABI and the level of the API are, without a C library.

if(NOT ANDROID_PLATFORM MATCHES "^android-([0-9]+)$")
  message(FATAL_ERROR "ANDROID_PLATFORM is \"${ANDROID_PLATFORM}\"")
endif()
set(level ${CMAKE_MATCH_1})
if(ANDROID_ABI STREQUAL "arm64-v8a")
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
  set(triple aarch64-none-linux-android${level})
elseif(ANDROID_ABI STREQUAL "armeabi-v7a")
  set(CMAKE_SYSTEM_PROCESSOR armv7-a)
  set(triple armv7-none-linux-androideabi${level})
elseif(ANDROID_ABI STREQUAL "x86_64")
  set(CMAKE_SYSTEM_PROCESSOR x86_64)
  set(triple x86_64-none-linux-android${level})
else()
  message(FATAL_ERROR "ANDROID_ABI is \"${ANDROID_ABI}\"")
endif()
set(CMAKE_SYSTEM_NAME Android)
set(CMAKE_SYSTEM_VERSION 1)  # CMake: the toolchain knows better
set(CMAKE_C_COMPILER_TARGET ${triple})
set(CMAKE_CXX_COMPILER_TARGET ${triple})
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# As the NDK's does: a list of its own.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_ABI)
