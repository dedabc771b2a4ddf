// Rprop (Riedmiller and Braun, 1993), as torch.optim.Rprop: each weight has a step size of its own, which grows where
// the gradient has the sign that it had in the last step, and shrinks where the sign has changed.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Rprop {
  static constexpr const char* kStates[] = {"prev", "step_size"};
  static constexpr int kStateCount = 2;
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {
      {"lr"},  // of which the first step sizes have been made
      {"eta1"}, {"eta2"}, {"step_size1", Domain::kBound}, {"step_size2", Domain::kBound}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, eta1, eta2, step_size1, step_size2, maximize;
  };

  Gradient<F> gradient;
  F decrease, increase, smallest, largest;

  FUSEDOPT_HD Rprop(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, 0), decrease(F(n.eta1)), increase(F(n.eta2)),
        // Of bounds that cross the upper one has the last word, as in torch.clamp.
        smallest(F(n.step_size1 < n.step_size2 ? n.step_size1 : n.step_size2)), largest(F(n.step_size2)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& prev, F& step_size, F&) const {
    const F g = gradient(grad, param);
    const F agreement = sign(g) * sign(prev);  // not of g * prev, which may be too small for F
    const F factor = agreement > 0 ? increase : agreement < 0 ? decrease : F(1);
    step_size *= factor;
    step_size = step_size < smallest ? smallest : step_size > largest ? largest : step_size;
    prev = factor == decrease ? F(0) : g;  // a weight that has shrunk its step stays, and is free in the next
    param = madd(-sign(prev), step_size, param);
  }
};

}  // namespace fusedopt
