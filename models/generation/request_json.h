// Requests as JSON: the keys that a user may give with a prompt. A batch file's lines have them, a server's bodies
// would.
#pragma once
#include "io/json.h"
#include "models/generation/continuation.h"

namespace lc::models {

// Changes in `options` what the object says: max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
// presence_penalty, frequency_penalty, logit_bias {"<id>": number or "-inf"}, seed, stop (a string or several),
// ignore_eos. Throws BadInput, naming source, key, what is wanted and what is there. Ranges are checked as validate()
// does.
void apply_overrides(const io::JsonObject& object, int64_t vocab_size, GenerateOptions& options);

// True for the keys above.
bool is_override(std::string_view key);

// All of it, in one fixed form: two that are equal generate the same from the same prompt.
io::Json to_json(const GenerateOptions& options);

}  // namespace lc::models
