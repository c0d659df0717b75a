#include "models/generation/engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "core/allocator.h"
#include "core/cuda/runtime.h"

namespace lc::models {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t available_bytes(Device device) {
    if (device.is_cpu()) return int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
    const AllocatorStats stats = allocator(device).stats();
    return cuda::device_info(device.index).free_bytes + stats.bytes_reserved - stats.bytes_in_use;
}

}  // namespace

struct Engine::Sequence {
    int64_t id;
    std::vector<int32_t> prompt;
    Continuation text;
    DecodeState* state = nullptr;
    size_t slot = 0;
    int32_t last = 0;      // the id that the next step feeds
    bool read = false;     // the whole prompt
    bool drawing = false;  // a token was drawn that the host has not read
    double prefill_seconds = 0;
    Clock::time_point first_token = {};
    std::string error = {};
    ErrorKind error_kind = ErrorKind::Usage;

    bool ended() const { return text.done() || !error.empty(); }
};

Engine::Engine(const Decoder& decoder, const io::Tokenizer& tokenizer, const EngineOptions& options)
    : decoder_(decoder),
      tokenizer_(tokenizer),
      options_(options),
      generator_(decoder, options.prefill_chunk),
      memory_(options.memory) {
    LC_REQUIRE(Usage, options.slots >= 1, "the number of sequences at a time must be at least 1, got {}",
               options.slots);
    if (memory_ == 0) memory_ = available_bytes(decoder.device());
    const DecodeMode& mode = options.mode;
    state_bytes_ = DecodeState(decoder, mode.mode, 1, mode.terms, mode.state).bytes() +
                   decoder.num_layers() * static_cast<int64_t>(sizeof(LayerCache));
    require_memory(0);
    all_ = std::make_unique<DecodeState>(decoder, mode.mode, options.slots, mode.terms, mode.state);
    for (int64_t i = 0; i < options.slots; ++i) states_.push_back(all_->row(i));
    for (size_t slot = states_.size(); slot-- > 0;) free_.push_back(slot);
    if (decoder.device().is_cuda() || options.as_on_gpu)
        sampler_ = std::make_unique<DeviceSampler>(options.slots, decoder.config().vocab_size, decoder.device());
}

Engine::~Engine() = default;

// Of all slots with `tokens` each.
void Engine::require_memory(int64_t tokens) const {
    const int64_t keys = all_ ? all_->key_bytes(tokens) / options_.slots : 0, each = state_bytes_ + keys;
    const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
    const std::string with_keys =
        keys > 0 ? fmt::format(" at {} tokens, {:.2f} of it keys and values", tokens, mib(keys)) : "";
    LC_REQUIRE(Resource, options_.slots <= memory_ / each,
               "the states of {} sequences at a time, {:.2f} MiB each{}, are more than {} can hold — {} fit",
               options_.slots, mib(each), with_keys, decoder_.device().str(), memory_ / each);
}

int64_t Engine::submit(Request request) {
    const DecoderConfig& config = decoder_.config();
    const int64_t most = room_for_new(std::ssize(request.prompt), request.options.max_new_tokens, config.max_positions);
    for (const int32_t id : request.prompt)
        LC_REQUIRE(Usage, id >= 0 && id < config.vocab_size, "prompt: token {} is not in [0, {})", id,
                   config.vocab_size);
    Continuation text(tokenizer_, request.options, request.prompt, most, config.vocab_size, std::move(request.on_text));
    if (const int64_t tokens = std::ssize(request.prompt) + most; tokens > longest_) {
        require_memory(tokens);
        all_->expect(longest_ = tokens);
    }
    waiting_.push_back(std::make_unique<Sequence>(
        Sequence{.id = next_id_, .prompt = std::move(request.prompt), .text = std::move(text)}));
    return next_id_++;
}

void Engine::cancel(int64_t id) {
    for (const auto& sequence : running_)
        if (sequence->id == id) sequence->text.cancel();
    const auto waits = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& s) { return s->id == id; });
    if (waits == waiting_.end()) return;
    (*waits)->text.cancel();
    finished_.push_back({id, (*waits)->text.finish(), {}});
    waiting_.erase(waits);
}

bool Engine::step() {
    retire();  // what was cancelled since
    admit();
    if (running_.empty()) return false;
    read_prompts();
    decode();
    retire();
    return true;
}

void Engine::admit() {
    while (!waiting_.empty() && !free_.empty()) {
        Sequence& sequence = *waiting_.front();
        sequence.slot = free_.back();
        free_.pop_back();
        sequence.state = &states_[sequence.slot];
        if (sampler_) sampler_->assign(sequence.slot, sequence.text.sampling(), sequence.text.history());
        running_.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
    }
}

// At most about one chunk's worth of tokens, the oldest first: those who are decoding never wait longer than that.
void Engine::read_prompts() {
    int64_t budget = options_.prefill_chunk;
    for (const auto& sequence : running_)
        while (!sequence->read && !sequence->ended() && budget > 0) {
            const int64_t before = sequence->state->position();
            sequence->read = read_chunk(*sequence);
            budget -= sequence->state->position() - before;
        }
}

