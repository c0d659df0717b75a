#include "io/json.h"

#include <cmath>

#include "io/text.h"
#include "tests/io/faults.h"

namespace lc::io {
namespace {

using test::expect_refused;

TEST(Json, ParsesOrdinaryDocuments) {
    const Json json = parse_json(R"({"a":[1,-2,3.5,true,null,"x\u00e9"],"b":{"c":{}},"d":18446744073709551615})", "t");
    EXPECT_EQ(json["a"].size(), 6u);
    EXPECT_EQ(json["a"][1].get<int>(), -2);
    EXPECT_EQ(json["a"][5].get<std::string>(), "x\xC3\xA9");
    EXPECT_TRUE(json["b"]["c"].is_object());
    EXPECT_EQ(parse_json(" 7 ", "t").get<int>(), 7);
    EXPECT_EQ(parse_json("[[],[[]],{}]", "t").size(), 3u);
}

TEST(Json, SameKeyInDifferentObjectsIsFine) {
    EXPECT_EQ(parse_json(R"([{"a":1},{"a":2}])", "t").size(), 2u);
}

TEST(Json, RefusesWhatIsNotStrictJson) {
    struct Case {
        const char* what;
        std::string text;
        std::string says;
    };
    const std::string deep = std::string(65, '[') + std::string(65, ']');
    const std::string very_deep(100'000, '[');
    const std::vector<Case> cases = {
        {"empty", "", "not valid JSON"},
        {"trailing text", "{} x", "not valid JSON"},
        {"two documents", "{}{}", "not valid JSON"},
        {"NaN", R"({"a":NaN})", "not valid JSON"},
        {"Infinity", R"({"a":-Infinity})", "not valid JSON"},
        {"beyond double", R"({"a":1e999})", "overflow"},
        {"cut", R"({"a":[1,2)", "not valid JSON"},
        {"trailing NUL", std::string("{}\0", 3), "NUL at byte 2"},
        {"garbage after NUL", std::string("{}\0 garbage", 11), "NUL at byte 2"},
        {"comment", "{} // no", "not valid JSON"},
        {"duplicate key", R"({"key":1,"b":{"x":2},"key":3})", "key 'key' occurs twice"},
        {"duplicate nested", R"([{"a":{"x":1,"x":1}}])", "key 'x' occurs twice"},
        {"too deep", deep, "deeper than 64"},
        {"absurdly deep", very_deep, "deeper than 64"},
        {"bad utf-8", "{\"a\":\"\xff\"}", "UTF-8"},
        {"overlong utf-8", "{\"a\":\"\xc0\x80\"}", "UTF-8"},
        {"lone surrogate", R"({"a":"\ud800"})", "surrogate"},
        {"newline in string", "{\"a\":\"\n\"}", "not valid JSON"},
    };
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        expect_refused([&] { parse_json(c.text, "dir/file.json"); }, {"dir/file.json", c.says});
    }
    expect_refused([] { parse_json("[1,2,3,4]", "f.json", {.max_bytes = 8}); }, {"f.json", "9 bytes", "at most 8"});
    EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "t"));
}

TEST(Json, ReadsFilesAndRefusesWhatIsNoFile) {
    const test::ScratchDir dir;
    EXPECT_EQ(read_json_file(dir.write("a.json", R"({"x":1})"))["x"].get<int>(), 1);
    expect_refused([&] { read_json_file(dir / "none.json"); }, {"none.json", "cannot be opened"});
    expect_refused([&] { read_json_file(dir.path()); }, {"regular file"});
    expect_refused([&] { read_json_file(dir / "a.json", {.max_bytes = 3}); }, {"a.json", "at most 3"});
}

TEST(JsonObject, TypedAccess) {
    const Json json = parse_json(
        R"({"i":5,"d":1.5,"s":"t","b":true,"n":null,"l":["a","b"],"o":{"k":2},"big":18446744073709551616,"e":4.0,
            "u":9223372036854775808,"neg":-1})",
        "f.json");
    const JsonObject object(json, "f.json");
    EXPECT_EQ(object.get_int("i", 0, 10), 5);
    EXPECT_EQ(object.get_double("i", 0, 10), 5.0);
    EXPECT_EQ(object.get_double("d", 0, 10), 1.5);
    EXPECT_EQ(object.get_string("s"), "t");
    EXPECT_TRUE(object.get_bool("b"));
    EXPECT_EQ(object.get_strings("l"), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(object.get_object("o").get_int("k", 0, 9), 2);
    EXPECT_FALSE(object.find_int("n", 0, 1));
    EXPECT_FALSE(object.find_int("absent", 0, 1));
    EXPECT_FALSE(object.find_object("absent"));
    EXPECT_EQ(object.find_string("s"), "t");

    expect_refused([&] { object.get_int("absent", 0, 1); }, {"f.json", "'absent'", "missing"});
    expect_refused([&] { object.get_int("n", 0, 1); }, {"'n'", "missing"});
    expect_refused([&] { object.get_int("i", 0, 4); }, {"f.json", "'i'", "[0, 4]", "got 5"});
    expect_refused([&] { object.get_int("neg", 0, 4); }, {"'neg'", "-1"});
    expect_refused([&] { object.get_int("e", 0, 9); }, {"'e'", "integer", "4.0"});
    expect_refused([&] { object.get_int("big", 0, INT64_MAX); }, {"'big'", "integer"});
    expect_refused([&] { object.get_int("u", INT64_MIN, INT64_MAX); }, {"'u'", "9223372036854775808"});
    expect_refused([&] { object.get_int("b", 0, 1); }, {"'b'", "true"});
    expect_refused([&] { object.get_double("s", 0, 1); }, {"'s'", "number"});
    expect_refused([&] { object.find_string("i"); }, {"'i'", "a string", "5"});
    expect_refused([&] { object.get_bool("i"); }, {"'i'", "true or false"});
    expect_refused([&] { object.get_strings("o"); }, {"'o'", "an array", "an object of 1"});
    expect_refused([&] { object.get_object("o").get_string("k"); }, {"'o.k'", "a string"});
    expect_refused([&] { object.get_object("l"); }, {"'l'", "an object", "an array of 2"});
    expect_refused([&] { JsonObject(json["i"], "f.json"); }, {"f.json", "JSON object", "5"});
}

TEST(Text, FindsIllFormedUtf8) {
    EXPECT_FALSE(first_invalid_utf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"));
    EXPECT_EQ(first_invalid_utf8("ab\xff"), 2u);
    EXPECT_EQ(first_invalid_utf8("\xE2\x82"), 0u);           // cut
    EXPECT_EQ(first_invalid_utf8("\xED\xA0\x80"), 0u);       // surrogate
    EXPECT_EQ(first_invalid_utf8("\xC0\xAF"), 0u);           // overlong
    EXPECT_EQ(first_invalid_utf8("x\xF4\x90\x80\x80"), 1u);  // above U+10FFFF
}

TEST(Text, PrintableKeepsMessagesOnOneLine) {
    EXPECT_EQ(printable("a\nb\x1b[31m\xff\xC2\x9B"), "a\\x0ab\\x1b[31m\\xff\\xc2\\x9b");
    EXPECT_EQ(printable("\xE2\x82\xAC"), "\xE2\x82\xAC");
    EXPECT_EQ(printable(std::string(500, 'x'), 10), "xxxxxxxxxx...");
}

}  // namespace
}  // namespace lc::io
