// bfloat16 and float16 to float and back, rounded to nearest even, as loops that the compiler vectorizes. Included
// inside the namespace of an instruction set.

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

FUSEDOPT_HD uint32_t bits_of(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u; }
FUSEDOPT_HD float float_of(uint32_t u) { float x; __builtin_memcpy(&x, &u, 4); return x; }

FUSEDOPT_HD float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
FUSEDOPT_HD void narrow(float x, BFloat16& out) {
  const uint32_t u = bits_of(x);
  out.bits = x != x ? uint16_t{0x7fc0} : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

FUSEDOPT_HD float widen(Float16 x) {
  const float scaled = float_of((x.bits & 0x7fffu) << 13) * 0x1p112f;  // right for subnormals too
  const uint32_t magnitude = scaled >= 65536.f ? bits_of(scaled) | 0x7f800000u : bits_of(scaled);
  return float_of(magnitude | (x.bits & 0x8000u) << 16);
}
FUSEDOPT_HD void narrow(float x, Float16& out) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x47800000u) half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  out.bits = uint16_t(half | sign);
}

template <class T>
inline void widen(const T* in, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = widen(in[i]);
}
template <class T>
inline void narrow(const float* in, T* out, int n) {
  for (int i = 0; i < n; ++i) narrow(in[i], out[i]);
}

#ifdef FUSEDOPT_HAS_F16C
inline void widen(const Float16* in, float* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  for (; i < n; ++i) out[i] = widen(in[i]);
}
inline void narrow(const float* in, Float16* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) narrow(in[i], out[i]);
}
#endif
