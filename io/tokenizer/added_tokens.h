// Tokens that are found in the text before BPE sees it: special ones (<|begin_of_text|>) and those that a fine-tune
// added. The leftmost match wins, and among those the longest.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lc::io {

struct AddedToken {
    int32_t id = 0;
    std::string content;
    bool single_word = false;  // only when no word character stands beside it
    bool lstrip = false;       // swallows the white space to its left
    bool rstrip = false;       // ... to its right
    bool normalized = false;   // looked for in the normalized text (as its own normal form)
    bool special = false;      // left out by decode(skip_special_tokens)
    // What stands for it in the normalized text; empty: its own normal form. Not in files of others: SentencePiece's user-defined
    // pieces are written as they stand behind the normalizer, which may put a space before whatever it is given.
    std::string normal_form;
};

// A set of strings with a search that takes time in proportion to the text (times the longest string).
class AddedTokenFinder {
  public:
    AddedTokenFinder() : nodes_(1) { roots_.fill(-1); }

    // `pattern`, not empty, is what to look for; it may differ from token.content (normal form). When two tokens have
    // the same pattern the first one added is found.
    void add(const AddedToken& token, std::string_view pattern);
    bool empty() const { return tokens_.empty(); }

    // Cuts `text` (well-formed) into what lies between tokens (token == nullptr, never empty) and tokens, left to
    // right.
    using Visit = std::function<void(std::string_view piece, const AddedToken* token)>;
    void split(std::string_view text, const Visit& visit) const;

  private:
    struct Node {
        int32_t first_child = -1, next_sibling = -1;
        int32_t token = -1;  // index into tokens_ of the string that ends here
        char byte = 0;
    };
    struct Match {
        size_t begin, end;
        const AddedToken* token;
    };
    int32_t child(int32_t node, char byte) const;
    std::optional<Match> find(std::string_view text, size_t from) const;

    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_;           // [0] is the root
    std::array<int32_t, 256> roots_{};  // the root's children by their byte
};

}  // namespace lc::io
