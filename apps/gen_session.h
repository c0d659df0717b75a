// What every way of using gen_lolcats starts from: the model in memory, and how it shall generate.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "apps/gen_flags.h"
#include "io/tokenizer/tokenizer.h"
#include "models/decoder/decoder.h"
#include "models/generation/conversation.h"
#include "models/generation/identity.h"

namespace lc::apps {

struct Session {
    io::Tokenizer tokenizer;
    models::Decoder decoder;  // with the run applied and its adapter merged
    models::DecodeMode mode;
    models::GenerateOptions options;  // every request's, unless it says otherwise
    models::ModelIdentity identity;   // empty unless asked for or needed for a run
};

// Reads the model's files. Wrong options are refused before any weight is read.
Session load_session(const GenFlags& flags, const Settings& settings, bool with_identity = false);

// To standard output, at once. Throws Error(Resource) when it cannot be written.
void write_out(std::string_view text);

struct Speeds {
    std::optional<double> prefill, decode;  // tokens per second; none for a single token
};
Speeds speeds_of(const models::Generation& result, size_t prompt_tokens);

// "prefill 812.3 tok/s (12 tokens) | decode ..." on standard error.
void print_stats(const Session& session, const models::Generation& result, size_t prompt_tokens);

// The ways of using the program, a file each.
int run_text(const GenFlags& flags, const Settings& settings);   // one prompt, one text
int run_batch(const GenFlags& flags, const Settings& settings);  // --batch
int run_chat(const GenFlags& flags, const Settings& settings);   // --chat

}  // namespace lc::apps
