// What a step works on, as plain data, and how it is cut into chunks. No torch, no CUDA.
#pragma once
#include <cstdint>
#include <vector>

#include "rules/all.h"

namespace fusedopt {

struct Tensor {  // one parameter with all its operands
  void* addr[kMaxOperands] = {};
  int64_t numel = 0;  // 0 also where this step leaves the parameter alone
  int32_t row = 0;    // its hyper-parameters
  RuleId rule{};
  Dtype dtype{};
};

struct Chunk {
  int64_t begin;
  int32_t tensor, count;
};

constexpr int64_t kChunkSize = 16 * 1024;

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

struct Table {
  std::vector<Tensor> tensors;
  std::vector<Chunk> chunks;
  std::vector<double> rows;  // rule objects, kMaxRowBytes apart: one per group, step count and compute type
  std::vector<double> sums;  // two per chunk: partial sums of squares
  int64_t elements = 0;

  void* row(int32_t r) { return reinterpret_cast<char*>(rows.data()) + int64_t{r} * kMaxRowBytes; }
};

}  // namespace fusedopt
