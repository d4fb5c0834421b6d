# Fails if the benchmark spoils a file of an earlier run before it has something to put in its place, or says nothing about
# one that it cannot write.
#
#   cmake -DBENCH=sightline_bench -DMODELS=folder -DEMULATOR= -DWORK_DIR=folder -P check_files.cmake

cmake_minimum_required(VERSION 3.25)
set(file ${WORK_DIR}/earlier.json)
file(WRITE ${file} "earlier")

function(expect code pattern)
  execute_process(COMMAND ${EMULATOR} ${BENCH} --models ${MODELS} ${ARGN}
    OUTPUT_VARIABLE output ERROR_VARIABLE error RESULT_VARIABLE result)
  if(NOT result EQUAL code OR NOT "${output}${error}" MATCHES "${pattern}")
    message(FATAL_ERROR "${ARGN}: exit code ${result}, expected ${code}, with ${pattern}:\n${output}${error}")
  endif()
  file(READ ${file} content)
  if(NOT content STREQUAL "earlier")
    message(FATAL_ERROR "${ARGN} changed the file")
  endif()
endfunction()

expect(0 "self/bert_base/f32/" --json ${file} --list)
expect(1 "no row matches" --json ${file} --filter no_such_model)
expect(1 "no tier is called" --json ${file} --tier none)
expect(1 "this process may use" --json ${file} --threads 1024)
expect(1 "cannot write" --json ${WORK_DIR}/no/such/folder.json --quick --filter ^append/)
