# cmake -DWAY=find_package ... -P consumer_test.cmake: installs the build tree into a prefix of its
# own, then configures, builds and runs the consumer with nothing but that prefix.
#
# The other ways only configure it, around the source tree: compiling the library a second time
# would show nothing new.
#
#   add_subdirectory
#   add_subdirectory_with_targets   the project has targets pthreadpool and absl::crc32c already
#   add_subdirectory_shared         as a shared library that is installed with the project

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
set(configure ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
  -DCMAKE_BUILD_TYPE=${CONFIG}
  -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER})
if(SANITIZE)
  list(APPEND configure
    -DCMAKE_CXX_FLAGS=-fsanitize=${SANITIZE} -DCMAKE_C_FLAGS=-fsanitize=${SANITIZE})
endif()

if(ABSL_PACKAGE_DIR)
  list(APPEND configure -Dabsl_DIR=${ABSL_PACKAGE_DIR})
endif()

if(WAY MATCHES "^add_subdirectory")
  if(WAY STREQUAL "add_subdirectory_with_targets")
    set(PTHREADPOOL ON)
    list(APPEND configure -DCONSUMER_TARGETS=ON)
  elseif(WAY STREQUAL "add_subdirectory_shared")
    list(APPEND configure -DBUILD_SHARED_LIBS=ON -DSIGHTLINE_INSTALL=ON)
  endif()
  list(APPEND configure -DSIGHTLINE_SOURCE_DIR=${SOURCE_DIR} -DSIGHTLINE_PTHREADPOOL=${PTHREADPOOL})
  foreach(name IN ITEMS HIGHWAY PTHREADPOOL FXDIV ABSEIL)
    if(${name}_DIR)
      list(APPEND configure -DFETCHCONTENT_SOURCE_DIR_${name}=${${name}_DIR})
    endif()
  endforeach()
  run(${configure})
  return()
endif()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix --config ${CONFIG})
# The package has pthreadpool's library but not its header.
if(PTHREADPOOL AND EXISTS ${PTHREADPOOL_DIR}/include/pthreadpool.h)
  list(APPEND configure -DPTHREADPOOL_HEADER_DIR=${PTHREADPOOL_DIR}/include)
endif()
run(${configure} -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix -DCMAKE_FIND_PACKAGE_NO_PACKAGE_REGISTRY=ON)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --config ${CONFIG})
find_program(consumer consumer REQUIRED NO_DEFAULT_PATH
  PATHS ${WORK_DIR}/build ${WORK_DIR}/build/${CONFIG})
run(${consumer})
