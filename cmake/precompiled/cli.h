// The same for the programs.
#include <CLI/CLI.hpp>

#include "json.h"
