// The chunk loops, written once. baseline.cpp, avx2.cpp and avx512.cpp set the target, define FUSEDOPT_ISA and
// include this. Everything lives in an anonymous namespace inside the one of the instruction set, so that no function
// compiled for AVX-512 can be picked by the linker for the others; only <utility>'s index sequences come from std.
#include <utility>

#include "kernels.h"
#ifdef FUSEDOPT_HAS_F16C
#include <immintrin.h>
#endif

namespace fusedopt::cpu::FUSEDOPT_ISA {
namespace {

#include "half.h"

// Storage types in the order of Dtype, and what each computes in.
template <int D> struct Storage;
template <> struct Storage<0> { using type = float; using compute = float; };
template <> struct Storage<1> { using type = double; using compute = double; };
template <> struct Storage<2> { using type = BFloat16; using compute = float; };
template <> struct Storage<3> { using type = Float16; using compute = float; };

constexpr int kBlock = 64;  // half-precision operands are widened this many at a time, in the first-level cache

// Loads each operand of `body`, calls it on registers, stores what it writes: over n elements of the compute type.
template <unsigned Writes, class F, class Body, int... I>
inline __attribute__((always_inline)) void loop(F* const* addr, int64_t n, Body body, std::integer_sequence<int, I...>) {
  F* const p[] = {addr[I]...};
  double s0 = 0, s1 = 0;
#pragma omp simd reduction(+ : s0, s1)
  for (int64_t i = 0; i < n; ++i) {
    F x[] = {p[I][i]...};
    body(s0, s1, x[I]...);
    ((Writes >> I & 1 ? void(p[I][i] = x[I]) : void()), ...);
  }
  body.finish(s0, s1);
}

template <unsigned Reads, unsigned Writes, int Count, class T, class F, class Body>
inline void sweep(void* const* addr, int64_t n, Body body) {
  constexpr auto operands = std::make_integer_sequence<int, Count>{};
  F* p[Count];
  if constexpr (sizeof(T) == sizeof(F)) {
    for (int k = 0; k < Count; ++k) p[k] = static_cast<F*>(addr[k]);
    loop<Writes>(p, n, body, operands);
  } else {
    alignas(64) F block[Count][kBlock];
    for (int k = 0; k < Count; ++k) p[k] = block[k];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int m = int(n - begin < kBlock ? n - begin : kBlock);
      for (int k = 0; k < Count; ++k)
        if (Reads >> k & 1) widen(static_cast<const T*>(addr[k]) + begin, p[k], m);
      loop<Writes>(p, m, body, operands);
      for (int k = 0; k < Count; ++k)
        if (Writes >> k & 1) narrow(p[k], static_cast<T*>(addr[k]) + begin, m);
    }
  }
}

struct NoSums {
  void finish(double, double) const {}
};
template <class Rule>
struct Elementwise : NoSums {
  Rule rule;
  explicit Elementwise(const Rule& rule) : rule(rule) {}
  template <class... F>
  FUSEDOPT_HD void operator()(double&, double&, F&... x) const { rule(x...); }
};
template <class Rule, class F>
struct LambMoments {
  Rule rule;
  double* sums;
  FUSEDOPT_HD void operator()(double& s0, double& s1, F& param, F& grad, F& exp_avg, F& exp_avg_sq) const {
    rule.moments(param, grad, exp_avg, exp_avg_sq);
    const F update = rule.update(param, exp_avg, exp_avg_sq);
    s0 += double(param) * double(param);
    s1 += double(update) * double(update);
  }
  void finish(double s0, double s1) const { sums[0] += s0, sums[1] += s1; }
};
template <class Rule, class F>
struct LambUpdate : NoSums {
  Rule rule;
  F step_size;
  LambUpdate(const Rule& rule, double step_size) : rule(rule), step_size(F(step_size)) {}
  FUSEDOPT_HD void operator()(double&, double&, F& param, F&, F& exp_avg, F& exp_avg_sq) const {
    param = madd(-step_size, rule.update(param, exp_avg, exp_avg_sq), param);
  }
};
template <class F>
struct SquareSum {
  double* sum;
  FUSEDOPT_HD void operator()(double& s0, double&, F& x) const { s0 += double(x) * double(x); }
  void finish(double s0, double) const { *sum += s0; }
};

template <class Rule, int D>
void apply(void* const* addr, int64_t n, const void* row, [[maybe_unused]] double* sums) {
  using T = typename Storage<D>::type;
  using F = typename Storage<D>::compute;
  constexpr Operands operands = Rule::kOperands;
  constexpr int count = 2 + Rule::kStateCount;
  const Rule& rule = *static_cast<const Rule*>(row);
  if constexpr (std::is_same_v<Rule, Lamb<F>>)
    sweep<operands.reads, operands.writes, count, T, F>(addr, n, LambMoments<Rule, F>{rule, sums});
  else
    sweep<operands.reads, operands.writes, count, T, F>(addr, n, Elementwise<Rule>(rule));
}

template <int D>
void lamb_update(void* const* addr, int64_t n, const void* row, double step_size) {
  using F = typename Storage<D>::compute;
  constexpr Operands operands = Lamb<F>::kUpdateOperands;
  sweep<operands.reads, operands.writes, 4, typename Storage<D>::type, F>(
      addr, n, LambUpdate<Lamb<F>, F>(*static_cast<const Lamb<F>*>(row), step_size));
}

template <int D>
double square_sum(const void* x, int64_t n) {
  double sum = 0;
  void* addr[] = {const_cast<void*>(x)};
  sweep<1, 0, 1, typename Storage<D>::type, typename Storage<D>::compute>(
      addr, n, SquareSum<typename Storage<D>::compute>{&sum});
  return sum;
}

template <int D, template <class> class Select>
constexpr auto apply_of = apply<Select<typename Storage<D>::compute>, D>;

#define X(name, ...) template <class F> using rule_##name = __VA_ARGS__;
FUSEDOPT_RULES(X)
#undef X

}  // namespace

#define X(name, ...) \
  {apply_of<0, rule_##name>, apply_of<1, rule_##name>, apply_of<2, rule_##name>, apply_of<3, rule_##name>},
extern const Kernels kKernels = {{FUSEDOPT_RULES(X)},
                                 {lamb_update<0>, lamb_update<1>, lamb_update<2>, lamb_update<3>},
                                 {square_sum<0>, square_sum<1>, square_sum<2>, square_sum<3>}};
#undef X

}  // namespace fusedopt::cpu::FUSEDOPT_ISA
