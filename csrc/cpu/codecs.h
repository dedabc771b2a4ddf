// What an operand is stored in to floats in registers and back, a vector at a time. Included by kernels.h.
#ifdef __AVX2__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // by GCC 12 of its own header, in AVX-512 code
#include <immintrin.h>
#endif
#include "../random.h"

namespace fusedopt::cpu::FUSEDOPT_ISA {
namespace {

#include "../half.h"

#include "../codes.h"

// By value and by intrinsics, because they have to stay in registers: on the way through memory a step in float16 takes
// twice the time.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
using Vector = __m512;
FUSEDOPT_HD __m256i halves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
FUSEDOPT_HD Vector load(const float* from) { return _mm512_loadu_ps(from); }
FUSEDOPT_HD Vector load(const Float16* from) { return _mm512_cvtph_ps(halves(from)); }
FUSEDOPT_HD Vector load(const BFloat16* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(from)), 16));
}
FUSEDOPT_HD void store(Vector x, float* to) { _mm512_storeu_ps(to, x); }
FUSEDOPT_HD void store(Vector x, Float16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
FUSEDOPT_HD void store(Vector x, BFloat16* to) {
  const __m512i bits = _mm512_castps_si512(x),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
}
#elif defined(__AVX2__)
constexpr int kWidth = 8;
using Vector = __m256;
FUSEDOPT_HD __m128i halves(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
FUSEDOPT_HD Vector load(const float* from) { return _mm256_loadu_ps(from); }
FUSEDOPT_HD Vector load(const Float16* from) { return _mm256_cvtph_ps(halves(from)); }
FUSEDOPT_HD Vector load(const BFloat16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(from)), 16));
}
FUSEDOPT_HD void store(Vector x, float* to) { _mm256_storeu_ps(to, x); }
FUSEDOPT_HD void store(Vector x, Float16* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
FUSEDOPT_HD void store(Vector x, BFloat16* to) {
  const __m256i bits = _mm256_castps_si256(x),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), is_nan);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
#else
constexpr int kWidth = 16;
struct Vector {
  float x[kWidth];
};
FUSEDOPT_HD float widen(float x) { return x; }
FUSEDOPT_HD float narrow(float x, float) { return x; }
FUSEDOPT_HD Vector load(const auto* from) {
  Vector v;
#pragma omp simd
  for (int l = 0; l < kWidth; ++l) v.x[l] = widen(from[l]);
  return v;
}
FUSEDOPT_HD void store(Vector v, auto* to) {
#pragma omp simd
  for (int l = 0; l < kWidth; ++l) to[l] = narrow(v.x[l], to[l]);
}
#endif

