// Every rule by name, once: X(name, the rule as a type in the compute type F), and what the engine needs to know of it.
#pragma once
#include <new>

#include "adagrad.h"
#include "adam.h"
#include "delta_bar_delta.h"
#include "lamb.h"
#include "rmsprop.h"
#include "sgd.h"
#include "swats.h"

#define FUSEDOPT_RULES(X)                              \
  X(sgd, Sgd<F, false>)                                \
  X(sgd_momentum, Sgd<F, true>)                        \
  X(rmsprop, RmsProp<F, false, false>)                 \
  X(rmsprop_momentum, RmsProp<F, true, false>)         \
  X(rmsprop_centered, RmsProp<F, false, true>)         \
  X(rmsprop_centered_momentum, RmsProp<F, true, true>) \
  X(adagrad, Adagrad<F>)                               \
  X(adam, Adam<F, false>)                              \
  X(adam_amsgrad, Adam<F, true>)                       \
  X(lamb, Lamb<F>)                                     \
  X(delta_bar_delta, DeltaBarDelta<F, false>)          \
  X(delta_bar_delta_momentum, DeltaBarDelta<F, true>)  \
  X(swats, Swats<F>)

namespace fusedopt {

#define X(name, ...) name,
enum class RuleId : unsigned char { FUSEDOPT_RULES(X) kCount };
#undef X
enum class Dtype : unsigned char { kFloat32, kFloat64, kBFloat16, kFloat16, kCount };
constexpr int kItemSize[] = {4, 8, 2, 2};

struct RuleInfo {
  const char* name;
  const char* const* states;
  const Number* numbers;
  int state_count, number_count, bytes[2];  // of the rule in float and in double
  bool counts_steps, takes_sums;
  Operands operands;
  // Constructs the rule, in float or in double, from a group's numbers, a step count and the gradient's factor.
  void (*fold[2])(void* row, const double* numbers, double count, double scale);
};

template <class Rule>
void fold(void* row, const double* numbers, double count, double scale) {
  typename Rule::Numbers n;
  static_assert(sizeof n <= sizeof(double[kMaxNumbers]) && sizeof(Rule) <= kMaxRowBytes &&
                Rule::kStateCount <= kMaxStates);
  __builtin_memcpy(&n, numbers, sizeof n);
  new (row) Rule(n, count, scale);
}

template <template <class> class Rule, class R = Rule<double>>
constexpr RuleInfo rule_info(const char* name) {
  constexpr int numbers = sizeof R::kNumbers / sizeof(Number);
  static_assert(numbers * sizeof(double) == sizeof(typename R::Numbers));
  return {name,
          R::kStates,
          R::kNumbers,
          R::kStateCount,
          numbers,
          {sizeof(Rule<float>), sizeof(R)},
          R::kCountsSteps,
          kTakesSums<R>,
          R::kOperands,
          {fold<Rule<float>>, fold<R>}};
}

namespace by_name {
#define X(name, ...) \
  template <class F> \
  using name = __VA_ARGS__;
FUSEDOPT_RULES(X)
#undef X
}  // namespace by_name

#define X(name, ...) rule_info<by_name::name>(#name),
inline constexpr RuleInfo kRuleInfo[] = {FUSEDOPT_RULES(X)};
#undef X
inline const RuleInfo& info(RuleId rule) { return kRuleInfo[static_cast<int>(rule)]; }

}  // namespace fusedopt
