// The same for GoogleTest binaries.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "json.h"
