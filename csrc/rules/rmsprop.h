// RMSprop, plain or centered, with or without momentum, as torch.optim.RMSprop.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Centered, bool Momentum>
struct RmsProp {
  static constexpr const char* kStates[] = {"square_avg", Momentum ? "momentum_buffer" : "grad_avg", "grad_avg"};
  static constexpr int kStateCount = 1 + Centered + Momentum;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{(4u << kStateCount) - 1, ((4u << kStateCount) - 1) & ~2u};
  enum Number { kLr, kAlpha, kEps, kMomentum, kWeightDecay, kMaximize, kNumbers };

  Gradient<F> gradient;
  Lerp<F> mean;
  F lr, alpha, rate, eps, momentum;

  FUSEDOPT_HD RmsProp(const double* n, double, double scale)
      : gradient(scale, n[kMaximize] != 0, n[kWeightDecay]),
        mean(1 - n[kAlpha]),
        lr(F(n[kLr])),
        alpha(F(n[kAlpha])),
        rate(F(1 - n[kAlpha])),
        eps(F(n[kEps])),
        momentum(F(n[kMomentum])) {}

  FUSEDOPT_HD void operator()(F& param, F& grad, F& square_avg) const {
    const F g = squared(grad, param, square_avg);
    param = madd(-lr, g / (square_root(square_avg) + eps), param);
  }

  // The last operand is the mean of the gradient when centered, the momentum otherwise.
  FUSEDOPT_HD void operator()(F& param, F& grad, F& square_avg, F& other) const {
    const F g = squared(grad, param, square_avg);
    if constexpr (Centered) {
      param = madd(-lr, centered(g, square_avg, other), param);
    } else {
      other = madd(momentum, other, g / (square_root(square_avg) + eps));
      param = madd(-lr, other, param);
    }
  }

  FUSEDOPT_HD void operator()(F& param, F& grad, F& square_avg, F& momentum_buffer, F& grad_avg) const {
    const F g = squared(grad, param, square_avg);
    momentum_buffer = madd(momentum, momentum_buffer, centered(g, square_avg, grad_avg));
    param = madd(-lr, momentum_buffer, param);
  }

 private:
  FUSEDOPT_HD F squared(F grad, F param, F& square_avg) const {
    const F g = gradient(grad, param);
    square_avg = second_moment(alpha, square_avg, rate, g);
    return g;
  }
  // The variance is not clamped: torch gives NaN where it turns out negative, and so do we.
  FUSEDOPT_HD F centered(F g, F square_avg, F& grad_avg) const {
    grad_avg = mean(grad_avg, g);
    return g / (square_root(madd(-grad_avg, grad_avg, square_avg)) + eps);
  }
};

}  // namespace fusedopt
