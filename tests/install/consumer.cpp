// One number from tensor to gradient through the installed headers and libraries: d/dx sum(x * x) = 2x.
#include <cstdio>

#include "autograd/engine.h"
#include "autograd/ops/mul.h"
#include "autograd/ops/sum.h"

int main() {
    lc::Tensor x = lc::Tensor::from(std::vector<float>{1, 2, 3}, {3});
    lc::set_requires_grad(x);
    lc::backward(lc::sum(lc::mul(x, x)));
    const std::vector<float> grad = lc::grad_of(x).to_vector<float>();
    std::printf("%g %g %g\n", grad[0], grad[1], grad[2]);
    return grad == std::vector<float>{2, 4, 6} ? 0 : 1;
}
