// The chunk loops, written once. baseline.cpp, avx2.cpp and avx512.cpp name an instruction set, for which
// setup.py compiles them, and include this.
// Everything lives in an anonymous namespace inside that set's own, so that no function compiled for AVX-512 can be
// picked by the linker for the others; of std there are only types.
#include <type_traits>
#include <utility>

#include "cpu.h"

#include "codecs.h"

namespace fusedopt::cpu::FUSEDOPT_ISA {
namespace {

#define INLINED __attribute__((always_inline))  // before the loops are vectorized, or their sums live in memory

// Sums are taken in lanes, element i in lane i % kLanes, which are added in pairs at the end: in the same order
// whatever the instruction set.
constexpr int kLanes = 16;
using Lanes = double[2][kLanes];
static_assert(kLanes % kWidth == 0);

// What is done to an element: `body` to its operands in registers, and then, unless it is nothing, `after` to what has
// been stored of them. The last of the two that there is gets, with Sums, two to add to before the operands.
struct Nothing {};
template <class After>
constexpr bool kFollows = !std::is_same_v<After, Nothing>;

// n elements of operands that are stored as they are computed in: loads those that are read, stores those that are
// written.
template <bool Sums, Operands Ops, class F, class Body, class After, int... I>
FUSEDOPT_HD void in_place(const Span& span, Body body, After after, Lanes& sums, std::integer_sequence<int, I...>) {
  F* const p[] = {static_cast<F*>(span.addr[I])...};
  const auto element = [=](int64_t i, double& s0, double& s1) INLINED {
    F x[] = {(Ops.reads >> I & 1 ? p[I][i] : F(0))...};
    if constexpr (Sums && !kFollows<After>) body(s0, s1, x[I]...);
    else body(x[I]...);
    ((Ops.writes >> I & 1 ? void(p[I][i] = x[I]) : void()), ...);
    if constexpr (kFollows<After>) after(s0, s1, x[I]...);
  };
  int64_t i = 0;
  if constexpr (Sums) {
    for (; i + kLanes <= span.n; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) element(i + l, sums[0][l], sums[1][l]);
    }
    for (int l = 0; i < span.n; ++l, ++i) element(i, sums[0][l], sums[1][l]);
  } else {
    double unused;
#pragma omp simd
    for (i = 0; i < span.n; ++i) element(i, unused, unused);
  }
}

// Vectors of an operand that are loaded and stored together, where no sums are taken by lanes: to ask for the storage
// half as often saves some per cent, and random bits come for two.
template <bool Sums>
constexpr int kTogether = Sums ? 1 : 2;
template <int U>
union Several {
  Vector whole[U];
  float at[U][kWidth];
};

// Moves the average towards the parameter as it is stored.
template <int U>
FUSEDOPT_HD void follow(const Place& average, const Place& param, int64_t i, uint32_t begin, double share) {
  Several<U> mean, now;
  load(mean, average, i), load(now, param, i);
  const Lerp<float> lerp(share);
  for (int u = 0; u < U; ++u) {
#pragma omp simd
    for (int l = 0; l < kWidth; ++l) mean.at[u][l] = lerp(mean.at[u][l], now.at[u][l]);
  }
  store(mean, average, i, begin);
}

// The same of operands each of which has a storage of its own, a vector at a time: to ask for the storage each time
// costs a few per cent of decoding, where a pass over a block in the cache would cost as much as all the rest. n is a
// multiple of kWidth. Only the parameter may have something beside it, so that the others' loads are less code.
template <bool Sums, Operands Ops, class Body, class After, int... I>
__attribute__((noinline)) void coded(const Span& span, Body body, After after, Lanes& sums,
                                     std::integer_sequence<int, I...>) {
  const Tensor& t = *span.tensor;
  const auto begin = uint32_t(span.begin);
  const Place place[] = {{span.addr[I], I ? nullptr : span.beside[0], t.storage[I],
                          Ops.writes >> I & 1 && t.storage[I] == Storage::kStochastic ? key_of(t.key, I) : Key{}}...};
  const Place average{span.average, nullptr, t.average_storage, span.average ? key_of(t.key, kMaxOperands) : Key{}};
  constexpr int U = kTogether<Sums>;
  for (int64_t i = 0; i < span.n; i += kWidth * U) {
    Several<U> x[kMaxOperands];
    ((Ops.reads >> I & 1 ? load(x[I], place[I], i) : void(x[I] = {})), ...);
    double *const s0 = sums[0] + i % kLanes, *const s1 = sums[1] + i % kLanes;
    for (int u = 0; u < U; ++u) {
#pragma omp simd
      for (int l = 0; l < kWidth; ++l) {
        if constexpr (Sums && !kFollows<After>) body(s0[l], s1[l], x[I].at[u][l]...);
        else body(x[I].at[u][l]...);
      }
    }
    ((Ops.writes >> I & 1 ? store(x[I], place[I], i, begin) : void()), ...);
    if constexpr (Ops.writes & 1)
      if (average.at) follow<U>(average, place[0], i, begin, t.share);
    if constexpr (kFollows<After>) {
      ((Ops.writes >> I & 1 ? load(x[I], place[I], i) : void()), ...);
#pragma omp simd
      for (int l = 0; l < kWidth; ++l) after(s0[l], s1[l], x[I].at[0][l]...);
    }
  }
}

// The last elements of a chunk, among others that do not count.
template <bool Sums, Operands Ops, class Body, class After, class Sequence>
void coded_rest(const Span& span, Body body, After after, Lanes& sums, Sequence operands) {
  constexpr int kMany = kWidth * kTogether<Sums>;
  const Tensor& t = *span.tensor;
  alignas(64) char bytes[kMaxOperands + 2][sizeof(float[kMany])] = {};
  char *const beside = bytes[kMaxOperands], *const average = bytes[kMaxOperands + 1];
  const int64_t done = span.n / kMany * kMany;
  const int rest = int(span.n - done);
  Span padded{{}, {beside}, span.average ? average : nullptr, &t, kMany, span.begin + done};
  const auto each = [&](unsigned which, auto move) {
    const auto part = [&](char* here, void* there, int64_t size) {
      if (size) move(here, static_cast<char*>(there) + done * size, unsigned(rest * size));
    };
    for (int k = 0; k < kMaxOperands; ++k)
      if (which >> k & 1) part(bytes[k], span.addr[k], item_size(t.storage[k]));
    if (which & 1) part(beside, span.beside[0], bytes_beside(t.storage[0], 1));
    if (which & 1 && span.average) part(average, span.average, item_size(t.average_storage));
  };
  for (int k = 0; k < kMaxOperands; ++k) padded.addr[k] = bytes[k];
  each(Ops.reads, [](char* here, char* there, unsigned size) { __builtin_memcpy(here, there, size); });
  Lanes rests = {};
  coded<Sums, Ops>(padded, body, after, rests, operands);
  each(Ops.writes, [](char* here, char* there, unsigned size) { __builtin_memcpy(there, here, size); });
  if constexpr (Sums)  // else there may be more elements than lanes
    for (int s = 0; s < 2; ++s)
      for (int l = 0; l < rest; ++l) sums[s][done % kLanes + l] += rests[s][l];
}

template <bool Sums, Operands Ops, class Body, class After, class Sequence>
void all_coded(const Span& span, Body body, After after, Lanes& sums, Sequence operands) {
  constexpr int kMany = kWidth * kTogether<Sums>;
  Span whole = span;
  whole.n = span.n / kMany * kMany;
  coded<Sums, Ops>(whole, body, after, sums, operands);
  if (whole.n < span.n) coded_rest<Sums, Ops>(span, body, after, sums, operands);
}

// Of operands in blocks of codes, among others: a block at a time they become floats in the first-level cache, which
// take their place, and codes again. Where all are floats then, they are worked on as such, which saves a fifth.
template <bool Sums, Operands Ops, class Body, class After, class Sequence>
void in_blocks(const Span& span, Body body, After after, Lanes& sums, Sequence operands) {
  alignas(64) float numbers[kMaxOperands][kBlock];
  Tensor decoded = *span.tensor;
  bool is_float = !span.average;
  for (int k = 0; k < kMaxOperands; ++k) {
    if (is_in_blocks(decoded.storage[k])) decoded.storage[k] = Storage::kFloat32;
    is_float &= !((Ops.reads | Ops.writes) >> k & 1) || decoded.storage[k] == Storage::kFloat32;
  }
  for (int64_t i = 0; i < span.n; i += kBlock) {
    const int n = int(span.n - i < kBlock ? span.n - i : kBlock);
    const Span block = span_of(*span.tensor, span.begin + i, n);
    Span part = block;
    part.tensor = &decoded;
    const auto each = [&](unsigned which, auto f) {
      for (int k = 0; k < kMaxOperands; ++k)
        if (const Storage storage = span.tensor->storage[k]; which >> k & 1 && is_in_blocks(storage))
          f(k, Place{block.addr[k], block.beside[k], storage, is_by_chance(storage) ? key_of(decoded.key, k) : Key{}});
    };
    const auto fetch = [&](int k, const Place& from) {
      is_signed(from.storage) ? decode<true>(from, n, numbers[k]) : decode<false>(from, n, numbers[k]);
    };
    each(Ops.reads | Ops.writes, [&](int k, const Place&) { part.addr[k] = numbers[k]; });
    each(Ops.reads, fetch);
    if (is_float) in_place<Sums && !kFollows<After>, Ops, float>(part, body, Nothing{}, sums, operands);
    else all_coded<Sums && !kFollows<After>, Ops>(part, body, Nothing{}, sums, operands);
    each(Ops.writes, [&](int k, const Place& to) {
      is_signed(to.storage) ? encode<true>(numbers[k], n, to, uint32_t(block.begin))
                            : encode<false>(numbers[k], n, to, uint32_t(block.begin));
    });
    if constexpr (kFollows<After>) {
      each(Ops.writes, fetch);
      all_coded<true, Operands{Ops.reads | Ops.writes, 0}>(part, after, Nothing{}, sums, operands);
    }
  }
}

// One pass over a chunk. Its sums are added to `total`.
template <bool Sums, Operands Ops, Form form, class Body, class After = Nothing>
inline void sweep(const Span& span, Body body, double* total = nullptr, After after = {}) {
  constexpr auto operands = std::make_integer_sequence<int, kMaxOperands>{};
  Lanes sums = {};
  if constexpr (form == Form::kCoded) {
    bool has_blocks = false;
    for (int k = 0; k < kMaxOperands; ++k)
      has_blocks |= (Ops.reads | Ops.writes) >> k & 1 && is_in_blocks(span.tensor->storage[k]);
    if (has_blocks) in_blocks<Sums, Ops>(span, body, after, sums, operands);
    else all_coded<Sums, Ops>(span, body, after, sums, operands);
  } else {
    in_place<Sums, Ops, Compute<form>>(span, body, after, sums, operands);
  }
  if constexpr (!Sums) return;
  for (double (&lanes)[kLanes] : sums) {
    for (int width = kLanes / 2; width; width /= 2)
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    *total++ += lanes[0];
  }
}

template <template <class> class Rule, Form form>
void apply(const Span& span, const void* row, double* sums) {
  using R = Rule<Compute<form>>;
  const auto rule = *static_cast<const R*>(row);
  const auto body = [=](auto&... x) INLINED { rule(x...); };
  if constexpr (scope_of<R>() == Scope::kNone) {
    sweep<false, R::kOperands, form>(span, body);
  } else if constexpr (scope_of<R>() == Scope::kTensor) {
    sweep<true, R::kOperands, form>(span, body, sums,
                                    [=](double& s0, double& s1, auto&... x) INLINED { rule.add(s0, s1, x...); });
  } else if (rule.is_late()) {
    sweep<false, R::kLateOperands, form>(span,
                                         [=, rate = rule.late_rate()](auto&... x) INLINED { rule.late(rate, x...); });
  } else {
    sweep<true, R::kOperands, form>(
        span, [=](double& s0, double& s1, auto&... x) INLINED { rule(s0, s1, x...); }, sums);
  }
}

template <template <class> class Rule, Form form>
void second(const Span& span, const void* row, double number) {
  using F = Compute<form>;
  const auto rule = *static_cast<const Rule<F>*>(row);
  sweep<false, Rule<F>::kSecondOperands, form>(
      span, [=, number = F(number)](auto&... x) INLINED { rule.second(number, x...); });
}

template <template <class> class Rule, Form form>
constexpr auto second_of() -> void (*)(const Span&, const void*, double) {
  if constexpr (scope_of<Rule<float>>() == Scope::kTensor) return second<Rule, form>;
  else return nullptr;
}

template <Form form>
void square_sum(const Span& span, double* sums) {
  using F = Compute<form>;
  const auto body = [](double& s0, double&, F&, F& grad, F&, F&, F&) INLINED { s0 += double(grad) * double(grad); };
  sweep<true, Operands{0b10, 0}, form>(span, body, sums);
}

}  // namespace

#define X(name, ...) \
  {apply<by_name::name, Form::kFloat>, apply<by_name::name, Form::kDouble>, apply<by_name::name, Form::kCoded>},
#define Y(name, ...)                                                                    \
  {second_of<by_name::name, Form::kFloat>(), second_of<by_name::name, Form::kDouble>(), \
   second_of<by_name::name, Form::kCoded>()},
extern const Kernels kKernels = {{FUSEDOPT_RULES(X)},
                                 {FUSEDOPT_RULES(Y)},
                                 {square_sum<Form::kFloat>, square_sum<Form::kDouble>, square_sum<Form::kCoded>}};
#undef X
#undef Y

}  // namespace fusedopt::cpu::FUSEDOPT_ISA
