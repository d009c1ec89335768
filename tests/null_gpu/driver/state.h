// What the null GPU knows: memory, streams, captures, and the list of what was asked of it.
//
// All of it lies behind one lock. Handles that callers hold (streams, events, graphs) are pointers
// to the structures below. Work is never done by a GPU: copies and memsets of ordinary size are
// done by the host, at once or, if captured, when the graph is launched; kernels do nothing.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

namespace null_gpu {

enum class Kind { kernel, triton, gemm, copy, memset, sync, malloc, free, graph_launch, library };

// One call that reached the card. What `sizes` holds for each kind is said in gpu.py.
struct Record {
  Kind kind;
  const std::string *name;
  std::vector<long> sizes;
  int stream;  // -1: of no stream
  bool captured;
};

struct Node {
  std::vector<const Node *> needs;
  std::function<void()> work;  // empty: nothing that the host could do
};

struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<std::shared_ptr<void>> kept = {};  // user objects
};

// A graph made ready, which may outlive the graph that it came from.
struct Executable {
  std::vector<std::function<void()>> works;
  std::size_t nodes;
  std::vector<std::shared_ptr<void>> kept;
};

struct Stream;

struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  pid_t owner;
  Stream *origin;
  std::set<Stream *> streams;
  std::unique_ptr<Graph> graph;
  bool invalid = false;
};

struct Stream {
  int id;
  unsigned flags;
  int priority;
  Capture *capture = nullptr;
  std::vector<const Node *> last = {};  // what the next captured call depends on
  std::vector<cudaGraphNode_t> handles = {};  // what cudaStreamGetCaptureInfo points at
};

struct Event {
  unsigned flags;
  bool recorded = false;
  long clock = 0;
  unsigned long long capture = 0;  // id of the capture in which it was last recorded; 0: in none
  std::vector<const Node *> last = {};
};

struct State {
  std::recursive_mutex lock;
  std::vector<Record> records;
  std::vector<std::string> problems;
  std::set<std::string> names;
  std::map<const void *, const std::string *> kernels;  // host stub -> name
  std::map<const void *, int> shared_limit;             // dynamic shared memory opted in to
  std::map<char *, std::size_t> device, pinned;         // address -> bytes
  std::size_t used = 0, peak = 0;
  long mallocs = 0;
  long clock = 0;  // operations so far, those of launched graphs too
  std::map<unsigned long long, Capture *> captures;  // those under way
  std::set<const void *> streams, events;
  bool read_zeros = false;  // what the host reads of the card is zero, whatever lies there
  unsigned long long next_capture = 1;
  int next_stream = 1;
  void (*on_launch)(const char *, const unsigned *, unsigned, void **, void *) = nullptr;
};

using Lock = std::lock_guard<std::recursive_mutex>;

// Never destroyed: libraries call the driver until the very end of the process.
State &state();

// Bytes of the card, NULLGPU_GIB or 79.2 GiB.
std::size_t capacity();

// Remember an error for cudaGetLastError, and return it.
cudaError_t fail(cudaError_t error);

void problem(const std::string &text);
void record(Kind kind, const std::string &name, std::vector<long> sizes, const Stream *stream,
            bool captured);

// --- streams.cpp
// The stream of a handle: null and the two special handles stand for the default stream.
Stream &stream_of(cudaStream_t handle);
Stream &default_stream();
bool is_known(cudaStream_t handle);

// --- capture.cpp
pid_t this_thread();
void invalidate(Capture &capture, const std::string &why);
// Refuse a call that may wait or free behind the caller's back, if this thread must not make it now.
cudaError_t refuse_unsafe(const std::string &call);
// Refuse a call that waits for all of the card, if anything is being captured anywhere.
cudaError_t refuse_device_wide(const std::string &call);
// Refuse to wait for a stream or to ask how far it is, if it is being captured.
cudaError_t refuse_wait(const Stream &stream, const std::string &call);
// Hand work to a stream: done by the host now, or a node of the graph that is being captured.
cudaError_t submit(Stream &stream, Kind kind, const std::string &name, std::vector<long> sizes,
                   std::function<void()> work = {});

// --- memory.cpp
bool is_device(const void *address);
bool is_pinned(const void *address);

// --- device.cpp
int attribute(int number);
int resident_blocks(int threads, std::size_t shared);

// --- launches.cpp
// Check and submit a launch; `limit` is the dynamic shared memory that the kernel opted in to.
cudaError_t launch(Kind kind, const std::string &name, const std::array<unsigned, 6> &shape,
                   unsigned shared, unsigned limit, Stream &stream);

}  // namespace null_gpu