// The other storages, in operators on vectors.
using Words = uint32_t __attribute__((vector_size(4 * kWidth)));
using Shorts = uint16_t __attribute__((vector_size(2 * kWidth)));
using SignedWords = int32_t __attribute__((vector_size(4 * kWidth)));
using SignedShorts = int16_t __attribute__((vector_size(2 * kWidth)));
// What __builtin_convertvector is, which GCC 12 takes twice the instructions for.
FUSEDOPT_HD Words words(Shorts x) {
#if defined(__AVX512F__)
  return __builtin_bit_cast(Words, _mm512_cvtepu16_epi32(__builtin_bit_cast(__m256i, x)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(Words, _mm256_cvtepu16_epi32(__builtin_bit_cast(__m128i, x)));
#else
  return __builtin_convertvector(x, Words);
#endif
}
FUSEDOPT_HD Shorts shorts(const void* from) {
  Shorts x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
FUSEDOPT_HD void store(Shorts x, void* to) { __builtin_memcpy(to, &x, sizeof x); }
// The bits of floats, of NaN those of one that stays so in the upper half.
FUSEDOPT_HD Words bits_of(Vector x) {
  using Floats = float __attribute__((vector_size(4 * kWidth)));
  const Floats numbers = __builtin_bit_cast(Floats, x);
  return numbers == numbers ? __builtin_bit_cast(Words, x) : Words{} + 0x7fc00000;
}
// 16 bits for each element of two vectors from `first` on, which is even.
struct RandomBits {
  uint16_t at[2 * kWidth];

  FUSEDOPT_HD RandomBits(uint32_t first, Key key) {
    Words pair;
    for (int l = 0; l < kWidth; ++l) pair[l] = uint32_t(l);
    pair = random_bits(pair + first / 2, key);
    __builtin_memcpy(at, &pair, sizeof at);
  }
};
FUSEDOPT_HD void store_by_chance(Vector x, void* to, const uint16_t* random) {
  store(__builtin_convertvector((bits_of(x) + words(shorts(random))) >> 16, Shorts), to);
}

FUSEDOPT_HD Vector load_split(const void* upper, const void* lower) {
  const SignedShorts rest = __builtin_bit_cast(SignedShorts, shorts(lower));
  const Words bits = words(shorts(upper)) << 16, magnitude = bits & 0x7fffffff;
  // A parameter that somebody has set to 0 or infinity has no rest, whatever is left of an earlier one.
  const Words counts = __builtin_bit_cast(Words, magnitude - 1 < 0x7f7fffff);
  return __builtin_bit_cast(Vector,
                            bits + (counts & __builtin_bit_cast(Words, __builtin_convertvector(rest, SignedWords))));
}
// Half way up, unlike a plain bfloat16: then the lower half, as a signed number, is what was rounded off.
FUSEDOPT_HD void store_split(Vector x, void* upper, void* lower) {
  const Words bits = bits_of(x);
  store(__builtin_convertvector((bits + 0x8000) >> 16, Shorts), upper);
  store(__builtin_convertvector(bits & 0xffff, Shorts), lower);
}

// The master where it still is what the parameter is the rounding of; else somebody has set the parameter.
FUSEDOPT_HD Vector load_master(const Float16* param, const float* master) {
  const Vector exact = load(master), rounded = load(param);
  Float16 narrowed[kWidth];
  store(exact, narrowed);
  const Shorts same = __builtin_bit_cast(Shorts, shorts(narrowed) == shorts(param));
  const SignedWords mask = __builtin_convertvector(__builtin_bit_cast(SignedShorts, same), SignedWords);
  return __builtin_bit_cast(Vector,
                            mask ? __builtin_bit_cast(SignedWords, exact) : __builtin_bit_cast(SignedWords, rounded));
}

// An operand as the loops see it.
struct Place {
  void *at, *beside;
  Storage storage;
  Key key;
};

// From and to elements i and up of an operand. Float16 comes last, and so without a jump, as its own arithmetic is the
// least.
template <class To>
FUSEDOPT_HD void load(To& to, const Place& from, int64_t i) {
  const auto each = [&](auto f) {
    for (Vector& x : to.whole) x = f(i + (&x - to.whole) * kWidth);
  };
  if (from.storage == Storage::kFloat32) [[unlikely]]
    return each([&](int64_t i) { return load(static_cast<const float*>(from.at) + i); });
  if (from.storage == Storage::kBFloat16 || from.storage == Storage::kStochastic)
    return each([&](int64_t i) { return load(static_cast<const BFloat16*>(from.at) + i); });
  if (from.storage == Storage::kSplit) [[unlikely]]
    return each([&](int64_t i) {
      return load_split(static_cast<const BFloat16*>(from.at) + i, static_cast<const int16_t*>(from.beside) + i);
    });
  if (from.storage == Storage::kMaster) [[unlikely]]
    return each([&](int64_t i) {
      return load_master(static_cast<const Float16*>(from.at) + i, static_cast<const float*>(from.beside) + i);
    });
  each([&](int64_t i) { return load(static_cast<const Float16*>(from.at) + i); });
}
template <class From>
FUSEDOPT_HD void store(const From& from, const Place& to, int64_t i, uint32_t begin) {
  const auto each = [&](auto f) {
    for (const Vector& x : from.whole) f(x, i + (&x - from.whole) * kWidth);
  };
  if (to.storage == Storage::kFloat32) [[unlikely]]
    return each([&](Vector x, int64_t i) { store(x, static_cast<float*>(to.at) + i); });
  if (to.storage == Storage::kBFloat16)
    return each([&](Vector x, int64_t i) { store(x, static_cast<BFloat16*>(to.at) + i); });
  if (to.storage == Storage::kStochastic) [[unlikely]] {
    const RandomBits random(begin + uint32_t(i), to.key);
    return each([&, first = i](Vector x, int64_t i) {
      store_by_chance(x, static_cast<BFloat16*>(to.at) + i, random.at + (i - first));
    });
  }
  if (to.storage == Storage::kSplit) [[unlikely]]
    return each([&](Vector x, int64_t i) {
      store_split(x, static_cast<BFloat16*>(to.at) + i, static_cast<int16_t*>(to.beside) + i);
    });
  if (to.storage == Storage::kMaster) [[unlikely]]
    each([&](Vector x, int64_t i) { store(x, static_cast<float*>(to.beside) + i); });
  each([&](Vector x, int64_t i) { store(x, static_cast<Float16*>(to.at) + i); });
}

// The n numbers of a block, in codes. Once for all rules: a call is nothing to a block.
template <bool Signed>
__attribute__((noinline)) void decode(const Place& from, int n, float* to) {
  const auto* codes = static_cast<const uint8_t*>(from.at);
  const float factor = Codes<Signed>::from_codes(*static_cast<const float*>(from.beside));
#pragma omp simd
  for (int l = 0; l < n; ++l) to[l] = Codes<Signed>::decode(codes[l], factor);
}
template <bool Signed>
__attribute__((noinline)) void encode(const float* from, int n, const Place& to, uint32_t begin) {
  using C = Codes<Signed>;
  uint32_t largest = 0;  // as bits, which are in the order of the numbers, and NaN's come last
#pragma omp simd reduction(max : largest)
  for (int l = 0; l < n; ++l) {
    const uint32_t magnitude = bits_of(from[l]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  auto* codes = static_cast<uint8_t*>(to.at);
  const float factor = C::to_codes(float_of(largest));
  *static_cast<float*>(to.beside) = C::stored(float_of(largest));
  if (is_by_chance(to.storage)) {
    uint16_t random[kBlock];
    for (int l = 0; l < n; l += 2 * kWidth) {
      const RandomBits bits(begin + uint32_t(l), to.key);
      __builtin_memcpy(random + l, bits.at, sizeof bits.at);
    }
#pragma omp simd
    for (int l = 0; l < n; ++l) codes[l] = C::encode(from[l], factor, C::chance(random[l]));
  } else {
#pragma omp simd
    for (int l = 0; l < n; ++l) codes[l] = C::encode(from[l], factor, 1u << (C::kShift - 1));
  }
}

}  // namespace
}  // namespace fusedopt::cpu::FUSEDOPT_ISA
