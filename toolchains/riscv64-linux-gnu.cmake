# 64-bit RISC-V Linux. Of the tiers it has scalar alone: docs/platforms.md says why.

set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(SIGHTLINE_TRIPLET riscv64-linux-gnu)
set(SIGHTLINE_QEMU qemu-riscv64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
