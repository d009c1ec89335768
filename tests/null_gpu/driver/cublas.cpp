// cuBLAS and cuBLASLt: matrix products are written down with their sizes and types.
#include "half.h"
#include "state.h"

#include <cublasLt.h>
#include <cublas_v2.h>

using namespace null_gpu;

namespace {

// What a handle remembers. The library keeps handles opaque, so the type may be ours.
struct Handle {
  cudaStream_t stream = nullptr;
  cublasMath_t math = CUBLAS_DEFAULT_MATH;
  cublasPointerMode_t pointers = CUBLAS_POINTER_MODE_HOST;
};

Handle &handle_of(cublasHandle_t handle) { return *reinterpret_cast<Handle *>(handle); }

std::string type_name(cudaDataType type) {
  switch (type) {
    case CUDA_R_16BF: return "bf16";
    case CUDA_R_16F: return "fp16";
    case CUDA_R_32F: return "fp32";
    case CUDA_R_64F: return "fp64";
    default: return "type " + std::to_string(type);
  }
}

// C (m, n) = A (m, k) B (k, n), `batch` times.
cublasStatus_t product(const std::string &call, cudaDataType type, cudaStream_t stream, long m,
                       long n, long k, long batch = 1) {
  const auto error = submit(stream_of(stream), Kind::gemm, call + " " + type_name(type),
                            {m, n, k, batch});
  return error ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

}  // namespace

// A handle allocates a workspace on the card, which a capture forbids.
cublasStatus_t cublasCreate(cublasHandle_t *handle) {
  if (refuse_unsafe("cublasCreate")) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cublasHandle_t>(new Handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete &handle_of(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle_of(handle).stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  handle_of(handle).math = mode;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
  *mode = handle_of(handle).math;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  handle_of(handle).pointers = mode;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode(cublasHandle_t handle, cublasPointerMode_t *mode) {
  *mode = handle_of(handle).pointers;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                            int n, int k, const void *, const void *, cudaDataType type, int,
                            const void *, cudaDataType, int, const void *, void *, cudaDataType,
                            int, cublasComputeType_t, cublasGemmAlgo_t) {
  return product("cublasGemmEx", type, handle_of(handle).stream, m, n, k);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t,
                                          cublasOperation_t, int m, int n, int k, const void *,
                                          const void *, cudaDataType type, int, long long,
                                          const void *, cudaDataType, int, long long, const void *,
                                          void *, cudaDataType, int, long long, int batch,
                                          cublasComputeType_t, cublasGemmAlgo_t) {
  const cudaStream_t stream = handle_of(handle).stream;
  return product("cublasGemmStridedBatchedEx", type, stream, m, n, k, batch);
}

cublasStatus_t cublasSgemmEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                             int n, int k, const float *, const void *, cudaDataType type, int,
                             const void *, cudaDataType, int, const float *, void *, cudaDataType,
                             int) {
  return product("cublasSgemmEx", type, handle_of(handle).stream, m, n, k);
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                           int n, int k, const float *, const float *, int, const float *, int,
                           const float *, float *, int) {
  return product("cublasSgemm", CUDA_R_32F, handle_of(handle).stream, m, n, k);
}

cublasStatus_t cublasDgemm(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                           int n, int k, const double *, const double *, int, const double *, int,
                           const double *, double *, int) {
  return product("cublasDgemm", CUDA_R_64F, handle_of(handle).stream, m, n, k);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t,
                                         cublasOperation_t, int m, int n, int k, const float *,
                                         const float *, int, long long, const float *, int,
                                         long long, const float *, float *, int, long long,
                                         int batch) {
  const cudaStream_t stream = handle_of(handle).stream;
  return product("cublasSgemmStridedBatched", CUDA_R_32F, stream, m, n, k, batch);
}

cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t handle, cublasOperation_t,
                                         cublasOperation_t, int m, int n, int k, const double *,
                                         const double *, int, long long, const double *, int,
                                         long long, const double *, double *, int, long long,
                                         int batch) {
  const cudaStream_t stream = handle_of(handle).stream;
  return product("cublasDgemmStridedBatched", CUDA_R_64F, stream, m, n, k, batch);
}

cublasStatus_t cublasSgemv(cublasHandle_t handle, cublasOperation_t, int m, int n, const float *,
                           const float *, int, const float *, int, const float *, float *, int) {
  return product("cublasSgemv", CUDA_R_32F, handle_of(handle).stream, m, 1, n);
}

cublasStatus_t cublasDgemv(cublasHandle_t handle, cublasOperation_t, int m, int n, const double *,
                           const double *, int, const double *, int, const double *, double *,
                           int) {
  return product("cublasDgemv", CUDA_R_64F, handle_of(handle).stream, m, 1, n);
}

cublasStatus_t cublasSdot(cublasHandle_t handle, int n, const float *, int, const float *, int,
                          float *) {
  return product("cublasSdot", CUDA_R_32F, handle_of(handle).stream, 1, 1, n);
}

cublasStatus_t cublasDdot(cublasHandle_t handle, int n, const double *, int, const double *, int,
                          double *) {
  return product("cublasDdot", CUDA_R_64F, handle_of(handle).stream, 1, 1, n);
}

cublasStatus_t cublasDotEx(cublasHandle_t handle, int n, const void *, cudaDataType type, int,
                           const void *, cudaDataType, int, void *, cudaDataType, cudaDataType) {
  return product("cublasDotEx", type, handle_of(handle).stream, 1, 1, n);
}

// --- cuBLASLt: descriptors are made by the caller, and remember what is asked about them here.

namespace {

struct Layout {
  cudaDataType type;
  long rows, columns;
  int batch = 1;
};

struct Description {
  int transposed = CUBLAS_OP_N;  // of A
  int epilogue = CUBLASLT_EPILOGUE_DEFAULT;
};

const Layout &layout_of(cublasLtMatrixLayout_t layout) {
  return *reinterpret_cast<const Layout *>(layout);
}

}  // namespace

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t,
                                        cudaDataType) {
  *description = reinterpret_cast<cublasLtMatmulDesc_t>(new Description);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete reinterpret_cast<Description *>(description);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t) {
  auto &kept = *reinterpret_cast<Description *>(description);
  if (which == CUBLASLT_MATMUL_DESC_TRANSA) kept.transposed = *static_cast<const int *>(value);
  if (which == CUBLASLT_MATMUL_DESC_EPILOGUE) kept.epilogue = *static_cast<const int *>(value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, static_cast<long>(rows), static_cast<long>(columns)});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Layout *>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t which,
                                                const void *value, size_t) {
  if (which == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
    reinterpret_cast<Layout *>(layout)->batch = *static_cast<const int *>(value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  static char only;
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(&only);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
  *found = wanted > 0 ? 1 : 0;
  if (wanted > 0) results[0] = {};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void *,
                              const void *, cublasLtMatrixLayout_t a, const void *,
                              cublasLtMatrixLayout_t, const void *, const void *,
                              cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t stream) {
  const auto &kept = *reinterpret_cast<Description *>(description);
  const Layout &first = layout_of(a), &out = layout_of(d);
  const long k = kept.transposed == CUBLAS_OP_N ? first.columns : first.rows;
  const std::string call = "cublasLtMatmul epilogue " + std::to_string(kept.epilogue);
  return product(call, first.type, stream, out.rows, out.columns, k, out.batch);
}
