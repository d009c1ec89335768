// Calls that torch can make and the null GPU does not have: each is refused and named.
//
// No header is included, so that one line can stand for functions of any arguments; all return an
// integer, and what "not supported" is for each library is its number there.

namespace null_gpu {
int refuse(const char *call, int code);  // control.cpp
}

#define REFUSE(call, code) \
  extern "C" int call(...) { return null_gpu::refuse(#call, code); }
#define RUNTIME(call) REFUSE(call, 801)
#define DRIVER(call) REFUSE(call, 801)
#define CUBLAS(call) REFUSE(call, 15)

// Graphs built by hand, with conditions or within another capture.
RUNTIME(cudaGraphAddNode)
RUNTIME(cudaGraphConditionalHandleCreate)
RUNTIME(cudaGraphRetainUserObject)
RUNTIME(cudaStreamBeginCaptureToGraph)
RUNTIME(cudaStreamUpdateCaptureDependencies)
RUNTIME(cudaUserObjectCreate)
RUNTIME(cudaUserObjectRelease)
RUNTIME(cudaDeviceGetGraphMemAttribute)
RUNTIME(cudaDeviceSetGraphMemAttribute)
// Code loaded by the runtime instead of the driver.
RUNTIME(cudaKernelSetAttributeForDevice)
RUNTIME(cudaLibraryGetKernel)
RUNTIME(cudaLibraryLoadData)
RUNTIME(cudaLibraryUnload)
// Memory shared between processes or cards.
RUNTIME(cudaIpcCloseMemHandle)
RUNTIME(cudaIpcGetEventHandle)
RUNTIME(cudaIpcGetMemHandle)
RUNTIME(cudaIpcOpenEventHandle)
RUNTIME(cudaIpcOpenMemHandle)
RUNTIME(cudaMemPoolSetAccess)
// Memory mapped piece by piece (expandable segments), and several cards.
DRIVER(cuMemAddressFree)
DRIVER(cuMemAddressReserve)
DRIVER(cuMemCreate)
DRIVER(cuMemExportToShareableHandle)
DRIVER(cuMemGetAddressRange_v2)
DRIVER(cuMemGetAllocationGranularity)
DRIVER(cuMemGetAllocationPropertiesFromHandle)
DRIVER(cuMemImportFromShareableHandle)
DRIVER(cuMemMap)
DRIVER(cuMemRelease)
DRIVER(cuMemRetainAllocationHandle)
DRIVER(cuMemSetAccess)
DRIVER(cuMemUnmap)
DRIVER(cuMemsetD32Async)
DRIVER(cuMulticastAddDevice)
DRIVER(cuMulticastBindMem)
DRIVER(cuMulticastCreate)
DRIVER(cuMulticastUnbind)
DRIVER(cuStreamWriteValue32_v2)
DRIVER(cuCtxFromGreenCtx)
DRIVER(cuDeviceGetDevResource)
// Code from text or from parts, and descriptors of im2col.
DRIVER(cuLinkAddData_v2)
DRIVER(cuLinkComplete)
DRIVER(cuLinkCreate_v2)
DRIVER(cuTensorMapEncodeIm2col)
// Linear algebra that torch reaches through cuBLAS.
CUBLAS(cublasCdotc_v2)
CUBLAS(cublasCdotu_v2)
CUBLAS(cublasCgemmStridedBatched)
CUBLAS(cublasCgemm_v2)
CUBLAS(cublasCgemv_v2)
CUBLAS(cublasZdotc_v2)
CUBLAS(cublasZdotu_v2)
CUBLAS(cublasZgemmStridedBatched)
CUBLAS(cublasZgemm_v2)
CUBLAS(cublasZgemv_v2)
CUBLAS(cublasSgelsBatched)
CUBLAS(cublasDgelsBatched)
CUBLAS(cublasSgemmBatched)
CUBLAS(cublasDgemmBatched)
CUBLAS(cublasSgeqrfBatched)
CUBLAS(cublasDgeqrfBatched)
CUBLAS(cublasSgetrfBatched)
CUBLAS(cublasDgetrfBatched)
CUBLAS(cublasSgetrsBatched)
CUBLAS(cublasDgetrsBatched)
CUBLAS(cublasStrsmBatched)
CUBLAS(cublasDtrsmBatched)
CUBLAS(cublasStrsm_v2)
CUBLAS(cublasDtrsm_v2)
CUBLAS(cublasSetSmCountTarget)
CUBLAS(cublasLtMatmulAlgoCheck)
CUBLAS(cublasLtMatmulAlgoConfigGetAttribute)
CUBLAS(cublasLtMatmulAlgoConfigSetAttribute)
CUBLAS(cublasLtMatmulAlgoInit)
