# Fails when a tier's object offers the linker anything but its getter: a weak copy of an inline function,
# compiled with wide ISA flags, could be kept for the whole program.
#
#   cmake -DNM=nm -DTIER=avx2 -DGETTER=GetTable "-DOBJECTS=a.o;b.o" -P check_tier_symbols.cmake

string(LENGTH "${TIER}" length)
string(LENGTH "${GETTER}" getter_length)
set(getter "(_?_ZN9sightline${length}${TIER}${getter_length}${GETTER}Ev|\\?${GETTER}@${TIER}@sightline@@.*)")
# Weak symbols whose name carries the tier cannot coincide with anyone else's.
math(EXPR hwy_length "${length} + 4")
set(own "${hwy_length}hwy_${TIER}|9sightline${length}${TIER}")

foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -g -P ${object} OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)
  string(REPLACE "\n" ";" listing "${listing}")
  set(has_getter FALSE)
  foreach(line IN LISTS listing)
    if(NOT line MATCHES "^([^ ]+) ([A-Za-z])")
      continue()
    endif()
    set(symbol ${CMAKE_MATCH_1})
    set(kind ${CMAKE_MATCH_2})
    if(symbol MATCHES "^${getter}$")
      set(has_getter TRUE)
    elseif(kind MATCHES "[Uw]" OR symbol MATCHES "_asan_globals")
      # Needed from elsewhere, or a sanitizer's own.
    elseif(kind MATCHES "[WVuv]" AND symbol MATCHES "${own}")
      # Weak, and its own.
    elseif(symbol MATCHES "^(__real@|__xmm@|\\?\\?_C@_)")
      # Constants on Windows, whose name is their value.
    else()
      message(FATAL_ERROR "Tier ${TIER} exports ${symbol} (${kind}) from ${object}; see kernels/tier.cc.")
    endif()
  endforeach()
  if(NOT has_getter)
    message(FATAL_ERROR "Tier ${TIER}: no ${GETTER}() in ${object}")
  endif()
endforeach()
