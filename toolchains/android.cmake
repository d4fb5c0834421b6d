# What the toolchains of Android share: the NDK's own file does the work, told by ANDROID_ABI for what. Set ANDROID_PLATFORM for
# another level of the API than 24 (Android 7).
#
#   ANDROID_NDK_HOME=/path/to/ndk cmake --preset android-arm64 && cmake --build build/android-arm64

set(ndk "$ENV{ANDROID_NDK_HOME}")
if(NOT ndk)
  set(ndk "$ENV{ANDROID_NDK}")
endif()
set(file ${ndk}/build/cmake/android.toolchain.cmake)
if(NOT ndk OR NOT EXISTS ${file})
  message(FATAL_ERROR "There is no Android NDK in \"${ndk}\": ANDROID_NDK_HOME or ANDROID_NDK has to name its folder, the one "
                      "with build/cmake/android.toolchain.cmake")
endif()
if(NOT DEFINED ANDROID_PLATFORM)
  set(ANDROID_PLATFORM android-24)
endif()
include(${file})
