// How a block goes over the elements of a chunk: fetches the operands, each from what it is stored in, and puts them
// back.
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

template <class T, int N, int Alignment>
struct alignas(Alignment) Pack {
  T x[N];
};

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

// N neighbours of an operand in registers, stored as they are computed in.
template <class T, int N>
struct Native {
  using F = T;
  F x[N];

  // Grouped, in accesses of 16 bytes; otherwise of an element.
  template <bool Grouped>
  __device__ __forceinline__ void fetch(Storage, const void* at, int i) {
    using From = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    *this = __builtin_bit_cast(Native, load(reinterpret_cast<const From*>(static_cast<const F*>(at) + i)));
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(Storage, void* at, int i) const {
    using To = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    store(reinterpret_cast<To*>(static_cast<F*>(at) + i), __builtin_bit_cast(To, *this));
  }
  __device__ __forceinline__ void decode(Storage) {}
  __device__ __forceinline__ void encode(Storage) {}
  __device__ __forceinline__ F get(int n) const { return x[n]; }
  __device__ __forceinline__ void set(int n, F value) { x[n] = value; }
};

// The same of any storage of at most 32 bits. Once they are decoded each has a word; before, two of 16 bits share one.
template <int N>
struct Coded {
  using F = float;
  uint32_t word[N];

  template <bool Grouped>
  __device__ __forceinline__ void fetch(Storage storage, const void* at, int i) {
    if (storage == Storage::kFloat32) {
      using From = Pack<uint32_t, N, Grouped ? 16 : 4>;
      *this = __builtin_bit_cast(Coded, load(reinterpret_cast<const From*>(static_cast<const uint32_t*>(at) + i)));
    } else {
      using From = Pack<uint16_t, N, Grouped ? 16 : 2>;
      const From halves = load(reinterpret_cast<const From*>(static_cast<const uint16_t*>(at) + i));
#pragma unroll
      for (int n = 0; n < N; n += 2) word[n / 2] = halves.x[n] | (n + 1 < N ? uint32_t{halves.x[n + 1]} << 16 : 0);
    }
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(Storage storage, void* at, int i) const {
    if (storage == Storage::kFloat32) {
      using To = Pack<uint32_t, N, Grouped ? 16 : 4>;
      store(reinterpret_cast<To*>(static_cast<uint32_t*>(at) + i), __builtin_bit_cast(To, *this));
    } else {
      using To = Pack<uint16_t, N, Grouped ? 16 : 2>;
      To halves;
#pragma unroll
      for (int n = 0; n < N; ++n) halves.x[n] = half(n);
      store(reinterpret_cast<To*>(static_cast<uint16_t*>(at) + i), halves);
    }
  }
  __device__ __forceinline__ void decode(Storage storage) {
    if (storage == Storage::kBFloat16) {
#pragma unroll
      for (int n = N - 1; n >= 0; --n) word[n] = bits_of(widen(BFloat16{half(n)}));
    } else if (storage == Storage::kFloat16) {
#pragma unroll
      for (int n = N - 1; n >= 0; --n) word[n] = bits_of(widen(Float16{half(n)}));
    }
  }
  __device__ __forceinline__ void encode(Storage storage) {
    if (storage == Storage::kBFloat16) pack<BFloat16>();
    else if (storage == Storage::kFloat16) pack<Float16>();
  }
  __device__ __forceinline__ F get(int n) const { return float_of(word[n]); }
  __device__ __forceinline__ void set(int n, F value) { word[n] = bits_of(value); }

 private:
  __device__ __forceinline__ uint16_t half(int n) const { return uint16_t(word[n / 2] >> n % 2 * 16); }
  template <class T>
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int n = 0; n < N; n += 2)
      word[n / 2] = narrow(get(n), T{}).bits | (n + 1 < N ? uint32_t{narrow(get(n + 1), T{}).bits} << 16 : 0);
  }
};

