#include "core/cuda/graph.h"

#include "core/allocator.h"
#include "core/cuda/check.h"
#include "core/cuda/runtime.h"

namespace lc::cuda {
namespace {

// Ends a recording that `work` left by an exception: the stream must not stay in capture.
class Capture {
  public:
    explicit Capture(cudaStream_t stream) : stream_(stream) {
        // Relaxed, so that `work` may allocate: what its first call still holds, its results, is not there for the second.
        LC_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    }
    ~Capture() {
        if (!open_) return;
        cudaGraph_t graph = nullptr;
        if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
        cudaGetLastError();  // the exception tells; the next launch shall not find it again
    }
    cudaGraph_t end() {
        open_ = false;
        cudaGraph_t graph = nullptr;
        LC_CUDA(cudaStreamEndCapture(stream_, &graph));
        return graph;
    }

  private:
    cudaStream_t stream_;
    bool open_ = true;
};

}  // namespace

Graph::Graph(Device device) : stream_(device.index) {
    allocator(device).keep_cached(stream_.get(), true);
}

Graph::~Graph() {
    if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
    allocator(stream_.get().device).keep_cached(stream_.get(), false);
}

void Graph::record(const std::function<void()>& work) {
    LC_CHECK(!recorded(), "a graph is recorded once");
    const Stream own = stream_.get(), current = current_stream(own.device);
    make_current(own.device);
    Event before, after;
    before.record(current), before.block(own);
    cudaGraph_t graph = nullptr;
    {
        const StreamScope scope(own);
        work();
        after.record(own), after.block(current);
        Capture capture(handle_of(own));
        work();
        graph = capture.end();
    }
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    LC_CUDA(error);
    executable_ = executable;
}

void Graph::launch(Stream stream) const {
    LC_CHECK(recorded(), "a graph is launched before it is recorded");
    make_current(stream.device);
    LC_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), handle_of(stream)));
}

bool Graph::possible() {
    return !waits_for_launches();
}

}  // namespace lc::cuda
