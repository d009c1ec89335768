// The one state, its list of calls and its problems.
#include "state.h"

#include <cstdlib>

namespace null_gpu {

namespace {
thread_local cudaError_t last_error = cudaSuccess;
}

State &state() {
  static State *const only = [] {
    auto *made = new State;
    const char *zeros = std::getenv("NULLGPU_ZEROS");
    made->read_zeros = zeros && std::string(zeros) == "1";
    return made;
  }();
  return *only;
}

std::size_t capacity() {
  static const std::size_t bytes = [] {
    const char *gib = std::getenv("NULLGPU_GIB");
    return static_cast<std::size_t>((gib ? std::atof(gib) : 79.2) * (1ull << 30));
  }();
  return bytes;
}

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void problem(const std::string &text) {
  Lock lock(state().lock);
  state().problems.push_back(text);
}

void record(Kind kind, const std::string &name, std::vector<long> sizes, const Stream *stream,
            bool captured) {
  Lock lock(state().lock);
  const std::string *kept = &*state().names.insert(name).first;
  state().records.push_back({kind, kept, std::move(sizes), stream ? stream->id : -1, captured});
}

}  // namespace null_gpu

cudaError_t cudaGetLastError() {
  const cudaError_t error = null_gpu::last_error;
  null_gpu::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return null_gpu::last_error; }
