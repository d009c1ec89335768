// The card: one H100 of 80 GB by its published sizes, a driver of CUDA 13, and its words for errors.
#include "state.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace null_gpu {

namespace {
constexpr int THREADS_PER_SM = 2048, BLOCKS_PER_SM = 32, SHARED_PER_SM = 233472, RESERVED = 1024;
constexpr int DRIVER = 13000;
}  // namespace

// Numbers of attributes are the same in the runtime and in the driver.
int attribute(int number) {
  switch (static_cast<cudaDeviceAttr>(number)) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return SHARED_PER_SM;
    case cudaDevAttrReservedSharedMemoryPerBlock: return RESERVED;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return THREADS_PER_SM;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return BLOCKS_PER_SM;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported: return 1;
    default: break;
  }
  // What only the driver's list names.
  return number == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ||
         number == CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH ||
         number == CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED;
}

int resident_blocks(int threads, std::size_t shared) {
  if (threads <= 0 || threads > 1024) return 0;
  const int by_shared = SHARED_PER_SM / static_cast<int>(shared + RESERVED);
  return std::min({THREADS_PER_SM / threads, BLOCKS_PER_SM, by_shared});
}

}  // namespace null_gpu

using namespace null_gpu;

cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *card, int device) {
  if (device != 0) return fail(cudaErrorInvalidDevice);
  *card = {};
  std::strcpy(card->name, "NVIDIA H100 80GB HBM3 (null)");
  card->totalGlobalMem = capacity();
  card->totalConstMem = static_cast<size_t>(attribute(cudaDevAttrTotalConstantMemory));
  card->sharedMemPerBlock = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlock));
  card->sharedMemPerBlockOptin =
      static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  card->sharedMemPerMultiprocessor =
      static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  card->reservedSharedMemPerBlock =
      static_cast<size_t>(attribute(cudaDevAttrReservedSharedMemoryPerBlock));
  card->textureAlignment = static_cast<size_t>(attribute(cudaDevAttrTextureAlignment));
  card->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
  card->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  card->warpSize = attribute(cudaDevAttrWarpSize);
  card->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
  card->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  card->maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  for (int axis = 0; axis < 3; ++axis) {
    card->maxThreadsDim[axis] = attribute(cudaDevAttrMaxBlockDimX + axis);
    card->maxGridSize[axis] = attribute(cudaDevAttrMaxGridDimX + axis);
  }
  card->major = attribute(cudaDevAttrComputeCapabilityMajor);
  card->minor = attribute(cudaDevAttrComputeCapabilityMinor);
  card->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
  card->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
  card->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  card->asyncEngineCount = attribute(cudaDevAttrAsyncEngineCount);
  card->unifiedAddressing = card->managedMemory = card->concurrentManagedAccess = 1;
  card->concurrentKernels = card->canMapHostMemory = card->cooperativeLaunch = 1;
  card->clusterLaunch = card->memoryPoolsSupported = card->streamPrioritiesSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr number, int) {
  *value = attribute(number);
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return fail(cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int) {
  std::snprintf(text, static_cast<size_t>(length), "0000:00:00.0");
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (const auto error = refuse_device_wide("cudaDeviceSynchronize")) return error;
  record(Kind::sync, "cudaDeviceSynchronize", {}, nullptr, false);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) { return *version = DRIVER, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = DRIVER, cudaSuccess; }

// Declared in a header of its own.
extern "C" cudaError_t cudaProfilerStart() { return cudaSuccess; }
extern "C" cudaError_t cudaProfilerStop() { return cudaSuccess; }

const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
    case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
    case cudaErrorCapturedEvent: return "cudaErrorCapturedEvent";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    default: return "cudaErrorOfTheNullGpu";
  }
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorNotSupported: return "operation not supported (by the null GPU)";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge: return "operation would result in a merge of captures";
    case cudaErrorStreamCaptureUnmatched: return "capture was not ended in the same stream";
    case cudaErrorStreamCaptureUnjoined: return "capture sequence has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the default stream depend on a capturing stream";
    case cudaErrorCapturedEvent: return "operation not permitted on an event of a capture";
    case cudaErrorStreamCaptureWrongThread: return "capture ended in another thread";
    default: return "error of the null GPU";
  }
}
