# What Sightline needs from others. Include it once, after project() and the SIGHTLINE_* options. It defines
#
#   SIGHTLINE_HIGHWAY_INCLUDE_DIR  folder of hwy/highway.h, for the kernels;
#   pthreadpool                    target, with SIGHTLINE_PTHREADPOOL;
#   SIGHTLINE_CRC32C_TARGET        target with absl/crc/crc32c.h, for kv/file.cc;
#   SIGHTLINE_BUNDLED_TARGETS      targets that were built here and must be installed beside a static Sightline;
#   SIGHTLINE_FOUND_PACKAGES       packages that were found, and that who links an installed static Sightline must find;
#   Catch2::Catch2WithMain, catch_discover_tests()    with SIGHTLINE_BUILD_TESTS;
#   benchmark::benchmark           with SIGHTLINE_BUILD_BENCH. Its peers are bench/peers/CMakeLists.txt's business.
#
# Each dependency is taken from the first of
#   1. FETCHCONTENT_SOURCE_DIR_{HIGHWAY,PTHREADPOOL,FXDIV,ABSEIL,CATCH2,BENCHMARK}: an unpacked source (`./run` sets these);
#   2. an installed package that is new enough;
#   3. the pinned upstream tarball, downloaded at configure time.

include(FetchContent)
include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake)

set(SIGHTLINE_BUNDLED_TARGETS "")
set(SIGHTLINE_FOUND_PACKAGES "")

macro(sightline_declare name)
  string(TOUPPER ${name} sightline_id)
  FetchContent_Declare(${name} URL ${SIGHTLINE_${sightline_id}_URL} URL_HASH SHA256=${SIGHTLINE_${sightline_id}_SHA256}
    DOWNLOAD_EXTRACT_TIMESTAMP OFF ${ARGN})
endmacro()

# A SOURCE_SUBDIR that does not exist means: provide the files, do not add the project to this build.
sightline_declare(highway SOURCE_SUBDIR none FIND_PACKAGE_ARGS ${SIGHTLINE_HIGHWAY_VERSION} NAMES hwy CONFIG)
FetchContent_MakeAvailable(highway)
if(TARGET hwy::hwy)
  get_target_property(SIGHTLINE_HIGHWAY_INCLUDE_DIR hwy::hwy INTERFACE_INCLUDE_DIRECTORIES)
else()
  set(SIGHTLINE_HIGHWAY_INCLUDE_DIR ${highway_SOURCE_DIR})
endif()

# An installed pthreadpool is not looked for: it has no version to check, and distributions still carry the one of 2021.
# A project that embeds Sightline beside XNNPACK already has the target, and both then share one pool type.
function(sightline_add_pthreadpool)
  sightline_declare(pthreadpool SOURCE_SUBDIR none)
  sightline_declare(fxdiv SOURCE_SUBDIR none)
  FetchContent_MakeAvailable(pthreadpool fxdiv)

  # Others' code is built quietly and, for a shared Sightline, position-independent.
  set(CMAKE_WARN_DEPRECATED OFF)
  set(CMAKE_COMPILE_WARNING_AS_ERROR OFF)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  set(BUILD_SHARED_LIBS OFF)
  set(FXDIV_SOURCE_DIR ${fxdiv_SOURCE_DIR})
  add_subdirectory(${pthreadpool_SOURCE_DIR} ${pthreadpool_BINARY_DIR} EXCLUDE_FROM_ALL)

  # Upstream's include folders are absolute, which an installed target must not have.
  foreach(library IN ITEMS pthreadpool_interface fxdiv)
    get_target_property(include ${library} INTERFACE_INCLUDE_DIRECTORIES)
    set(include $<BUILD_INTERFACE:${include}>)
    set_target_properties(${library} PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES ${include} INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${include})
  endforeach()
  list(APPEND SIGHTLINE_BUNDLED_TARGETS pthreadpool pthreadpool_interface fxdiv)
  set(SIGHTLINE_BUNDLED_TARGETS ${SIGHTLINE_BUNDLED_TARGETS} PARENT_SCOPE)
endfunction()

if(SIGHTLINE_PTHREADPOOL AND NOT TARGET pthreadpool)
  sightline_add_pthreadpool()
endif()

# Abseil's CRC32C and what it calls: nine of its files, in a library of their own rather than the 39 targets that
# upstream's has behind it, all of which would have to be installed. Symbols carry the version in their namespace, and a
# shared Sightline keeps them to itself: another Abseil in the same program is not disturbed.
function(sightline_add_crc32c)
  sightline_declare(abseil SOURCE_SUBDIR none)
  FetchContent_MakeAvailable(abseil)
  set(sources crc/crc32c crc/internal/cpu_detect crc/internal/crc crc/internal/crc_memcpy_fallback
    crc/internal/crc_memcpy_x86_arm_combined crc/internal/crc_non_temporal_memcpy crc/internal/crc_x86_arm_combined
    base/internal/raw_logging base/log_severity)
  list(TRANSFORM sources PREPEND ${abseil_SOURCE_DIR}/absl/)
  list(TRANSFORM sources APPEND .cc)
  set(CMAKE_COMPILE_WARNING_AS_ERROR OFF)
  add_library(sightline_crc32c STATIC EXCLUDE_FROM_ALL ${sources})
  target_compile_features(sightline_crc32c PUBLIC cxx_std_17)
  target_compile_options(sightline_crc32c PRIVATE -w)
  target_include_directories(sightline_crc32c SYSTEM PUBLIC $<BUILD_INTERFACE:${abseil_SOURCE_DIR}>)
  set_target_properties(sightline_crc32c PROPERTIES
    POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  list(APPEND SIGHTLINE_BUNDLED_TARGETS sightline_crc32c)
  set(SIGHTLINE_BUNDLED_TARGETS ${SIGHTLINE_BUNDLED_TARGETS} PARENT_SCOPE)
endfunction()

# An installed Abseil says that only its very own version is compatible, so none is asked for: the first with this target
# is 20230125. A project that embeds Sightline beside Abseil already has it.
set(SIGHTLINE_CRC32C_TARGET absl::crc32c)
if(NOT TARGET absl::crc32c AND NOT FETCHCONTENT_SOURCE_DIR_ABSEIL)
  find_package(absl QUIET CONFIG)
  if(TARGET absl::crc32c)
    list(APPEND SIGHTLINE_FOUND_PACKAGES absl)
  endif()
endif()
if(NOT TARGET absl::crc32c)
  sightline_add_crc32c()
  set(SIGHTLINE_CRC32C_TARGET sightline_crc32c)
endif()

if(SIGHTLINE_BUILD_TESTS)
  sightline_declare(Catch2 FIND_PACKAGE_ARGS 3.4 CONFIG)
  FetchContent_MakeAvailable(Catch2)
  if(catch2_SOURCE_DIR)
    list(APPEND CMAKE_MODULE_PATH ${catch2_SOURCE_DIR}/extras)
  endif()
  include(Catch)
endif()

function(sightline_add_benchmark)
  set(CMAKE_WARN_DEPRECATED OFF)
  set(CMAKE_COMPILE_WARNING_AS_ERROR OFF)
  set(BUILD_SHARED_LIBS OFF)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_WERROR OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  # 1.8 is the first with State::SkipWithMessage.
  sightline_declare(benchmark SYSTEM FIND_PACKAGE_ARGS 1.8 CONFIG)
  FetchContent_MakeAvailable(benchmark)
endfunction()

if(SIGHTLINE_BUILD_BENCH)
  sightline_add_benchmark()
endif()
