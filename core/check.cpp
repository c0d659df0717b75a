#include "core/check.h"

namespace lc {

void vfail(ErrorKind kind, fmt::string_view format, fmt::format_args args) {
    throw Error(kind, fmt::vformat(format, args));
}

}  // namespace lc
