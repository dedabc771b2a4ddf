// Every rule by name, once: X(name, the rule as a type in the compute type F).
#pragma once
#include "adagrad.h"
#include "adam.h"
#include "lamb.h"
#include "rmsprop.h"
#include "sgd.h"

#define FUSEDOPT_ELEMENTWISE_RULES(X)                                \
  X(sgd, Sgd<F, false>)                                              \
  X(sgd_momentum, Sgd<F, true>)                                      \
  X(rmsprop, RmsProp<F, false, false>)                               \
  X(rmsprop_momentum, RmsProp<F, false, true>)                       \
  X(rmsprop_centered, RmsProp<F, true, false>)                       \
  X(rmsprop_centered_momentum, RmsProp<F, true, true>)               \
  X(adagrad, Adagrad<F>)                                             \
  X(adam, Adam<F, false>)                                            \
  X(adam_amsgrad, Adam<F, true>)

#define FUSEDOPT_RULES(X) FUSEDOPT_ELEMENTWISE_RULES(X) X(lamb, Lamb<F>)

namespace fusedopt {

#define X(name, ...) name,
enum class RuleId : int { FUSEDOPT_RULES(X) kCount };
#undef X

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16, kCount };
constexpr int kItemSize[] = {4, 8, 2, 2};

}  // namespace fusedopt
