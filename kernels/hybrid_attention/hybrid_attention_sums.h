// Gradients of maps and mixing logits are sums over the batch. Each (batch, head) has a buffer of its own; the buffers are
// added in order of the batch, so results are the same bit by bit whatever the threads did.
#pragma once
#include <vector>

#include "kernels/common/grad_write.h"
#include "kernels/common/row.h"

namespace lc::kernels {

struct HybridMapSlots {
    GradSlot dwq, dbq, dwk, dbk, dmix_logit;
    bool any() const { return dwq || dbq || dwk || dbk || dmix_logit; }
};

template <class T>
class HybridMapSums {
  public:
    HybridMapSums(int64_t batch, const HybridMapSlots& slots) : batch_(batch), slots_(slots) {
        const auto make = [batch](std::vector<T>& parts, const GradSlot& slot) {
            if (slot) parts.resize(batch * slot.view.numel());
        };
        make(dwq_, slots.dwq), make(dbq_, slots.dbq), make(dwk_, slots.dwk), make(dbk_, slots.dbk);
        make(dmix_logit_, slots.dmix_logit);
    }
    // The part of batch entry b and head h, to be added to; null when nobody wants that gradient.
    T* dwq(int64_t b, int64_t h) { return part(dwq_, slots_.dwq, b, h); }
    T* dbq(int64_t b, int64_t h) { return part(dbq_, slots_.dbq, b, h); }
    T* dwk(int64_t b, int64_t h) { return part(dwk_, slots_.dwk, b, h); }
    T* dbk(int64_t b, int64_t h) { return part(dbk_, slots_.dbk, b, h); }
    T* dmix_logit(int64_t b, int64_t h) { return part(dmix_logit_, slots_.dmix_logit, b, h); }

    void store() const {
        store_gradient(total(dwq_), slots_.dwq), store_gradient(total(dbq_), slots_.dbq);
        store_gradient(total(dwk_), slots_.dwk), store_gradient(total(dbk_), slots_.dbk);
        store_gradient(total(dmix_logit_), slots_.dmix_logit);
    }

  private:
    static T* part(std::vector<T>& parts, const GradSlot& slot, int64_t b, int64_t h) {
        if (!slot) return nullptr;
        const int64_t whole = slot.view.numel(), one = whole / slot.view.size(0);
        return parts.data() + b * whole + h * one;
    }
    std::vector<T> total(const std::vector<T>& parts) const {
        const int64_t n = batch_ ? static_cast<int64_t>(parts.size()) / batch_ : 0;
        std::vector<T> sum(n);
        for (int64_t b = 0; b < batch_; ++b) row_axpy(parts.data() + b * n, sum.data(), n, T{1});
        return sum;
    }

    int64_t batch_;
    HybridMapSlots slots_;
    std::vector<T> dwq_, dbq_, dwk_, dbk_, dmix_logit_;  // [B, ...] as the parameters lie
};

}  // namespace lc::kernels
