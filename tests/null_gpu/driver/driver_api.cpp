// The driver's own interface, as far as Triton, Inductor and torch use it.
#include "cubin.h"
#include "state.h"

#include <cstdio>
#include <dlfcn.h>
#include <fstream>
#include <iterator>

using namespace null_gpu;

namespace {

// A module is its machine code: in memory, which the caller keeps, or read from a file.
struct Module {
  const void *image;
  std::string file = {};
};

struct Function {
  std::string name;
  Needs needs;
  unsigned shared_limit = 48 << 10;  // dynamic, until more is opted in to
};

CUcontext only_context() {
  static char context;
  return reinterpret_cast<CUcontext>(&context);
}

// Numbers of errors are the same on both sides; the driver leaves the runtime's last error alone.
template <typename Call>
CUresult result_of(Call call) {
  const cudaError_t before = cudaPeekAtLastError(), error = call();
  cudaGetLastError();
  fail(before);
  return static_cast<CUresult>(error);
}

int rounded_registers(const Needs &needs) { return (needs.registers + 7) / 8 * 8; }

}  // namespace

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
  return result_of([=] { return cudaDriverGetVersion(version); });
}

CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int) { return *device = 0, CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute number, CUdevice) {
  *value = attribute(number);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice) {
  std::snprintf(name, static_cast<size_t>(length), "NVIDIA H100 80GB HBM3 (null)");
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice) { return *uuid = {}, CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  *context = only_context();
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return *context = only_context(), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext *context) { return *context = only_context(), CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit) { return *value = 1 << 20, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }

CUresult cuCtxSynchronize() {
  return result_of([] { return cudaDeviceSynchronize(); });
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

// Loading code allocates memory on the card and may wait for it, so it is unsafe in a capture.
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  const auto error = result_of([] { return refuse_unsafe("cuModuleLoadData"); });
  if (error == CUDA_SUCCESS) *module = reinterpret_cast<CUmodule>(new Module{image});
  return error;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(module, image);
}

CUresult cuModuleLoad(CUmodule *module, const char *path) {
  std::ifstream file(path, std::ios::binary);
  auto *read = new Module{nullptr, {std::istreambuf_iterator<char>(file), {}}};
  read->image = read->file.data();
  const auto error = read->file.empty()
                         ? CUDA_ERROR_FILE_NOT_FOUND
                         : result_of([] { return refuse_unsafe("cuModuleLoad"); });
  if (error != CUDA_SUCCESS) {
    delete read;
    return error;
  }
  *module = reinterpret_cast<CUmodule>(read);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  delete reinterpret_cast<Module *>(module);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  const void *image = reinterpret_cast<Module *>(module)->image;
  *function = reinterpret_cast<CUfunction>(new Function{name, read_needs(image, name)});
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction handle) {
  const Function &function = *reinterpret_cast<Function *>(handle);
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = function.needs.max_threads; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = function.needs.registers; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = function.needs.stack; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = function.needs.shared; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = static_cast<int>(function.shared_limit);
      break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 90; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
  // What later drivers know, such as Triton's "oversized" shared memory: the caller has another way.
  if (which >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  auto &function = *reinterpret_cast<Function *>(handle);
  // Static and dynamic shared memory have one limit together.
  if (value + function.needs.shared > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return CUDA_ERROR_INVALID_VALUE;
  function.shared_limit = static_cast<unsigned>(value);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream stream, void **values,
                        void **) {
  const Function &function = *reinterpret_cast<Function *>(handle);
  const unsigned shape[6] = {gx, gy, gz, bx, by, bz};
  const std::uint64_t threads = std::uint64_t{bx} * by * bz;
  // The registers of one block must fit into one multiprocessor.
  const auto registers = static_cast<std::uint64_t>(rounded_registers(function.needs));
  if (registers * threads > 65536 || threads > static_cast<unsigned>(function.needs.max_threads)) {
    problem("too many registers or threads: " + function.name);
    return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  }
  const auto error = result_of([&] {
    return launch(Kind::triton, function.name, {gx, gy, gz, bx, by, bz}, shared,
                  function.shared_limit, stream_of(stream));
  });
  // Where the runtime speaks of a configuration, the driver speaks of a value.
  if (error == static_cast<CUresult>(cudaErrorInvalidConfiguration)) return CUDA_ERROR_INVALID_VALUE;
  if (error == CUDA_SUCCESS && state().on_launch)
    state().on_launch(function.name.c_str(), shape, shared, values, stream);
  return error;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **values,
                          void **extra) {
  return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ,
                        config->blockDimX, config->blockDimY, config->blockDimZ,
                        config->sharedMemBytes, config->hStream, values, extra);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz,
                                   unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                   CUstream stream, void **values) {
  return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, values, nullptr);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int threads,
                                                     size_t shared) {
  *blocks = resident_blocks(threads, shared);
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
  *clusters = attribute(cudaDevAttrMultiProcessorCount);
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  const auto *address = reinterpret_cast<const void *>(pointer);
  const bool device = is_device(address), pinned = is_pinned(address);
  if (!device && !pinned) return CUDA_ERROR_INVALID_VALUE;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr *>(value) = pointer; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned *>(value) = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int *>(value) = 0; break;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext *>(value) = only_context(); break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

// Descriptors of copies by the tensor memory accelerator are read by kernels alone.
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType, cuuint32_t, void *,
                                const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  *map = {};
  return CUDA_SUCCESS;
}

// How torch finds the driver's functions: by name, without the suffix of the version.
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
  *function = nullptr;
  for (const char *suffix : {"_v4", "_v3", "_v2", ""})
    if ((*function = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str()))) break;
  if (result)
    *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
