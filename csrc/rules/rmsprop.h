// RMSprop, plain or centered, with or without momentum, as torch.optim.RMSprop.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Momentum, bool Centered>
struct RmsProp {
  static constexpr const char* kStates[] = {"square_avg", Momentum ? "momentum_buffer" : "grad_avg", "grad_avg"};
  static constexpr int kStateCount = 1 + Momentum + Centered;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{(4u << kStateCount) - 1, ((4u << kStateCount) - 1) & ~2u};
  static constexpr Number kNumbers[] = {{"lr"},       {"alpha"},        {"eps"},
                                        {"momentum"}, {"weight_decay"}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, alpha, eps, momentum, weight_decay, maximize;
  };

  Gradient<F> gradient;
  SecondMoment<F> square;
  Lerp<F> mean;
  F lr, eps, momentum;

  FUSEDOPT_HD RmsProp(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), square(n.alpha), mean(1 - n.alpha), lr(F(n.lr)),
        eps(F(n.eps)), momentum(F(n.momentum)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& square_avg, F& second, F& third) const {
    [[maybe_unused]] F &momentum_buffer = second, &grad_avg = Momentum ? third : second;
    const F g = gradient(grad, param);
    F variance = square_avg = square(square_avg, g);
    if constexpr (Centered) {
      grad_avg = mean(grad_avg, g);
      // Not clamped: torch gives NaN where the difference turns out negative, and so do we.
      variance = madd(-grad_avg, grad_avg, variance);
    }
    F direction = g / (square_root(variance) + eps);
    if constexpr (Momentum) direction = momentum_buffer = madd(momentum, momentum_buffer, direction);
    param = madd(-lr, direction, param);
  }
};

}  // namespace fusedopt
