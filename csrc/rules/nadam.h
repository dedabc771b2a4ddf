// NAdam (Dozat, 2016), L2 or decoupled weight decay, as torch.optim.NAdam: Adam with Nesterov's momentum, whose decay
// mu has a schedule of its own.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct NAdam {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};
  static constexpr int kStateCount = 2;
  static constexpr const char* kScalars[] = {"mu_product"};
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b1111, 0b1101};
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"beta1", Domain::kFraction},
                                        {"beta2", Domain::kFraction},
                                        {"eps"},
                                        {"weight_decay"},
                                        {"momentum_decay", Domain::kNotNegative},
                                        {"decoupled", Domain::kFlag},
                                        {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled, maximize;
  };
  struct Scalars {
    Scalar mu_product;  // of mu over all steps so far
  };

  Gradient<F> gradient;
  Lerp<F> mean;
  SecondMoment<F> square;
  DecoupledDecay<F> decay;
  F eps, grad_weight, mean_weight, step_size, root_scale;

  FUSEDOPT_HD NAdam(const Numbers& n, double count, double scale, Scalars now)
      : gradient(scale, n.maximize != 0, n.decoupled != 0 ? 0 : n.weight_decay), mean(1 - n.beta1), square(n.beta2),
        decay(n.decoupled != 0 ? n.lr * n.weight_decay : 0), eps(F(n.eps)),
        step_size(F(2 * n.lr)),  // and half of both weights: together they may be more than 1, and the sum too large
        root_scale(F(1 / square_root(bias_correction<F>(n.beta2, count)))) {
    advance(n, count, now);
    const double product = now.mu_product.value, next = mu(n, count + 1);
    grad_weight = F(0.5 * (1 - mu(n, count)) / (1 - product)), mean_weight = F(0.5 * next / (1 - product * next));
  }

  FUSEDOPT_HD static double mu(const Numbers& n, double count) {
    return n.beta1 * (1 - 0.5 * __builtin_pow(0.96, count * n.momentum_decay));
  }
  FUSEDOPT_HD static void advance(const Numbers& n, double count, Scalars& s) {
    s.mu_product.set(s.mu_product.value * s.mu_product.rounded(mu(n, count)));
  }

  FUSEDOPT_HD void operator()(F& param, F grad, F& exp_avg, F& exp_avg_sq, F&) const {
    const F g = gradient(grad, param);
    exp_avg = mean(exp_avg, g);
    exp_avg_sq = square(exp_avg_sq, g);
    const F direction = madd(grad_weight, g, mean_weight * exp_avg);
    param = madd(-step_size, direction / madd(square_root(exp_avg_sq), root_scale, eps), decay(param));
  }
};

}  // namespace fusedopt
