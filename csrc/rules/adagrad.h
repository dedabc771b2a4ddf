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
  enum Number { kLr, kLrDecay, kEps, kWeightDecay, kMaximize, kNumbers };

  Gradient<F> gradient;
  F lr, eps;

  FUSEDOPT_HD Adagrad(const double* n, double count, double scale)
      : gradient(scale, n[kMaximize] != 0, n[kWeightDecay]), lr(F(n[kLr] / (1 + (count - 1) * n[kLrDecay]))),
        eps(F(n[kEps])) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& sum, F&, F&) const {
    const F g = gradient(grad, param);
    sum = madd(g, g, sum);
    param = madd(-lr, g / (square_root(sum) + eps), param);
  }
};

}  // namespace fusedopt
