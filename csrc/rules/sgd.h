// SGD with momentum, dampening and Nesterov, as torch.optim.SGD: the learning rate stands outside the buffer.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Momentum>
struct Sgd {
  static constexpr const char* kStates[] = {"momentum_buffer"};
  static constexpr int kStateCount = Momentum;
  static constexpr bool kCountsSteps = false;  // no `step` in the state: the count is 1 at first and 2 from then on
  static constexpr Operands kOperands = Momentum ? Operands{0b111, 0b101} : Operands{0b11, 0b01};
  enum Number { kLr, kMomentum, kDampening, kNesterov, kWeightDecay, kMaximize, kNumbers };

  Gradient<F> gradient;
  F lr, momentum, rate, lookahead, nesterov, first;

  FUSEDOPT_HD Sgd(const double* n, double count, double scale)
      : gradient(scale, n[kMaximize] != 0, n[kWeightDecay]), lr(F(n[kLr])), momentum(F(n[kMomentum])),
        rate(F(1 - n[kDampening])), lookahead(F(n[kNesterov] != 0 ? n[kMomentum] : 1)), nesterov(F(n[kNesterov] != 0)),
        first(F(count == 1)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& momentum_buffer, F&, F&) const {
    F direction = gradient(grad, param);
    if constexpr (Momentum) {
      const F next = madd(momentum, momentum_buffer, rate * direction);
      momentum_buffer = first != 0 ? direction : next;  // the first gradient is not dampened
      direction = madd(lookahead, momentum_buffer, nesterov != 0 ? direction : F(0));
    }
    param = madd(-lr, direction, param);
  }
};

}  // namespace fusedopt
