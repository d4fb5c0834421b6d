# The tiers, from the plainest to the best: one row each. Dispatch, tests and benchmarks follow.
#
#   sightline_tier(NAME HIGHWAY_TARGET "compiler flags" "definitions" [TESTS_ONLY] NEEDS cpu features...
#                  [OVER tier OWNS precisions...])
#
# A TESTS_ONLY tier exists only in builds with tests, and is never chosen unless it is named.
#
# A tier OVER another compiles kernels for the precisions that its instructions make faster, which it OWNS, and has those
# of the other tier for the rest: enumerators of Precision, sightline/tensor.h. The other tier has its own for all.
#
# NEEDS must cover every extension that the flags let the compiler use (x86-64-v3 implies lzcnt and
# movbe, armv8.2-a atomics), or the tier dies of SIGILL where one is missing; the names are those of
# dispatch/cpu_features.h. HIGHWAY_TARGET is asserted, since flags choose it silently: without
# HWY_DISABLE_PCLMUL_AES, x86-64-v2 and -v3 would become Highway's SSSE3.
#
# The scalar tier is plain C++ (kernels/scalar.cc) and always there.

set(SIGHTLINE_TIERS "")
set(SIGHTLINE_PRECISIONS kF32 kF16 kI8 kI8Fine kBF16 kMixed16)

function(sightline_tier name target flags definitions)
  cmake_parse_arguments(PARSE_ARGV 4 ARG "TESTS_ONLY" "OVER" "NEEDS;OWNS")
  if(ARG_TESTS_ONLY AND NOT SIGHTLINE_BUILD_TESTS)
    return()
  endif()
  if(NOT ARG_OVER)
    set(ARG_OVER ${name})
    set(ARG_OWNS ${SIGHTLINE_PRECISIONS})
  elseif(NOT SIGHTLINE_${ARG_OVER}_OVER STREQUAL ARG_OVER)
    message(FATAL_ERROR "Tier ${name} is over ${ARG_OVER}, which has no kernels of its own for all precisions")
  endif()
  foreach(precision IN LISTS ARG_OWNS)
    if(NOT precision IN_LIST SIGHTLINE_PRECISIONS)
      message(FATAL_ERROR "Tier ${name} owns ${precision}, which is none of ${SIGHTLINE_PRECISIONS}")
    endif()
  endforeach()
  foreach(feature IN LISTS SIGHTLINE_${ARG_OVER}_NEEDS)
    if(NOT feature IN_LIST ARG_NEEDS)
      message(FATAL_ERROR "Tier ${name} does not need ${feature}, which ${ARG_OVER} below it does")
    endif()
  endforeach()
  separate_arguments(flags)
  list(APPEND SIGHTLINE_TIERS ${name})
  set(SIGHTLINE_TIERS ${SIGHTLINE_TIERS} PARENT_SCOPE)
  set(SIGHTLINE_${name}_TARGET ${target} PARENT_SCOPE)
  set(SIGHTLINE_${name}_FLAGS ${flags} PARENT_SCOPE)
  set(SIGHTLINE_${name}_DEFINITIONS ${definitions} PARENT_SCOPE)
  set(SIGHTLINE_${name}_NEEDS ${ARG_NEEDS} PARENT_SCOPE)
  set(SIGHTLINE_${name}_TESTS_ONLY ${ARG_TESTS_ONLY} PARENT_SCOPE)
  set(SIGHTLINE_${name}_OVER ${ARG_OVER} PARENT_SCOPE)
  set(SIGHTLINE_${name}_OWNS ${ARG_OWNS} PARENT_SCOPE)
endfunction()

# What is compiled for. A universal build of macOS would be for two, with one set of flags: build each, and let lipo join them.
set(processor ${CMAKE_SYSTEM_PROCESSOR})
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(processor ${CMAKE_OSX_ARCHITECTURES})
  list(LENGTH processor num_processors)
  if(num_processors GREATER 1)
    message(FATAL_ERROR "CMAKE_OSX_ARCHITECTURES is ${CMAKE_OSX_ARCHITECTURES}: tiers have the flags of one architecture. "
                        "See toolchains/macos-arm64.cmake and docs/platforms.md for universal libraries.")
  endif()
