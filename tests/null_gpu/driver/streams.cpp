// Streams and events. Nothing runs, so every wait outside of a capture is over at once.
#include "state.h"

namespace null_gpu {

Stream &default_stream() {
  static Stream *const only = new Stream{0, cudaStreamDefault, 0};
  return *only;
}

Stream &stream_of(cudaStream_t handle) {
  const bool special = handle == nullptr || handle == cudaStreamLegacy ||
                       handle == cudaStreamPerThread;
  return special ? default_stream() : *reinterpret_cast<Stream *>(handle);
}

bool is_known(cudaStream_t handle) {
  Lock lock(state().lock);
  const Stream *stream = &stream_of(handle);
  return stream == &default_stream() || state().streams.count(stream);
}

namespace {

Event *known(cudaEvent_t handle) {
  Lock lock(state().lock);
  return state().events.count(handle) ? reinterpret_cast<Event *>(handle) : nullptr;
}

// An event of a capture stands for work that is not scheduled: it can be neither asked nor waited
// for by the host. That breaks the capture it is of.
cudaError_t refuse_captured(const Event &event, const std::string &call) {
  if (!event.capture) return cudaSuccess;
  const auto found = state().captures.find(event.capture);
  if (found != state().captures.end())
    invalidate(*found->second, "an event of the capture is waited for: " + call);
  else
    problem("an event of an ended capture is waited for: " + call);
  return fail(cudaErrorCapturedEvent);
}

}  // namespace
}  // namespace null_gpu

using namespace null_gpu;

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int priority) {
  Lock lock(state().lock);
  auto *stream = new Stream{state().next_stream++, flags, priority};
  state().streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *handle) {
  return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Lock lock(state().lock);
  Stream &stream = stream_of(handle);
  if (&stream == &default_stream() || !is_known(handle))
    return fail(cudaErrorInvalidResourceHandle);
  if (stream.capture) {
    invalidate(*stream.capture, "a stream is destroyed while it is being captured");
    stream.capture->streams.erase(&stream);
  }
  state().streams.erase(&stream);
  delete &stream;
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority) {
  *priority = stream_of(handle).priority;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Stream &stream = stream_of(handle);
  if (const auto error = refuse_wait(stream, "cudaStreamSynchronize")) return error;
  record(Kind::sync, "cudaStreamSynchronize", {}, &stream, false);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return refuse_wait(stream_of(handle), "cudaStreamQuery");
}

// A node of the host: run now, or at each launch of the graph.
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *data) {
  return submit(stream_of(handle), Kind::library, "cudaLaunchHostFunc", {},
                [function, data] { function(data); });
}

// The older way cannot be captured; the documentation sends its users to cudaLaunchHostFunc.
cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void *data,
                                  unsigned) {
  Lock lock(state().lock);
  if (Capture *capture = stream_of(handle).capture) {
    invalidate(*capture, "not permitted while capturing: cudaStreamAddCallback");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  function(handle, cudaSuccess, data);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags) {
  Lock lock(state().lock);
  auto *event = new Event{flags};
  state().events.insert(event);
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *handle) {
  return cudaEventCreateWithFlags(handle, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  Lock lock(state().lock);
  Event *event = known(handle);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  state().events.erase(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t where, unsigned flags) {
  Lock lock(state().lock);
  Event *event = known(handle);
  Stream &stream = stream_of(where);
  if (!event || !is_known(where)) return fail(cudaErrorInvalidResourceHandle);
  if (stream.capture && stream.capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  event->recorded = true;
  event->clock = state().clock;
  // An external event stays outside of the capture: recording it is a node of its own.
  if (stream.capture && flags == cudaEventRecordExternal)
    return submit(stream, Kind::library, "cudaEventRecord external", {});
  event->capture = stream.capture ? stream.capture->id : 0;
  event->last = stream.capture ? stream.last : std::vector<const Node *>{};
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  Lock lock(state().lock);
  const Event *event = known(handle);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  if (const auto error = refuse_captured(*event, "cudaEventQuery")) return error;
  return refuse_unsafe("cudaEventQuery");
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  Lock lock(state().lock);
  const Event *event = known(handle);
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  if (const auto error = refuse_captured(*event, "cudaEventSynchronize")) return error;
  if (const auto error = refuse_unsafe("cudaEventSynchronize")) return error;
  record(Kind::sync, "cudaEventSynchronize", {}, nullptr, false);
  return cudaSuccess;
}

// Every operation takes one millisecond by the null GPU's clock. That says nothing about a GPU, but
// whoever measures gets a number that is not zero, the same at each run, and ends soon.
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(state().lock);
  const Event *first = known(from), *second = known(to);
  if (!first || !second || !first->recorded || !second->recorded)
    return fail(cudaErrorInvalidResourceHandle);
  if ((first->flags | second->flags) & cudaEventDisableTiming)
    return fail(cudaErrorInvalidResourceHandle);
  for (const Event *event : {first, second})
    if (const auto error = refuse_captured(*event, "cudaEventElapsedTime")) return error;
  *milliseconds = static_cast<float>(second->clock - first->clock) + 1e-3f;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t awaited, unsigned flags) {
  Lock lock(state().lock);
  const Event *event = known(awaited);
  if (!event || !is_known(handle)) return fail(cudaErrorInvalidResourceHandle);
  Stream &stream = stream_of(handle);
  if (!event->recorded) return cudaSuccess;
  if (stream.capture && flags == cudaEventWaitExternal)
    return submit(stream, Kind::library, "cudaStreamWaitEvent external", {});
  Capture *capture = stream.capture;
  if (!event->capture) {
    if (!capture) return cudaSuccess;
    // Only the order within one stream may cross the border of a capture, never an event.
    invalidate(*capture, "the capture waits for work outside of it");
    return fail(cudaErrorStreamCaptureIsolation);
  }
  const auto found = state().captures.find(event->capture);
  if (found == state().captures.end()) {
    problem("a stream waits for an event of an ended capture");
    return fail(cudaErrorCapturedEvent);
  }
  Capture &other = *found->second;
  if (other.invalid) return fail(cudaErrorStreamCaptureInvalidated);
  // The default stream cannot be captured, so it cannot join.
  if (&stream == &default_stream()) {
    invalidate(other, "the default stream waits for a capture");
    return fail(cudaErrorStreamCaptureImplicit);
  }
  if (capture && capture != &other) {
    // Two captures never become one.
    invalidate(*capture, "a capture waits for another capture");
    invalidate(other, "a capture is waited for by another capture");
    return fail(cudaErrorStreamCaptureMerge);
  }
  // A stream that waits for captured work is captured too, from here on.
  if (!capture) {
    stream.capture = &other;
    stream.last.clear();
    other.streams.insert(&stream);
  }
  for (const Node *node : event->last) stream.last.push_back(node);
  return cudaSuccess;
}
