// Sums that several processes share: what all have takes the place of what this one has.
#pragma once
#include "kernels.cuh"

namespace fusedopt::cuda {

// A block for each slot.
__global__ void __launch_bounds__(kThreads) gather_sums(const View view, const Slots slots, double* totals) {
  double first = 0, second = 0;
  for (int i = slots.first[blockIdx.x] + int(threadIdx.x); i < slots.first[blockIdx.x + 1]; i += kThreads)
    first += view.sums[2 * slots.chunks[i]], second += view.sums[2 * slots.chunks[i] + 1];
  block_sum(first, second);
  if (threadIdx.x == 0) totals[2 * blockIdx.x] = first, totals[2 * blockIdx.x + 1] = second;
}

// The first of a slot's chunks gets all of the total.
__global__ void __launch_bounds__(kThreads) spread_sums(const View view, const Slots slots, const double* totals) {
  const int begin = slots.first[blockIdx.x];
  for (int i = begin + int(threadIdx.x); i < slots.first[blockIdx.x + 1]; i += kThreads)
    for (int k = 0; k < 2; ++k) view.sums[2 * slots.chunks[i] + k] = i == begin ? totals[2 * blockIdx.x + k] : 0;
}

// What becomes of a joint group.
template <template <class> class Rule>
__global__ void __launch_bounds__(kThreads)
    decide_group(const WholeRow row, const Scaling scaling, const double* sums) {
  if (threadIdx.x || skipped(scaling)) return;
  auto numbers = *reinterpret_cast<const typename Rule<double>::Numbers*>(row.numbers);
  if (row.lr) numbers.lr = number(row.lr, row.double_lr);
  const auto rule = make<Rule<double>>(numbers, 1, 1, row.memory);
  if (!rule.is_late()) rule.decide(sums[0], sums[1]);
}

}  // namespace fusedopt::cuda
