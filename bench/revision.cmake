# cmake -DGIT=... -DSOURCE=... -DOUTPUT=... -P revision.cmake: the header that says which revision is built. Written only when it
# changes.
cmake_policy(VERSION 3.25)
set(revision unknown)
if(GIT)
  execute_process(COMMAND ${GIT} describe --always --dirty --abbrev=12 WORKING_DIRECTORY ${SOURCE}
                  OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(revision ${described})
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#pragma once
namespace lc::bench {
inline constexpr const char* kRevision = \"@revision@\";
}
" @ONLY)
