// csrc/cuda/device.h for the executor: the GPU is the CPU, and its memory torch's ordinary tensors.
#pragma once
#include "executor.h"

namespace fusedopt::cuda {

constexpr at::DeviceType kDeviceType = at::kCPU;

struct DeviceGuard {
  explicit DeviceGuard(c10::DeviceIndex) {}
};
inline int multiprocessors(int) { return 1; }
inline Stream current_stream() { return executor::current_stream(); }
inline bool is_capturing() { return executor::capturing(executor::current_stream()); }
inline void upload(const at::Tensor& to, const std::vector<char>& bytes) {
  cudaMemcpyAsync(to.data_ptr(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice, executor::current_stream());
}
inline void record_use(const at::Tensor&) {}

inline Stream new_stream() { return executor::create_stream(); }
inline void synchronize(Stream stream) { cudaStreamSynchronize(static_cast<cudaStream_t>(stream)); }
class StreamGuard {
 public:
  explicit StreamGuard(Stream stream) { executor::set_stream(static_cast<cudaStream_t>(stream)); }
  ~StreamGuard() { executor::set_stream(before_); }

 private:
  cudaStream_t before_ = executor::current_stream();
};
struct RelaxedCapture {};
inline void retain_for_graph(void* object, void (*destroy)(void*)) { executor::retain(object, destroy); }

// Where a step count lies does not tell who keeps it.
inline bool counts(const at::TensorImpl&, int, bool counted) { return counted; }

}  // namespace fusedopt::cuda
