// bfloat16 and float16 to float and back, rounded to nearest even, in arithmetic that compilers vectorize. Included
// inside the namespace of an instruction set or of the GPU.

template <int>
struct Half {
  uint16_t bits;
};
using BFloat16 = Half<0>;
using Float16 = Half<1>;

FUSEDOPT_HD uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
FUSEDOPT_HD float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

FUSEDOPT_HD float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
FUSEDOPT_HD BFloat16 narrow(float x, BFloat16) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
  const uint32_t u = bits_of(x);
  return {x != x ? uint16_t{0x7fc0} : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

FUSEDOPT_HD float widen(Float16 x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#endif
  const float scaled = float_of((x.bits & 0x7fffu) << 13) * 0x1p112f;  // right for subnormals too
  return float_of(bits_of(scaled) | (scaled >= 65536.f ? 0x7f800000u : 0) | (x.bits & 0x8000u) << 16);
}
FUSEDOPT_HD Float16 narrow(float x, Float16) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#endif
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t rest = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN, infinity
  return {uint16_t((magnitude < 0x47800000u ? finite : rest) | (u >> 16 & 0x8000u))};
}