endif()
if(processor MATCHES "^(x86_64|AMD64|amd64)$")
  set(v2 cx16 lahf_lm popcnt sse3 ssse3 sse4_1 sse4_2)
  set(v3 ${v2} avx avx2 bmi1 bmi2 f16c fma lzcnt movbe)
  set(v4 ${v3} avx512f avx512bw avx512cd avx512dq avx512vl)
  set(zen4 ${v4} avx512_vnni avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq avx512_bf16
      gfni vaes vpclmulqdq aes pclmulqdq)
  set(zen4_flags "-march=x86-64-v4 -mavx512vnni -mavx512vbmi -mavx512vbmi2 -mavx512bitalg \
-mavx512vpopcntdq -mavx512bf16 -mgfni -mvaes -mvpclmulqdq -maes -mpclmul")

  sightline_tier(sse4 HWY_SSE4 "-march=x86-64-v2" HWY_DISABLE_PCLMUL_AES NEEDS ${v2})
  sightline_tier(avx2 HWY_AVX2 "-march=x86-64-v3" HWY_DISABLE_PCLMUL_AES NEEDS ${v3})
  sightline_tier(avx2_vnni HWY_AVX2 "-march=x86-64-v3 -mavxvnni" HWY_DISABLE_PCLMUL_AES
                 NEEDS ${v3} avx_vnni
                 OVER avx2 OWNS kI8 kI8Fine kMixed16)
  # Its twin for CPUs with AVX512_VNNI but no AVX-VNNI (Ice Lake, Zen 4): the same 256-bit kernels with the other
  # encoding of the dot product. Without DQ and BW, Highway stays at AVX2; compilers would copy with zmm unless told.
  sightline_tier(avx2_vnni_evex HWY_AVX2
                 "-march=x86-64-v3 -mavx512f -mavx512vl -mavx512vnni -mprefer-vector-width=256"
                 HWY_DISABLE_PCLMUL_AES TESTS_ONLY NEEDS ${v3} avx512f avx512vl avx512_vnni
                 OVER avx2 OWNS kI8 kI8Fine kMixed16)
  sightline_tier(avx512 HWY_AVX3 "-march=x86-64-v4" HWY_DISABLE_PCLMUL_AES NEEDS ${v4})
  sightline_tier(avx512_vnni HWY_AVX3 "-march=x86-64-v4 -mavx512vnni" HWY_DISABLE_PCLMUL_AES
                 NEEDS ${v4} avx512_vnni
                 OVER avx512 OWNS kI8 kI8Fine kMixed16)
  # With VBMI, whose table lookups the int8 softmax uses as well.
  sightline_tier(avx512_bf16 HWY_AVX3_ZEN4 "${zen4_flags}" HWY_WANT_AVX3_ZEN4 NEEDS ${zen4}
                 OVER avx512 OWNS kI8 kI8Fine kBF16 kMixed16)