template <Form form>
struct InRegisters {
  template <int N>
  using Neighbours = Native<Compute<form>, N>;
};
template <>
struct InRegisters<Form::kCoded> {
  template <int N>
  using Neighbours = Coded<N>;
};

struct Nothing {};

// Fetches neighbours of every operand that is read, for U places apart, before it computes on any of them, and puts
// those that are written: what `body` has made of them in registers. What is stored then goes to `after`.
template <class Neighbours, int N, int U, bool Grouped, Operands Ops, class Body, class After>
__device__ __forceinline__ void visit(void* const (&p)[kMaxOperands], const Storage (&storage)[kMaxOperands], int begin,
                                      int end, Body& body, After& after) {
  using F = typename Neighbours::F;
  for (int first = begin + int(threadIdx.x) * N; first < end; first += kThreads * N * U) {
    Neighbours x[U][kMaxOperands];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if ((Ops.reads >> k & 1) && i < end) x[u][k].template fetch<Grouped>(storage[k], p[k], i);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
      if (i >= end) break;
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if (Ops.reads >> k & 1) x[u][k].decode(storage[k]);
      const auto each = [&]<unsigned Known>(auto& what, std::integral_constant<unsigned, Known>) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          F v[kMaxOperands];
#pragma unroll
          for (int k = 0; k < kMaxOperands; ++k) v[k] = Known >> k & 1 ? x[u][k].get(n) : F(0);
          what(v[0], v[1], v[2], v[3], v[4]);
#pragma unroll
          for (int k = 0; k < kMaxOperands; ++k)
            if (Ops.writes >> k & 1) x[u][k].set(n, v[k]);
        }
      };
      each(body, std::integral_constant<unsigned, Ops.reads>());
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k) {
        if (!(Ops.writes >> k & 1)) continue;
        x[u][k].encode(storage[k]);
        x[u][k].template put<Grouped>(storage[k], p[k], i);
        if constexpr (!std::is_same_v<After, Nothing>) x[u][k].decode(storage[k]);
      }
      if constexpr (!std::is_same_v<After, Nothing>)
        each(after, std::integral_constant<unsigned, Ops.reads | Ops.writes>());
    }
  }
}

// A chunk, in groups that are accesses of 16 bytes where the addresses allow, and the rest element by element. Which
// thread takes an element does not depend on the address, so that sums do not.
template <Operands Ops, Form form, class Body, class After = Nothing>
__device__ __forceinline__ void sweep(const Tensor& t, const Chunk& chunk, Body body, After after = {}) {
  constexpr int kNumber = form == Form::kCoded ? 8 : 16 / sizeof(Compute<form>), kReads = __builtin_popcount(Ops.reads);
  // Enough loads in flight to cover their latency, and no more than there are registers for.
  constexpr int kUnroll = kReads == 1 ? 4 : kReads == 2 || (kReads == 3 && form != Form::kCoded) ? 2 : 1;
  void* p[kMaxOperands];
  uintptr_t address = 0;
  for (int k = 0; k < kMaxOperands; ++k) {
    const int size = form == Form::kCoded ? item_size(t.storage[k]) : int(sizeof(Compute<form>));
    p[k] = static_cast<char*>(t.addr[k]) + chunk.begin * size;
    if ((Ops.reads | Ops.writes) >> k & 1) address |= reinterpret_cast<uintptr_t>(p[k]);
  }
  const int grouped = chunk.count / kNumber * kNumber;
  using Group = typename InRegisters<form>::template Neighbours<kNumber>;
  using One = typename InRegisters<form>::template Neighbours<1>;
  if (address % 16 == 0) visit<Group, kNumber, kUnroll, true, Ops>(p, t.storage, 0, grouped, body, after);
  else visit<Group, kNumber, kUnroll, false, Ops>(p, t.storage, 0, grouped, body, after);
  visit<One, 1, 1, false, Ops>(p, t.storage, grouped, chunk.count, body, after);
}

}  // namespace fusedopt::cuda
