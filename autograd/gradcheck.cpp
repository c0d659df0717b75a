#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "core/rng.h"

namespace lc {
namespace {

double dot(const std::vector<Tensor>& outputs, const std::vector<std::vector<double>>& cotangents) {
    double sum = 0;
    for (size_t k = 0; k < outputs.size(); ++k) {
        const std::vector<double> values = outputs[k].to_vector<double>();
        for (size_t i = 0; i < values.size(); ++i) sum += values[i] * cotangents[k][i];
    }
    return sum;
}

}  // namespace

GradcheckReport gradcheck(const std::function<std::vector<Tensor>(const std::vector<Tensor>&)>& fn,
                          const std::vector<Tensor>& given, GradcheckOptions options) {
    std::vector<Tensor> inputs;
    for (const Tensor& tensor : given) {
        const bool wanted = requires_grad(tensor);
        inputs.push_back(tensor.defined() ? tensor.clone() : tensor);
        if (!wanted) continue;
        LC_CHECK(tensor.dtype() == DType::f64, "gradcheck: inputs must be f64, got {}", name_of(tensor.dtype()));
        set_requires_grad(inputs.back());
    }

    const std::vector<Tensor> outputs = fn(inputs);
    std::vector<std::vector<double>> cotangents;
    std::vector<Tensor> roots, grads;
    for (size_t k = 0; k < outputs.size(); ++k) {
        const Random random(options.seed, k);
        std::vector<double> values(static_cast<size_t>(outputs[k].numel()));
        for (size_t i = 0; i < values.size(); ++i) values[i] = random.normal(i);
        if (!requires_grad(outputs[k])) std::fill(values.begin(), values.end(), 0.0);
        cotangents.push_back(values);
        if (!requires_grad(outputs[k])) continue;
        roots.push_back(outputs[k]);
        grads.push_back(Tensor::from(values, outputs[k].shape()));
    }
    LC_CHECK(!roots.empty(), "gradcheck: no output depends on an input that requires a gradient");
    backward(roots, grads);

    GradcheckReport report;
    const NoGrad no_grad;
    for (size_t n = 0; n < inputs.size(); ++n) {
        if (!requires_grad(inputs[n])) continue;
        const Tensor grad = grad_of(inputs[n]);
        const std::vector<double> analytic =
            grad.defined() ? grad.to_vector<double>() : std::vector<double>(static_cast<size_t>(inputs[n].numel()), 0.0);
        std::vector<double> values = inputs[n].to_vector<double>();
        const auto evaluate = [&](size_t i, double x) {
            const double kept = values[i];
            values[i] = x;
            std::vector<Tensor> moved = inputs;
            moved[n] = Tensor::from(values, inputs[n].shape());
            values[i] = kept;
            return dot(fn(moved), cotangents);
        };
        const int64_t stride = std::max<int64_t>(1, inputs[n].numel() / options.max_elements);
        for (size_t i = 0; i < values.size(); i += static_cast<size_t>(stride)) {
            double numeric = 0, error = INFINITY;
            for (const double shrink : {1.0, 1e-1, 1e-2, 1e-3}) {  // smaller steps only where a kink lies within the larger
                const double x = values[i], h = shrink * options.step * std::max(1.0, std::abs(x));
                const double estimate = (8 * (evaluate(i, x + h) - evaluate(i, x - h)) -
                                         (evaluate(i, x + 2 * h) - evaluate(i, x - 2 * h))) / (12 * h);
                const double difference = std::abs(estimate - analytic[i]) / std::max(1.0, std::abs(estimate));
                if (difference < error || shrink == 1.0) numeric = estimate, error = difference;
                if (error <= options.tolerance) break;
            }
            report.elements++;
            if (!(error <= report.worst)) {  // also true for NaN
                report.worst = error;
                report.detail = fmt::format("input {} element {}: analytic {:.12g}, numeric {:.12g}, error {:.3g}", n, i,
                                            analytic[i], numeric, error);
            }
            if (!(error <= options.tolerance)) report.ok = false;
        }
    }
    return report;
}

}  // namespace lc
