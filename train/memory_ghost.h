// Tensors without values: what a training step allocates and frees, rehearsed with sizes alone. A Ledger stands for the
// allocator, a Ghost for a tensor, GhostTape for autograd's tape and engine. Blocks live exactly as long as somebody
// holds them, so code that follows the real one statement by statement has its lifetimes, temporaries included.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"

namespace lc::train::memory {

// Whose bytes they are: one row each in the table of a plan.
enum class Owner : uint8_t {
    weights,     // of the base model, rotary tables
    trainables,  // feature maps and LoRA pairs
    moments,     // AdamW's
    best,        // the copy that selection keeps
    gradients,   // of parameters
    tape,        // what nodes saved for the backward
    transient,   // everything else of the layers
    attention,   // workspace of attention kernels
    loss,        // of linear cross-entropy: logits, and the gradients that its forward makes
    products,    // workspace of matrix products
};
inline constexpr size_t kOwners = 10;

// What core's allocator takes from the system for a block of `bytes`.
int64_t allocated_bytes(int64_t bytes, DeviceType device);

class Ledger {
  public:
    using Bytes = std::array<int64_t, kOwners>;
    explicit Ledger(DeviceType device) : device_(device) {}
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;

    // One block; its bytes come back when the last holder goes.
    class Hold {
      public:
        Hold(Ledger& ledger, int64_t bytes, Owner owner);
        ~Hold();
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;
        // A node keeps a transient block for its backward: meanwhile it belongs to the tape.
        void save();
        void release();

      private:
        void move_to(Owner owner);
        Ledger& ledger_;
        int64_t bytes_;
        Owner owner_;
        int stream_;
        int saved_ = 0;
    };
    using Block = std::shared_ptr<Hold>;
    Block take(int64_t bytes, Owner owner) { return std::make_shared<Hold>(*this, bytes, owner); }

    // While it lives, blocks are those of a second stream, whose cache is its own (core/cuda/side_work.h).
    class Beside {
      public:
        Beside(Ledger& ledger, bool on) : ledger_(ledger), before_(ledger.stream_) { ledger.stream_ = on ? 1 : 0; }
        ~Beside() { ledger_.stream_ = before_; }
        Beside(const Beside&) = delete;
        Beside& operator=(const Beside&) = delete;

      private:
        Ledger& ledger_;
        int before_;
    };

    int64_t peak() const { return peak_; }
    const Bytes& at_peak() const { return at_peak_; }
    const Bytes& highest() const { return highest_; }  // of each owner, whenever that was
    // In use or cached: for each stream and size class, as many blocks as were ever in use together.
    int64_t reserved() const;

  private:
    struct Count {
        int64_t now = 0, most = 0;
    };
    void add(Owner owner, int64_t bytes);

    DeviceType device_;
    Bytes in_use_{}, at_peak_{}, highest_{};
    int64_t total_ = 0, peak_ = 0;
    int stream_ = 0;
    std::map<std::pair<int, int64_t>, Count> classes_;  // by stream and size
};

// Where the gradient of a tensor will lie. Leaves keep it, others until the node that made them has run backward.
struct GhostGradient {
    Ledger::Block buffer;
    int64_t numel = 0;
    DType dtype = DType::f32;
    Owner owner = Owner::transient;
};

struct Ghost {
    Ledger::Block block;
    int64_t numel = 0;
    DType dtype = DType::f32;
    std::shared_ptr<GhostGradient> gradient;  // null: none is wanted

    bool defined() const { return block != nullptr; }
    int64_t bytes() const { return numel * size_of(dtype); }
    Ghost detached() const { return {block, numel, dtype, nullptr}; }
};

// Buffers that a kernel holds while it runs; brief ones, of one of the kernels of an op, go before the next brief ones come.
struct Workspace {
    Owner owner = Owner::transient;
    std::vector<int64_t> buffers;  // bytes
    bool brief = false;
};

class GhostTape {
  public:
    explicit GhostTape(Ledger& ledger) : ledger_(ledger) {}

    // Turns recording on or off while it lives.
    class Recording {
      public:
        Recording(GhostTape& tape, bool on) : tape_(tape), before_(tape.recording_) { tape.recording_ = on; }
        ~Recording() { tape_.recording_ = before_; }
        Recording(const Recording&) = delete;
        Recording& operator=(const Recording&) = delete;

      private:
        GhostTape& tape_;
        bool before_;
    };
    bool recording() const { return recording_; }

    Ghost make(int64_t numel, DType dtype, Owner owner = Owner::transient) const;
    void require_gradient(Ghost& leaf, DType dtype, Owner owner) const;  // dtype of the gradient
    bool should_record(const std::vector<Ghost>& inputs) const;

    struct Op {
        std::vector<Ghost> inputs;                   // undefined ones are absent
        std::vector<Ghost> saved;                    // beside parameters, which are there anyway
        std::vector<Ghost*> outputs;                 // made before; get their gradients here when the op is recorded
        std::vector<Workspace> forward, backward;    // held while the kernels run, or brief
        bool passes = false;                         // the last wanted input takes the output's gradient itself
        bool twins = false;                          // the first two inputs have one gradient (GradSink::shared_slot)
        std::function<void(GhostGradient&)> replay;  // instead of a backward kernel: gets the output's gradient
    };
    void run(Op op);
    // Engine: nodes from the youngest to the oldest; afterwards the tape is empty.
    void backward(const std::vector<Ghost>& roots);
    // The same for a block that is recorded inside a backward, with the gradient of its output given.
    void replay(const std::function<Ghost()>& block, const GhostGradient& upstream);

  private:
    struct Node {
        std::vector<std::shared_ptr<GhostGradient>> inputs, outputs;
        std::vector<Ledger::Block> saved;
        std::vector<Workspace> workspace;
        bool passes = false, twins = false;
        std::function<void(GhostGradient&)> replay;
    };
    std::vector<Ledger::Block> hold(const std::vector<Workspace>& workspace) const;  // all but brief ones
    void pass_through(const std::vector<Workspace>& workspace) const;                // brief ones, one after the other
    void take_gradient(GhostGradient& gradient) const;
    void share_gradient(const Node& node) const;
    void run_backward(Node& node);
    void unwind();

    Ledger& ledger_;
    bool recording_ = true;
    std::vector<Node> nodes_;
};

}  // namespace lc::train::memory
