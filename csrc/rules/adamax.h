// Adamax (Kingma and Ba, arXiv 1412.6980, section 7.1): Adam with the infinity norm, as torch.optim.Adamax.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Adamax {
  static constexpr const char* kStates[] = {"exp_avg", "exp_inf"};
  static constexpr int kStateCount = 2;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {
      {"lr"},           {"beta1", Domain::kFraction}, {"beta2", Domain::kFraction}, {"eps"},
      {"weight_decay"}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, maximize;
  };

  Gradient<F> gradient;
  Lerp<F> mean;
  F beta2, eps, step_size;

  FUSEDOPT_HD Adamax(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), mean(1 - n.beta1), beta2(F(n.beta2)), eps(F(n.eps)),
        step_size(F(n.lr / bias_correction<F>(n.beta1, count))) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& exp_avg, F& exp_inf, F&) const {
    const F g = gradient(grad, param);
    exp_avg = mean(exp_avg, g);
    exp_inf = larger(beta2 * exp_inf, (g < 0 ? -g : g) + eps);
    param = madd(-step_size, exp_avg / exp_inf, param);
  }
};

}  // namespace fusedopt
