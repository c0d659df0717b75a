// A conversation in a file: what attention keeps and all ids, as safetensors. With linear layers it is small, and as
// large after a million tokens as after a hundred.
#pragma once
#include <filesystem>
#include <string>

#include "models/generation/conversation.h"
#include "models/generation/identity.h"

namespace lc::models {

struct StateInfo {
    ModelIdentity identity;     // of the weights that made it
    std::string chat_template;  // empty: plain text
};

// Atomically. Throws Error(Resource) when the file cannot be written.
void save_state(const Conversation& conversation, const std::filesystem::path& path, const StateInfo& info);

// Puts a fresh conversation where the saved one stopped: what comes next has the same bits as without the stop. Returns
// the template it was saved with. Throws BadInput, naming file and what differs, for anything that is no such file, was
// made by another model, run, dtype, choice of attention terms or storage of states, or is damaged: names, shapes, ids and values are
// checked.
std::string load_state(Conversation& conversation, const std::filesystem::path& path, const ModelIdentity& identity);

}  // namespace lc::models
