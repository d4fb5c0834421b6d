# Fails if the library, linked and stripped, is larger than LIMIT bytes: what it adds to an application, kernels for all
# tiers and what it calls of other libraries included. (Objects have symbols and relocations beside that, about a sixth
# more.)
#
#   cmake -DLINKER=c++ -DSTRIP=strip -DWORK_DIR=folder -DLIMIT=3145728 "-DOBJECTS=a.o;b.o;c.a" -P check_size.cmake

file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
set(library ${WORK_DIR}/library.so)
execute_process(COMMAND ${LINKER} -shared -o ${library} ${OBJECTS} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${STRIP} --strip-unneeded ${library} COMMAND_ERROR_IS_FATAL ANY)
file(SIZE ${library} bytes)
if(bytes GREATER LIMIT)
  message(FATAL_ERROR "The library has ${bytes} bytes, more than ${LIMIT}")
endif()
message(STATUS "${bytes} bytes of at most ${LIMIT}")
