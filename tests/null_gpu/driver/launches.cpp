// Kernels that nvcc built into a library: how they are registered, and how they are launched.
#include "state.h"

#include <cstdint>

namespace null_gpu {

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void *stream;
};
thread_local std::vector<Configuration> pushed;

constexpr unsigned SHARED_BY_DEFAULT = 48 << 10;

unsigned shared_limit(const void *kernel) {
  Lock lock(state().lock);
  const auto found = state().shared_limit.find(kernel);
  return found == state().shared_limit.end() ? SHARED_BY_DEFAULT
                                             : static_cast<unsigned>(found->second);
}

cudaError_t launch_stub(const void *stub, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                        const std::string &how = "") {
  std::string name = "unregistered kernel";
  {
    Lock lock(state().lock);
    const auto found = state().kernels.find(stub);
    if (found != state().kernels.end()) name = *found->second;
  }
  return launch(Kind::kernel, name + how, {grid.x, grid.y, grid.z, block.x, block.y, block.z},
                static_cast<unsigned>(shared), shared_limit(stub), stream_of(stream));
}

}  // namespace

// A grid has 1 to 2^31-1 blocks along x and 1 to 65535 along y and z; a block has 1 to 1024
// threads, at most 64 along z. More than 48 KB of dynamic shared memory must be opted in to.
cudaError_t launch(Kind kind, const std::string &name, const std::array<unsigned, 6> &shape,
                   unsigned shared, unsigned limit, Stream &stream) {
  const auto [gx, gy, gz, bx, by, bz] = shape;
  const std::uint64_t threads = std::uint64_t{bx} * by * bz;
  const bool grid = gx >= 1 && gx <= INT32_MAX && gy >= 1 && gy <= 65535 && gz >= 1 && gz <= 65535;
  const bool block = threads >= 1 && threads <= 1024 && bz <= 64;
  if (!grid || !block) {
    problem("grid or block out of range: " + name);
    return fail(cudaErrorInvalidConfiguration);
  }
  if (shared > limit) {
    problem("more shared memory than opted in to: " + name);
    return fail(cudaErrorInvalidValue);
  }
  return submit(stream, kind, name, {gx, gy, gz, bx, by, bz, shared});
}

}  // namespace null_gpu

using namespace null_gpu;

// What code of nvcc calls when a library is loaded. These are not in the public headers.
extern "C" {

void **__cudaRegisterFatBinary(void *) {
  static void *handle[4];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
char __cudaInitModule(void **) { return 1; }
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

void __cudaRegisterFunction(void **, const char *stub, char *, const char *name, int, void *,
                            void *, void *, void *, int *) {
  Lock lock(state().lock);
  state().kernels[stub] = &*state().names.insert(name).first;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  const Configuration last = pushed.back();
  pushed.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<void **>(stream) = last.stream;
  return cudaSuccess;
}

// A kernel's handle is the address of its stub.
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void *>(stub));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t shared,
                               cudaStream_t stream) {
  return launch_stub(kernel, grid, block, shared, stream);
}

}  // extern "C"

cudaError_t cudaLaunchKernel(const void *stub, dim3 grid, dim3 block, void **, size_t shared,
                             cudaStream_t stream) {
  return launch_stub(stub, grid, block, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *stub, dim3 grid, dim3 block, void **,
                                        size_t shared, cudaStream_t stream) {
  return launch_stub(stub, grid, block, shared, stream, " (cooperative)");
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *stub, void **) {
  return launch_stub(stub, config->gridDim, config->blockDim, config->dynamicSmemBytes,
                     config->stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *stub) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->numRegs = 32;  // not known: the machine code of libraries is not read
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(stub));
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *stub, cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return fail(cudaErrorInvalidValue);
  Lock lock(state().lock);
  state().shared_limit[stub] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  *blocks = resident_blocks(threads, shared);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t shared) {
  *blocks = resident_blocks(threads, shared);
  return cudaSuccess;
}
