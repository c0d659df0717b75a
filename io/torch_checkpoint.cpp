#include "io/torch_checkpoint.h"

#include <set>

#include "core/check.h"
#include "io/pickle.h"
#include "io/text.h"
#include "io/zip_archive.h"

namespace lc::io {
namespace {

constexpr int64_t kMaxPickle = int64_t{16} << 20;
constexpr std::string_view kPickleName = "/data.pkl";

// "NAME/" of the one NAME/data.pkl.
std::string prefix_of(const ZipArchive& archive) {
    std::string prefix;
    for (const ZipMember& member : archive.members()) {
        if (!member.name.ends_with(kPickleName)) continue;
        LC_REQUIRE(BadInput, prefix.empty(), "{}: has two pickles, '{}data.pkl' and '{}'", archive.path().string(),
                   printable(prefix), printable(member.name));
        prefix = member.name.substr(0, member.name.size() - kPickleName.size() + 1);
    }
    LC_REQUIRE(BadInput, !prefix.empty(), "{}: not a checkpoint of torch.save: no member ends in '{}'",
               archive.path().string(), kPickleName);
    return prefix;
}

void require_little_endian(const ZipArchive& archive, const std::string& prefix) {
    const ZipMember* member = archive.find(prefix + "byteorder");
    if (member == nullptr) return;
    const std::string order = archive.read_text(*member, 64);
    LC_REQUIRE(BadInput, order == "little", "{}: member '{}' must be \"little\", got \"{}\"", archive.path().string(),
               printable(member->name), printable(order));
}

Tensor read_tensor(const ZipArchive& archive, const std::string& prefix, const std::string& name,
                   const PickleValue& value) {
    const std::string source = archive.path().string();
    const ZipMember* member = archive.find(prefix + "data/" + value.text);
    LC_REQUIRE(BadInput, member != nullptr, "{}: member '{}data/{}' of tensor '{}' is missing", source,
               printable(prefix), printable(value.text), printable(name));
    int64_t bytes = 0;
    const bool fits = !__builtin_mul_overflow(value.integer, size_of(value.dtype), &bytes) && bytes == member->size;
    LC_REQUIRE(BadInput, fits, "{}: member '{}' has {} bytes, but tensor '{}' says that it holds {} {}", source,
               printable(member->name), member->size, printable(name), value.integer, name_of(value.dtype));
    LC_REQUIRE(BadInput, std::ssize(value.shape) <= kMaxRank, "{}: tensor '{}' has {} dimensions, at most {}", source,
               printable(name), value.shape.size(), kMaxRank);
    const Tensor storage = Tensor::empty({value.integer}, value.dtype);
    archive.read(*member, {storage.storage()->data.get(), static_cast<size_t>(bytes)});
    const Layout layout{
        .shape = Shape(std::span(value.shape)), .strides = Dims(std::span(value.strides)), .offset = value.offset};
    const Tensor tensor = storage.with_layout(layout);
    return layout.numel() == value.integer ? tensor.contiguous() : tensor.clone().contiguous();
}

}  // namespace

TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path, OpenOptions options) {
    const ZipArchive archive(path, options);
    const std::string source = path.string(), prefix = prefix_of(archive);
    require_little_endian(archive, prefix);
    const Pickle pickle(archive.read_text(*archive.find(prefix + "data.pkl"), kMaxPickle), source);
    LC_REQUIRE(BadInput, pickle.root().kind == PickleKind::dict, "{}: must hold a dict of tensors, got {}", source,
               describe(pickle.root()));
    TorchCheckpoint checkpoint;
    const PickleValue* state = pickle.find(pickle.root(), "model_state_dict");
    if (state != nullptr) {
        LC_REQUIRE(BadInput, state->kind == PickleKind::dict, "{}: key 'model_state_dict' must be a dict, got {}",
                   source, describe(*state));
        const PickleValue* step = pickle.find(pickle.root(), "step");
        if (step != nullptr && step->kind == PickleKind::integer && step->integer >= 0) checkpoint.step = step->integer;
    } else {
        state = &pickle.root();
    }
    std::set<std::string_view> names;
    int64_t bytes = 0;
    for (size_t i = 0; i < state->items.size(); i += 2) {
        const std::string& name = pickle[state->items[i]].text;
        const PickleValue& value = pickle[state->items[i + 1]];
        LC_REQUIRE(BadInput, value.kind == PickleKind::tensor, "{}: key '{}' must be a tensor, got {}", source,
                   printable(name), describe(value));
        LC_REQUIRE(BadInput, names.insert(name).second, "{}: key '{}' occurs twice", source, printable(name));
        checkpoint.tensors.emplace_back(name, read_tensor(archive, prefix, name, value));
        // a storage that many tensors share would make terabytes of a small file
        bytes += value.integer * size_of(value.dtype);
        LC_REQUIRE(BadInput, bytes <= archive.bytes(), "{}: its tensors, up to '{}', are larger than the file", source,
                   printable(name));
    }
    return checkpoint;
}

}  // namespace lc::io
