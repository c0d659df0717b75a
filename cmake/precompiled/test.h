// The same for GoogleTest binaries.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "library.h"
