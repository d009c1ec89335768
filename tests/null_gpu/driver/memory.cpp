// Memory: device allocations are address space of this process, so that addresses are real and
// pages cost nothing until somebody writes to them.
#include "state.h"

#include <cstring>
#include <sys/mman.h>

namespace null_gpu {

namespace {

// The driver hands out memory in pages of this size.
constexpr std::size_t PAGE = 2 << 20;
// Larger copies and memsets within the card are written down and not done: their data are as
// meaningless as what kernels leave, and would fill the host's memory.
constexpr std::size_t DONE_BY_HOST = 1 << 20;

std::size_t rounded(std::size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

char *reserve(std::size_t bytes) {
  void *found = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  auto *start = static_cast<char *>(found);
  auto *aligned = reinterpret_cast<char *>(rounded(reinterpret_cast<std::size_t>(start)));
  if (aligned > start) munmap(start, static_cast<std::size_t>(aligned - start));
  const auto after = static_cast<std::size_t>(start + PAGE - aligned);
  if (after > 0) munmap(aligned + bytes, after);
  return aligned;
}

bool holds(const std::map<char *, std::size_t> &blocks, const void *address) {
  Lock lock(state().lock);
  auto *wanted = static_cast<char *>(const_cast<void *>(address));
  auto found = blocks.upper_bound(wanted);
  if (found == blocks.begin()) return false;
  --found;
  return wanted < found->first + found->second;
}

cudaError_t allocate(void **address, std::size_t bytes, const std::string &call) {
  Lock lock(state().lock);
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::size_t taken = rounded(bytes);
  if (state().used + taken > capacity()) return fail(cudaErrorMemoryAllocation);
  char *block = reserve(taken);
  if (!block) return fail(cudaErrorMemoryAllocation);
  state().device[block] = taken;
  state().used += taken;
  state().peak = std::max(state().peak, state().used);
  ++state().mallocs;
  record(Kind::malloc, call, {static_cast<long>(bytes)}, nullptr, false);
  *address = block;
  return cudaSuccess;
}

cudaError_t release(void *address, const std::string &call) {
  Lock lock(state().lock);
  const auto found = state().device.find(static_cast<char *>(address));
  if (found == state().device.end()) return fail(cudaErrorInvalidValue);
  const std::size_t bytes = found->second;
  state().used -= bytes;
  state().device.erase(found);
  munmap(address, bytes);
  record(Kind::free, call, {static_cast<long>(bytes)}, nullptr, false);
  return cudaSuccess;
}

std::string direction(const void *to, const void *from) {
  if (is_device(to) && is_device(from)) return "DtoD";
  if (is_device(to)) return is_pinned(from) ? "HtoD pinned" : "HtoD pageable";
  if (is_device(from)) return is_pinned(to) ? "DtoH pinned" : "DtoH pageable";
  return "HtoH";
}

cudaError_t copy(void *to, const void *from, std::size_t bytes, Stream &stream) {
  if (bytes == 0) return cudaSuccess;
  const std::string name = direction(to, from);
  {
    // A copy from or to pageable memory is staged by the host, which waits for it; that cannot be
    // part of a graph. Only pinned memory can.
    Lock lock(state().lock);
    if (stream.capture && name.find("pageable") != std::string::npos) {
      invalidate(*stream.capture, "pageable memory is copied in a capture: " + name);
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  }
  std::function<void()> work;
  if (state().read_zeros && name.rfind("DtoH", 0) == 0)
    work = [to, bytes] { std::memset(to, 0, bytes); };
  else if (name != "DtoD" || bytes <= DONE_BY_HOST)
    work = [to, from, bytes] { std::memmove(to, from, bytes); };
  return submit(stream, Kind::copy, name, {static_cast<long>(bytes)}, work);
}

cudaError_t fill(void *to, int value, std::size_t bytes, Stream &stream) {
  if (bytes == 0) return cudaSuccess;
  std::function<void()> work;
  if (bytes <= DONE_BY_HOST) work = [to, value, bytes] { std::memset(to, value, bytes); };
  return submit(stream, Kind::memset, "memset", {static_cast<long>(bytes)}, work);
}

}  // namespace

bool is_device(const void *address) { return holds(state().device, address); }
bool is_pinned(const void *address) { return holds(state().pinned, address); }

}  // namespace null_gpu

using namespace null_gpu;

cudaError_t cudaMalloc(void **address, size_t bytes) {
  if (const auto error = refuse_unsafe("cudaMalloc")) return error;
  return allocate(address, bytes, "cudaMalloc");
}

// Freeing waits for all that the card does, so it is unsafe like allocating.
cudaError_t cudaFree(void *address) {
  if (!address) return cudaSuccess;
  if (const auto error = refuse_unsafe("cudaFree")) return error;
  return release(address, "cudaFree");
}

cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t) {
  return allocate(address, bytes, "cudaMallocAsync");
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t) {
  return address ? release(address, "cudaFreeAsync") : cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned) {
  if (const auto error = refuse_unsafe("cudaHostAlloc")) return error;
  Lock lock(state().lock);
  char *block = reserve(rounded(bytes));
  if (!block) return fail(cudaErrorMemoryAllocation);
  state().pinned[block] = rounded(bytes);
  *address = block;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *address) {
  if (!address) return cudaSuccess;
  if (const auto error = refuse_unsafe("cudaFreeHost")) return error;
  Lock lock(state().lock);
  const auto found = state().pinned.find(static_cast<char *>(address));
  if (found == state().pinned.end()) return fail(cudaErrorInvalidValue);
  munmap(address, found->second);
  state().pinned.erase(found);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned) {
  if (const auto error = refuse_unsafe("cudaHostRegister")) return error;
  Lock lock(state().lock);
  state().pinned[static_cast<char *>(address)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *address) {
  Lock lock(state().lock);
  const bool known = state().pinned.erase(static_cast<char *>(address)) > 0;
  return known ? cudaSuccess : fail(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  Lock lock(state().lock);
  if (available) *available = capacity() - state().used;
  if (total) *total = capacity();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *address) {
  *attributes = {};
  const bool device = is_device(address), pinned = is_pinned(address);
  attributes->type = device   ? cudaMemoryTypeDevice
                     : pinned ? cudaMemoryTypeHost
                              : cudaMemoryTypeUnregistered;
  attributes->device = device ? 0 : cudaInvalidDeviceId;
  if (device || pinned) attributes->devicePointer = const_cast<void *>(address);
  if (pinned) attributes->hostPointer = const_cast<void *>(address);
  return cudaSuccess;
}

// The call without a stream waits for its end, so it is unsafe and also counts as a wait.
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  if (const auto error = refuse_unsafe("cudaMemcpy")) return error;
  const auto error = copy(to, from, bytes, default_stream());
  if (!error) record(Kind::sync, "cudaMemcpy", {}, &default_stream(), false);
  return error;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream));
}

cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes,
                                cudaStream_t stream) {
  return copy(to, from, bytes, stream_of(stream));
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  std::function<void()> work = [=] {
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char *>(to) + row * to_pitch,
                   static_cast<const char *>(from) + row * from_pitch, width);
  };
  return submit(stream_of(stream), Kind::copy, direction(to, from) + " 2D",
                {static_cast<long>(width * height)}, work);
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  if (const auto error = refuse_unsafe("cudaMemset")) return error;
  return fill(to, value, bytes, default_stream());
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  return fill(to, value, bytes, stream_of(stream));
}

// Variables of device code have no memory here; all share one page that nothing reads.
cudaError_t cudaGetSymbolAddress(void **address, const void *) {
  static char page[1 << 16];
  *address = page;
  return cudaSuccess;
}

cudaError_t cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
  static char only;
  *pool = reinterpret_cast<cudaMemPool_t>(&only);
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value) {
  *static_cast<cuuint64_t *>(value) = 0;
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
