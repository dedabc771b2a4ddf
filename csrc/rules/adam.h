// Adam and AdamW (L2 or decoupled weight decay), with or without amsgrad, as torch.optim.Adam.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Amsgrad>
struct Adam {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr int kStateCount = 2 + Amsgrad;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands = Amsgrad ? Operands{0b11111, 0b11101} : Operands{0b1111, 0b1101};
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
  F eps, step_size, root_scale;

  FUSEDOPT_HD Adam(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.decoupled != 0 ? 0 : n.weight_decay), mean(1 - n.beta1), square(n.beta2),
        decay(n.decoupled != 0 ? n.lr * n.weight_decay : 0), eps(F(n.eps)),
        step_size(F(n.lr / bias_correction<F>(n.beta1, count))),
        root_scale(F(1 / square_root(bias_correction<F>(n.beta2, count)))) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& exp_avg, F& exp_avg_sq, F& max_exp_avg_sq) const {
    const F g = gradient(grad, param);
    exp_avg = mean(exp_avg, g);
    F second = exp_avg_sq = square(exp_avg_sq, g);
    if constexpr (Amsgrad) second = max_exp_avg_sq = larger(max_exp_avg_sq, second);
    param = madd(-step_size, exp_avg / madd(square_root(second), root_scale, eps), decay(param));
  }
};

}  // namespace fusedopt
