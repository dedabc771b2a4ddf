// What an operand is stored in to numbers in registers and back: neighbours, fetched, decoded, encoded and put.
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

#include "../random.h"
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

__device__ __forceinline__ double number(const void* at, bool is_double) {
  return is_double ? *static_cast<const double*>(at) : double(*static_cast<const float*>(at));
}

// Where an operand lies from the first element of a chunk on, what it is stored in, and what its random bits follow
// from.
struct Place {
  void *at, *beside;
  Storage storage;
  uint64_t key;
  int operand;
  uint32_t begin;  // the number of the first element
};

// N neighbours of an operand in registers, stored as they are computed in.
template <class T, int N>
struct Native {
  using F = T;
  F x[N];

  // Grouped, in accesses of 16 bytes; otherwise of an element.
  template <bool Grouped>
  __device__ __forceinline__ void fetch(const Place& from, int i) {
    using From = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    *this = __builtin_bit_cast(Native, load(reinterpret_cast<const From*>(static_cast<const F*>(from.at) + i)));
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(const Place& to, int i) const {
    using To = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    store(reinterpret_cast<To*>(static_cast<F*>(to.at) + i), __builtin_bit_cast(To, *this));
  }
  __device__ __forceinline__ void decode(const Place&, int) {}
  __device__ __forceinline__ void encode(const Place&, int) {}
  __device__ __forceinline__ F get(int n) const { return x[n]; }
  __device__ __forceinline__ void set(int n, F value) { x[n] = value; }
};

// The same of any storage of at most 32 bits. Once they are decoded each has a word; before, two of 16 bits share one,
// and what lies beside them the second half of the words.
template <int N>
struct Coded {
  using F = float;
  uint32_t word[N];

  template <bool Grouped>
  __device__ __forceinline__ void fetch(const Place& from, int i) {
    if (from.storage == Storage::kFloat32) {
      load_words<Grouped>(from.at, i);
    } else if (from.storage == Storage::kMaster) {
      load_words<Grouped>(from.beside, i);  // its float16 is looked at when it is decoded: here are no registers for it
    } else {
      load_halves<Grouped>(from.at, i, 0);
      if (from.storage == Storage::kSplit) load_halves<Grouped>(from.beside, i, N);
    }
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(const Place& to, int i) const {
    if (to.storage == Storage::kFloat32) {
      store_words<Grouped>(to.at, i);
    } else if (to.storage == Storage::kMaster) {
      store_words<Grouped>(to.beside, i);
      Coded rounded = *this;
      rounded.template pack<Float16>();
      rounded.template store_halves<Grouped>(to.at, i, 0);
    } else {
      store_halves<Grouped>(to.at, i, 0);
      if (to.storage == Storage::kSplit) store_halves<Grouped>(to.beside, i, N);
    }
  }
  __device__ __forceinline__ void decode(const Place& from, int i) {
    switch (from.storage) {
      case Storage::kBFloat16:
      case Storage::kStochastic: unpack<BFloat16>(); break;
      case Storage::kFloat16: unpack<Float16>(); break;
      case Storage::kSplit: join(); break;
      case Storage::kMaster:
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const Float16 param{load(static_cast<const uint16_t*>(from.at) + i + n)};
          if (narrow(get(n), Float16{}).bits != param.bits) set(n, widen(param));  // somebody has set it
        }
        break;
      default: break;
    }
  }
  __device__ __forceinline__ void encode(const Place& to, int i) {
    switch (to.storage) {
      case Storage::kBFloat16: pack<BFloat16>(); break;
      case Storage::kFloat16: pack<Float16>(); break;
      case Storage::kStochastic: {
        const Key key = key_of(to.key, to.operand);
#pragma unroll
        for (int n = 0; n < N; ++n) word[n] = quiet(n) + (random_bits(to.begin + uint32_t(i + n), key) >> 16);
        pack_upper();
        break;
      }
      case Storage::kSplit: split(); break;
      default: break;
    }
  }
  __device__ __forceinline__ F get(int n) const { return float_of(word[n]); }
  __device__ __forceinline__ void set(int n, F value) { word[n] = bits_of(value); }

 private:
  template <bool Grouped>
  __device__ __forceinline__ void load_words(const void* from, int i) {
    using From = Pack<uint32_t, N, Grouped ? 16 : 4>;
    *this = __builtin_bit_cast(Coded, load(reinterpret_cast<const From*>(static_cast<const uint32_t*>(from) + i)));
  }
  template <bool Grouped>
  __device__ __forceinline__ void store_words(void* to, int i) const {
    using To = Pack<uint32_t, N, Grouped ? 16 : 4>;
    store(reinterpret_cast<To*>(static_cast<uint32_t*>(to) + i), __builtin_bit_cast(To, *this));
  }
  // Half h of the words: 2 * N of them.
  __device__ __forceinline__ uint16_t half(int h) const { return uint16_t(word[h / 2] >> h % 2 * 16); }
  __device__ __forceinline__ void set_half(int h, uint16_t bits) {
    word[h / 2] = h % 2 ? (word[h / 2] & 0xffff) | uint32_t{bits} << 16 : bits;
  }
  template <bool Grouped>
  __device__ __forceinline__ void load_halves(const void* from, int i, int first) {
    using From = Pack<uint16_t, N, Grouped ? 16 : 2>;
    const From halves = load(reinterpret_cast<const From*>(static_cast<const uint16_t*>(from) + i));
#pragma unroll
    for (int n = 0; n < N; ++n) set_half(first + n, halves.x[n]);
  }
  template <bool Grouped>
  __device__ __forceinline__ void store_halves(void* to, int i, int first) const {
    using To = Pack<uint16_t, N, Grouped ? 16 : 2>;
    To halves;
#pragma unroll
    for (int n = 0; n < N; ++n) halves.x[n] = half(first + n);
    store(reinterpret_cast<To*>(static_cast<uint16_t*>(to) + i), halves);
  }
  template <class T>
  __device__ __forceinline__ void unpack() {
#pragma unroll
    for (int n = N - 1; n >= 0; --n) word[n] = bits_of(widen(T{half(n)}));
  }
  template <class T>
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int n = 0; n < N; ++n) set_half(n, narrow(get(n), T{}).bits);
  }
  __device__ __forceinline__ void pack_upper() {
#pragma unroll
    for (int n = 0; n < N; ++n) set_half(n, uint16_t(word[n] >> 16));
  }
  // The bits of a number, of NaN those of one that stays so in the upper half.
  __device__ __forceinline__ uint32_t quiet(int n) const { return get(n) != get(n) ? 0x7fc00000u : word[n]; }
  __device__ __forceinline__ void join() {
    uint32_t joined[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint32_t bits = uint32_t{half(n)} << 16;
      // A parameter that somebody has set to 0 or infinity has no rest, whatever is left of an earlier one.
      const bool counts = (bits & 0x7fffffff) - 1 < 0x7f7fffff;
      joined[n] = bits + (counts ? uint32_t(int32_t(int16_t(half(N + n)))) : 0);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) word[n] = joined[n];
  }
  // Half way up, unlike a plain bfloat16: then the lower half, as a signed number, is what was rounded off.
  __device__ __forceinline__ void split() {
    uint32_t bits[N];
#pragma unroll
    for (int n = 0; n < N; ++n) bits[n] = quiet(n);
#pragma unroll
    for (int n = 0; n < N; ++n) set_half(n, uint16_t((bits[n] + 0x8000) >> 16));
#pragma unroll
    for (int n = 0; n < N; ++n) set_half(N + n, uint16_t(bits[n]));
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

}  // namespace fusedopt::cuda
