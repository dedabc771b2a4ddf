// What an operand is stored in to floats in registers and back, a vector at a time. Included by kernels.h.
#ifdef __AVX2__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // by GCC 12 of its own header, in AVX-512 code
#include <immintrin.h>
#endif

namespace fusedopt::cpu::FUSEDOPT_ISA {
namespace {

#include "../half.h"

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

// From and to element i of an operand. Float16 comes last, and so without a jump, as its own arithmetic is the least.
FUSEDOPT_HD Vector load(Storage storage, const void* from, int64_t i) {
  if (storage == Storage::kFloat32) [[unlikely]]
    return load(static_cast<const float*>(from) + i);
  if (storage == Storage::kBFloat16) return load(static_cast<const BFloat16*>(from) + i);
  return load(static_cast<const Float16*>(from) + i);
}
FUSEDOPT_HD void store(Vector x, Storage storage, void* to, int64_t i) {
  if (storage == Storage::kFloat32) [[unlikely]]
    return store(x, static_cast<float*>(to) + i);
  if (storage == Storage::kBFloat16) return store(x, static_cast<BFloat16*>(to) + i);
  return store(x, static_cast<Float16*>(to) + i);
}

}  // namespace
}  // namespace fusedopt::cpu::FUSEDOPT_ISA
