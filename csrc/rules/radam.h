// RAdam (Liu et al., arXiv 1908.03265), L2 or decoupled weight decay, as torch.optim.RAdam: Adam whose adaptive rate is
// rectified for its variance, and left out in the first steps, where there is no telling.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct RAdam {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};
  static constexpr int kStateCount = 2;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {
      {"lr"},           {"beta1", Domain::kFraction}, {"beta2", Domain::kFraction}, {"eps"},
      {"weight_decay"}, {"decoupled", Domain::kFlag}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, decoupled, maximize;
  };

  Gradient<F> gradient;
  Lerp<F> mean;
  SecondMoment<F> square;
  DecoupledDecay<F> decay;
  F eps, step_size, adapts;

  FUSEDOPT_HD RAdam(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.decoupled != 0 ? 0 : n.weight_decay), mean(1 - n.beta1), square(n.beta2),
        decay(n.decoupled != 0 ? n.lr * n.weight_decay : 0), eps(F(n.eps)) {
    const double correction = bias_correction<F>(n.beta2, count), last = 2 / (1 - n.beta2) - 1;
    const double length = last - 2 * count * (1 - correction) / correction;  // of the average, in gradients
    double rate = n.lr / bias_correction<F>(n.beta1, count);
    if (length > 5)
      rate *= square_root(correction * ((length - 4) * (length - 2) * last) / ((last - 4) * (last - 2) * length));
    adapts = F(length > 5), step_size = F(rate);
  }

  FUSEDOPT_HD void operator()(F& param, F grad, F& exp_avg, F& exp_avg_sq, F&) const {
    const F g = gradient(grad, param);
    exp_avg = mean(exp_avg, g);
    exp_avg_sq = square(exp_avg_sq, g);
    const F root = square_root(exp_avg_sq) + eps;
    param = madd(-step_size, exp_avg / (adapts != 0 ? root : F(1)), decay(param));
  }
};

}  // namespace fusedopt
