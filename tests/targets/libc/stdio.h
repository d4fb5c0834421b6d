// For check_target.cmake, where there is no C library: Highway includes it for what its x86
// operations print when they are debugged.
#pragma once
