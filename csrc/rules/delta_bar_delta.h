// SGD with a gain for each weight (Jacobs, Neural Networks 1 (1988); Hinton's lecture 6d), with or without momentum:
// the gain grows by a constant where the gradient has the sign that it had in the last step, and shrinks by a factor
// where the sign has changed.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Momentum>
struct DeltaBarDelta {
  // Of the last gradient only the sign is kept: unlike the gradient itself, it is not rounded to zero in float16.
  static constexpr const char* kStates[] = {"gain", "grad_sign", "momentum_buffer"};
  static constexpr int kStateCount = 2 + Momentum;
  static constexpr bool kCountsSteps = false;
  static constexpr Operands kOperands = Momentum ? Operands{0b11111, 0b11101} : Operands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"beta"},
                                        {"momentum"},
                                        {"min_gain", Domain::kBound},
                                        {"max_gain", Domain::kBound},
                                        {"weight_decay"},
                                        {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta, momentum, min_gain, max_gain, weight_decay, maximize;
  };

  Gradient<F> gradient;
  F lr, increase, decrease, momentum, min_gain, max_gain;

  FUSEDOPT_HD DeltaBarDelta(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, n.weight_decay), lr(F(n.lr)), increase(F(n.beta)), decrease(F(1 - n.beta)),
        momentum(F(n.momentum)),
        // Of bounds that cross the upper one has the last word, as in torch.clamp.
        min_gain(F(n.min_gain < n.max_gain ? n.min_gain : n.max_gain)), max_gain(F(n.max_gain)) {}

  FUSEDOPT_HD void operator()(F& param, F grad, F& gain, F& grad_sign, F& momentum_buffer) const {
    const F g = gradient(grad, param);
    const F now = sign(g);
    const F agreement = now * grad_sign;  // 0, which leaves the gain alone, where either is, so in the first step too
    grad_sign = now;
    gain = madd(gain, agreement < 0 ? decrease : F(1), agreement > 0 ? increase : F(0));
    gain = gain < min_gain ? min_gain : gain > max_gain ? max_gain : gain;
    F direction = gain * g;
    if constexpr (Momentum) direction = momentum_buffer = madd(momentum, momentum_buffer, direction);
    param = madd(-lr, direction, param);
  }
};

}  // namespace fusedopt
