// What a result depends on besides the code measured.
#pragma once
#include <string>

#include "core/device.h"
#include "io/json.h"

namespace lc::bench {

struct Environment {
    std::string machine;  // the CPU or GPU by name
    io::Json fields;      // what every JSON line holds of it, revision and command included
};
Environment environment(Device device, const std::string& command);

// The command line as a line of results shows it: without the directories of this machine.
std::string portable_command(int argc, const char* const* argv);
// When a line was written and what state the device was then in: to be asked right after it was timed.
io::Json moment(Device device);

// Appends one line. An empty path: nothing to do.
void append_line(const std::string& path, const io::Json& line);

}  // namespace lc::bench
