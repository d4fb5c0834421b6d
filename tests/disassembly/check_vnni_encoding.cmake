# Fails unless the dot products of a tier's object (vpdpbusd) are 256 bits wide and in one encoding:
# VEX is AVX-VNNI's, EVEX is AVX512_VNNI's, and assemblers and compilers choose between the two silently.
# With VEX the whole object must do without AVX-512, which CPUs with AVX-VNNI alone do not have.
#
#   cmake -DOBJDUMP=objdump -DENCODING=VEX "-DOBJECTS=a.o;b.o" -P check_vnni_encoding.cmake
#
# The bytes tell: EVEX instructions start with 62 (after prefixes, if any), VEX ones with c4 or c5. The operands
# show what else AVX-512 brings: zmm, mask registers and the upper half of the register file.

set(address "\n *[0-9a-f]+:[ \t]+")
set(bytes "[0-9a-f ]*")
set(mnemonic "\t[^\n]*[a-z][^\n]*")  # GNU objdump continues long instructions on lines without one
set(prefixes "((26|2e|36|3e|64|65|66|67) )*")
set(registers "(%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01]))")

foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${OBJDUMP} -d ${object} OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)

  string(REGEX MATCHALL "${address}${bytes}\t[^\n]*vpdpbusd[^\n]*" products "${listing}")
  if(NOT products)
    message(FATAL_ERROR "No vpdpbusd in ${object}")
  endif()
  set(first_byte "62")
  if(ENCODING STREQUAL "VEX")
    set(first_byte "c[45]")
  endif()
  foreach(product IN LISTS products)
    if(NOT product MATCHES "^${address}${first_byte} " OR NOT product MATCHES "%ymm" OR product MATCHES "%zmm")
      message(FATAL_ERROR "Not the ${ENCODING} vpdpbusd on ymm in ${object}:${product}")
    endif()
  endforeach()

  if(ENCODING STREQUAL "VEX")
    foreach(avx512 IN ITEMS "${prefixes}62 ${bytes}${mnemonic}" "${bytes}\t[^\n]*${registers}[^\n]*")
      if(listing MATCHES "${address}${avx512}")
        message(FATAL_ERROR "AVX-512 in ${object}:${CMAKE_MATCH_0}")
      endif()
    endforeach()
  endif()

  list(LENGTH products count)
  message(STATUS "${object}: ${count} x vpdpbusd, ${ENCODING}")
endforeach()
