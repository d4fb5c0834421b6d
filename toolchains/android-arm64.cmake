# Android on 64-bit ARM, nearly every phone since 2016.

set(ANDROID_ABI arm64-v8a)
include(${CMAKE_CURRENT_LIST_DIR}/android.cmake)
