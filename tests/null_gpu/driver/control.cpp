// What tests ask of the null GPU; gpu.py is the other side.
#include "state.h"

namespace null_gpu {

// Answer a call that the null GPU does not have (unsupported.cpp).
int refuse(const char *call, int code) {
  problem(std::string("the null GPU has no ") + call);
  return code;
}

}  // namespace null_gpu

using namespace null_gpu;

extern "C" {

// A record as Python reads it. `name` lives as long as the process.
struct nullgpu_record {
  int kind, stream, captured, count;
  long sizes[7];
  const char *name;
};

// Forget calls and problems, and begin a new peak.
void nullgpu_reset() {
  Lock lock(state().lock);
  state().records.clear();
  state().problems.clear();
  state().mallocs = 0;
  state().peak = state().used;
}

// Copy at most `count` records, return how many there are.
long nullgpu_records(nullgpu_record *to, long count) {
  Lock lock(state().lock);
  const auto &all = state().records;
  for (long i = 0; i < std::min(count, static_cast<long>(all.size())); ++i) {
    const Record &from = all[static_cast<size_t>(i)];
    nullgpu_record &out = to[i] = {};
    out.kind = static_cast<int>(from.kind);
    out.stream = from.stream;
    out.captured = from.captured;
    for (const long size : from.sizes) out.sizes[out.count++] = size;
    out.name = from.name->c_str();
  }
  return static_cast<long>(all.size());
}

// Problem `number`, or null after the last; valid until the next one or a reset.
const char *nullgpu_problem(long number) {
  Lock lock(state().lock);
  const auto &all = state().problems;
  return number < static_cast<long>(all.size()) ? all[static_cast<size_t>(number)].c_str() : nullptr;
}

// Whether the host reads zeros of the card, instead of what some earlier user of that memory left:
// no kernel computes, so a number of elements, say, would be garbage. Returns what was before.
int nullgpu_read_zeros(int wanted) {
  Lock lock(state().lock);
  const bool before = state().read_zeros;
  state().read_zeros = wanted != 0;
  return before;
}

size_t nullgpu_used() { return state().used; }
size_t nullgpu_peak() { return state().peak; }
long nullgpu_mallocs() { return state().mallocs; }

// Call `hook` after every accepted launch of a Triton kernel, captured or not, with name, grid and
// block, shared memory, pointers to the arguments and stream; null: no longer. What it hands to
// cudaLaunchHostFunc on that stream becomes part of a capture.
void nullgpu_on_launch(void (*hook)(const char *, const unsigned *, unsigned, void **, void *)) {
  Lock lock(state().lock);
  state().on_launch = hook;
}

}  // extern "C"
