// SGD with momentum, dampening and Nesterov: the learning rate stands outside the buffer, as in torch.optim.SGD, or
// inside it (Sutskever et al., ICML 2013), which makes the buffer the velocity.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Momentum>
struct Sgd {
  static constexpr const char* kStates[] = {"momentum_buffer"};
  static constexpr int kStateCount = Momentum;
  static constexpr bool kCountsSteps = false;  // no `step` in the state: the count is 1 at first and 2 from then on
  static constexpr Operands kOperands = Momentum ? Operands{0b111, 0b101} : Operands{0b11, 0b01};
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"momentum"},
                                        {"dampening"},
                                        {"nesterov", Domain::kFlag},
                                        {"weight_decay"},
                                        {"maximize", Domain::kFlag},
                                        {"classic", Domain::kFlag}};
  struct Numbers {
    double lr, momentum, dampening, nesterov, weight_decay, maximize, classic;
  };

  Gradient<F> gradient;
  F inside, outside, momentum, rate, lookahead, nesterov, first;

  FUSEDOPT_HD Sgd(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), inside(F(n.classic != 0 ? n.lr : 1)),
        outside(F(n.classic != 0 && Momentum ? 1 : n.lr)), momentum(F(n.momentum)), rate(F(1 - n.dampening)),
        lookahead(F(n.nesterov != 0 ? n.momentum : 1)), nesterov(F(n.nesterov != 0)), first(F(count == 1)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& momentum_buffer, F&, F&) const {
    F direction = gradient(grad, param);
    if constexpr (Momentum) {
      direction *= inside;
      const F next = madd(momentum, momentum_buffer, rate * direction);
      momentum_buffer = first != 0 ? direction : next;  // the first gradient is not dampened
      direction = madd(lookahead, momentum_buffer, nesterov != 0 ? direction : F(0));
    }
    param = madd(-outside, direction, param);
  }
};

}  // namespace fusedopt
