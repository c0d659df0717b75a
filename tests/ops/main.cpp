// Turns every OpCase into GoogleTests named <op>.<variant>_<check>.
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/ops/op_runner.h"

namespace {

using lc::testing::OpCase;
using Check = void (*)(const OpCase&);

class OpTest : public ::testing::Test {
  public:
    OpTest(const OpCase* op_case, Check check) : case_(op_case), check_(check) {}
    void TestBody() override {
        try {
            check_(*case_);
        } catch (const std::exception& error) {
            FAIL() << case_->op << " " << case_->variant << ": " << error.what();
        }
    }

  private:
    const OpCase* case_;
    Check check_;
};

void register_case(const OpCase& op_case) {
    std::vector<std::pair<std::string, Check>> checks = {
        {"correct", lc::testing::check_correct},       {"memory", lc::testing::check_memory},
        {"layouts", lc::testing::check_layouts},       {"repeatable", lc::testing::check_repeatable},
    };
    if (op_case.differentiable) {
        checks.insert(checks.end(), {{"gradients", lc::testing::check_gradients},
                                     {"subsets", lc::testing::check_needs_grad_subsets},
                                     {"accumulates", lc::testing::check_accumulates}});
    }
    for (const auto& [name, check] : checks) {
        ::testing::RegisterTest(op_case.op.c_str(), (op_case.variant + "_" + name).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                                [&op_case, check = check]() -> ::testing::Test* { return new OpTest(&op_case, check); });
    }
}

}  // namespace

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    for (const OpCase& op_case : lc::testing::op_cases())
        if (!op_case.bench) register_case(op_case);
    const int failed = RUN_ALL_TESTS();
    // A filter that matches nothing would pass: an op without a case is a mistake.
    if (::testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
        fprintf(stderr, "no op case matches the filter\n");
        return 1;
    }
    return failed;
}
