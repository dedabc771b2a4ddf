// The kernels. A block takes one chunk; what it does to an element stands in rules/.
#pragma once
#ifdef FUSEDOPT_CUDA_ON_CPU
#include "executor.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
#endif
#include <bit>
#include <tuple>
#include <type_traits>

#include "cuda.h"

#ifndef FUSEDOPT_CUDA_THREADS
#define FUSEDOPT_CUDA_THREADS 512
#endif

namespace fusedopt::cuda {

#include "../half.h"

constexpr int kThreads = FUSEDOPT_CUDA_THREADS, kWarps = kThreads / 32;
// Registers are shared out so that this many blocks fit on a multiprocessor: half of its threads, or a quarter. Double
// needs more of them, and so do eight elements of five half-precision operands, and sums beside five operands.
template <int D, unsigned Reads, bool Sums = false>
constexpr int kBlocksPerSm = (D == 1 || (Reads == 0b11111 && (D > 1 || Sums)) ? 512 : 1024) / kThreads;
constexpr int kArguments = 32764;  // bytes that a launch carries at most, since CUDA 12.1

// What travels with a launch, with room for rows. Two sizes, because the driver copies all of it.
struct Header {
  View view;
  Batch batch;
  Scaling scaling;
  const char* rows;  // in device memory, or null: inline
  int32_t stride;    // of rows, in bytes, a multiple of 8
  bool folded, rescaled, counts;
};
template <int Bytes>
struct Arguments : Header {
  static constexpr int kCapacity = (Bytes - int(sizeof(Header))) / 8 * 8;
  alignas(8) char inlined[kCapacity];
};

template <class T, int N, int Alignment>
struct alignas(Alignment) Pack {
  T x[N];
};

__device__ __forceinline__ double number(const void* at, bool is_double) {
  return is_double ? *static_cast<const double*>(at) : double(*static_cast<const float*>(at));
}

__device__ __forceinline__ double gradient_scale(const Scaling& s) {
  const double scale = s.grad_scale ? s.scale / *s.grad_scale : s.scale;
  if (!s.square_sum) return scale;
  return scale * clip_coefficient(square_root(*s.square_sum) * (scale < 0 ? -scale : scale), s.max_norm, s.epsilon);
}

__device__ __forceinline__ bool skipped(const Scaling& s) { return s.found_inf && *s.found_inf != 0; }

// The rule of a tensor, made by one thread of the block for all of them.
template <class Rule, class Args>
__device__ __forceinline__ Rule rule_of(const Args& args, const Tensor& t) {
  constexpr int kWords = (sizeof(Rule) + 7) / 8;
  SHARED(folded, uint64_t[kWords]);
  const char* row = (args.rows ? args.rows : args.inlined) + int64_t{t.row} * args.stride;
  if (threadIdx.x == 0) {
    if (args.folded) {
      uint64_t words[kWords];  // all are on their way before the first is stored
      for (int w = 0; w < kWords; ++w) words[w] = reinterpret_cast<const uint64_t*>(row)[w];
      for (int w = 0; w < kWords; ++w) folded[w] = words[w];
      if (args.rescaled) {
        auto& factor = reinterpret_cast<Rule*>(folded)->gradient.factor;
        factor = std::remove_reference_t<decltype(factor)>(double(factor) * gradient_scale(args.scaling));
      }
    } else {
      const DeviceRow& source = *reinterpret_cast<const DeviceRow*>(row);
      auto numbers = *reinterpret_cast<const typename Rule::Numbers*>(row + sizeof(DeviceRow));
      if (source.lr) numbers.lr = number(source.lr, source.double_lr);
      const double count = t.step ? number(t.step, t.double_step) + 1 : source.count;
      new (folded) Rule(make<Rule>(numbers, count, gradient_scale(args.scaling), source.memory));
    }
  }
  __syncthreads();
  return *reinterpret_cast<const Rule*>(folded);
}

// What one access moves: 16 bytes, or an element where the addresses are not aligned to that. It is asked for by name:
// that keeps the compiler from merging the two cases, and says that the memory is global. What a step touches it
// touches once, so it goes past the first-level cache.
template <size_t Bytes>
using Access = std::tuple_element_t<std::bit_width(Bytes) - 2, std::tuple<unsigned short, float, double, uint4>>;
template <class T, class A = Access<alignof(T)>>
using Accesses = Pack<A, sizeof(T) / sizeof(A), alignof(A)>;

template <class T>
__device__ __forceinline__ T load(const T* at) {
  Accesses<T> parts;
  for (int i = 0; auto& part : parts.x) part = __ldcg(reinterpret_cast<const Access<alignof(T)>*>(at) + i++);
  return __builtin_bit_cast(T, parts);
}
template <class T>
__device__ __forceinline__ void store(T* at, const T& value) {
  const auto parts = __builtin_bit_cast(Accesses<T>, value);
  for (int i = 0; const auto& part : parts.x) __stcg(reinterpret_cast<Access<alignof(T)>*>(at) + i++, part);
}

// Loads N neighbours of every operand that is read, for U places kThreads * N apart, before it computes on any of them;
// then stores those that are written.
template <unsigned Reads, unsigned Writes, int N, int U, int Alignment, class T, class Body>
__device__ __forceinline__ void visit(T* const (&p)[kMaxOperands], int begin, int end, Body& body) {
  using F = decltype(widen(T{}));
  using Neighbours = Pack<T, N, Alignment>;
  for (int first = begin + int(threadIdx.x) * N; first < end; first += kThreads * N * U) {
    Neighbours pack[U][kMaxOperands];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if ((Reads >> k & 1) && i < end) pack[u][k] = load(reinterpret_cast<const Neighbours*>(p[k] + i));
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
      if (i >= end) break;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        F x[kMaxOperands];
#pragma unroll
        for (int k = 0; k < kMaxOperands; ++k) x[k] = Reads >> k & 1 ? widen(pack[u][k].x[n]) : F(0);
        body(x[0], x[1], x[2], x[3], x[4]);
        for (int k = 0; k < kMaxOperands; ++k)
          if (Writes >> k & 1) pack[u][k].x[n] = narrow(x[k], T{});
      }
      for (int k = 0; k < kMaxOperands; ++k)
        if (Writes >> k & 1) store(reinterpret_cast<Neighbours*>(p[k] + i), pack[u][k]);
    }
  }
}

