// Where a model lives and what it computes in.
#pragma once
#include <string_view>

#include "core/device.h"
#include "core/dtype.h"

namespace lc::models {

// f32 or f64 on the CPU, f32 or bf16 on a GPU. Frozen weights and activations have this dtype; what is trained (feature maps,
// window factors, LoRA pairs, and all weights of `pretrain`) and the rotary tables are f32 beside bf16.
struct Placement {
    Device device;
    DType dtype = DType::f32;
    DType wide() const { return statistics_dtype(dtype); }
};

// Throws Error(Usage) for a dtype that models on this device do not compute in.
void validate(const Placement& placement);

// From what a user says: device auto | cpu | cuda | cuda:N, dtype auto | f32 | bf16. `auto` is the first GPU that can be used,
// else the CPU, and bf16 on a GPU, f32 on the CPU. Throws Error(Usage) for other words and for bf16 on the CPU; Error(Resource),
// saying what is there, for a GPU that is absent or older than compute capability 8.0.
Placement placement_from(std::string_view device, std::string_view dtype);
// The same for a device that need not be there: cuda and cuda:N are taken at their word.
Placement planned_placement(std::string_view device, std::string_view dtype);

// "cuda:0 (NVIDIA H200, 139.8 GiB), bf16"
std::string describe(const Placement& placement);

}  // namespace lc::models
