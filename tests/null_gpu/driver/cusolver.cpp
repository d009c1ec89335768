// cuSOLVER, as far as the library asks for it: singular values, and eigenvalues of symmetric
// matrices. A call is written down; what it would compute stays zero, and it reports success.
#include "half.h"
#include "state.h"

#include <cusolverDn.h>

#include <cstring>

using namespace null_gpu;

namespace {

struct Handle {
  cudaStream_t stream = nullptr;
};

// What the host reads later is set to zero: `count` results, and `info`, for each of `problems` the
// number of what went wrong.
template <typename Value>
cusolverStatus_t solve(cusolverDnHandle_t handle, const std::string &call, Value *results,
                       long count, int *info, long problems = 1) {
  const cudaStream_t stream = reinterpret_cast<Handle *>(handle)->stream;
  const auto error = submit(stream_of(stream), Kind::library, "cuSOLVER " + call, {}, [=] {
    std::memset(results, 0, static_cast<size_t>(count) * sizeof(Value));
    std::memset(info, 0, static_cast<size_t>(problems) * sizeof *info);
  });
  return error ? CUSOLVER_STATUS_EXECUTION_FAILED : CUSOLVER_STATUS_SUCCESS;
}

}  // namespace

// A handle allocates memory on the card, which a capture forbids.
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle) {
  if (refuse_unsafe("cusolverDnCreate")) return CUSOLVER_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cusolverDnHandle_t>(new Handle);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete reinterpret_cast<Handle *>(handle);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle *>(handle)->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}

// Parameters are kept by nobody.
cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t *info) {
  static char only;
  *info = reinterpret_cast<gesvdjInfo_t>(&only);
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyGesvdjInfo(gesvdjInfo_t) { return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnXgesvdjSetTolerance(gesvdjInfo_t, double) {
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgesvdjSetMaxSweeps(gesvdjInfo_t, int) {
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgesvdjSetSortEig(gesvdjInfo_t, int) { return CUSOLVER_STATUS_SUCCESS; }

cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params) {
  static char only;
  *params = reinterpret_cast<cusolverDnParams_t>(&only);
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t) { return CUSOLVER_STATUS_SUCCESS; }

cusolverStatus_t cusolverDnSgesvdj_bufferSize(cusolverDnHandle_t, cusolverEigMode_t, int, int, int,
                                              const float *, int, const float *, const float *,
                                              int, const float *, int, int *size, gesvdjInfo_t) {
  return *size = 1, CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnDgesvdj_bufferSize(cusolverDnHandle_t, cusolverEigMode_t, int, int, int,
                                              const double *, int, const double *, const double *,
                                              int, const double *, int, int *size, gesvdjInfo_t) {
  return *size = 1, CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSgesvdj(cusolverDnHandle_t handle, cusolverEigMode_t, int, int m, int n,
                                   float *, int, float *values, float *, int, float *, int,
                                   float *, int, int *info, gesvdjInfo_t) {
  return solve(handle, "Sgesvdj", values, std::min(m, n), info);
}

cusolverStatus_t cusolverDnDgesvdj(cusolverDnHandle_t handle, cusolverEigMode_t, int, int m, int n,
                                   double *, int, double *values, double *, int, double *, int,
                                   double *, int, int *info, gesvdjInfo_t) {
  return solve(handle, "Dgesvdj", values, std::min(m, n), info);
}

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                             cusolverEigMode_t, cublasFillMode_t, int64_t,
                                             cudaDataType, const void *, int64_t, cudaDataType,
                                             const void *, cudaDataType, size_t *on_device,
                                             size_t *on_host) {
  *on_device = *on_host = 1;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t, cusolverEigMode_t,
                                  cublasFillMode_t, int64_t n, cudaDataType, void *, int64_t,
                                  cudaDataType type, void *values, cudaDataType, void *, size_t,
                                  void *, size_t, int *info) {
  const long bytes = n * (type == CUDA_R_64F ? 8 : 4);
  return solve(handle, "Xsyevd", static_cast<char *>(values), bytes, info);
}

cusolverStatus_t cusolverDnXsyevBatched_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                                   cusolverEigMode_t, cublasFillMode_t, int64_t,
                                                   cudaDataType, const void *, int64_t,
                                                   cudaDataType, const void *, cudaDataType,
                                                   size_t *on_device, size_t *on_host, int64_t) {
  *on_device = *on_host = 1;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t,
                                        cusolverEigMode_t, cublasFillMode_t, int64_t n,
                                        cudaDataType, void *, int64_t, cudaDataType type,
                                        void *values, cudaDataType, void *, size_t, void *, size_t,
                                        int *info, int64_t batch) {
  const long bytes = batch * n * (type == CUDA_R_64F ? 8 : 4);
  return solve(handle, "XsyevBatched", static_cast<char *>(values), bytes, info, batch);
}
