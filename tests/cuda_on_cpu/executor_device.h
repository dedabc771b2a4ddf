// csrc/cuda/device.h for the executor: the GPU is the CPU, and its memory torch's ordinary tensors.
#pragma once
#include "executor.h"

namespace fusedopt::cuda {

constexpr at::DeviceType kDeviceType = at::kCPU;

struct DeviceGuard {
  explicit DeviceGuard(c10::DeviceIndex) {}
};
inline Stream current_stream() { return executor::current_stream(); }
inline bool is_capturing() { return executor::capturing(executor::current_stream()); }
inline void upload(const at::Tensor& to, const std::vector<char>& bytes) {
  cudaMemcpyAsync(to.data_ptr(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice, executor::current_stream());
}
class BesideCapture {
 public:
  BesideCapture() { executor::set_stream(executor::stream(8)); }
  ~BesideCapture() { executor::set_stream(before_); }
  void wait() {}

 private:
  cudaStream_t before_ = executor::current_stream();
};

// Where a step count lies does not tell who keeps it.
inline bool counts(const at::TensorImpl&, int, bool counted) { return counted; }

}  // namespace fusedopt::cuda
