// What a step works on, as plain data, and how it is cut into chunks. No torch, no CUDA.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "rules/all.h"
#include "storage.h"

namespace fusedopt {

constexpr int64_t kChunkSize = 16 * 1024;

struct Tensor {                     // one parameter with all its operands, in host and in device memory alike
  void* addr[kMaxOperands] = {};    // those that the rule has, then its scalars, where the steps are counted
  void* beside[kMaxOperands] = {};  // what their storages have beside them
  void* average = nullptr;          // that of the parameter over the steps, where there is one
  void* step = nullptr;             // where a device counts the steps itself, else null
  // Of random bits, and of the average: the step's key and the share that the parameter gets; or, where a device counts
  // the steps, what they follow from, the seed and the decay.
  uint64_t key = 0;
  double share = 0;
  int64_t numel = 0;  // 0 also where this step leaves the parameter alone
  int32_t row = -1;   // its hyper-parameters, -1 where this step leaves it alone
  Storage storage[kMaxOperands] = {}, average_storage{};
  RuleId rule{};
  Form form{};
  int8_t device = -1;  // -1 is the CPU
  bool double_step = false;
};
static_assert(sizeof(Tensor) % sizeof(uint64_t) == 0 && kChunkSize % kBlock == 0);

struct Chunk {
  int64_t begin;
  int32_t tensor, count;
};

// Cuts tensors into chunks of at most `size` elements, in order. Tensors without elements have none.
template <class Numel>
std::vector<Chunk> cut(int32_t tensors, Numel numel, int64_t size) {
  std::vector<Chunk> chunks;
  for (int32_t t = 0; t < tensors; ++t)
    for (int64_t begin = 0, n = numel(t); begin < n; begin += size)
      chunks.push_back({begin, t, static_cast<int32_t>(n - begin < size ? n - begin : size)});
  chunks.shrink_to_fit();
  return chunks;
}

using Scalars = std::array<Scalar, kMaxScalars>;

enum class Pass { kBoth, kFirst, kSecond };  // what of a step

struct Row {  // what a rule is made from: a group's hyper-parameters at one step count
  const double* numbers;
  double* memory;  // what the group remembers, where the rule says so
  const void* lr;  // where a learning rate lies on a GPU, else null
  double count;
  RuleId rule;
  bool is_double, double_lr;  // what the rule computes in, and what `lr` is
  int8_t device;
  Scalars scalars{};  // of its parameters, where the host counts their steps
};

struct Table {
  std::vector<Tensor> tensors;
  std::vector<Chunk> chunks;
  std::vector<double> rows;       // rule objects, kMaxRowBytes apart
  std::vector<double*> memories;  // by row, what its group remembers
  std::vector<double> sums;       // two per chunk, of those rules that take sums
  // Where each tensor's sums stand among those that processes share, -1 of one that is all here. Empty if all are.
  std::vector<int32_t> slots;
  int64_t elements = 0;

  bool is_shared(int32_t tensor) const { return !slots.empty() && slots[tensor] >= 0; }
  void* row(int32_t r) { return reinterpret_cast<char*>(rows.data()) + int64_t{r} * kMaxRowBytes; }
};

}  // namespace fusedopt
