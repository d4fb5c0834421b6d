# 64-bit ARM Linux: Raspberry Pi 3 and later with a 64-bit system, servers.

set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(SIGHTLINE_TRIPLET aarch64-linux-gnu)
set(SIGHTLINE_QEMU qemu-aarch64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
