// Files that are malformed, contradict themselves or ask for what we do not have: one line that names the fault, exit 3.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/check.h"
#include "io/file.h"
#include "io/text.h"
#include "tests/io/tokenizer/small.h"

namespace lc::io::test {
namespace {

struct Malformed {
    std::string name;
    std::function<void(Json&)> bend;
    std::string says;  // part of the message
};

Json& merges(Json& json) {
    return json["model"]["merges"];
}
Json& vocab(Json& json) {
    return json["model"]["vocab"];
}
Json split(const Json& pattern, const char* behavior = "Isolated") {
    return {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", false}};
}
Json regex(const std::string& pattern) {
    return {{"Regex", pattern}};
}

const std::vector<Malformed> kMalformed = {
    // The model.
    {"no_model", [](Json& j) { j.erase("model"); }, "key 'model' is missing"},
    {"model_is_text", [](Json& j) { j["model"] = "BPE"; }, "'model' must be an object"},
    {"unigram", [](Json& j) { j["model"]["type"] = "Unigram"; }, "'model.type' must be \"BPE\", got \"Unigram\""},
    {"version", [](Json& j) { j["version"] = "2.0"; }, "'version' must be \"1.0\""},
    {"no_vocab", [](Json& j) { j["model"].erase("vocab"); }, "'model.vocab' is missing"},
    {"vocab_is_array", [](Json& j) { vocab(j) = Json::array(); }, "'model.vocab' must be an object"},
    {"vocab_is_empty", [](Json& j) { vocab(j) = Json::object(); }, "at least one"},
    {"id_twice", [](Json& j) { vocab(j)["zz"] = 97; }, "'a' and 'zz' have the same id 97"},
    {"id_negative", [](Json& j) { vocab(j)["zz"] = -1; }, "the id of 'zz' must be an integer in [0, 16777215], got -1"},
    {"id_too_large", [](Json& j) { vocab(j)["zz"] = 1 << 24; }, "got 16777216"},
    {"id_beyond_64_bits", [](Json& j) { vocab(j)["zz"] = UINT64_MAX; }, "the id of 'zz'"},
    {"id_is_fraction", [](Json& j) { vocab(j)["zz"] = 1.5; }, "got 1.5"},
    {"id_is_text", [](Json& j) { vocab(j)["zz"] = "97"; }, "the id of 'zz'"},
    {"no_merges", [](Json& j) { j["model"].erase("merges"); }, "'model.merges' is missing"},
    {"merges_is_object", [](Json& j) { merges(j) = Json::object(); }, "'model.merges' must be an array"},
    {"merge_left_unknown",
     [](Json& j) {
         merges(j).push_back({"日", "a"});
     },
     "'日' is not in the vocabulary"},
    {"merge_right_unknown",
     [](Json& j) {
         merges(j).push_back({"a", "日"});
     },
     "merges[1]': '日' is not"},
    {"merge_result_unknown", [](Json& j) { merges(j).push_back("a c"); }, "'ac' is not in the vocabulary"},
    {"merge_of_one", [](Json& j) { merges(j).push_back("ab"); }, "must be \"left right\" or [\"left\", \"right\"]"},
    {"merge_of_three", [](Json& j) { merges(j).push_back("a b c"); }, "merges[1]' must be"},
    {"merge_pair_of_three",
     [](Json& j) {
         merges(j).push_back({"a", "b", "c"});
     },
     "got an array of 3"},
    {"merge_pair_of_numbers",
     [](Json& j) {
         merges(j).push_back({1, 2});
     },
     "merges[1]' must be"},
    {"merge_of_nothing",
     [](Json& j) {
         merges(j).push_back({"", "a"});
     },
     "merges[1]' must be"},
    {"merge_is_number", [](Json& j) { merges(j).push_back(7); }, "got 7"},
    {"unk_unknown", [](Json& j) { j["model"]["unk_token"] = "<unk>"; }, "'model.unk_token' must be in the vocabulary"},
    {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "'model.dropout' must be null or 0, got 0.1"},
    {"prefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, "continuing_subword_prefix"},
    {"suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix"},
    {"flag_is_text", [](Json& j) { j["model"]["byte_fallback"] = "yes"; },
     "'model.byte_fallback' must be true or false"},
    // Added tokens.
    {"added_is_object", [](Json& j) { j["added_tokens"] = Json::object(); }, "'added_tokens' must be an array"},
    {"added_not_object", [](Json& j) { j["added_tokens"].push_back("<x>"); }, "'added_tokens[2]' must be an object"},
    {"added_empty", [](Json& j) { j["added_tokens"].push_back(added_token(400, "")); }, "1 to 512 bytes long"},
    {"added_too_long", [](Json& j) { j["added_tokens"].push_back(added_token(400, std::string(513, 'x'))); },
     "1 to 512 bytes long"},
    {"added_twice", [](Json& j) { j["added_tokens"].push_back(added_token(400, "<bos>")); }, "not added before"},
    {"added_id_twice", [](Json& j) { j["added_tokens"].push_back(added_token(257, "<x>")); }, "an id not added before"},
    {"added_id_of_piece", [](Json& j) { j["added_tokens"].push_back(added_token(97, "<x>")); },
     "token '<x>' has id 97, which is 'a' in the vocabulary"},
    {"added_piece_other_id", [](Json& j) { j["added_tokens"].push_back(added_token(400, "a")); },
     "token 'a' must have its id in the vocabulary, 97, got 400"},
    {"added_id_too_large", [](Json& j) { j["added_tokens"].push_back(added_token(1 << 24, "<x>")); }, "got 16777216"},
    {"added_without_id", [](Json& j) { j["added_tokens"][0].erase("id"); }, "'added_tokens[0].id' is missing"},
    // Components.
    {"normalizer_unknown",
     [](Json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
     },
     "component 'Lowercase' is not supported"},
    {"normalizer_without_type", [](Json& j) { j["normalizer"] = Json::object(); }, "'normalizer.type' is missing"},
    {"normalizer_in_sequence",
     [](Json& j) {
         j["normalizer"] = sequence("normalizers", {{{"type", "NFC"}}, {{"type", "Nmt"}}});
     },
     "'normalizer.normalizers[1].type': component 'Nmt'"},
    {"replace_nothing",
     [](Json& j) {
         j["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}};
     },
     "a text that is not empty"},
    {"replace_without_pattern",
     [](Json& j) {
         j["normalizer"] = {{"type", "Replace"}, {"pattern", Json::object()}, {"content", "x"}};
     },
     "{\"String\": ...} or {\"Regex\": ...}"},
    {"pre_tokenizer_unknown",
     [](Json& j) {
         j["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
     },
     "component 'BertPreTokenizer' is not supported"},
    {"split_behavior", [](Json& j) { j["pre_tokenizer"] = split(regex("a"), "Sometimes"); }, "got \"Sometimes\""},
    {"regex_broken", [](Json& j) { j["pre_tokenizer"] = split(regex("(a")); },
     "the pattern does not compile at byte 2"},
    {"regex_too_long", [](Json& j) { j["pre_tokenizer"] = split(regex(std::string((64 << 10) + 1, 'a'))); },
     "at most 65536 are accepted"},
    {"regex_other_dialect", [](Json& j) { j["pre_tokenizer"] = split(regex(R"([a-z&&[^b]])")); }, "does not support"},
    {"regex_hex_class", [](Json& j) { j["pre_tokenizer"] = split(regex(R"(\h+)")); }, "the pattern uses '\\h'"},
    {"regex_word_class", [](Json& j) { j["pre_tokenizer"] = split(regex(R"(\p{L}+\w)")); }, "the pattern uses '\\w'"},
    {"regex_possessive", [](Json& j) { j["pre_tokenizer"] = split(regex(R"(\p{N}{1,3}+)")); }, "uses '{1,3}+'"},
    {"regex_open_count", [](Json& j) { j["pre_tokenizer"] = split(regex(R"(a{,3})")); }, "the pattern uses '{,3}'"},
    {"regex_dot_all", [](Json& j) { j["pre_tokenizer"] = split(regex(R"((?m:.)+)")); }, "the pattern uses '(?m'"},
    {"regex_posix_class", [](Json& j) { j["pre_tokenizer"] = split(regex(R"([[:punct:]])")); }, "uses '[:'"},
    {"after_byte_level",
     [](Json& j) {
         j["pre_tokenizer"] = sequence("pretokenizers", {j["pre_tokenizer"], split(regex("a"))});
     },
     "must not come after ByteLevel"},
    {"too_many_components",
     [](Json& j) { j["pre_tokenizer"] = sequence("pretokenizers", std::vector<Json>(40, split(regex("a")))); },
     "more than 32 components"},
    {"metaspace_of_two",
     [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "__"}};
     },
     "one character"},
    {"decoder_unknown",
     [](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
     },
     "component 'WordPiece'"},
    {"decoder_order",
     [](Json& j) {
         j["decoder"] = sequence("decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}});
     },
     "must not come after Fuse"},
    {"post_processor_unknown",
     [](Json& j) {
         j["post_processor"] = {{"type", "RobertaProcessing"}};
     },
     "component 'RobertaProcessing'"},
    {"template_unknown_token", [](Json& j) { j["post_processor"] = template_with_bos("<bos>", 5000); },
     "ids in the vocabulary"},
    {"template_undeclared", [](Json& j) { j["post_processor"]["special_tokens"] = Json::object(); },
     "'post_processor.special_tokens.<bos>' is missing"},
    {"template_without_text", [](Json& j) { j["post_processor"]["single"].erase(1); },
     "a template with the Sequence A"},
    {"template_second_text", [](Json& j) { j["post_processor"]["single"][1]["Sequence"]["id"] = "B"; }, "\"A\", once"},
    {"template_twice",
     [](Json& j) {
         j["post_processor"] = sequence("processors", {j["post_processor"], j["post_processor"]});
     },
     "must come once"},
};

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::BadInput) << error.what();
        return error.what();
    }
    return "";
}

class MalformedTokenizer : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedTokenizer, IsRefusedInOneLine) {
    Json json = byte_level({{"a", "b"}});
    ASSERT_NO_THROW(make(json));
    GetParam().bend(json);
    const std::string message = message_of([&] { make(json); });
    EXPECT_TRUE(message.starts_with("tokenizer.json: ")) << message;
    EXPECT_NE(message.find(GetParam().says), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 600u);
}

INSTANTIATE_TEST_SUITE_P(Faults, MalformedTokenizer, testing::ValuesIn(kMalformed),
                         [](const auto& test) { return test.param.name; });

TEST(MalformedTokenizerFile, IsRefused) {
    const auto refused = [](const std::string& text) { return message_of([&] { Tokenizer::parse(text, "t.json"); }); };
    EXPECT_NE(refused(""), "");
    EXPECT_NE(refused("[]"), "");
    EXPECT_NE(refused("{\"model\":"), "");
    EXPECT_NE(refused(R"({"model":{"vocab":{"a":0,"a":1},"merges":[]}})").find("occurs twice"), std::string::npos);
    EXPECT_NE(refused("{\"model\":{\"vocab\":{\"\xFF\":0},\"merges\":[]}}"), "");
    EXPECT_NE(refused(std::string(1000, '[')).find("deeper"), std::string::npos);
    const auto path = std::filesystem::path(testing::TempDir()) / "lolcats_large_tokenizer.json";
    std::ofstream(path) << "{";
    std::filesystem::resize_file(path, (uint64_t{64} << 20) + 1);
    EXPECT_NE(message_of([&] { Tokenizer::load(path); }), "");
    std::filesystem::remove(path);
    EXPECT_NE(message_of([&] { Tokenizer::load("/nonexistent/tokenizer.json"); }), "");
}

TEST(MalformedTokenizerFile, TooManyMerges) {
    std::string text = R"({"model":{"type":"BPE","vocab":{"a":0,"aa":1},"merges":[)";
    for (int i = 0; i < 4'000'001; ++i) text += i == 0 ? "\"a a\"" : ",\"a a\"";
    EXPECT_NE(message_of([&] { Tokenizer::parse(text + "]}}", "t.json"); }).find("at most 4000000"), std::string::npos);
}

TEST(MalformedTokenizerFile, DeepSequencesAreCut) {
    Json json = byte_level();
    Json nested = {{"type", "NFC"}};
    for (int i = 0; i < 100; ++i) nested = sequence("normalizers", {nested});
    json["normalizer"] = nested;
    EXPECT_NE(message_of([&] { make(json); }).find("deeper"), std::string::npos);
}

// Any one byte changed, or the end cut off: loads or is refused, and what loads can encode.
TEST(MalformedTokenizerFile, EveryCorruptionIsHarmless) {
    const std::string text = byte_fallback({"▁", "a", "b"}, {{"a", "b"}, {"▁", "ab"}}).dump();
    size_t loaded = 0, refused = 0;
    const auto attempt = [&](const std::string& changed) {
        try {
            const Tokenizer tokenizer = Tokenizer::parse(changed, "t.json");
            tokenizer.decode(tokenizer.encode("ab <s> é\n", true), false);
            ++loaded;
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::BadInput) << error.what();
            ++refused;
        }
    };
    for (size_t i = 0; i < text.size(); i += 7) {
        attempt(text.substr(0, i));
        for (const char byte : {'0', '"', '{', '\xFF'}) {
            std::string changed = text;
            changed[i] = byte;
            attempt(changed);
        }
    }
    EXPECT_GT(loaded, 100u);
    EXPECT_GT(refused, 100u);
}

}  // namespace
}  // namespace lc::io::test
