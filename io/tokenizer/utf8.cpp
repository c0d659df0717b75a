#include "io/tokenizer/utf8.h"

namespace lc::io {
namespace {

enum class Sequence { Bad, Prefix, Complete };

// What `bytes` (1 to 4 of them, the ones before the last already known to be a prefix) are (Unicode 15, table 3-7).
Sequence classify(std::string_view bytes) {
    const auto first = static_cast<unsigned char>(bytes[0]);
    if (first < 0x80) return Sequence::Complete;
    if (first < 0xC2 || first > 0xF4) return Sequence::Bad;
    if (bytes.size() == 1) return Sequence::Prefix;
    const auto last = static_cast<unsigned char>(bytes.back());
    unsigned low = 0x80, high = 0xBF;
    if (bytes.size() == 2) {
        if (first == 0xE0) low = 0xA0;   // overlong
        if (first == 0xED) high = 0x9F;  // surrogates
        if (first == 0xF0) low = 0x90;   // overlong
        if (first == 0xF4) high = 0x8F;  // above U+10FFFF
    }
    if (last < low || last > high) return Sequence::Bad;
    return bytes.size() == utf8_sequence_length(bytes[0]) ? Sequence::Complete : Sequence::Prefix;
}

}  // namespace

char32_t code_point_at(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
    switch (utf8_sequence_length(text[at])) {
        case 1:
            return byte(0);
        case 2:
            return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
        case 3:
            return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
        default:
            return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    }
}

void append_code_point(std::string& text, char32_t c) {
    const auto add = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        add(c);
    } else if (c < 0x800) {
        add(0xC0 | c >> 6);
        add(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        add(0xE0 | c >> 12);
        add(0x80 | (c >> 6 & 0x3F));
        add(0x80 | (c & 0x3F));
    } else {
        add(0xF0 | c >> 18);
        add(0x80 | (c >> 12 & 0x3F));
        add(0x80 | (c >> 6 & 0x3F));
        add(0x80 | (c & 0x3F));
    }
}

void Utf8Repair::push(std::string_view bytes, std::string& out) {
    for (const char byte : bytes) {
        if (!pending_.empty()) {
            pending_.push_back(byte);
            const Sequence sequence = classify(pending_);
            if (sequence == Sequence::Prefix) continue;
            if (sequence == Sequence::Complete) {
                out += pending_;
                pending_.clear();
                continue;
            }
            out += kReplacementCharacter;  // for what came before; this byte may begin the next sequence
            pending_.clear();
        }
        switch (classify({&byte, 1})) {
            case Sequence::Complete:
                out.push_back(byte);
                break;
            case Sequence::Prefix:
                pending_.push_back(byte);
                break;
            case Sequence::Bad:
                out += kReplacementCharacter;
                break;
        }
    }
}

void Utf8Repair::finish(std::string& out) {
    if (!pending_.empty()) out += kReplacementCharacter;
    pending_.clear();
}

std::string repair_utf8(std::string_view bytes) {
    std::string out;
    out.reserve(bytes.size());
    Utf8Repair repair;
    repair.push(bytes, out);
    repair.finish(out);
    return out;
}

}  // namespace lc::io
