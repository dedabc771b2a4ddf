// Adagrad with learning-rate decay, as torch.optim.Adagrad.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Adagrad {
  static constexpr const char* kStates[] = {"sum"};
  static constexpr int kStateCount = 1;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b111, 0b101};
  static constexpr Number kNumbers[] = {
      {"lr"}, {"lr_decay", Domain::kNotNegative}, {"eps"}, {"weight_decay"}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, lr_decay, eps, weight_decay, maximize;
  };

  Gradient<F> gradient;
  F lr, eps;

  FUSEDOPT_HD Adagrad(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), lr(F(n.lr / (1 + (count - 1) * n.lr_decay))), eps(F(n.eps)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& sum, F&, F&) const {
    const F g = gradient(grad, param);
    sum = madd(g, g, sum);
    param = madd(-lr, g / (square_root(sum) + eps), param);
  }
};

}  // namespace fusedopt