// A chunk, in groups of 16 bytes, each one access where the addresses allow, and the rest element by element. Which
// thread takes an element does not depend on the address, so that sums do not.
template <unsigned Reads, unsigned Writes, int D, class Body>
__device__ __forceinline__ void sweep(const Tensor& t, const Chunk& chunk, Body body) {
  using T = Storage<D>;
  constexpr int kNumber = 16 / sizeof(T), kReads = __builtin_popcount(Reads);
  // Enough loads in flight to cover their latency, and no more than there are registers for.
  constexpr int kUnroll = kReads == 1 ? 4 : kReads == 2 || (kReads == 3 && sizeof(T) > 2) ? 2 : 1;
  T* p[kMaxOperands];
  uintptr_t address = 0;
  for (int k = 0; k < kMaxOperands; ++k) {
    p[k] = static_cast<T*>(t.addr[k]) + chunk.begin;
    if ((Reads | Writes) >> k & 1) address |= reinterpret_cast<uintptr_t>(p[k]);
  }
  const int grouped = chunk.count / kNumber * kNumber;
  if (address % 16 == 0) visit<Reads, Writes, kNumber, kUnroll, 16>(p, 0, grouped, body);
  else visit<Reads, Writes, kNumber, kUnroll, sizeof(T)>(p, 0, grouped, body);
  visit<Reads, Writes, 1, 1, sizeof(T)>(p, grouped, chunk.count, body);
}

// Adds x and y over the threads of a block, in a fixed order. Valid in thread 0.
__device__ __forceinline__ void block_sum(double& x, double& y) {
  SHARED(partial, double[2][kWarps]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int offset = 16; offset; offset /= 2) {
    x += __shfl_xor_sync(~0u, x, offset);
    y += __shfl_xor_sync(~0u, y, offset);
  }
  if (lane == 0) partial[0][warp] = x, partial[1][warp] = y;
  __syncthreads();
  if (threadIdx.x) return;
  x = y = 0;
  for (int w = 0; w < kWarps; ++w) x += partial[0][w], y += partial[1][w];
}

// Whether this block is the last of the launch to come here. What the others wrote before is then visible.
__device__ __forceinline__ bool is_last_block(unsigned* done) {
  SHARED(last, bool[1]);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last[0] = atomicAdd(done, 1u) == gridDim.x - 1;
    __threadfence();
    if (last[0]) *done = 0;
  }
  __syncthreads();
  return last[0];
}

