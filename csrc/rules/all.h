// Every rule by name, once: X(name, the rule as a type in the compute type F), and what the engine needs to know of it.
#pragma once
#include <new>

#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "asgd.h"
#include "delta_bar_delta.h"
#include "lamb.h"
#include "lars.h"
#include "lion.h"
#include "nadam.h"
#include "radam.h"
#include "rmsprop.h"
#include "rprop.h"
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
  X(swats, Swats<F>)                                   \
  X(adamax, Adamax<F>)                                 \
  X(adadelta, Adadelta<F>)                             \
  X(radam, RAdam<F>)                                   \
  X(lion, Lion<F>)                                     \
  X(rprop, Rprop<F>)                                   \
  X(lars, Lars<F, false>)                              \
  X(lars_momentum, Lars<F, true>)                      \
  X(nadam, NAdam<F>)                                   \
  X(asgd, Asgd<F>)

namespace fusedopt {

#define X(name, ...) name,
enum class RuleId : unsigned char { FUSEDOPT_RULES(X) kCount };
#undef X

struct RuleInfo {
  const char* name;
  const char *const *states, *const *scalars;
  const Number* numbers;
  int state_count, scalar_count, number_count, bytes[2];  // of the rule in float and in double
  bool counts_steps;
  Scope scope;
  int memory;
  Operands operands, second, late;  // of its passes, none of a pass that it has not
  // Of the rule in float and in double. Constructs it, from a group's numbers, a step count, the gradient's factor,
  // what the group remembers and the scalars of its parameters; and what becomes of sums over a tensor, or over a
  // group.
  void (*fold[2])(void* row, const double* numbers, double count, double scale, double* memory, const Scalar* scalars);
  double (*settle[2])(const void* row, double first, double second);
  void (*decide[2])(const void* row, double first, double second);
  void (*advance)(const double* numbers, double count, Scalar* scalars);  // in a step
};

template <class Rule>
typename Rule::Numbers numbers_from(const double* numbers) {
  typename Rule::Numbers n;
  static_assert(sizeof n <= sizeof(double[kMaxNumbers]));
  __builtin_memcpy(&n, numbers, sizeof n);
  return n;
}

template <class Rule>
void fold(void* row, const double* numbers, double count, double scale, double* memory, const Scalar* scalars) {
  static_assert(sizeof(Rule) <= kMaxRowBytes && Rule::kStateCount + scalars_of<Rule>() <= kMaxStates);
  new (row) Rule(make<Rule>(numbers_from<Rule>(numbers), count, scale, memory, scalars));
}

template <class Rule>
void advance(const double* numbers, double count, Scalar* scalars) {
  advance<Rule>(numbers_from<Rule>(numbers), count, scalars);
}

template <class Rule>
constexpr const char* const* scalar_names() {
  if constexpr (scalars_of<Rule>() == 0) return nullptr;
  else {
    static_assert(scalars_of<Rule>() <= kMaxScalars &&
                  sizeof(typename Rule::Scalars) == sizeof(Scalar[scalars_of<Rule>()]));
    static_assert(memory_of<Rule>() == 0 && Rule::kCountsSteps);
    return Rule::kScalars;
  }
}

template <class Rule>
double settle(const void* row, double first, double second) {
  if constexpr (scope_of<Rule>() == Scope::kTensor) return static_cast<const Rule*>(row)->settle(first, second);
  else return 0;
}

template <class Rule>
void decide(const void* row, double first, double second) {
  if constexpr (scope_of<Rule>() == Scope::kGroup)
    if (const auto& rule = *static_cast<const Rule*>(row); !rule.is_late()) rule.decide(first, second);
}

template <template <class> class Rule, class R = Rule<double>>
constexpr RuleInfo rule_info(const char* name) {
  constexpr int numbers = sizeof R::kNumbers / sizeof(Number);
  static_assert(numbers * sizeof(double) == sizeof(typename R::Numbers));
  Operands second{}, late{};
  if constexpr (scope_of<R>() == Scope::kTensor) second = R::kSecondOperands;
  if constexpr (scope_of<R>() == Scope::kGroup) late = R::kLateOperands;
  return {name,
          R::kStates,
          scalar_names<R>(),
          R::kNumbers,
          R::kStateCount,
          scalars_of<R>(),
          numbers,
          {sizeof(Rule<float>), sizeof(R)},
          R::kCountsSteps,
          scope_of<R>(),
          memory_of<R>(),
          R::kOperands,
          second,
          late,
          {fold<Rule<float>>, fold<R>},
          {settle<Rule<float>>, settle<R>},
          {decide<Rule<float>>, decide<R>},
          advance<R>};
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
