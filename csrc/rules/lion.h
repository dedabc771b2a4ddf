// Lion (Chen et al., arXiv 2302.06675, algorithm 2): steps by the sign of an interpolation between the average of the
// gradients and the new one, with decoupled weight decay.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Lion {
  static constexpr const char* kStates[] = {"exp_avg"};
  static constexpr int kStateCount = 1;
  static constexpr bool kCountsSteps = false;
  static constexpr Operands kOperands{0b111, 0b101};
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"beta1", Domain::kFraction},
                                        {"beta2", Domain::kFraction},
                                        {"weight_decay"},
                                        {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta1, beta2, weight_decay, maximize;
  };

  Gradient<F> gradient;
  DecoupledDecay<F> decay;
  F beta1, rate1, beta2, rate2, lr;

  FUSEDOPT_HD Lion(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, 0), decay(n.lr * n.weight_decay), beta1(F(n.beta1)), rate1(F(1 - n.beta1)),
        beta2(F(n.beta2)), rate2(F(1 - n.beta2)), lr(F(n.lr)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& exp_avg, F&, F&) const {
    const F g = gradient(grad, param);
    param = madd(-lr, sign(madd(beta1, exp_avg, rate1 * g)), decay(param));
    exp_avg = madd(beta2, exp_avg, rate2 * g);
  }
};

}  // namespace fusedopt
