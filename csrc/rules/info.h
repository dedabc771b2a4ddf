// What the rest of the engine needs to know of a rule, gathered from its declarations.
#pragma once
#include <new>

#include "all.h"

namespace fusedopt {

struct RuleInfo {
  const char* name;
  const char* const* states;
  int state_count, numbers;
  bool counts_steps;
  Operands operands, second_pass;
  // Constructs the rule, in float or in double, from a group's numbers, a step count and the gradient's factor.
  void (*fold[2])(void* row, const double* numbers, double count, double scale);
};

namespace detail {
template <class Rule>
void fold(void* row, const double* numbers, double count, double scale) {
  new (row) Rule(numbers, count, scale);
}
template <class F32, class F64>
constexpr RuleInfo info(const char* name, Operands second_pass = {0, 0}) {
  static_assert(F64::kNumbers <= kMaxNumbers && F64::kStateCount <= kMaxStates && sizeof(F64) <= kMaxRowBytes);
  return {name, F64::kStates, F64::kStateCount, F64::kNumbers, F64::kCountsSteps, F64::kOperands, second_pass,
          {fold<F32>, fold<F64>}};
}
#define X(name, ...) template <class F> using name##_rule = __VA_ARGS__;
FUSEDOPT_RULES(X)
#undef X
}  // namespace detail

#define X(name, ...) detail::info<detail::name##_rule<float>, detail::name##_rule<double>>(#name),
inline constexpr RuleInfo kRuleInfo[] = {
    FUSEDOPT_ELEMENTWISE_RULES(X) detail::info<Lamb<float>, Lamb<double>>("lamb", Lamb<double>::kUpdateOperands)};
#undef X

inline const RuleInfo& info(RuleId rule) { return kRuleInfo[static_cast<int>(rule)]; }

}  // namespace fusedopt
