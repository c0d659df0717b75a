#include "io/dataset/alpaca.h"

#include <fmt/format.h>

namespace lc::io {

std::string alpaca_prompt(const AlpacaRecord& record) {
    if (record.input.empty())
        return fmt::format(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n{}\n\n### Response:\n",
            record.instruction);
    return fmt::format(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### "
        "Response:\n",
        record.instruction, record.input);
}

}  // namespace lc::io
