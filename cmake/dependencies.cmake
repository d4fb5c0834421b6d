# What Sightline needs from others. Include it once, after project() and the SIGHTLINE_* options. It defines
#
#   SIGHTLINE_HIGHWAY_INCLUDE_DIR  folder of hwy/highway.h, for the kernels;
#   pthreadpool                    target, with SIGHTLINE_PTHREADPOOL;
#   SIGHTLINE_BUNDLED_TARGETS      targets that were built here and must be installed beside a static Sightline;
#   Catch2::Catch2WithMain, catch_discover_tests()    with SIGHTLINE_BUILD_TESTS;
#   benchmark::benchmark           with SIGHTLINE_BUILD_BENCH. Its peers are bench/peers/CMakeLists.txt's business.
#
# Each dependency is taken from the first of
#   1. FETCHCONTENT_SOURCE_DIR_{HIGHWAY,PTHREADPOOL,FXDIV,CATCH2,BENCHMARK}: an unpacked source (`./run` sets these);
#   2. an installed package that is new enough;
#   3. the pinned upstream tarball, downloaded at configure time.

include(FetchContent)
include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake)

set(SIGHTLINE_BUNDLED_TARGETS "")

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
  set(SIGHTLINE_BUNDLED_TARGETS pthreadpool pthreadpool_interface fxdiv PARENT_SCOPE)
endfunction()

if(SIGHTLINE_PTHREADPOOL AND NOT TARGET pthreadpool)
  sightline_add_pthreadpool()
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
