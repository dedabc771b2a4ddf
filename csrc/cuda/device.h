// What the back end asks torch for: memory, streams, and whether a stream is being captured.
#pragma once
#include <ATen/ops/empty.h>

#include <cstring>

#include "cuda.h"

#ifdef FUSEDOPT_CUDA_ON_CPU
#include "executor_device.h"
#else
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace fusedopt::cuda {
constexpr at::DeviceType kDeviceType = at::kCUDA;
using DeviceGuard = c10::cuda::CUDAGuard;

inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
inline bool is_capturing() {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

inline int multiprocessors(int device) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Whether the device itself keeps a step count that lies there.
inline bool counts(const at::TensorImpl& step, int device, bool) {
  return step.device().is_cuda() && step.device().index() == device;
}

// Fills the beginning of `to`, from pinned memory that torch keeps until the stream has read it.
inline void upload(const at::Tensor& to, const std::vector<char>& bytes) {
  const at::Tensor pinned = at::empty({int64_t(bytes.size())}, at::TensorOptions(at::kByte).pinned_memory(true));
  std::memcpy(pinned.data_ptr(), bytes.data(), bytes.size());
  to.narrow(0, 0, pinned.numel()).copy_(pinned, /*non_blocking=*/true);
}

// Says to the allocator that the current stream uses memory that was allocated on another.
inline void record_use(const at::Tensor& memory) {
  c10::cuda::CUDACachingAllocator::recordStream(memory.storage().data_ptr(), c10::cuda::getCurrentCUDAStream());
}

// The parts of capture.h: a stream, made for the current device and never destroyed; what lets this thread allocate
// and copy on it during a capture; and the objects of a graph, with what destroys them once nothing can replay it.
inline Stream new_stream() {
  cudaStream_t stream;
  C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}
inline void synchronize(Stream stream) { C10_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); }
struct StreamGuard : c10::cuda::CUDAStreamGuard {
  explicit StreamGuard(Stream stream)
      : CUDAStreamGuard(
            c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(stream), c10::cuda::current_device())) {}
};
struct RelaxedCapture : c10::cuda::CUDAStreamCaptureModeGuard {
  RelaxedCapture() : CUDAStreamCaptureModeGuard(cudaStreamCaptureModeRelaxed) {}
};
inline void retain_for_graph(void* object, void (*destroy)(void*)) {
  cudaStreamCaptureStatus status;
  cudaGraph_t graph = nullptr;
  const auto stream = static_cast<cudaStream_t>(current_stream());
#if CUDART_VERSION >= 13000
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, nullptr, nullptr, nullptr));
#else
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &graph, nullptr, nullptr));
#endif
  TORCH_CHECK(graph, "the capture of the current stream has ended");
  cudaUserObject_t owner;
  C10_CUDA_CHECK(cudaUserObjectCreate(&owner, object, destroy, 1, cudaUserObjectNoDestructorSync));
  C10_CUDA_CHECK(cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove));
}
}  // namespace fusedopt::cuda
#endif
