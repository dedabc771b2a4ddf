// Accesses to the memory of a GPU.
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

constexpr int kThreads = FUSEDOPT_CUDA_THREADS, kWarps = kThreads / 32;

template <class T, int N, int Alignment>
struct alignas(Alignment) Pack {
  T x[N];
};

// What one access moves: 16 bytes, or an element where the addresses are not aligned to that. It is asked for by name:
// that keeps the compiler from merging the two cases, and says that the memory is global. What a step touches it
// touches once, so it goes past the first-level cache.
template <size_t Bytes>
using Access =
    std::tuple_element_t<std::bit_width(Bytes) - 1, std::tuple<unsigned char, unsigned short, float, double, uint4>>;
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

__device__ __forceinline__ double number(const void* at, bool is_double) {
  return is_double ? *static_cast<const double*>(at) : double(*static_cast<const float*>(at));
}

}  // namespace fusedopt::cuda
