# One static library a room (lc_core, lc_kernels, ...), one build rule an op.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_library(lc_flags INTERFACE)
target_compile_options(lc_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor
    # argument structs are filled by name; what is not named has its default
    -Wno-missing-field-initializers>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${LOLCATS_WERROR}>>:-Werror>
  # Not -ffast-math: results stay IEEE, repeatable and NaN-honest. These two alone let loops vectorize.
  $<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno -fno-trapping-math>)
# -lineinfo: Nsight shows source lines. Relaxed constexpr: std::array and our constexpr helpers on the device. 20208 (a
# long double in device code, never used there) comes from the standard headers.
# fmt 9 takes nvcc for a compiler without constexpr; its consteval checks of format strings are beyond nvcc in every version.
target_compile_definitions(lc_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1;FMT_CONSTEVAL=;FMT_USE_CONSTEVAL=0>)
target_compile_options(lc_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers
    -diag-suppress=20208>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LOLCATS_WERROR}>>:-Werror=all-warnings>)
if(LOLCATS_NATIVE)
  target_compile_options(lc_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()
if(LOLCATS_SANITIZE)
  target_compile_options(lc_flags INTERFACE -fsanitize=${LOLCATS_SANITIZE} -fno-omit-frame-pointer
                                            -fno-sanitize-recover=all)
  target_link_options(lc_flags INTERFACE -fsanitize=${LOLCATS_SANITIZE})
  if(LOLCATS_SANITIZE MATCHES address AND LOLCATS_SANITIZE MATCHES undefined)
    # AddressSanitizer reports null pointers and dead objects by itself; the checks for them lie before every access and virtual call:
    # a fifth of the build's time.
    target_compile_options(lc_flags INTERFACE -fno-sanitize=null,vptr)
  endif()
endif()

# lc_precompile(<target> <library|json|cli|test>): what nearly every file of the target includes is parsed once (cmake/precompiled/):
# half of the build's time. Sources name what they use all the same, and a build with ccache, which caches whole files instead,
# sees to that.
function(lc_precompile target kind)
  if(NOT CCACHE_PROGRAM)
    target_precompile_headers(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:${PROJECT_SOURCE_DIR}/cmake/precompiled/${kind}.h>")
  endif()
endfunction()

# lc_add_room(<name> SOURCES ... [DEPENDS <rooms above it may not include>] [LIBRARIES ...])
# An upward include fails to compile: a room's headers are visible only to those that link it. The include root is the
# repository, so the rule itself is enforced by tests/architecture_test.cpp, in words.
function(lc_add_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;DEPENDS;LIBRARIES;PRIVATE_LIBRARIES" ${ARGN})
  add_library(lc_${name} STATIC ${ROOM_SOURCES})
  add_library(lolcats::${name} ALIAS lc_${name})
  set_target_properties(lc_${name} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(lc_${name} PUBLIC cxx_std_20)
  target_include_directories(lc_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                               $<INSTALL_INTERFACE:include/lolcats>)
  target_link_libraries(lc_${name} PUBLIC ${ROOM_DEPENDS} ${ROOM_LIBRARIES}
                                   PRIVATE $<BUILD_INTERFACE:lc_flags> ${ROOM_PRIVATE_LIBRARIES})
  if("nlohmann_json::nlohmann_json" IN_LIST ROOM_LIBRARIES OR "lc_io" IN_LIST ROOM_DEPENDS)
    lc_precompile(lc_${name} json)
  else()
    lc_precompile(lc_${name} library)
  endif()
endfunction()

# lc_add_op(X): the one way an op enters the build. Collects its files by name and refuses an op that lacks one:
#   kernels/X/X.h  X_naive.h  X.cpp  X.cu     autograd/ops/X.h  X.cpp     tests/ops/X.cpp
# lc_add_op(X NO_GRAD) is for kernels that never stand on a tape (optimizer, decode step): no autograd/ops files.
# Fills LC_OPS, LC_KERNEL_SOURCES, LC_OP_SOURCES and LC_OP_TESTS, which the rooms below read.
function(lc_add_op op)
  cmake_parse_arguments(OP "NO_GRAD" "" "" ${ARGN})
  set(required kernels/${op}/${op}.h kernels/${op}/${op}_naive.h kernels/${op}/${op}.cpp kernels/${op}/${op}.cu
               tests/ops/${op}.cpp)
  if(NOT OP_NO_GRAD)
    list(APPEND required autograd/ops/${op}.h autograd/ops/${op}.cpp)
  endif()
  foreach(file IN LISTS required)
    if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "op '${op}' lacks ${file}: an op is its contract, naive form, front door, GPU form, node and test")
    endif()
  endforeach()
  file(GLOB kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/${op}/*.cpp)
  if(LOLCATS_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/${op}/*.cu)
    list(APPEND kernel_sources ${cuda_sources})
  endif()
  set_property(GLOBAL APPEND PROPERTY LC_OPS ${op})
  set_property(GLOBAL APPEND PROPERTY LC_KERNEL_SOURCES ${kernel_sources})
  set_property(GLOBAL APPEND PROPERTY LC_OP_TESTS ${PROJECT_SOURCE_DIR}/tests/ops/${op}.cpp)
  if(NOT OP_NO_GRAD)
    set_property(GLOBAL APPEND PROPERTY LC_OP_SOURCES ${PROJECT_SOURCE_DIR}/autograd/ops/${op}.cpp)
  endif()
endfunction()

# lc_add_test(<name> SOURCES ... LIBRARIES ... LABELS ...): one GoogleTest binary, each TEST its own ctest entry unless
# it says WHOLE (then the binary is one entry; for suites of thousands of tiny cases).
function(lc_add_test name)
  cmake_parse_arguments(T "WHOLE" "TIMEOUT" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  add_executable(${name} ${T_SOURCES})
  target_link_libraries(${name} PRIVATE ${T_LIBRARIES} lc_flags GTest::gtest GTest::gmock GTest::gtest_main)
  lc_precompile(${name} test)
  # Tables of cases are long to optimize and quick to run; what they test is optimized in its own library.
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O0>)
  target_compile_definitions(${name} PRIVATE LC_SOURCE_DIR="${PROJECT_SOURCE_DIR}" LC_BINARY_DIR="${CMAKE_BINARY_DIR}/bin")
  if(T_WHOLE)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT})
  else()
    include(GoogleTest)
    gtest_discover_tests(${name} NO_PRETTY_VALUES PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT} DISCOVERY_TIMEOUT 60)
  endif()
endfunction()
