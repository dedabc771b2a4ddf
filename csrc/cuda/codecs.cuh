// What an operand is stored in to numbers in registers and back: neighbours, fetched, decoded, encoded and put.
#pragma once
#include "../random.h"
#include "access.cuh"

namespace fusedopt::cuda {

#include "../half.h"

#include "../codes.h"

// Where an operand lies from the first element of a chunk on, what it is stored in, and what its random bits follow
// from.
struct Place {
  void *at, *beside;
  Storage storage;
  uint64_t key;
  int operand;
  uint32_t begin, block;  // the numbers of the first element and of its block
  const Tensor* tensor;

  // The largest magnitude of a block of codes. Looked up each time: a pointer for every operand would take registers
  // from all that is not in blocks.
  __device__ __forceinline__ uint32_t* largest(int i) const {
    return static_cast<uint32_t*>(tensor->beside[operand]) + block + i / int(kBlock);
  }
};

// N neighbours of an operand in registers, stored as they are computed in.
template <class T, int N>
struct Native {
  using F = T;
  F x[N];

  // Grouped, in accesses of 16 bytes; otherwise of an element.
  template <bool Grouped>
  __device__ __forceinline__ void fetch(const Place& from, int i, int) {
    using From = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    *this = __builtin_bit_cast(Native, load(reinterpret_cast<const From*>(static_cast<const F*>(from.at) + i)));
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(const Place& to, int i, int) const {
    using To = Pack<F, N, Grouped ? 16 : sizeof(F)>;
    store(reinterpret_cast<To*>(static_cast<F*>(to.at) + i), __builtin_bit_cast(To, *this));
  }
  __device__ __forceinline__ void decode(const Place&, int, int) {}
  __device__ __forceinline__ void encode(const Place&, int, int) {}
  __device__ __forceinline__ F get(int n) const { return x[n]; }
  __device__ __forceinline__ void set(int n, F value) { x[n] = value; }
};

// The same of any storage of at most 32 bits. Once they are decoded each has a word; before, two of 16 bits share one,
// or four of 8, and what lies beside them comes after. Grouped, N in accesses of 16 bytes or what is less; otherwise
// those that there are, of an element. A warp's neighbours are a block of codes.
template <int N>
struct Coded {
  static_assert(32 * N == kBlock);
  using F = float;
  uint32_t word[N];

  template <bool Grouped>
  __device__ __forceinline__ void fetch(const Place& from, int i, int there) {
    if (from.storage == Storage::kFloat32) {
      load_words<Grouped>(from.at, i, there);
    } else if (from.storage == Storage::kMaster) {
      // Its float16 is looked at when it is decoded: here are no registers for it.
      load_words<Grouped>(from.beside, i, there);
    } else if (is_in_blocks(from.storage)) {
      load_parts<Grouped, uint8_t>(from.at, i, 0, there);
      if (there > 0) word[N / 4] = load(from.largest(i));
    } else {
      load_parts<Grouped, uint16_t>(from.at, i, 0, there);
      if (from.storage == Storage::kSplit) load_parts<Grouped, uint16_t>(from.beside, i, N, there);
    }
  }
  template <bool Grouped>
  __device__ __forceinline__ void put(const Place& to, int i, int there) const {
    if (to.storage == Storage::kFloat32) {
      store_words<Grouped>(to.at, i, there);
    } else if (to.storage == Storage::kMaster) {
      store_words<Grouped>(to.beside, i, there);
      Coded rounded = *this;
      rounded.template pack<Float16>();
      rounded.template store_parts<Grouped, uint16_t>(to.at, i, 0, there);
    } else if (is_in_blocks(to.storage)) {
      store_parts<Grouped, uint8_t>(to.at, i, 0, there);
      if (i % int(kBlock) == 0) store(to.largest(i), word[N / 4]);
    } else {
      store_parts<Grouped, uint16_t>(to.at, i, 0, there);
      if (to.storage == Storage::kSplit) store_parts<Grouped, uint16_t>(to.beside, i, N, there);
    }
  }
  __device__ __forceinline__ void decode(const Place& from, int i, int there) {
    switch (from.storage) {
      case Storage::kBFloat16:
      case Storage::kStochastic: unpack<BFloat16>(); break;
      case Storage::kFloat16: unpack<Float16>(); break;
      case Storage::kSplit: join(); break;
      case Storage::kMaster:
#pragma unroll
        for (int n = 0; n < N; ++n) {
          if (n >= there) continue;
          const Float16 param{load(static_cast<const uint16_t*>(from.at) + i + n)};
          if (narrow(get(n), Float16{}).bits != param.bits) set(n, widen(param));  // somebody has set it
        }
        break;
      case Storage::kCodes:
      case Storage::kCodesByChance: decode_block<Codes<false>>(); break;
      case Storage::kSignedCodes:
      case Storage::kSignedCodesByChance: decode_block<Codes<true>>(); break;
      default: break;
    }
  }
  __device__ __forceinline__ void encode(const Place& to, int i, int there) {
    switch (to.storage) {
      case Storage::kBFloat16: pack<BFloat16>(); break;
      case Storage::kFloat16: pack<Float16>(); break;
      case Storage::kStochastic: {
        const Key key = key_of(to.key, to.operand);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
          const uint32_t bits = random_bits((to.begin + uint32_t(i + n)) / 2, key);
          word[n] = quiet(n) + (bits & 0xffff), word[n + 1] = quiet(n + 1) + (bits >> 16);
        }
        pack_upper();
        break;
      }
      case Storage::kSplit: split(); break;
      case Storage::kCodes:
      case Storage::kCodesByChance: encode_block<Codes<false>>(to, i, there); break;
      case Storage::kSignedCodes:
      case Storage::kSignedCodesByChance: encode_block<Codes<true>>(to, i, there); break;
      default: break;
    }
  }
  __device__ __forceinline__ F get(int n) const { return float_of(word[n]); }
  __device__ __forceinline__ void set(int n, F value) { word[n] = bits_of(value); }

