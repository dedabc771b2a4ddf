// LARS (You et al., arXiv 1708.03888, algorithm 1), with or without momentum: SGD with a rate of each tensor's own, by
// the norms of the tensor and of its gradient. The rate is inside the buffer.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F, bool Momentum>
struct Lars {
  static constexpr const char* kStates[] = {"momentum_buffer"};
  static constexpr int kStateCount = Momentum;
  static constexpr bool kCountsSteps = false;
  static constexpr Scope kScope = Scope::kTensor;
  static constexpr Operands kOperands{0b11, 0};  // first pass: norms
  static constexpr Operands kSecondOperands = Momentum ? Operands{0b111, 0b101} : Operands{0b11, 0b01};
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"momentum"},
                                        {"weight_decay"},
                                        {"trust_coefficient"},
                                        {"eps"},
                                        {"nesterov", Domain::kFlag},
                                        {"maximize", Domain::kFlag},
                                        {"exclude_1d", Domain::kFlagOf1d}};
  struct Numbers {
    double lr, momentum, weight_decay, trust_coefficient, eps, nesterov, maximize, exclude_1d;
  };

  Gradient<F> gradient;
  F momentum, lookahead, nesterov;
  double lr, decay, trust_coefficient, eps;
  bool adapts;

  FUSEDOPT_HD Lars(const Numbers& n, double, double scale)
      : gradient(scale, n.maximize != 0, n.exclude_1d != 0 ? 0 : n.weight_decay), momentum(F(n.momentum)),
        lookahead(F(n.nesterov != 0 ? n.momentum : 1)), nesterov(F(n.nesterov != 0)), lr(n.lr), decay(n.weight_decay),
        trust_coefficient(n.trust_coefficient), eps(n.eps), adapts(n.exclude_1d == 0) {}

  FUSEDOPT_HD void operator()(F, F, F, F, F) const {}

  FUSEDOPT_HD void add(double& param_square_sum, double& grad_square_sum, F param, F grad, F, F, F) const {
    const F g = grad * gradient.factor;
    param_square_sum += double(param) * double(param), grad_square_sum += double(g) * double(g);
  }

  FUSEDOPT_HD void second(F rate, F& param, F grad, F& momentum_buffer, F&, F&) const {
    F step = rate * gradient(grad, param);
    if constexpr (Momentum) {
      momentum_buffer = madd(momentum, momentum_buffer, step);
      step = madd(lookahead, momentum_buffer, nesterov != 0 ? step : F(0));
    }
    param -= step;
  }

  // The rate, from the squared norms of a tensor and of its gradient. The ratio is 1 where either norm is 0.
  FUSEDOPT_HD double settle(double param_square_sum, double grad_square_sum) const {
    const double param_norm = square_root(param_square_sum), grad_norm = square_root(grad_square_sum);
    if (!adapts || param_norm == 0 || grad_norm == 0) return lr;
    return lr * (trust_coefficient * param_norm / (grad_norm + decay * param_norm + eps));
  }
};

}  // namespace fusedopt