// The end of a step: one block, when all others are through, decides on a joint group and adds one to the step counts.
template <class Rule, class Args>
__device__ __forceinline__ void finish(const Args& args, bool decides = false) {
  if (!(args.counts || decides) || !is_last_block(args.view.done)) return;
  if constexpr (scope_of<Rule>() == Scope::kGroup)
    if (decides) {
      double first = 0, second = 0;
      for (int c = args.batch.decides_from + int(threadIdx.x); c < args.batch.chunk + args.batch.chunks; c += kThreads)
        first += __ldcg(args.view.sums + 2 * c), second += __ldcg(args.view.sums + 2 * c + 1);
      block_sum(first, second);
      // That of any tensor of the group, made once more: in registers it would be in the way of the sweep.
      const auto rule = rule_of<Rule>(args, args.view.tensors[args.view.chunks[args.batch.chunk].tensor]);
      if (threadIdx.x == 0) rule.decide(first, second);
    }
  for (int i = threadIdx.x; i < args.batch.tensors; i += kThreads) {
    const Tensor& t = args.view.tensors[args.view.chunks[args.view.first_chunks[args.batch.tensor + i]].tensor];
    if (!t.step) continue;
    if (t.double_step) *static_cast<double*>(t.step) += 1;
    else *static_cast<float*>(t.step) += 1;
  }
}

// Applies a rule, and leaves the sums that it takes for its second pass or its decision.
template <template <class> class Rule, int D, int Bytes>
__global__ void __launch_bounds__(kThreads,
                                  kBlocksPerSm<D, (4u << Rule<float>::kStateCount) - 1, kTakesSums<Rule<float>>>)
    apply(const __grid_constant__ Arguments<Bytes> args) {
  using F = Compute<D>;
  const bool skips = skipped(args.scaling);
  const int c = args.batch.chunk + blockIdx.x;
  const Chunk chunk = args.view.chunks[c];
  const Tensor t = args.view.tensors[chunk.tensor];  // all of it at once, and not again after the barrier
  if (skips) return;
  const auto rule = rule_of<Rule<F>>(args, t);
  constexpr Operands operands = Rule<F>::kOperands;
  constexpr bool kDecides = scope_of<Rule<F>>() == Scope::kGroup;
  if constexpr (kDecides) {
    if (rule.is_late()) {
      constexpr Operands late = Rule<F>::kLateOperands;
      const F rate = rule.late_rate();
      sweep<late.reads, late.writes, D>(t, chunk, [&](auto&... x) { rule.late(rate, x...); });
      return finish<Rule<F>>(args);
    }
  }
  if constexpr (kTakesSums<Rule<F>>) {
    double first = 0, second = 0;
    const auto body = [&](auto&... x) { rule(first, second, x..., [](F value) { return stored<D>(value); }); };
    sweep<operands.reads, operands.writes, D>(t, chunk, body);
    block_sum(first, second);
    if (threadIdx.x == 0) args.view.sums[2 * c] = first, args.view.sums[2 * c + 1] = second;
    if constexpr (kDecides) finish<Rule<F>>(args, args.batch.decides_from >= 0);
  } else {
    sweep<operands.reads, operands.writes, D>(t, chunk, rule);
    finish<Rule<F>>(args);
  }
}

template <int D>
__device__ __forceinline__ double square_sum(const Tensor& t, const Chunk& chunk) {
  double sum = 0;
  sweep<0b10, 0, D>(t, chunk, [&](auto&, auto& grad, auto&...) { sum = madd(double(grad), double(grad), sum); });
  return sum;
}

// The chunks' sums of squares; the last block adds them up in their order. A chunk a block: over several, the four
// dtypes' loops spill registers.
__global__ void __launch_bounds__(kThreads) sum_squares(const View view, const Scaling scaling) {
  const Chunk chunk = view.chunks[blockIdx.x];
  const Tensor t = view.tensors[chunk.tensor];
  double sum = 0, unused = 0;
  switch (t.dtype) {
    case Dtype::kFloat32: sum = square_sum<0>(t, chunk); break;
    case Dtype::kFloat64: sum = square_sum<1>(t, chunk); break;
    case Dtype::kBFloat16: sum = square_sum<2>(t, chunk); break;
    default: sum = square_sum<3>(t, chunk);
  }
  block_sum(sum, unused);
  if (threadIdx.x == 0) view.sums[2 * blockIdx.x] = sum;
  if (!is_last_block(view.done)) return;
  sum = 0;
  for (unsigned c = threadIdx.x; c < gridDim.x; c += kThreads) sum += __ldcg(view.sums + 2 * c);
  block_sum(sum, unused);
  if (threadIdx.x) return;
  const double scale = gradient_scale(scaling);
  *view.square_sum = sum, *view.norm = square_root(sum) * (scale < 0 ? -scale : scale);
}

template <int Capacity>
struct Patches {
  uint64_t* words;
  int count;
  int32_t indices[Capacity];
  uint64_t values[Capacity];
};
template <int Capacity>
__global__ void __launch_bounds__(kThreads) patch_words(const __grid_constant__ Patches<Capacity> patches) {
  for (int i = threadIdx.x; i < patches.count; i += kThreads) patches.words[patches.indices[i]] = patches.values[i];
}

}  // namespace fusedopt::cuda
