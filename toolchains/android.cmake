# What the toolchains of Android share: the NDK's own file does the work, told by ANDROID_ABI for what. Set ANDROID_PLATFORM for
# another level of the API than 24 (Android 7). The NDK is looked for once, in the environment, and then kept in the cache:
#
#   ANDROID_NDK_HOME=/path/to/ndk cmake --preset android-arm64 && cmake --build --preset android-arm64

foreach(sightline_variable IN ITEMS ANDROID_NDK_HOME ANDROID_NDK_ROOT ANDROID_NDK)
  if(NOT SIGHTLINE_ANDROID_NDK AND NOT "$ENV{${sightline_variable}}" STREQUAL "")
    set(SIGHTLINE_ANDROID_NDK "$ENV{${sightline_variable}}" CACHE PATH "Folder of the Android NDK")
  endif()
endforeach()
unset(sightline_variable)
if(NOT EXISTS "${SIGHTLINE_ANDROID_NDK}/build/cmake/android.toolchain.cmake")
  message(FATAL_ERROR "There is no Android NDK in \"${SIGHTLINE_ANDROID_NDK}\". ANDROID_NDK_HOME, ANDROID_NDK_ROOT or ANDROID_NDK in the "
                      "environment, or -DSIGHTLINE_ANDROID_NDK=, has to name its folder, the one with "
                      "build/cmake/android.toolchain.cmake")
endif()
if(NOT DEFINED ANDROID_PLATFORM)
  set(ANDROID_PLATFORM android-24)
endif()
include(${SIGHTLINE_ANDROID_NDK}/build/cmake/android.toolchain.cmake)
# CMake's trial builds read this file too, and none of the cache but this. Last, for the NDK's file has a list of its own.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SIGHTLINE_ANDROID_NDK ANDROID_PLATFORM)
