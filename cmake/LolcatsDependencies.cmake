# Every third-party library comes from the distribution's packages; nothing is downloaded at configure time.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(utf8proc IMPORTED_TARGET libutf8proc)  # optional: NFC tokenizers (Qwen)
pkg_check_modules(openblas IMPORTED_TARGET openblas)     # optional: f32 GEMM on the CPU
if(BUILD_TESTING)
  find_package(GTest REQUIRED)
endif()

if(LOLCATS_CUDA)
  # Machine code for Hopper, and for 8.0 with PTX, which every later GPU can compile for itself.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit 12.4 REQUIRED)
  message(STATUS "CUDA toolkit ${CUDAToolkit_VERSION} found: GPU kernels for ${CMAKE_CUDA_ARCHITECTURES}")
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
