# 32-bit ARM Linux with floating-point registers: ARMv7 from the Cortex-A8 on, and 32-bit systems on newer boards. NEON is no part of
# what every program may use; the tier neon32 is chosen where there is one with multiply-add (Cortex-A7, A15 and later).

set(CMAKE_SYSTEM_PROCESSOR arm)
set(SIGHTLINE_TRIPLET arm-linux-gnueabihf)
set(SIGHTLINE_QEMU qemu-arm)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
