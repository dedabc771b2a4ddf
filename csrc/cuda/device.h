// What the back end asks torch for: memory, streams, and whether a stream is being captured.
#pragma once
#include <ATen/ops/empty.h>

#include <cstring>

#include "cuda.h"

#ifdef FUSEDOPT_CUDA_ON_CPU
#include "executor_device.h"
#else
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

// Makes a stream beside the capture the current one: for work to be done once, on memory that is not the graph's own,
// where each replay writes over what was freed earlier in the capture.
class BesideCapture {
 public:
  void wait() { stream_.synchronize(); }

 private:
  c10::cuda::CUDAStreamCaptureModeGuard relaxed_{cudaStreamCaptureModeRelaxed};
  c10::cuda::CUDAStream stream_ = c10::cuda::getStreamFromPool();
  c10::cuda::CUDAStreamGuard guard_{stream_};
};
}  // namespace fusedopt::cuda
#endif
