// The large products of adapted layers on Hopper, with the low-rank terms inside. Private to lora_linear.
#pragma once
#include "kernels/lora_linear/lora_low_rank.h"

namespace lc::kernels {

// True where the build has code for sm_90a and the current device runs it.
bool lora_linear_has_sm90();

// What TMA copies: bf16, not empty, start and rows on 16 bytes. What is stored may also be f32.
inline bool lora_sm90_takes(const DeviceRows& x) {
    return x.dtype == DType::bf16 && x.rows > 0 && x.columns > 0 && x.stride % 8 == 0 && x.columns % 8 == 0 &&
           reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}
inline bool lora_sm90_takes(const DeviceOutRows& x) {
    return x.rows > 0 && x.stride % 8 == 0 && x.columns % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}
inline constexpr int64_t kLoraSm90Rows = 256;  // fewer are not worth a pair of tiles

// Counters that make_lora_factors must leave for `rows` rows.
int64_t lora_sm90_counters(int64_t rows);

// p = x A^T,  y_i = x W_i^T + p B^T + bias_i; bias_i in bf16, or null
void lora_forward_sm90(const DeviceRows& x, const std::vector<DeviceRows>& w, const std::vector<const void*>& bias,
                       const LoraFactors& factors, const std::vector<DeviceOutRows>& y, void* p, Stream stream);

// Gradients of factors that are to be made beside dx: those of A from x, those of B from p; null: none.
struct LoraSides {
    const DeviceRows *x = nullptr, *p = nullptr;
};
// What has been made of them, of each layer; empty: nothing.
struct LoraSums {
    DeviceScratch<float> da_memory, db_memory;
    std::vector<LoraParts> da, db;
};
// q = dy B,  dx = sum dy_i W_i + q A
LoraSums lora_backward_sm90(const std::vector<DeviceRows>& dy, const std::vector<DeviceRows>& w,
                            const LoraFactors& factors, void* q, const DeviceOutRows& dx, const LoraSides& sides,
                            Stream stream);

}  // namespace lc::kernels
