// The GPU back end of this build, or that there is none.
#pragma once
#ifdef FUSEDOPT_CUDA
#include "cuda/back_end.h"
#include "cuda/device.h"

namespace fusedopt {
namespace gpu = cuda;
constexpr bool kHasGpu = true;
using Gpu = cuda::BackEnd;
}  // namespace fusedopt
#else
#include <ATen/core/Tensor.h>

#include <utility>

#include "chunks.h"

namespace fusedopt {
constexpr bool kHasGpu = false;
namespace gpu {
constexpr at::DeviceType kDeviceType = at::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES;  // no tensor's
inline bool is_capturing() { return false; }
inline bool counts(const at::TensorImpl&, int, bool) { return false; }
struct Scaling {
  double scale;
  const float *grad_scale, *found_inf;
  const double* square_sum;
  double max_norm, epsilon;
};
}  // namespace gpu
struct Gpu {
  explicit Gpu(int) {}
  void recut(const std::vector<Tensor>&, const std::vector<int32_t>&) {}
  void refresh(const std::vector<Tensor>&) {}
  void abandon() {}
  void update(const std::vector<Row>&, const gpu::Scaling&, Pass) {}
  std::pair<at::Tensor, at::Tensor> norm(gpu::Scaling) { return {}; }
  enum Sums { kSquares, kSums };
  bool works() const { return false; }
  at::Tensor gather(Sums, const std::vector<int32_t>&, int32_t) { return {}; }
  void spread(const std::vector<int32_t>&, const at::Tensor&) {}
  void decide(const Row&, const gpu::Scaling&, const at::Tensor&) {}
  size_t memory() const { return 0; }
};
}  // namespace fusedopt
#endif

namespace fusedopt {
// Of a GPU its number, of anything else -1.
inline int8_t gpu_index(at::Device device) {
  return device.type() != gpu::kDeviceType ? -1 : device.index() < 0 ? 0 : int8_t(device.index());
}
}  // namespace fusedopt
