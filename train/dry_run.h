// What a run will need, before it needs it: --dry-run, and the refusal of a device that is too small.
#pragma once
#include <string>

#include "train/linearize.h"
#include "train/pretrain.h"

namespace lc::train {

// A memory table for each stage that would run, and what checkpoints take on disk. Reads config.json only: neither weights nor
// data, and the device need not be there. Throws as plan_memory does.
std::string dry_run(const LinearizeOptions& options);
std::string dry_run(const PretrainOptions& options);

// Throws Error(Resource), after printing the table of the stage that needs the most, when the GPU of the placement has less free
// memory than a stage needs. Does nothing on the CPU, whose memory the system manages.
void require_device_memory(const LinearizeOptions& options);
void require_device_memory(const PretrainOptions& options);

}  // namespace lc::train
