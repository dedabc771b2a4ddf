// The two kernels that follow `apply` where a rule takes sums over tensors: what becomes of them, and the second pass.
#pragma once
#include "kernels.cuh"

namespace fusedopt::cuda {

// A block for each tensor.
template <template <class> class Rule, Form form, int Bytes>
__global__ void __launch_bounds__(kThreads) settle(const __grid_constant__ Arguments<Bytes> args) {
  if (skipped(args.scaling)) return;
  const int begin = args.view.first_chunks[args.batch.tensor + blockIdx.x], tensor = args.view.chunks[begin].tensor;
  const Tensor& t = args.view.tensors[tensor];
  double first = 0, second = 0;
  const int64_t size = args.view.chunk_size;
  for (int64_t c = threadIdx.x; c * size < t.numel; c += kThreads)
    first += args.view.sums[2 * (begin + c)], second += args.view.sums[2 * (begin + c) + 1];
  block_sum(first, second);
  const auto rule = rule_of<Rule<Compute<form>>>(args, t);
  if (threadIdx.x == 0) args.view.settled[tensor] = rule.settle(first, second);
}

// Backwards: what the first pass touched last is still in the cache.
template <template <class> class Rule, Form form, int Bytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<form, Rule<float>::kSecondOperands.reads, true>)
    second_pass(const __grid_constant__ Arguments<Bytes> args) {
  using F = Compute<form>;
  const bool skips = skipped(args.scaling);
  const Chunk chunk = args.view.chunks[args.batch.chunk + (gridDim.x - 1 - blockIdx.x)];
  const Tensor t = args.view.tensors[chunk.tensor];
  if (skips) return;
  const auto rule = rule_of<Rule<F>>(args, t);
  const F number = F(args.view.settled[chunk.tensor]);
  sweep<Rule<F>::kSecondOperands, form>(t, args.view.tensors + chunk.tensor, chunk,
                                        [&](auto&... x) { rule.second(number, x...); });
  finish<Rule<F>>(args);
}

}  // namespace fusedopt::cuda
