// Files that hold tensors.
#include "core/tensor.h"
#include "io/gguf.h"
#include "io/gguf_config.h"
#include "io/pickle.h"
#include "io/safetensors_model.h"
#include "io/tokenizer/load_tokenizer.h"
#include "io/torch_checkpoint.h"
#include "tests/fuzz/support.h"
#include "tests/fuzz/targets.h"
#include "tests/io/safetensors_bytes.h"
#include "tests/io/torch_bytes.h"

namespace lc::fuzz {

void safetensors(std::string_view input) {
    const MemoryFile file(input);
    answer([&] {
        const io::SafetensorsFile tensors(file.path());
        int64_t bytes = 0;
        for (const io::TensorInfo& tensor : tensors.tensors()) {
            bytes += tensor.bytes();
            answer([&] { tensors.read(tensor.name); });
            answer([&] { tensors.read(tensor.name, DType::f32); });
        }
        require(bytes <= std::ssize(input), "tensors larger than the file");
    });
}

void index(std::string_view input) {
    static const Folder folder;
    static const bool once = [] {
        const char* header =
            R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";
        folder.write("model-00001-of-00002.safetensors", io::test::safetensors_bytes(header, "012345678"));
        header = R"({"c":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}})";
        folder.write("model-00002-of-00002.safetensors", io::test::safetensors_bytes(header, "01"));
        return true;
    }();
    require(once, "no shards");
    folder.write(io::kIndexFile.data(), input);
    answer([&] {
        const io::SafetensorsModel model(folder.path());
        for (const std::string& name : model.names()) model.read(name);
    });
}

void gguf(std::string_view input) {
    const MemoryFile file(input);
    answer([&] {
        const io::GgufFile model(file.path());
        answer([&] { io::hf_config_of(model); });
        answer([&] { io::tokenizer_of(model).encode("a word, <s> 12\n", true); });
        for (const io::GgufTensor& tensor : model.tensors()) answer([&] { model.read(tensor); });
    });
}

void pickle(std::string_view input) {
    answer([&] {
        const io::Pickle pickle(input, "data.pkl");
        const io::PickleValue& root = pickle.root();
        require(!describe(root).empty(), "a value without a description");
        if (root.kind == io::PickleKind::dict) pickle.find(root, "model_state_dict");
    });
}

void torch_checkpoint(std::string_view input) {
    std::string archive(input);
    if (input.starts_with('P')) {
        const std::string content(48, '\x3F');
        archive = io::test::zip_bytes({{"archive/data.pkl", archive.substr(1)},
                                       {"archive/byteorder", "little"},
                                       {"archive/data/0", content},
                                       {"archive/data/1", content.substr(0, 6)}});
    }
    const MemoryFile file(archive);
    answer([&] {
        int64_t bytes = 0;
        for (const auto& [name, tensor] : io::read_torch_checkpoint(file.path()).tensors) bytes += tensor.nbytes();
        require(bytes <= std::ssize(archive), "tensors larger than the file");
    });
}

}  // namespace lc::fuzz
