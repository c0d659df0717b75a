#include "core/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "core/check.h"

namespace lc {
namespace {

int64_t calls_of(std::string_view name) {
    const auto entries = profile_entries();
    const auto found = std::ranges::find(entries, name, &ProfileEntry::name);
    return found == entries.end() ? 0 : found->calls;
}

class Profile : public ::testing::Test {
  protected:
    void SetUp() override { profile_reset(); }
    void TearDown() override {
        profile_enable(false);
        ::unsetenv("LC_STRICT");
    }
};

TEST_F(Profile, ZonesCountOnlyWhileItIsOn) {
    { const ProfileZone zone("gemm", 10, 4); }
    EXPECT_EQ(calls_of("gemm"), 0);
    profile_enable(true);
    for (int i = 0; i < 3; ++i) const ProfileZone zone("gemm", 10, 4);
    { const ProfileRange range("layer", 3); }  // for Nsight only
    ASSERT_EQ(calls_of("gemm"), 3);
    EXPECT_EQ(profile_entries()[0].flops, 30);
    EXPECT_EQ(profile_entries()[0].bytes, 12);
    EXPECT_EQ(profile_entries().size(), 1u);
}

TEST_F(Profile, FallbacksAreCountedAndCanBeForbidden) {
    profile_enable(true);
    profile_count("fallback hybrid_attention");
    EXPECT_EQ(calls_of("fallback hybrid_attention"), 1);
    ::setenv("LC_STRICT", "1", 1);
    EXPECT_THROW(profile_count("fallback hybrid_attention"), Error);
    profile_count("something else");
    profile_enable(false);
    EXPECT_THROW(profile_count("fallback hybrid_attention"), Error);
    ::setenv("LC_STRICT", "0", 1);
    profile_count("fallback hybrid_attention");
}

}  // namespace
}  // namespace lc
