#include <bit>

#include "core/check.h"
#include "io/text.h"
#include "io/tokenizer/tokenizer_model_file.h"

namespace lc::io {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 24;

// One protocol buffer message, field by field.
class Message {
  public:
    Message(std::string_view bytes, const std::string& source, const char* what)
        : bytes_(bytes), source_(source), what_(what) {}

    // False at the end. Of a field: its number, and its value as number (varint, fixed) or bytes.
    bool next() {
        if (at_ == bytes_.size()) return false;
        const uint64_t key = varint();
        field = key >> 3;
        number = 0, text = {};
        switch (key & 7) {
            case 0:
                number = varint();
                break;
            case 1:
                number = fixed(8);
                break;
            case 2:
                text = take(varint());
                break;
            case 5:
                number = fixed(4);
                break;
            default:
                refuse(fmt::format("field {} has wire type {}", field, key & 7));
        }
        return true;
    }
    [[noreturn]] void refuse(const std::string& what) const {
        fail(ErrorKind::BadInput, "{}: {}, near byte {} of it: {}", source_, what_, at_, what);
    }
    float real() const { return std::bit_cast<float>(static_cast<uint32_t>(number)); }
    bool yes() const { return number != 0; }
    // -1 is ten bytes of varint
    int64_t integer() const { return static_cast<int64_t>(number); }

    uint64_t field = 0, number = 0;
    std::string_view text;

  private:
    std::string_view take(uint64_t count) {
        if (count > bytes_.size() - at_) refuse(fmt::format("needs {} more bytes, has {}", count, bytes_.size() - at_));
        at_ += count;
        return bytes_.substr(at_ - count, count);
    }
    uint64_t fixed(size_t count) {
        uint64_t value = 0;
        const std::string_view raw = take(count);
        for (size_t i = 0; i < count; ++i) value |= uint64_t{static_cast<unsigned char>(raw[i])} << 8 * i;
        return value;
    }
    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const auto byte = static_cast<unsigned char>(take(1)[0]);
            value |= uint64_t{byte & 0x7Fu} << shift;
            if (byte < 0x80) return value;
        }
        refuse("a number has more than 10 bytes");
    }

    std::string_view bytes_;
    const std::string& source_;
    const char* what_;
    size_t at_ = 0;
};

Piece read_piece(std::string_view bytes, const std::string& source, size_t index) {
    Piece piece;
    Message message(bytes, source, "a piece");
    while (message.next()) {
        if (message.field == 1) piece.text = message.text;
        if (message.field == 2) piece.score = static_cast<double>(message.real());
        if (message.field != 3) continue;
        if (message.number < 1 || message.number > 6)
            message.refuse(fmt::format("type {} of piece {} is unknown", message.number, index));
        piece.type = static_cast<PieceType>(message.number);
    }
    LC_REQUIRE(BadInput, !first_invalid_utf8(piece.text), "{}: piece {} '{}' must be UTF-8", source, index,
               printable(piece.text));
    LC_REQUIRE(BadInput, piece.score == piece.score, "{}: piece {} '{}' has the score NaN", source, index,
               printable(piece.text));
    return piece;
}

// Field numbers are those of TrainerSpec; absent fields have its defaults.
void read_trainer(std::string_view bytes, const std::string& source, TokenizerParts& parts) {
    constexpr std::string_view kKinds[] = {"?", "unigram", "BPE", "word", "char"};
    uint64_t kind = 1;
    int64_t unk = 0, bos = 1, eos = 2;
    bool fallback = false;
    Message message(bytes, source, "trainer_spec");
    while (message.next()) {
        if (message.field == 3) kind = message.number;
        if (message.field == 35) fallback = message.yes();
        if (message.field == 40) unk = message.integer();
        if (message.field == 41) bos = message.integer();
        if (message.field == 42) eos = message.integer();
    }
    LC_REQUIRE(BadInput, kind == 2, "{}: trainer_spec.model_type must be BPE, got {}", source,
               kind < std::size(kKinds) ? kKinds[kind] : "?");
    LC_REQUIRE(BadInput, fallback, "{}: trainer_spec.byte_fallback must be true (nothing else is supported)", source);
    const auto id = [](int64_t value) { return value < 0 ? std::nullopt : std::optional(value); };
    parts.unk = id(unk), parts.bos = id(bos), parts.eos = id(eos);
    parts.symbols_after_normalizing = true;
}

// Field numbers are those of NormalizerSpec.
bool read_normalizer_spec(std::string_view bytes, const std::string& source) {
    bool dummy_prefix = true, collapse = true, escape = true;
    Message message(bytes, source, "normalizer_spec");
    while (message.next()) {
        LC_REQUIRE(
            BadInput, message.field != 2 || message.text.empty(),
            "{}: normalizer_spec.precompiled_charsmap must be empty: only the normalizer 'identity' is supported",
            source);
        if (message.field == 3) dummy_prefix = message.yes();
        if (message.field == 4) collapse = message.yes();
        if (message.field == 5) escape = message.yes();
    }
    LC_REQUIRE(
        BadInput, !collapse && escape,
        "{}: normalizer_spec must keep spaces and escape them (remove_extra_whitespaces false, escape_whitespaces "
        "true)",
        source);
    return dummy_prefix;
}

}  // namespace

SentencePieceModel read_sentencepiece(std::string_view bytes, const std::string& source) {
    SentencePieceModel model;
    std::string_view trainer, normalizer;
    Message message(bytes, source, "the SentencePiece model");
    while (message.next()) {
        if (message.field == 1) {
            if (model.parts.pieces.size() == kMaxPieces) message.refuse("more than 2^24 pieces");
            model.parts.pieces.push_back(read_piece(message.text, source, model.parts.pieces.size()));
        }
        if (message.field == 2) trainer = message.text;
        if (message.field == 3) normalizer = message.text;
    }
    LC_REQUIRE(BadInput, !model.parts.pieces.empty(), "{}: not a SentencePiece model: it has no pieces", source);
    read_trainer(trainer, source, model.parts);
    model.dummy_prefix = read_normalizer_spec(normalizer, source);
    return model;
}

}  // namespace lc::io