// The chunks of a prompt begin at multiples of their size, whatever else is read: its bits are its own. True after the
// last.
bool Engine::read_chunk(Sequence& sequence) {
    const Clock::time_point start = Clock::now();
    const std::span<const int32_t> unread =
        std::span(sequence.prompt).subspan(static_cast<size_t>(sequence.state->position()));
    const int64_t length = std::min(options_.prefill_chunk, std::ssize(unread));
    const bool last = length == std::ssize(unread);
    const Tensor chunk = Tensor::from(unread.first(static_cast<size_t>(length)), {1, length});
    Tensor logits;
    if (last)
        logits = generator_.read(*sequence.state, chunk);
    else
        generator_.feed(*sequence.state, chunk);
    tokens_read_ += length;
    sequence.prefill_seconds += seconds_since(start);
    if (!last) return false;
    sequence.first_token = Clock::now();
    add(sequence, [&] {
        if (!sampler_) return sequence.text.draw(logits.to_vector<float>());
        return sampler_->draw_first(static_cast<int64_t>(sequence.slot), logits, sequence.state->position() - 1);
    });
    return true;
}

void Engine::decode() {
    if (sampler_) return decode_together();
    std::vector<Sequence*> ready;
    for (const auto& sequence : running_)
        if (sequence->read && !sequence->ended()) ready.push_back(sequence.get());
    constexpr auto rows = static_cast<size_t>(kCpuRows);
    for (size_t first = 0; first < ready.size(); first += rows)
        decode_group(std::span(ready).subspan(first, std::min(rows, ready.size() - first)));
}

void Engine::decode_group(std::span<Sequence* const> group) {
    std::vector<DecodeState*> states;
    std::vector<int32_t> ids;
    for (const Sequence* sequence : group) states.push_back(sequence->state), ids.push_back(sequence->last);
    const std::vector<float> logits = generator_.step(states, ids, kCpuRows).to_vector<float>();
    const auto vocab = static_cast<size_t>(decoder_.config().vocab_size);
    for (size_t i = 0; i < group.size(); ++i)
        add(*group[i], [&] { return group[i]->text.draw(std::span(logits).subspan(i * vocab, vocab)); });
}

// All slots in one step; those that nobody decodes in are idle rows. Then the tokens of the step before.
void Engine::decode_together() {
    std::vector<int64_t> positions(states_.size(), -1), ids(states_.size(), -1);
    bool any = false;
    for (const auto& sequence : running_) {
        if (!sequence->read || sequence->text.left() <= sequence->drawing || sequence->ended()) continue;
        positions[sequence->slot] = sequence->state->position(), ids[sequence->slot] = sequence->id;
        sequence->state->count_token();
        any = sequence->drawing = true;
    }
    const bool behind = !drawn_.empty();
    if (any) {
        generator_.draw_rows(*all_, *sampler_, positions);
        sampler_->post();
        drawn_.push_back(std::move(ids));
    }
    if (behind) collect();
}

// The tokens of the oldest step that the host has not read. Those of sequences that have ended since are nobody's.
void Engine::collect() {
    const std::span<const kernels::SampleResult> results = sampler_->collect();
    const std::vector<int64_t> ids = std::move(drawn_.front());
    drawn_.pop_front();
    const bool drawing = !drawn_.empty();
    for (const auto& sequence : running_) {
        if (ids[sequence->slot] != sequence->id || sequence->ended()) continue;
        sequence->drawing = drawing && drawn_.front()[sequence->slot] == sequence->id;
        add(*sequence, [&] { return id_of(results[sequence->slot], sequence->text.position()); });
    }
}

// A request that cannot go on ends alone.
void Engine::add(Sequence& sequence, const std::function<int32_t()>& draw) {
    try {
        sequence.last = draw();
        sequence.text.add(sequence.last);
        ++tokens_made_;
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::Internal) throw;
        sequence.error = error.what(), sequence.error_kind = error.kind();
    }
}

void Engine::retire() {
    for (const auto& sequence : running_) {
        if (!sequence->ended()) continue;
        Generation result = sequence->text.finish();
        if (!sequence->error.empty()) result.finish_reason = "error";
        result.prefill_seconds = sequence->prefill_seconds;
        if (sequence->read) result.decode_seconds = seconds_since(sequence->first_token);
        result.state_bytes = sequence->state->bytes();
        finished_.push_back({sequence->id, std::move(result), sequence->error, sequence->error_kind});
        std::exchange(sequence->state, nullptr)->reset();
        free_.push_back(sequence->slot);
    }
    std::erase_if(running_, [](const auto& sequence) { return sequence->state == nullptr; });
    if (running_.empty() && waiting_.empty()) all_->release_keys(), longest_ = 0;
}

std::vector<Finished> Engine::take_finished() {
    return std::exchange(finished_, {});
}

int64_t Engine::running() const {
    return std::ssize(running_);
}

int64_t Engine::state_bytes() const {
    int64_t total = 0;
    for (const DecodeState& state : states_) total += state.bytes();
    return total;
}

}  // namespace lc::models
