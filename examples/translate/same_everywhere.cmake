# Translates the English of the first LINES lines of PAIRS in f32 with PROGRAM (started by EMULATOR, if any), and compares the
# SHA-256 of the French with what it is on x86-64. Where it differs, both are there to be looked at:
#
#   cmake -DPROGRAM=… -DEMULATOR=… -DPAIRS=heldout.tsv -DLINES=200 -DEXPECTED=… -DWORK_DIR=… -P same_everywhere.cmake

file(STRINGS ${PAIRS} pairs ENCODING UTF-8 LIMIT_COUNT ${LINES})
list(TRANSFORM pairs REPLACE "\t.*" "")
list(JOIN pairs "\n" english)
file(MAKE_DIRECTORY ${WORK_DIR})
file(WRITE ${WORK_DIR}/english.txt "${english}\n")
execute_process(COMMAND ${EMULATOR} ${PROGRAM} --quiet --precision f32 -
  INPUT_FILE ${WORK_DIR}/english.txt OUTPUT_FILE ${WORK_DIR}/french.txt RESULT_VARIABLE result)
file(SHA256 ${WORK_DIR}/french.txt actual)
if(NOT result EQUAL 0 OR NOT actual STREQUAL EXPECTED)
  message(FATAL_ERROR "${PROGRAM} ended with ${result}; ${WORK_DIR}/french.txt has the SHA-256 ${actual}, not ${EXPECTED}")
endif()
