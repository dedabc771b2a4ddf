// One device's share of a plan: how its work is cut, and the tables of it in device memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <utility>
#include <vector>

#include "device.h"

namespace fusedopt::cuda {

class BackEnd {
 public:
  explicit BackEnd(int device) : device_(device), multiprocessors_(multiprocessors(device)) {}
  ~BackEnd();

  // Cuts the tensors of this device that have a row. Call when there are others than before, or of other sizes. Groups
  // that are decided on as a whole have numbers in `joint`, by tensor; others have -1, or -2 where decide() will be
  // called.
  void recut(const std::vector<Tensor>& tensors, const std::vector<int32_t>& joint);
  // Brings the table of the current stream up to date, once for norm() and update(), which work on it.
  void refresh(const std::vector<Tensor>& tensors);
  // A step that did not come to its update is over.
  void abandon() { current_ = nullptr, captured_ = {}; }
  // The sum of squares of the gradients and, unscaled, their norm: float64 scalars on the device. Whatever stream or
  // graph measures the norm, it is found in the same place.
  std::pair<at::Tensor, at::Tensor> norm(const Scaling& scaling);
  void update(const std::vector<Row>& rows, const Scaling& scaling, Pass pass);
  // Whether it has something to do in this step, from refresh() to update().
  bool works() const { return current_; }
  // Of sums that processes share: by slot, [slots, 2], what is here; what all have in its place; and what follows for a
  // joint group. A tensor's slot is -1 where its sums are its own.
  enum Sums { kSquares, kSums };
  at::Tensor gather(Sums kind, const std::vector<int32_t>& slots, int32_t count);
  void spread(const std::vector<int32_t>& slots, const at::Tensor& totals);
  void decide(const Row& row, const Scaling& scaling, const at::Tensor& sums);
  // In host memory, in bytes.
  size_t memory() const;

 private:
  // A stream has a table of its own, which only its own kernels read, so that it can be changed in the order of the
  // stream. A capture has one for itself that is never changed, and that its graph keeps.
  struct DeviceTable {
    at::Tensor memory, square_sum;
    std::vector<at::Tensor> rows;  // where they are too many for the arguments of a launch
    View view{};
    std::vector<Tensor> tensors;            // as they lie on the device
    std::pair<at::Tensor, Slots> slots[2];  // of each kind of sums, once asked for
  };
  const Slots& slots_of(Sums kind, const std::vector<int32_t>& slots, int32_t count);
  void build(DeviceTable& table, const std::vector<Tensor>& tensors);
  void patch(DeviceTable& table, const std::vector<Tensor>& tensors);
  at::Tensor copy(const std::vector<char>& bytes, size_t room);

  int device_, multiprocessors_;
  int64_t chunk_size_ = kMinChunk;
  std::vector<Batch> batches_;
  std::vector<Chunk> chunks_;
  std::vector<int32_t> first_chunks_;
  std::map<Stream, DeviceTable> tables_;
  DeviceTable captured_;  // of the step that is being captured
  DeviceTable* current_ = nullptr;
  at::Tensor norm_;
  Stream norm_stream_ = nullptr;  // on which it was measured last
  bool counts_ = false;
};

}  // namespace fusedopt::cuda
