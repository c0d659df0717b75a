# `cmake --install`: binaries, static libraries, headers, and a package for find_package(Lolcats).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(rooms core kernels autograd io models train)
set(targets)
foreach(room IN LISTS rooms)
  if(TARGET lc_${room})
    list(APPEND targets lc_${room})
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/lolcats
            FILES_MATCHING PATTERN "*.h")
  endif()
endforeach()
install(TARGETS ${targets} EXPORT LolcatsTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(program train_lolcats gen_lolcats)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/Lolcats)
install(EXPORT LolcatsTargets NAMESPACE lolcats:: DESTINATION ${package})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/LolcatsConfig.cmake.in ${PROJECT_BINARY_DIR}/LolcatsConfig.cmake
                              INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/LolcatsConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/LolcatsConfig.cmake ${PROJECT_BINARY_DIR}/LolcatsConfigVersion.cmake
        DESTINATION ${package})
