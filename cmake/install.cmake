# Installs the library, its headers, and what find_package(xlstm) and pkg-config read.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/xlstm)

install(TARGETS xlstm EXPORT xlstm-targets)
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/include/xlstm TYPE INCLUDE)
install(EXPORT xlstm-targets NAMESPACE xlstm:: DESTINATION ${package_dir})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/xlstm-config.cmake.in xlstm-config.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(xlstm-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/xlstm-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/xlstm-config-version.cmake
        DESTINATION ${package_dir})

# pkg-config: whoever links the static library links what it uses (pkg-config --static).
set(pc_requires "fmt libhwy yaml-cpp libpcre2-8 libutf8proc")
set(pc_libs "-lstdc++ -lm -ldl ${OpenMP_CXX_FLAGS}")
if(XLSTM_WITH_ONEDNN)
  string(APPEND pc_libs " -ldnnl")
endif()
if(XLSTM_WITH_CUDA)
  string(APPEND pc_libs " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -lpthread")
endif()
file(RELATIVE_PATH pc_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${CMAKE_CURRENT_LIST_DIR}/xlstm.pc.in xlstm.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/xlstm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
