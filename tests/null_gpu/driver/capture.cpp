// Stream capture as a state machine: what may be captured, and what breaks a capture.
//
// The rules are those of the CUDA Programming Guide, "Stream Capture", and of the Runtime API's
// pages on stream management and graphs; each is told in our words where it is applied.
#include "state.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace null_gpu {

namespace {

// How strict this thread asked the driver to be (cudaThreadExchangeStreamCaptureMode).
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_work(Kind kind) {
  return kind == Kind::kernel || kind == Kind::triton || kind == Kind::gemm ||
         kind == Kind::library;
}

// Work that runs beside a capture is legal, but a replay will not repeat it, which is hardly ever
// meant: any computation, and what the capturing thread itself copies elsewhere.
void note_work_outside(Kind kind, const std::string &name) {
  for (const auto &[id, capture] : state().captures) {
    const bool own = capture->owner == this_thread();
    if (is_work(kind) || (own && (kind == Kind::copy || kind == Kind::memset))) {
      problem("outside of the running capture: " + name);
      return;
    }
  }
}

// Everything that `from` waits for, itself included.
std::set<const Node *> reached(const std::vector<const Node *> &from) {
  std::set<const Node *> seen(from.begin(), from.end());
  std::vector<const Node *> open = from;
  while (!open.empty()) {
    const Node *node = open.back();
    open.pop_back();
    for (const Node *need : node->needs)
      if (seen.insert(need).second) open.push_back(need);
  }
  return seen;
}

}  // namespace

pid_t this_thread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

// A capture in which something illegal was tried is lost: its streams accept nothing more until
// cudaStreamEndCapture, which returns an error and no graph.
void invalidate(Capture &capture, const std::string &why) {
  capture.invalid = true;
  problem(why);
}

// Calls that may synchronise implicitly (allocating, freeing, loading code, asking an event) are
// "potentially unsafe". A thread in relaxed mode may make them. In thread-local mode it may not
// while it captures itself, unless that capture began relaxed. In global mode it also may not while
// another thread has a capture that began global.
cudaError_t refuse_unsafe(const std::string &call) {
  Lock lock(state().lock);
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto &[id, capture] : state().captures) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    const bool own = capture->owner == this_thread();
    const bool global = thread_mode == cudaStreamCaptureModeGlobal &&
                        capture->mode == cudaStreamCaptureModeGlobal;
    if (own || global) {
      invalidate(*capture, "not permitted while capturing: " + call);
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  }
  return cudaSuccess;
}

// The device is a broader handle than any stream: to wait for it is to wait for captured work,
// which is not scheduled and never ends. No mode permits that.
cudaError_t refuse_device_wide(const std::string &call) {
  Lock lock(state().lock);
  for (const auto &[id, capture] : state().captures)
    invalidate(*capture, "not permitted while capturing: " + call);
  return state().captures.empty() ? cudaSuccess : fail(cudaErrorStreamCaptureUnsupported);
}

// Captured work is not scheduled, so a stream under capture can be neither waited for nor asked.
cudaError_t refuse_wait(const Stream &stream, const std::string &call) {
  Lock lock(state().lock);
  if (!stream.capture) return refuse_unsafe(call);
  invalidate(*stream.capture, "waits for a stream that is being captured: " + call);
  return fail(cudaErrorStreamCaptureUnsupported);
}

cudaError_t submit(Stream &stream, Kind kind, const std::string &name, std::vector<long> sizes,
                   std::function<void()> work) {
  {
    Lock lock(state().lock);
    // The default stream waits for every stream made without cudaStreamNonBlocking; while one of
    // those is captured, any use of it would make the capture depend on what is not in it.
    if (&stream == &default_stream())
      for (const auto &[id, capture] : state().captures)
        for (const Stream *captured : capture->streams)
          if (!(captured->flags & cudaStreamNonBlocking)) {
            invalidate(*capture, "the default stream is used during a capture: " + name);
            return fail(cudaErrorStreamCaptureImplicit);
          }
    Capture *capture = stream.capture;
    if (capture) {
      if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
      auto node = std::make_unique<Node>(Node{stream.last, std::move(work)});
      stream.last = {node.get()};
      capture->graph->nodes.push_back(std::move(node));
      record(kind, name, std::move(sizes), &stream, true);
      return cudaSuccess;
    }
    note_work_outside(kind, name);
    state().clock += kind == Kind::graph_launch ? sizes.front() : 1;
    record(kind, name, std::move(sizes), &stream, false);
  }
  // Without the lock: the work may be a caller's function, which may wait for another thread.
  if (work) work();
  return cudaSuccess;
}

}  // namespace null_gpu

using namespace null_gpu;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock(state().lock);
  Stream &stream = stream_of(handle);
  // The default stream cannot be captured, and no stream twice at a time.
  if (&stream == &default_stream()) {
    problem("the default stream cannot be captured");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (stream.capture) return fail(cudaErrorIllegalState);
  auto *capture = new Capture{state().next_capture++, mode,  this_thread(), &stream,
                              {&stream},              std::make_unique<Graph>()};
  stream.capture = capture;
  stream.last.clear();
  state().captures[capture->id] = capture;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  Lock lock(state().lock);
  Stream &stream = stream_of(handle);
  *graph = nullptr;
  Capture *capture = stream.capture;
  if (!capture) return fail(cudaErrorIllegalState);
  // A capture ends in the stream where it began and, unless it is relaxed, in the same thread.
  if (capture->origin != &stream) {
    invalidate(*capture, "a capture is ended in a stream that joined it");
    return fail(cudaErrorStreamCaptureUnmatched);
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->owner != this_thread()) {
    invalidate(*capture, "a capture is ended in another thread");
    return fail(cudaErrorStreamCaptureWrongThread);
  }
  // What other streams captured must have been waited for, directly or not, by the first stream.
  const std::set<const Node *> joined = reached(stream.last);
  bool unjoined = false;
  for (Stream *other : capture->streams) {
    for (const Node *node : other->last) unjoined |= joined.count(node) == 0;
    other->capture = nullptr;
    other->last.clear();
  }
  state().captures.erase(capture->id);
  const std::unique_ptr<Capture> ended(capture);
  if (ended->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (unjoined) {
    problem("a stream was not joined before the end of the capture");
    return fail(cudaErrorStreamCaptureUnjoined);
  }
  *graph = reinterpret_cast<cudaGraph_t>(ended->graph.release());
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
  Lock lock(state().lock);
  const Capture *capture = stream_of(handle).capture;
  *status = !capture             ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **needs,
                                     const cudaGraphEdgeData **edges, size_t *count) {
  Lock lock(state().lock);
  cudaStreamIsCapturing(handle, status);
  Stream &stream = stream_of(handle);
  const Capture *capture = stream.capture;
  stream.handles.clear();
  for (const Node *node : stream.last)
    stream.handles.push_back(reinterpret_cast<cudaGraphNode_t>(const_cast<Node *>(node)));
  if (id) *id = capture ? capture->id : 0;
  if (graph)
    *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph.get()) : nullptr;
  if (needs) *needs = stream.handles.data();
  if (edges) *edges = nullptr;  // plain dependencies have no data
  if (count) *count = stream.handles.size();
  return cudaSuccess;
}
