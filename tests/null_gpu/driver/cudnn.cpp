// cuDNN's graph interface: descriptors keep what is set, every graph of operations has one engine,
// and executing its plan is written down. That is as much as torch's attention and convolutions use.
//
// The older interface (pooling, recurrent networks, ...) is not here.
#include "state.h"

#include <cudnn.h>

#include <algorithm>
#include <cstring>

using namespace null_gpu;

namespace {

struct Handle {
  cudaStream_t stream = nullptr;
};

struct Descriptor;
using Shared = std::shared_ptr<Descriptor>;

struct Attribute {
  std::vector<char> bytes;      // of plain values
  std::vector<Shared> others;   // of attributes that are descriptors: kept alive by who needs them
  int64_t count = 0;
};

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  std::map<cudnnBackendAttributeName_t, Attribute> attributes = {};
};

// What callers hold is the address of a shared pointer: reading an attribute that is a descriptor
// fills one that the caller has made.
Shared &shared(cudnnBackendDescriptor_t handle) { return *static_cast<Shared *>(handle); }

size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR: return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE: return 8;
    case CUDNN_TYPE_FRACTION: return sizeof(cudnnFraction_t);
    default: return 4;  // floats, 32-bit integers and all enumerations
  }
}

void set_descriptor(Descriptor &of, cudnnBackendAttributeName_t name, const Shared &value) {
  of.attributes[name] = {{}, {value}, 1};
}

template <typename Integer>
void set_integer(Descriptor &of, cudnnBackendAttributeName_t name, Integer value) {
  Attribute &attribute = of.attributes[name];
  attribute.bytes.resize(sizeof value);
  std::memcpy(attribute.bytes.data(), &value, sizeof value);
  attribute.count = 1;
}

// The descriptor that `from` names in an attribute, or null.
Shared other(const Shared &from, cudnnBackendAttributeName_t name) {
  if (!from) return nullptr;
  const auto found = from->attributes.find(name);
  if (found == from->attributes.end() || found->second.others.empty()) return nullptr;
  return found->second.others.front();
}

std::string operation_name(cudnnBackendDescriptorType_t type) {
  switch (type) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: return "matmul";
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR: return "pointwise";
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: return "reduction";
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: return "reshape";
#if CUDNN_VERSION >= 91300
    case CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR: return "attention";
#endif
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: return "convolution";
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
      return "convolution backward data";
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
      return "convolution backward filter";
    default: return "operation " + std::to_string(type);
  }
}

// "cuDNN 2 matmul, 5 pointwise": the operations of a plan's graph, counted.
std::string plan_name(const Shared &plan) {
  const Shared config = other(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  const Shared engine = other(config, CUDNN_ATTR_ENGINECFG_ENGINE);
  const Shared graph = other(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
  std::map<std::string, int> counts;
  if (graph)
    for (const Shared &operation : graph->attributes[CUDNN_ATTR_OPERATIONGRAPH_OPS].others)
      ++counts[operation_name(operation->type)];
  std::string text = "cuDNN";
  for (const auto &[name, count] : counts)
    text += (text == "cuDNN" ? " " : ", ") + std::to_string(count) + " " + name;
  return text;
}

// One engine, number 0, can compute every graph.
void find_engines(Descriptor &heuristics) {
  const auto engine = std::make_shared<Descriptor>(Descriptor{CUDNN_BACKEND_ENGINE_DESCRIPTOR, true});
  const auto config =
      std::make_shared<Descriptor>(Descriptor{CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, true});
  const auto graph = heuristics.attributes[CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH].others;
  if (!graph.empty()) set_descriptor(*engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph.front());
  set_integer<int64_t>(*engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, 0);
  set_integer<int64_t>(*config, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, 0);
  set_integer<int32_t>(*config, CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED, 0);
  set_descriptor(*config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, config);
}

}  // namespace

size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return 13000; }

const char *cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS ? "CUDNN_STATUS_SUCCESS" : "error of the null GPU's cuDNN";
}

void cudnnGetLastErrorString(char *message, size_t size) {
  if (size > 0) message[0] = 0;
}

// A handle allocates memory on the card, which a capture forbids.
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  if (refuse_unsafe("cudnnCreate")) return CUDNN_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cudnnHandle_t>(new Handle);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete reinterpret_cast<Handle *>(handle);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<Handle *>(handle)->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  *stream = reinterpret_cast<Handle *>(handle)->stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *handle) {
  *handle = new Shared(std::make_shared<Descriptor>(Descriptor{type}));
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle) {
  delete static_cast<Shared *>(handle);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values) {
  Descriptor &descriptor = *shared(handle);
  if (descriptor.finalized) return CUDNN_STATUS_NOT_INITIALIZED;
  Attribute &attribute = descriptor.attributes[name];
  attribute = {};
  attribute.count = count;
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    const auto *others = static_cast<const cudnnBackendDescriptor_t *>(values);
    for (int64_t i = 0; i < count; ++i) attribute.others.push_back(shared(others[i]));
  } else {
    const auto *bytes = static_cast<const char *>(values);
    attribute.bytes.assign(bytes, bytes + static_cast<size_t>(count) * size_of(type));
  }
  return CUDNN_STATUS_SUCCESS;
}

// Of an attribute that has several elements, as many are copied as there is room for; how many
// there are is returned in any case, and is none for what was never set.
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t handle,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room,
                                       int64_t *count, void *values) {
  const Descriptor &descriptor = *shared(handle);
  const auto found = descriptor.attributes.find(name);
  const bool known = found != descriptor.attributes.end();
  const int64_t copied = values && known ? std::min(room, found->second.count) : 0;
  if (count) *count = known ? found->second.count : 0;
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    auto *others = static_cast<cudnnBackendDescriptor_t *>(values);
    for (int64_t i = 0; i < copied; ++i)
      shared(others[i]) = found->second.others[static_cast<size_t>(i)];
  } else if (copied > 0) {
    std::memcpy(values, found->second.bytes.data(), static_cast<size_t>(copied) * size_of(type));
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle) {
  Descriptor &descriptor = *shared(handle);
  switch (descriptor.type) {
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      set_integer<int64_t>(descriptor, CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT, 1);
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: find_engines(descriptor); break;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      // A plan compiles or loads code, which a capture forbids.
      if (refuse_unsafe("a cuDNN plan is made")) return CUDNN_STATUS_EXECUTION_FAILED;
      set_integer<int64_t>(descriptor, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 0);
      break;
    default: break;
  }
  descriptor.finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t) {
  Stream &stream = stream_of(reinterpret_cast<Handle *>(handle)->stream);
  const auto error = submit(stream, Kind::library, plan_name(shared(plan)), {});
  return error ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
