// Makes PCRE2 see characters as HF tokenizers' regex engine (Oniguruma, Unicode 16) does. Debian's PCRE2 10.42 knows
// Unicode 14, and its \s takes U+180E, which left the spaces in Unicode 6.3. A pattern that says \p{L}, \p{N} or \s
// would cut such text elsewhere, and one different cut gives other ids. The remedy costs nothing on ordinary text:
// before matching, each character on which the two disagree is replaced by one of the same UTF-8 length and of the
// category that it should have. Offsets stay valid.
#pragma once
#include <string>
#include <string_view>

namespace lc::io {

// `text` (well-formed UTF-8) itself, or, when it holds such characters, a copy of it in `storage` with stand-ins.
std::string_view match_form(std::string_view text, std::string& storage);

// HF tokenizers' NFC goes by the tables of Unicode 9: what came later stands still, whatever a newer library would do
// with it. Such a character neither moves nor composes, so the text on either side of it can be normalized alone.
bool is_inert_in_nfc(char32_t c);

}  // namespace lc::io