 private:
  template <bool Grouped>
  __device__ __forceinline__ void load_words(const void* at, int i, int there) {
    const auto* from = static_cast<const uint32_t*>(at) + i;
    if constexpr (Grouped)
      *this = __builtin_bit_cast(Coded, load(reinterpret_cast<const Pack<uint32_t, N, 16>*>(from)));
    else
#pragma unroll
      for (int n = 0; n < N; ++n) word[n] = n < there ? load(from + n) : 0;
  }
  template <bool Grouped>
  __device__ __forceinline__ void store_words(void* at, int i, int there) const {
    auto* to = static_cast<uint32_t*>(at) + i;
    if constexpr (Grouped)
      store(reinterpret_cast<Pack<uint32_t, N, 16>*>(to), __builtin_bit_cast(Pack<uint32_t, N, 16>, *this));
    else
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < there) store(to + n, word[n]);
  }
  // Part number `at` of the words, of as many bits as T has.
  template <class T>
  __device__ __forceinline__ T part(int at) const {
    constexpr int kInWord = 4 / sizeof(T);
    return T(word[at / kInWord] >> at % kInWord * 8 * int(sizeof(T)));
  }
  template <class T>
  __device__ __forceinline__ void set_part(int at, T bits) {
    constexpr int kInWord = 4 / sizeof(T);
    const int shift = at % kInWord * 8 * int(sizeof(T));
    word[at / kInWord] = (shift ? word[at / kInWord] & ((1u << shift) - 1) : 0) | uint32_t{bits} << shift;
  }
  template <bool Grouped, class T>
  __device__ __forceinline__ void load_parts(const void* from, int i, int first, int there) {
    if constexpr (Grouped) {
      using From = Pack<T, N, N * sizeof(T)>;
      const From parts = load(reinterpret_cast<const From*>(static_cast<const T*>(from) + i));
#pragma unroll
      for (int n = 0; n < N; ++n) set_part(first + n, parts.x[n]);
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) set_part(first + n, n < there ? load(static_cast<const T*>(from) + i + n) : T(0));
    }
  }
  template <bool Grouped, class T>
  __device__ __forceinline__ void store_parts(void* to, int i, int first, int there) const {
    if constexpr (Grouped) {
      using To = Pack<T, N, N * sizeof(T)>;
      To parts;
#pragma unroll
      for (int n = 0; n < N; ++n) parts.x[n] = part<T>(first + n);
      store(reinterpret_cast<To*>(static_cast<T*>(to) + i), parts);
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n)
        if (n < there) store(static_cast<T*>(to) + i + n, part<T>(first + n));
    }
  }
  template <class T>
  __device__ __forceinline__ void unpack() {
#pragma unroll
    for (int n = N - 1; n >= 0; --n) word[n] = bits_of(widen(T{part<uint16_t>(n)}));
  }
  template <class T>
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int n = 0; n < N; ++n) set_part(n, narrow(get(n), T{}).bits);
  }
  __device__ __forceinline__ void pack_upper() {
#pragma unroll
    for (int n = 0; n < N; ++n) set_part(n, uint16_t(word[n] >> 16));
  }
  // The bits of a number, of NaN those of one that stays so in the upper half.
  __device__ __forceinline__ uint32_t quiet(int n) const { return get(n) != get(n) ? 0x7fc00000u : word[n]; }
  __device__ __forceinline__ void join() {
    uint32_t joined[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint32_t bits = uint32_t{part<uint16_t>(n)} << 16;
      // A parameter that somebody has set to 0 or infinity has no rest, whatever is left of an earlier one.
      const bool counts = (bits & 0x7fffffff) - 1 < 0x7f7fffff;
      joined[n] = bits + (counts ? uint32_t(int32_t(int16_t(part<uint16_t>(N + n)))) : 0);
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
    for (int n = 0; n < N; ++n) set_part(n, uint16_t((bits[n] + 0x8000) >> 16));
#pragma unroll
    for (int n = 0; n < N; ++n) set_part(N + n, uint16_t(bits[n]));
  }
  template <class C>
  __device__ __forceinline__ void decode_block() {
    const float factor = C::from_codes(get(N / 4));
#pragma unroll
    for (int n = N - 1; n >= 0; --n) word[n] = bits_of(C::decode(part<uint8_t>(n), factor));
  }
  template <class C>
  __device__ __forceinline__ void encode_block(const Place& to, int i, int there) {
    uint32_t largest = 0;  // as bits, which are in the order of the numbers, and NaN's come last
    const auto see = [&](uint32_t magnitude) { largest = magnitude > largest ? magnitude : largest; };
#pragma unroll
    for (int n = 0; n < N; ++n) see(n < there ? word[n] & 0x7fffffff : 0);
    for (int offset = 16; offset; offset /= 2) see(__shfl_xor_sync(~0u, largest, offset));
    const float factor = C::to_codes(float_of(largest));
    if (is_by_chance(to.storage)) {
      const Key key = key_of(to.key, to.operand);
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        const uint32_t bits = random_bits((to.begin + uint32_t(i + n)) / 2, key);
        set_part(n, C::encode(get(n), factor, C::chance(bits & 0xffff)));
        set_part(n + 1, C::encode(get(n + 1), factor, C::chance(bits >> 16)));
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) set_part(n, C::encode(get(n), factor, 1u << (C::kShift - 1)));
    }
    set(N / 4, C::stored(float_of(largest)));
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
