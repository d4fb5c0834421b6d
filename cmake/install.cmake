# `cmake --install` and find_package(sightline): headers, the library, and with a static one the bundled
# libraries that it links.

include(CMakePackageConfigHelpers)

get_target_property(type sightline TYPE)
if(type STREQUAL "SHARED_LIBRARY")
  set(SIGHTLINE_BUNDLED_TARGETS "")  # linked into it
  set(SIGHTLINE_FOUND_PACKAGES "")
endif()

install(TARGETS sightline ${SIGHTLINE_BUNDLED_TARGETS} EXPORT sightline-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/sightline DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/sightline)
install(EXPORT sightline-targets NAMESPACE sightline:: DESTINATION ${package_dir})
configure_package_config_file(cmake/sightline-config.cmake.in ${PROJECT_BINARY_DIR}/sightline-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/sightline-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/sightline-config.cmake ${PROJECT_BINARY_DIR}/sightline-config-version.cmake
  DESTINATION ${package_dir})
