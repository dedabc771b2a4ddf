// The CPU back end: at most two parallel regions a step, over all chunks of all tensors. No torch here.
#pragma once
#include "../chunks.h"

namespace fusedopt::cpu {

// Applies every tensor's rule. The rows are folded, the addresses are live.
void step(Table& table);
// Its two halves, for tensors whose sums are shared with other processes: between them table.sums, which hold what this
// process has, become what all have.
void first_pass(Table& table);
void second_pass(Table& table);
// The sum of squares of all gradients, the same for any number of threads.
double square_sum(Table& table);
// The instruction set in use: default, avx2, avx512. The machine's best, or what FUSEDOPT_ISA or ATEN_CPU_CAPABILITY
// asks for, if the machine has it.
const char* isa();

// A part of a tensor as its loops see it: elements `begin` to `begin` + n of each operand, where they lie, and what the
// step has for all of the tensor.
struct Span {
  void *addr[kMaxOperands], *beside[kMaxOperands], *average;
  const Tensor* tensor;
  int64_t n, begin;
};
FUSEDOPT_HD Span span_of(const Tensor& t, int64_t begin, int64_t n) {
  const auto from = [](void* at, int64_t bytes) { return static_cast<char*>(at) + bytes; };
  Span span{{}, {}, t.average ? from(t.average, begin * item_size(t.average_storage)) : nullptr, &t, n, begin};
  for (int k = 0; k < kMaxOperands; ++k) {
    span.addr[k] = from(t.addr[k], begin * item_size(t.storage[k]));
    span.beside[k] = from(t.beside[k], bytes_beside(t.storage[k], begin));
  }
  return span;
}
// The loops over one chunk, compiled once per instruction set.
struct Kernels {
  // Applies a rule, and adds to its two sums; its second pass, null where it has none.
  void (*apply[int(RuleId::kCount)][int(Form::kCount)])(const Span& span, const void* rule, double* sums);
  void (*second[int(RuleId::kCount)][int(Form::kCount)])(const Span& span, const void* rule, double number);
  void (*square_sum[int(Form::kCount)])(const Span& span, double* sums);  // of the gradient
};
namespace baseline { extern const Kernels kKernels; }
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }

}  // namespace fusedopt::cpu
