// Text that streams out must never show a stop string, not even its beginning. What might be one is held back until the
// next piece decides.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lc::models {

class StopStrings {
  public:
    // Throws Error(Usage) for an empty stop string or one that is not UTF-8.
    explicit StopStrings(std::vector<std::string> stops);

    // Takes the next piece and returns what may be shown. At the first stop string the text ends: nothing of it and of
    // what follows comes out. The first is the one that is complete first, so that the pieces do not matter.
    std::string push(std::string_view text);
    std::string finish();  // no more comes: what was held back
    bool found() const { return found_; }

  private:
    std::vector<std::string> stops_;
    std::string held_;
    bool found_ = false;
};

}  // namespace lc::models
