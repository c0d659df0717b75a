#include "core/cuda/side_work.h"

#include <gtest/gtest.h>

#include "core/check.h"

namespace lc {
namespace {

TEST(SideWork, IsDoneInPlaceOnACpu) {
    cuda::SideQueue queue(Device{});
    int done = 0;
    {
        const cuda::SideWork work(queue, [&] { ++done; });
        EXPECT_EQ(done, 1);
    }
    EXPECT_EQ(done, 1);
    EXPECT_THROW(cuda::SideWork(queue, [] { fail(ErrorKind::Numerics, "no"); }), Error);
}

}  // namespace
}  // namespace lc
