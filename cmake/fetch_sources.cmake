# Downloads sources pinned in sources.cmake and unpacks each into <folder>/<name>-<version>:
#
#   cmake -DCACHE=<folder> "-DNAMES=highway;fxdiv" -P cmake/fetch_sources.cmake
#
# What is already there is left alone. Upstream is asked first; after its first failure (a closed network answers at once,
# a silent one costs 20 seconds) everything comes from the Debian mirror that this machine's apt is configured with. apt
# reads the mirror's newer suites through settings of its own, so nothing is added to the system and root is not needed.
#
# apt checks the suites' signatures where its keyring knows their keys; an older keyring does not, and only earns a warning
# from apt: whatever the origin, a tarball counts only if its SHA-256 is the pinned one.

cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake)

set(work ${CACHE}/fetching)
file(LOCK ${CACHE}/lock TIMEOUT 600)  # two builds may start at once

function(accept file sha256 out)
  set(${out} "" PARENT_SCOPE)
  if(EXISTS "${file}")
    file(SHA256 "${file}" actual)
    if(actual STREQUAL sha256)
      set(${out} "${file}" PARENT_SCOPE)
    else()
      message(NOTICE "  ${file}: SHA-256 is ${actual}, expected ${sha256}")
    endif()
  endif()
endfunction()

function(fetch_upstream id out)
  set(file ${work}/${id}.tar.gz)
  file(DOWNLOAD ${SIGHTLINE_${id}_URL} ${file} TIMEOUT 120 INACTIVITY_TIMEOUT 20 STATUS status)
  list(GET status 0 code)
  if(NOT code EQUAL 0)
    list(GET status 1 reason)
    message(NOTICE "  upstream: ${reason}")
    file(REMOVE ${file})
  endif()
  accept(${file} ${SIGHTLINE_${id}_SHA256} accepted)
  set(${out} "${accepted}" PARENT_SCOPE)
endfunction()

# apt, with its lists and caches in ${work}/apt and only the sources given to apt_read.
function(apt tool)
  cmake_parse_arguments(arg "" "OUT" "RUN" ${ARGN})
  set(d ${work}/apt)
  execute_process(
    COMMAND ${tool} -q -o Dir::Etc::sourcelist=${d}/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=${d}/lists
            -o Dir::Cache=${d}/cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::GzipIndexes=true
            -o Acquire::AllowInsecureRepositories=true -o APT::Get::AllowUnauthenticated=true -o APT::Sandbox::User=
            ${arg_RUN}
    WORKING_DIRECTORY ${work} OUTPUT_VARIABLE output ERROR_VARIABLE error RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(VERBOSE "${output}${error}")
  endif()
  set(${arg_OUT} "${output}" PARENT_SCOPE)
endfunction()

function(apt_read mirror)
  file(MAKE_DIRECTORY ${work}/apt/lists/partial ${work}/apt/cache/archives/partial)
  set(keyring /usr/share/keyrings/debian-archive-keyring.gpg)
  if(EXISTS ${keyring})
    set(options "[signed-by=${keyring}] ")
  endif()
  # Debian 13 has pthreadpool and Abseil, the suite after it Highway 1.3.0; both are only read, never installed from.
  file(WRITE ${work}/apt/sources.list "deb-src ${options}${mirror} trixie main\ndeb-src ${options}${mirror} forky main\n")
  apt(apt-get RUN update)
endfunction()

function(fetch_debian name id out)
  set(${out} "" PARENT_SCOPE)
  set(version ${SIGHTLINE_${id}_DEBIAN_VERSION})
  apt(apt-cache RUN showsrc --only-source ${name} OUT records)
  string(REGEX MATCHALL "\nVersion: [^\n]+" candidates "\n${records}")
  foreach(candidate IN LISTS candidates)  # any Debian revision of the upstream version holds the same tarball
    if(candidate MATCHES "^\nVersion: (.*)-[^-]+$" AND CMAKE_MATCH_1 STREQUAL version)
      string(REPLACE "\nVersion: " "" revision "${candidate}")
      # --tar-only, because mirrors have been seen that lack the .dsc beside a tarball.
      apt(apt-get RUN source --tar-only --download-only ${name}=${revision})
      file(GLOB file ${work}/${name}_*.orig.tar.*)
      accept("${file}" ${SIGHTLINE_${id}_DEBIAN_SHA256} accepted)
      set(${out} "${accepted}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Every archive apt is configured with, whether in sources.list, *.list or *.sources.
function(configured_mirrors out)
  execute_process(COMMAND apt-get update --print-uris OUTPUT_VARIABLE uris ERROR_QUIET)
  string(REGEX MATCHALL "'[^']+/dists/" mirrors "${uris}")
  list(TRANSFORM mirrors REPLACE "^'|/dists/$" "")
  list(REMOVE_DUPLICATES mirrors)
  set(${out} "${mirrors}" PARENT_SCOPE)
endfunction()

# A tarball holds one folder; anything else is taken as it is.
function(unpack archive directory)
  file(REMOVE_RECURSE ${work}/unpacked)
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${work}/unpacked)
  file(GLOB entries ${work}/unpacked/*)
  list(LENGTH entries count)
  if(NOT (count EQUAL 1 AND IS_DIRECTORY "${entries}"))
    set(entries ${work}/unpacked)
  endif()
  file(RENAME ${entries} ${directory})  # in one step: an interrupted run leaves no half-filled folder
endfunction()

set(upstream_answers TRUE)
foreach(name IN LISTS NAMES)
  string(TOUPPER ${name} id)
  set(directory ${CACHE}/${name}-${SIGHTLINE_${id}_VERSION})
  if(EXISTS ${directory})
    continue()
  endif()
  message(NOTICE "Fetching ${name} ${SIGHTLINE_${id}_VERSION}")
  set(archive "")
  if(upstream_answers)
    file(REMOVE_RECURSE ${work})
    fetch_upstream(${id} archive)
    if(NOT archive)
      set(upstream_answers FALSE)
      configured_mirrors(mirrors)
    endif()
  endif()
  while(NOT archive AND (mirror OR mirrors))
    if(NOT mirror)
      list(POP_FRONT mirrors mirror)
      apt_read(${mirror})
    endif()
    fetch_debian(${name} ${id} archive)
    if(NOT archive)
      set(mirror "")
    endif()
  endwhile()
  if(NOT archive)
    message(FATAL_ERROR "Neither ${SIGHTLINE_${id}_URL} nor a Debian mirror gave the tarball. "
                        "Unpack it yourself into ${directory} and try again.")
  endif()
  unpack(${archive} ${directory})
endforeach()
file(REMOVE_RECURSE ${work})
