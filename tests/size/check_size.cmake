# Fails if the library's objects, stripped, are larger together than LIMIT bytes: what every program that embeds it
# carries, kernels for all tiers included.
#
#   cmake -DSTRIP=strip -DWORK_DIR=folder -DLIMIT=3145728 "-DOBJECTS=a.o;b.o" -P check_size.cmake

file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
set(total 0)
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${STRIP} --strip-unneeded -o ${WORK_DIR}/stripped.o ${object} COMMAND_ERROR_IS_FATAL ANY)
  file(SIZE ${WORK_DIR}/stripped.o bytes)
  math(EXPR total "${total} + ${bytes}")
  message(STATUS "${bytes} ${object}")
endforeach()
if(total GREATER LIMIT)
  message(FATAL_ERROR "The library has ${total} bytes, more than ${LIMIT}")
endif()
message(STATUS "${total} bytes of at most ${LIMIT}")
