// The kernels. A block takes one chunk; what it does to an element stands in rules/.
#pragma once
#include "sweep.cuh"

namespace fusedopt::cuda {

// Registers are shared out so that this many blocks fit on a multiprocessor: half of its threads, or a quarter. Double
// needs more of them, and so do five operands with sums, or, of coded ones, eight elements of three.
template <Form form, unsigned Reads, bool Sums = false>
constexpr int kBlocksPerSm =
    (form == Form::kDouble || __builtin_popcount(Reads) + Sums > (form == Form::kCoded ? 2 : 5) ? 512 : 1024) /
    kThreads;
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

__device__ __forceinline__ double gradient_scale(const Scaling& s) {
  const double scale = s.grad_scale ? s.scale / *s.grad_scale : s.scale;
  if (!s.square_sum) return scale;
  return scale * clip_coefficient(square_root(*s.square_sum) * (scale < 0 ? -scale : scale), s.max_norm, s.epsilon);
}

__device__ __forceinline__ bool skipped(const Scaling& s) { return s.found_inf && *s.found_inf != 0; }

// What a rule is made of that is not folded: a group's numbers and the scalars of a tensor.
template <class Rule>
__device__ __forceinline__ auto numbers_of(const char* row) {
  const DeviceRow& source = *reinterpret_cast<const DeviceRow*>(row);
  auto numbers = *reinterpret_cast<const typename Rule::Numbers*>(row + sizeof(DeviceRow));
  if (source.lr) numbers.lr = number(source.lr, source.double_lr);
  return numbers;
}
template <class Rule>
struct ScalarsOf {
  Scalar at[kMaxScalars];
  __device__ __forceinline__ ScalarsOf(const Tensor& t, const char* row) {
    for (int i = 0; i < scalars_of<Rule>(); ++i) {
      const int k = 2 + Rule::kStateCount + i;
      const bool is_double = t.storage[k] == Storage::kFloat64;
      if (t.step) at[i] = {number(t.addr[k], is_double), double(is_double)};
      else at[i] = reinterpret_cast<const Scalar*>(row + sizeof(DeviceRow) + sizeof(typename Rule::Numbers))[i];
    }
  }
};
template <class Args>
__device__ __forceinline__ const char* row_of(const Args& args, const Tensor& t) {
  return (args.rows ? args.rows : args.inlined) + int64_t{t.row} * args.stride;
}

// The rule of a tensor, made by one thread of the block for all of them.
template <class Rule, class Args>
__device__ __forceinline__ Rule rule_of(const Args& args, const Tensor& t) {
  constexpr int kWords = (sizeof(Rule) + 7) / 8;
  SHARED(folded, uint64_t[kWords]);
  const char* row = row_of(args, t);
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
      const double count = t.step ? number(t.step, t.double_step) + 1 : source.count;
      new (folded) Rule(make<Rule>(numbers_of<Rule>(row), count, gradient_scale(args.scaling), source.memory,
                                   ScalarsOf<Rule>(t, row).at));
    }
  }
  __syncthreads();
  return *reinterpret_cast<const Rule*>(folded);
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
    if constexpr (scalars_of<Rule>() != 0) {
      const char* row = row_of(args, t);
      ScalarsOf<Rule> scalars(t, row);
      advance<Rule>(numbers_of<Rule>(row), number(t.step, t.double_step) + 1, scalars.at);
      void* const* to = t.addr + 2 + Rule::kStateCount;
      for (int s = 0; s < scalars_of<Rule>(); ++s) {
        const auto [value, is_double] = scalars.at[s];
        if (is_double != 0) *static_cast<double*>(to[s]) = value;
        else *static_cast<float*>(to[s]) = float(value);
      }
    }
    if (t.double_step) *static_cast<double*>(t.step) += 1;
    else *static_cast<float*>(t.step) += 1;
  }
}

// Applies a rule, and leaves the sums that it takes for its second pass or its decision.
template <template <class> class Rule, Form form, int Bytes>
__global__ void __launch_bounds__(
    kThreads,
    kBlocksPerSm<form, (4u << Rule<float>::kStateCount) - 1, kTakesSums<Rule<float>> || scalars_of<Rule<float>>() != 0>)
    apply(const __grid_constant__ Arguments<Bytes> args) {
  using F = Compute<form>;
  using R = Rule<F>;
  const bool skips = skipped(args.scaling);
  const int c = args.batch.chunk + blockIdx.x;
  const Chunk chunk = args.view.chunks[c];
  const Tensor* there = args.view.tensors + chunk.tensor;
  const Tensor t = *there;  // all of it at once, and not again after the barrier
  if (skips) return;
  const auto rule = rule_of<R>(args, t);
  constexpr Scope scope = scope_of<R>();
  if constexpr (scope == Scope::kNone) {
    sweep<R::kOperands, form>(t, there, chunk, rule);
    finish<R>(args);
  } else {
    if constexpr (scope == Scope::kGroup) {
      if (rule.is_late()) {
        const F rate = rule.late_rate();
        sweep<R::kLateOperands, form>(t, there, chunk, [&](auto&... x) { rule.late(rate, x...); });
        return finish<R>(args);
      }
    }
    double first = 0, second = 0;
    if constexpr (scope == Scope::kGroup)
      sweep<R::kOperands, form>(t, there, chunk, [&](auto&... x) { rule(first, second, x...); });
    else sweep<R::kOperands, form>(t, there, chunk, rule, [&](auto&... x) { rule.add(first, second, x...); });
    block_sum(first, second);
    if (threadIdx.x == 0) args.view.sums[2 * c] = first, args.view.sums[2 * c + 1] = second;
    if constexpr (scope == Scope::kGroup) finish<R>(args, args.batch.decides_from >= 0);
  }
}

template <Form form>
__device__ __forceinline__ double square_sum(const Tensor& t, const Chunk& chunk) {
  double sum = 0;
  const auto body = [&](auto&, auto& grad, auto&...) { sum = madd(double(grad), double(grad), sum); };
  sweep<Operands{0b10, 0}, form>(t, nullptr, chunk, body);
  return sum;
}

// The chunks' sums of squares; the last block adds them up in their order. A chunk a block: over several, the loops
// spill registers.
__global__ void __launch_bounds__(kThreads) sum_squares(const View view, const Scaling scaling) {
  const Chunk chunk = view.chunks[blockIdx.x];
  const Tensor t = view.tensors[chunk.tensor];
  double sum = 0, unused = 0;
  switch (t.form) {
    case Form::kFloat: sum = square_sum<Form::kFloat>(t, chunk); break;
    case Form::kDouble: sum = square_sum<Form::kDouble>(t, chunk); break;
    default: sum = square_sum<Form::kCoded>(t, chunk);
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
