// Continuous batching: requests join and leave a running batch at any step.
//
//   submit -> waiting -> a free slot: the prompt goes through in chunks -> one token a step with all others -> finished
//
// A request's result does not depend on which others run, on the order in which they came, or on the number of slots:
// its prompt is read alone and in chunks of its own, its random numbers are its own, attention mixes no
// sequences, and the products of a step have a fixed number of rows (Generator::step). On the CPU this holds bit by bit,
// also between numbers of slots: a step takes sequences in groups of kCpuRows. On a GPU, where one product a layer
// serves all slots, it holds bit by bit for a given number of slots.
//
// A GPU draws the tokens too and goes on to the next step with them, while the host reads those of the step before: so it makes one
// token too many for a sequence that turns out to have ended, which nobody sees.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "models/generation/continuation.h"
#include "models/generation/conversation.h"
#include "models/generation/device_sampler.h"
#include "models/generation/generator.h"

namespace lc::models {

struct EngineOptions {
    DecodeMode mode;
    int64_t slots = 8;            // sequences that run at a time
    int64_t prefill_chunk = 512;  // tokens of prompts read between two decode steps, about
    bool as_on_gpu = false;       // on a CPU: all slots in one step, the host one behind
    int64_t memory = 0;           // bytes that the sequences may take; 0: what the device has left
};

struct Request {
    std::vector<int32_t> prompt;  // ids, at least one
    GenerateOptions options;
    TextSink on_text = {};  // streams the text, from within step()
};

struct Finished {
    int64_t id = 0;
    Generation result;
    std::string error;  // not empty: the request failed while it ran, and the result holds what came before
    ErrorKind kind = ErrorKind::Usage;  // of the error: Numerics is the model's fault, Usage the request's
};

class Engine {
  public:
    static constexpr int64_t kCpuRows = 8;

    // Keeps references to both. Throws Error(Resource), saying how many slots would fit, when the states of all do not.
    Engine(const Decoder& decoder, const io::Tokenizer& tokenizer, const EngineOptions& options);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Queues a request and returns its id: 0, 1, 2, ... Throws Error(Usage) for one that cannot run, and Error(Resource), saying how
    // many slots would fit, where keys and values of softmax layers would outgrow the memory with all slots as long as it may become.
    int64_t submit(Request request);
    // Ends a request where it is; it then comes out as finished, "cancelled". Unknown and finished ids are ignored.
    void cancel(int64_t id);
    // Admits what waits, reads a share of the prompts, and makes one token for everyone whose prompt is read. False
    // when there was nothing to do.
    bool step();
    std::vector<Finished> take_finished();  // since the last call, in the order in which they ended

    int64_t running() const;  // in a slot
    int64_t waiting() const { return std::ssize(waiting_); }
    int64_t state_bytes() const;                          // of all slots, now
    int64_t tokens_read() const { return tokens_read_; }  // of prompts, so far
    int64_t tokens_made() const { return tokens_made_; }

  private:
    struct Sequence;
    void require_memory(int64_t tokens) const;
    void admit();
    void read_prompts();
    bool read_chunk(Sequence& sequence);
    void decode();
    void decode_group(std::span<Sequence* const> group);
    void decode_together();
    void collect();
    void add(Sequence& sequence, const std::function<int32_t()>& draw);
    void retire();

    const Decoder& decoder_;
    const io::Tokenizer& tokenizer_;
    EngineOptions options_;
    Generator generator_;
    std::unique_ptr<DecodeState> all_;        // of all slots: one block of memory a layer
    std::vector<DecodeState> states_;         // its rows, one a slot
    std::unique_ptr<DeviceSampler> sampler_;  // where the device draws
    std::deque<std::vector<int64_t>>
        drawn_;                 // for each step whose tokens the host has not read: the request in each slot, or -1
    std::vector<size_t> free_;  // slots
    std::deque<std::unique_ptr<Sequence>> waiting_;
    std::vector<std::unique_ptr<Sequence>> running_;  // in the order in which they were admitted
    std::vector<Finished> finished_;
    int64_t memory_, state_bytes_ = 0,
                     longest_ = 0;  // bytes for all sequences, of one without keys; tokens that one may reach
    int64_t next_id_ = 0, tokens_read_ = 0, tokens_made_ = 0;
};

}  // namespace lc::models
