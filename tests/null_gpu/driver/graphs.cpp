// Graphs: the nodes of an ended capture, what keeps their data alive, and launching them again.
#include "state.h"

#include <algorithm>

using namespace null_gpu;

namespace {

// Something of the caller's that graphs keep alive; `ours` are the references that the caller holds.
struct UserObject {
  std::shared_ptr<void> object;
  unsigned ours;
};

}  // namespace

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t *nodes, size_t *count) {
  const auto &all = reinterpret_cast<Graph *>(handle)->nodes;
  if (nodes)
    for (size_t i = 0; i < std::min(*count, all.size()); ++i)
      nodes[i] = reinterpret_cast<cudaGraphNode_t>(all[i].get());
  *count = all.size();
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t handle, cudaGraphNode_t *needs,
                                         cudaGraphEdgeData *, size_t *count) {
  const auto &all = reinterpret_cast<Node *>(handle)->needs;
  if (needs)
    for (size_t i = 0; i < std::min(*count, all.size()); ++i)
      needs[i] = reinterpret_cast<cudaGraphNode_t>(const_cast<Node *>(all[i]));
  *count = all.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t handle,
                                          unsigned long long) {
  const Graph &graph = *reinterpret_cast<Graph *>(handle);
  auto *made = new Executable{{}, graph.nodes.size(), graph.kept};
  // Nodes stand in the order of their capture, in which each comes after what it needs.
  for (const auto &node : graph.nodes)
    if (node->work) made->works.push_back(node->work);
  *exec = reinterpret_cast<cudaGraphExec_t>(made);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  const Executable *graph = reinterpret_cast<Executable *>(exec);
  const std::vector<std::function<void()>> works = graph->works;
  return submit(stream_of(handle), Kind::graph_launch, "cudaGraphLaunch",
                {static_cast<long>(graph->nodes)}, [works] {
                  for (const auto &work : works) work();
                });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph *>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Executable *>(exec);
  return cudaSuccess;
}

cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char *, unsigned) { return cudaSuccess; }

cudaError_t cudaUserObjectCreate(cudaUserObject_t *handle, void *object, cudaHostFn_t destroy,
                                 unsigned references, unsigned) {
  auto *made = new UserObject{std::shared_ptr<void>(object, destroy), references};
  *handle = reinterpret_cast<cudaUserObject_t>(made);
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t handle, unsigned count) {
  auto *object = reinterpret_cast<UserObject *>(handle);
  if (count > object->ours) return fail(cudaErrorInvalidValue);
  object->ours -= count;
  if (object->ours == 0) delete object;
  return cudaSuccess;
}

// A graph takes a reference, which may be one of the caller's (cudaGraphUserObjectMove).
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t handle, unsigned count,
                                      unsigned flags) {
  const auto *object = reinterpret_cast<UserObject *>(handle);
  reinterpret_cast<Graph *>(graph)->kept.push_back(object->object);
  return flags & cudaGraphUserObjectMove ? cudaUserObjectRelease(handle, count) : cudaSuccess;
}
