// Adadelta (Zeiler, arXiv 1212.5701): steps in units of the steps before, as torch.optim.Adadelta.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Adadelta {
  static constexpr const char* kStates[] = {"square_avg", "acc_delta"};
  static constexpr int kStateCount = 2;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {{"lr"}, {"rho"}, {"eps"}, {"weight_decay"}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, rho, eps, weight_decay, maximize;
  };

  Gradient<F> gradient;
  SecondMoment<F> square;
  F lr, eps;

  FUSEDOPT_HD Adadelta(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), square(n.rho), lr(F(n.lr)), eps(F(n.eps)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& square_avg, F& acc_delta, F&) const {
    const F g = gradient(grad, param);
    square_avg = square(square_avg, g);
    const F delta = square_root(acc_delta + eps) / square_root(square_avg + eps) * g;
    acc_delta = square(acc_delta, delta);
    param = madd(-lr, delta, param);
  }
};

}  // namespace fusedopt
