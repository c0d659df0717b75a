// What a training stage is to the loop that drives it: parameters, a way to add gradients, a way to be judged.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "train/chunk_stream.h"
#include "train/interrupt.h"
#include "train/metrics.h"
#include "train/optimizer.h"

namespace lc::train {

struct StepLoss {
    double loss = 0;
    std::vector<double> layer_losses;  // stage 1: MSE of each converted layer, in order; else empty
};

struct Validation {
    double loss = 0;                    // what selection and plateau look at
    std::vector<double> layer_losses;   // as in StepLoss
    Record details = Record::object();  // more fields for metrics.jsonl
};

class Stage {
  public:
    virtual ~Stage() = default;
    virtual std::string name() const = 0;
    virtual bool has_layer_losses() const { return false; }
    // What trains here. With layer losses, one group a loss, in the same order.
    virtual std::vector<ParameterGroup> groups() const = 0;
    // Adds to the gradients those of the mean loss over the micro-batches of one optimizer step.
    virtual StepLoss accumulate(std::span<const Batch> micro_batches) = 0;
    // Over all validation chunks. Throws Interrupted when asked to stop.
    virtual Validation evaluate(const StopCheck& stop) = 0;
};

}  // namespace lc::train
