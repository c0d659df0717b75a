// Whether ops record themselves on the tape. A property of the thread, changed only by RAII guards.
#pragma once

namespace lc {

bool grad_enabled();

class GradModeGuard {
  public:
    explicit GradModeGuard(bool enabled);
    ~GradModeGuard();
    GradModeGuard(const GradModeGuard&) = delete;
    GradModeGuard& operator=(const GradModeGuard&) = delete;

  private:
    bool previous_;
};

struct NoGrad : GradModeGuard {
    NoGrad() : GradModeGuard(false) {}
};

}  // namespace lc
