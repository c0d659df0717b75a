// train_lolcats: turns a softmax model into a linear-attention one, and what goes with it.
#include "apps/train_verbs.h"

int main(int argc, char** argv) {
    using namespace lc::apps;
    return run_app([&] {
        CLI::App program("Linearizes Llama-family models (LoLCATs, arXiv 2410.10254): attention transfer, then LoRA.");
        prepare(program,
                "  train_lolcats linearize --model teacher/ --data alpaca.jsonl --out run/\n"
                "  train_lolcats linearize --model teacher/ --data books.txt --out run/ --transfer-steps 400 "
                "--finetune-steps 400 --resume auto\n"
                "  train_lolcats perplexity --model teacher/ --run run/ --text held_out.txt --seq-len 512\n"
                "  train_lolcats export --model teacher/ --run run/ --out linearized/ --merged\n"
                "  train_lolcats train-tokenizer --text books.txt --vocab-size 4096 --out tokenizer.json\n"
                "  train_lolcats pretrain --model-config config.json --tokenizer tokenizer.json --data books.txt --out "
                "model/");
        program.require_subcommand(1);
        const std::vector<Verb> verbs{add_linearize(program),      add_pretrain(program), add_perplexity(program),
                                      add_export(program),         add_import(program),   add_tokenize(program),
                                      add_train_tokenizer(program)};
        const auto settings = parse_command_line(program, argc, argv);
        if (!settings) return 0;
        for (const Verb& verb : verbs)
            if (verb.app->get_name() == settings->verb) return verb.run(*settings);
        lc::fail(lc::ErrorKind::Internal, "command '{}' has no body", settings->verb);
    });
}
