# Finds XNNPACK, whose CMake files install no package: XNNPACK::XNNPACK with everything that a static one needs. It uses a
# target pthreadpool where the project has one, so that both share one type of pool. XNNPACK_ROOT says where to look; as there
# are no releases, XNNPACK_VERSION is the commit if that folder is named after it (xnnpack-<commit>…), otherwise empty.

set(parts XNNPACK microkernels-prod cpuinfo)
if(NOT TARGET pthreadpool)
  list(APPEND parts pthreadpool)
endif()

# A folder that was named is looked at as it is, even when compiling for another machine.
if(XNNPACK_ROOT)
  set(named PATHS ${XNNPACK_ROOT} NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
endif()
find_path(XNNPACK_INCLUDE_DIR xnnpack.h PATH_SUFFIXES include NO_CACHE ${named})
set(variables XNNPACK_INCLUDE_DIR)
foreach(part IN LISTS parts)
  find_library(XNNPACK_${part}_LIBRARY ${part} PATH_SUFFIXES lib NO_CACHE ${named})
  list(APPEND variables XNNPACK_${part}_LIBRARY)
endforeach()

set(XNNPACK_VERSION "")
if(XNNPACK_ROOT MATCHES "/xnnpack-([0-9a-f]+)[^/]*$")
  set(XNNPACK_VERSION ${CMAKE_MATCH_1})
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(XNNPACK REQUIRED_VARS ${variables})

if(XNNPACK_FOUND AND NOT TARGET XNNPACK::XNNPACK)
  find_package(Threads REQUIRED)
  set(libraries "")
  foreach(part IN LISTS parts)
    list(APPEND libraries ${XNNPACK_${part}_LIBRARY})
  endforeach()
  if(TARGET pthreadpool)
    list(APPEND libraries pthreadpool)
  endif()
  add_library(XNNPACK::XNNPACK INTERFACE IMPORTED)
  set_target_properties(XNNPACK::XNNPACK PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${XNNPACK_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${libraries};Threads::Threads;$<$<BOOL:${UNIX}>:m>")
endif()
unset(parts)
unset(named)
unset(variables)
unset(libraries)
