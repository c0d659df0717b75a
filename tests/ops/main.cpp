// Turns every OpCase into GoogleTests named <op>.<variant>_<check> on the CPU and <op>_cuda.<dtype>_<variant>_<check> on the GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "tests/ops/op_runner.h"

namespace {

using lc::Device;
using lc::DType;
using lc::testing::OpCase;
using lc::testing::Target;
using Check = void (*)(const OpCase&, const Target&);

// CTest's SKIP_RETURN_CODE: what was asked for needs a GPU, and there is none.
constexpr int kSkipped = 77;

class OpTest : public ::testing::Test {
  public:
    OpTest(const OpCase* op_case, const Target& target, Check check)
        : case_(op_case), target_(target), check_(check) {}
    void TestBody() override {
        try {
            check_(*case_, target_);
        } catch (const lc::Error& error) {
            ADD_FAILURE() << case_->op << " " << case_->variant << ": " << error.what();
            // A fault on the device stays: every later call would fail with it.
            if (target_.device.is_cuda() && error.kind() == lc::ErrorKind::Internal &&
                std::string_view(error.what()).find("CUDA") != std::string_view::npos)
                std::exit(1);
        } catch (const std::exception& error) {
            FAIL() << case_->op << " " << case_->variant << ": " << error.what();
        }
    }

  private:
    const OpCase* case_;
    Target target_;
    Check check_;
};

void register_case(const OpCase& op_case, const Target& target) {
    const bool cuda = target.device.is_cuda();
    std::vector<std::pair<std::string, Check>> checks = {{"correct", lc::testing::check_correct}};
    const bool all = cuda || !op_case.heavy;
    if (all)
        checks.insert(checks.end(), {{"memory", lc::testing::check_memory},
                                     {"layouts", lc::testing::check_layouts},
                                     {"repeatable", lc::testing::check_repeatable}});
    if (all && op_case.differentiable) {
        checks.insert(checks.end(), {{"subsets", lc::testing::check_needs_grad_subsets},
                                     {"accumulates", lc::testing::check_accumulates}});
        if (!cuda) checks.push_back({"gradients", lc::testing::check_gradients});
    }
    if (cuda) checks.push_back({"runs", lc::testing::check_runs});
    const std::string suite = op_case.op + (cuda ? "_cuda" : "");
    const std::string prefix = cuda ? fmt::format("{}_{}", lc::name_of(target.dtype), op_case.variant) : op_case.variant;
    for (const auto& [name, check] : checks)
        ::testing::RegisterTest(
            suite.c_str(), (prefix + "_" + name).c_str(), nullptr, nullptr, __FILE__, __LINE__,
            [&op_case, target, check = check]() -> ::testing::Test* { return new OpTest(&op_case, target, check); });
}

}  // namespace

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    const bool gpu = lc::cuda::device_count() > 0;
    const Device device{lc::DeviceType::cuda, 0};
    for (const OpCase& op_case : lc::testing::op_cases()) {
        if (op_case.bench != lc::testing::Bench::none) continue;
        register_case(op_case, Target{});
        if (gpu)
            for (const DType dtype : {DType::f32, DType::bf16}) register_case(op_case, {device, dtype, dtype});
    }
    const int failed = RUN_ALL_TESTS();
    if (::testing::UnitTest::GetInstance()->test_to_run_count() > 0) return failed;
    const bool wants_gpu = ::testing::GTEST_FLAG(filter).find("_cuda") != std::string::npos;
    if (wants_gpu && !gpu) {
        fmt::print("skipped, there is no CUDA device: {}\n", ::testing::GTEST_FLAG(filter));
        return kSkipped;
    }
    fmt::print(stderr, "no op case matches the filter\n");  // an op without a case is a mistake
    return 1;
}
