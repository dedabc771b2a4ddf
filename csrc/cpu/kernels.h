// The chunk loops, written once. baseline.cpp, avx2.cpp and avx512.cpp name an instruction set, for which
// setup.py compiles them, and include this.
// Everything lives in an anonymous namespace inside that set's own, so that no function compiled for AVX-512 can be
// picked by the linker for the others; of std there are only types.
#ifdef __F16C__
#include <immintrin.h>
#endif
#include <tuple>
#include <utility>

#include "cpu.h"

namespace fusedopt::cpu::FUSEDOPT_ISA {
namespace {

#include "../half.h"

inline void widen(const auto* in, float* out, int n, int i = 0) {
  for (; i < n; ++i) out[i] = widen(in[i]);
}
inline void narrow(const float* in, auto* out, int n, int i = 0) {
  for (; i < n; ++i) out[i] = narrow(in[i], out[i]);
}

#ifdef __F16C__
inline void widen(const Float16* in, float* out, int n) {
  for (int i = 0; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  widen<Float16>(in, out, n, n & ~7);
}
inline void narrow(const float* in, Float16* out, int n) {
  for (int i = 0; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
  narrow<Float16>(in, out, n, n & ~7);
}
#endif

#define INLINED __attribute__((always_inline))  // before the loops are vectorized, or their sums live in memory
constexpr int kBlock = 64;  // half-precision operands are widened this many at a time, in the first-level cache

// Sums are taken in lanes, element i in lane i % kLanes, which are added in pairs at the end: in the same order
// whatever the instruction set.
constexpr int kLanes = 16;
using Lanes = double[2][kLanes];

// Loads the operands that are read, calls `body` on registers, stores those that are written: over n elements. With
// Sums, the body adds to its first two arguments.
template <bool Sums, unsigned Reads, unsigned Writes, class F, class Body, int... I>
FUSEDOPT_HD void loop(F* const (&addr)[kMaxOperands], int64_t n, Body body, Lanes& sums,
                      std::integer_sequence<int, I...>) {
  F* const p[] = {addr[I]...};
  const auto element = [=](int64_t i, double& s0, double& s1) INLINED {
    F x[] = {(Reads >> I & 1 ? p[I][i] : F(0))...};
    body(s0, s1, x[I]...);
    ((Writes >> I & 1 ? void(p[I][i] = x[I]) : void()), ...);
  };
  int64_t i = 0;
  if constexpr (Sums) {
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) element(i + l, sums[0][l], sums[1][l]);
    }
    for (int l = 0; i < n; ++l, ++i) element(i, sums[0][l], sums[1][l]);
  } else {
    double unused;
#pragma omp simd
    for (i = 0; i < n; ++i) element(i, unused, unused);
  }
}

// Applies `body` to n elements in storage type D. Its sums are added to `total`.
template <bool Sums, unsigned Reads, unsigned Writes, int D, class Body>
inline void sweep(void* const* addr, int64_t n, Body body, double* total = nullptr) {
  using T = Storage<D>;
  using F = Compute<D>;
  constexpr auto operands = std::make_integer_sequence<int, kMaxOperands>{};
  Lanes sums = {};
  F* p[kMaxOperands];
  if constexpr (sizeof(T) == sizeof(F)) {
    for (int k = 0; k < kMaxOperands; ++k) p[k] = static_cast<F*>(addr[k]);
    loop<Sums, Reads, Writes>(p, n, body, sums, operands);
  } else {
    alignas(64) F block[kMaxOperands][kBlock];
    for (int k = 0; k < kMaxOperands; ++k) p[k] = block[k];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int m = int(n - begin < kBlock ? n - begin : kBlock);
      for (int k = 0; k < kMaxOperands; ++k)
        if (Reads >> k & 1) widen(static_cast<const T*>(addr[k]) + begin, p[k], m);
      loop<Sums, Reads, Writes>(p, m, body, sums, operands);
      for (int k = 0; k < kMaxOperands; ++k)
        if (Writes >> k & 1) narrow(p[k], static_cast<T*>(addr[k]) + begin, m);
    }
  }
  if constexpr (!Sums) return;
  for (double (&lanes)[kLanes] : sums) {
    for (int width = kLanes / 2; width; width /= 2)
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    *total++ += lanes[0];
  }
}

template <template <class> class Rule, int D>
void apply(void* const* addr, int64_t n, const void* row, double* sums) {
  using F = Compute<D>;
  const auto rule = *static_cast<const Rule<F>*>(row);
  constexpr Operands operands = Rule<F>::kOperands;
  constexpr bool kSums = kTakesSums<Rule<F>>;
  if constexpr (scope_of<Rule<F>>() == Scope::kGroup) {
    if (rule.is_late()) {
      constexpr Operands late = Rule<F>::kLateOperands;
      const auto body = [=, rate = rule.late_rate()](double&, double&, F& param, F& grad, F& a, F& b, F& c)
                            INLINED { rule.late(rate, param, grad, a, b, c); };
      return sweep<false, late.reads, late.writes, D>(addr, n, body);
    }
  }
  const auto body = [=](double& s0, double& s1, F& param, F& grad, F& a, F& b, F& c) INLINED {
    if constexpr (kSums) rule(s0, s1, param, grad, a, b, c, [](F x) INLINED { return stored<D>(x); });
    else rule(param, grad, a, b, c);
  };
  sweep<kSums, operands.reads, operands.writes, D>(addr, n, body, sums);
}

template <template <class> class Rule, int D>
void second(void* const* addr, int64_t n, const void* row, double number) {
  using F = Compute<D>;
  const auto rule = *static_cast<const Rule<F>*>(row);
  constexpr Operands operands = Rule<F>::kSecondOperands;
  const auto body = [=, number = F(number)](double&, double&, F& param, F& grad, F& a, F& b, F& c)
                        INLINED { rule.second(number, param, grad, a, b, c); };
  sweep<false, operands.reads, operands.writes, D>(addr, n, body);
}

template <template <class> class Rule, int D>
constexpr auto second_of() -> void (*)(void* const*, int64_t, const void*, double) {
  if constexpr (scope_of<Rule<float>>() == Scope::kTensor) return second<Rule, D>;
  else return nullptr;
}

template <int D>
void square_sum(void* const* addr, int64_t n, double* sums) {
  const auto body = [](double& s0, double&, auto&, auto& grad, auto&...) INLINED { s0 += double(grad) * double(grad); };
  sweep<true, 0b10, 0, D>(addr, n, body, sums);
}

}  // namespace

#define X(name, ...) \
  {apply<by_name::name, 0>, apply<by_name::name, 1>, apply<by_name::name, 2>, apply<by_name::name, 3>},
#define Y(name, ...)                                                                            \
  {second_of<by_name::name, 0>(), second_of<by_name::name, 1>(), second_of<by_name::name, 2>(), \
   second_of<by_name::name, 3>()},
extern const Kernels kKernels = {
    {FUSEDOPT_RULES(X)}, {FUSEDOPT_RULES(Y)}, {square_sum<0>, square_sum<1>, square_sum<2>, square_sum<3>}};
#undef X
#undef Y

}  // namespace fusedopt::cpu::FUSEDOPT_ISA
