// Stanford Alpaca records and the prompt that goes with them.
#pragma once
#include <string>

namespace lc::io {

struct AlpacaRecord {
    std::string instruction;
    std::string input;  // empty: none
    std::string output;
};

// What precedes the output. The public Stanford Alpaca text, byte for byte: with an input section iff `input` is not
// empty; no field is trimmed. (github.com/tatsu-lab/stanford_alpaca)
std::string alpaca_prompt(const AlpacaRecord& record);

}  // namespace lc::io