elseif(processor MATCHES "^(aarch64|arm64|ARM64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  # Architectures, never CPU names; g++ 12 wants armv8.2-a rather than armv8-a+dotprod.
  sightline_tier(neon HWY_NEON_WITHOUT_AES "-march=armv8-a" "" NEEDS asimd)
  sightline_tier(neon_dot HWY_NEON_WITHOUT_AES "-march=armv8.2-a+dotprod" ""
                 NEEDS asimd asimddp atomics asimdrdm crc32
                 OVER neon OWNS kI8 kI8Fine)
  sightline_tier(neon_i8mm HWY_NEON_WITHOUT_AES "-march=armv8.2-a+dotprod+i8mm+bf16" ""
                 NEEDS asimd asimddp atomics asimdrdm crc32 i8mm bf16
                 OVER neon OWNS kI8 kI8Fine kBF16 kMixed16)
elseif(processor MATCHES "^(arm|aarch64$)" AND NOT processor MATCHES "^(arm64_32|armeb)|b$" AND CMAKE_SIZEOF_VOID_P EQUAL 4)
  # 32-bit programs, whatever the kernel; not 64-bit instructions with short pointers, nor a big-endian system.
  # NEON with multiply-add, without which Highway has no vectors on ARMv7 and results would not be those of the other tiers.
  # Two flags: Clang does not take armv7-a+neon-vfpv4.
  set(neon32_flags "-march=armv7-a -mfpu=neon-vfpv4")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    string(APPEND neon32_flags " -mfp16-format=ieee")  # without, GCC has no intrinsics for the conversions of f16
  endif()
  sightline_tier(neon32 HWY_NEON_WITHOUT_AES "${neon32_flags}" "" NEEDS neon vfpv4)
elseif(EMSCRIPTEN)
  # A module with vectors is refused as a whole where there are none: who loads it has simd128.
  sightline_tier(wasm128 HWY_WASM "-msimd128" "" NEEDS simd128)
else()
  math(EXPR pointer_bits "8 * ${CMAKE_SIZEOF_VOID_P}")
  message(STATUS "Sightline: no tier for ${processor} with pointers of ${pointer_bits} bits, scalar alone")
endif()

# What a tier's sources are compiled with, as lists for CMake's own rules and for tests/targets/check_target.cmake, which has none.
function(sightline_get_tier_compilation tier definitions options)
  list(TRANSFORM SIGHTLINE_${tier}_OWNS PREPEND "Precision::" OUTPUT_VARIABLE owns)
  list(JOIN owns "," owns)
  set(${definitions}
    SIGHTLINE_TIER=${tier} SIGHTLINE_TIER_TARGET=${SIGHTLINE_${tier}_TARGET} SIGHTLINE_TIER_OWNS=${owns}
    hwy=hwy_${tier} HWY_COMPILE_ONLY_STATIC HWY_NO_LIBCXX ${SIGHTLINE_${tier}_DEFINITIONS} PARENT_SCOPE)
  # Debug at -O2 too: the kernels rely on inlining to stay in registers, and to be one symbol. Loops are vectorized and
  # unrolled by hand where it pays: what compilers add is a quarter of the size and nothing in speed.
  set(flags ${SIGHTLINE_${tier}_FLAGS}
    -O2 -fno-tree-vectorize -fno-tree-slp-vectorize -fno-unroll-loops
    -ffp-contract=off -fno-lto -fno-exceptions -fno-rtti)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # It reorders before it assigns registers on ARM: more broadcasts than it has registers left for, so that it spills sums.
    list(APPEND flags -fno-schedule-insns)
  endif()
  set(${options} ${flags} PARENT_SCOPE)
endfunction()

# Compiles `source` with a tier's flags into the objects of `target`, and lets the build fail if they export anything but
# sightline::<tier>::`getter`(). The rules for such a source: kernels/tier.cc.
function(sightline_add_tier_object target tier source getter)
  set(object ${target}_tier_${tier})
  add_library(${object} OBJECT ${source})
  set_target_properties(${object} PROPERTIES
    INTERPROCEDURAL_OPTIMIZATION OFF UNITY_BUILD OFF POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${object} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_include_directories(${object} SYSTEM PRIVATE ${SIGHTLINE_HIGHWAY_INCLUDE_DIR})
  target_compile_features(${object} PRIVATE cxx_std_17)
  sightline_get_tier_compilation(${tier} definitions options)
  target_compile_definitions(${object} PRIVATE ${definitions})
  target_compile_options(${object} PRIVATE ${options})
  sightline_set_warnings(${object})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
  add_custom_command(TARGET ${target} PRE_LINK
    COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DTIER=${tier} -DGETTER=${getter}
            "-DOBJECTS=$<TARGET_OBJECTS:${object}>"
            -P ${PROJECT_SOURCE_DIR}/cmake/check_tier_symbols.cmake
    VERBATIM)
endfunction()

# Adds the tiers that the compiler can build to `target` and lists them in SIGHTLINE_BUILT_TIERS and, for programs, in
# generated/sightline_tiers.inc: SIGHTLINE_TIER_ROW(name, required features, tests only, over), worst to best.
function(sightline_add_tiers target)
  include(CheckCXXCompilerFlag)
  set(built "")
  set(rows "SIGHTLINE_TIER_ROW(scalar, 0, false, scalar)\n")
  foreach(tier IN LISTS SIGHTLINE_TIERS)
    list(JOIN SIGHTLINE_${tier}_FLAGS " " flags)
    check_cxx_compiler_flag("${flags}" SIGHTLINE_COMPILER_HAS_${tier})
    if(NOT SIGHTLINE_COMPILER_HAS_${tier})
      message(STATUS "Sightline: no tier ${tier}, the compiler does not know ${flags}")
      continue()
    endif()
    list(APPEND built ${tier})
    if(NOT SIGHTLINE_${tier}_OVER IN_LIST built)
      message(FATAL_ERROR "Tier ${tier} is over ${SIGHTLINE_${tier}_OVER}, which is not built before it")
    endif()
    sightline_add_tier_object(${target} ${tier} kernels/tier.cc GetTable)
    list(TRANSFORM SIGHTLINE_${tier}_NEEDS REPLACE "(.+)" "Bit(CpuFeature::\\1)"
         OUTPUT_VARIABLE needs)
    list(JOIN needs " | " needs)
    string(TOLOWER ${SIGHTLINE_${tier}_TESTS_ONLY} tests_only)
    string(APPEND rows "SIGHTLINE_TIER_ROW(${tier}, ${needs}, ${tests_only}, ${SIGHTLINE_${tier}_OVER})\n")
  endforeach()
  set(SIGHTLINE_BUILT_TIERS ${built} PARENT_SCOPE)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/sightline_tiers.inc CONTENT "${rows}")
  target_include_directories(${target} PRIVATE ${PROJECT_BINARY_DIR}/generated)
endfunction()
