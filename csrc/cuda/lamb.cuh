// LAMB's two kernels after `apply`: the length of each tensor's step, and the step.
#pragma once
#include "kernels.cuh"

namespace fusedopt::cuda {

// A block for each tensor.
template <int D, int Bytes>
__global__ void __launch_bounds__(kThreads) lamb_step_sizes(const __grid_constant__ Arguments<Bytes> args) {
  if (skipped(args.scaling)) return;
  const int first = args.view.first_chunks[args.batch.tensor + blockIdx.x], tensor = args.view.chunks[first].tensor;
  const Tensor& t = args.view.tensors[tensor];
  double param_sum = 0, update_sum = 0;
  const int64_t size = args.view.chunk_size;
  for (int64_t c = threadIdx.x; c * size < t.numel; c += kThreads)
    param_sum += args.view.sums[2 * (first + c)], update_sum += args.view.sums[2 * (first + c) + 1];
  block_sum(param_sum, update_sum);
  const auto rule = rule_of<Lamb<Compute<D>>>(args, t);
  if (threadIdx.x == 0) args.view.step_sizes[tensor] = rule.step_size(param_sum, update_sum);
}

// LAMB's second pass, backwards: what the first touched last is still in the cache.
template <int D, int Bytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<D, Lamb<float>::kUpdateOperands.reads>)
    lamb_update(const __grid_constant__ Arguments<Bytes> args) {
  using F = Compute<D>;
  const bool skips = skipped(args.scaling);
  const Chunk chunk = args.view.chunks[args.batch.chunk + (gridDim.x - 1 - blockIdx.x)];
  const Tensor t = args.view.tensors[chunk.tensor];
  if (skips) return;
  const auto rule = rule_of<Lamb<F>>(args, t);
  const F step_size = F(args.view.step_sizes[chunk.tensor]);
  const auto body = [&](F& param, F&, F& exp_avg, F& exp_avg_sq, F&) {
    param = madd(-step_size, rule.update(param, exp_avg, exp_avg_sq), param);
  };
  constexpr Operands operands = Lamb<F>::kUpdateOperands;
  sweep<operands.reads, operands.writes, D>(t, chunk, body);
  finish<Lamb<F>>(args);
}

}  // namespace fusedopt::cuda
