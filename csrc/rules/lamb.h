// LAMB (You et al., arXiv 1904.00962) in the form of apex's FusedLAMB: Adam's moments, then a step along
// u = m / (sqrt(v) + eps) + wd * p whose length is the tensor's own, trust_ratio = norm(p) / norm(u). Two passes, with
// u computed again in the second rather than stored.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Lamb {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq"};
  static constexpr int kStateCount = 2;
  static constexpr bool kCountsSteps = true;
  static constexpr Scope kScope = Scope::kTensor;
  static constexpr Operands kOperands{0b1111, 0b1100};        // first pass: moments and norms
  static constexpr Operands kSecondOperands{0b1101, 0b0001};  // second pass: the step
  static constexpr Number kNumbers[] = {{"lr"},
                                        {"beta1", Domain::kFraction},
                                        {"beta2", Domain::kFraction},
                                        {"eps"},
                                        {"weight_decay"},
                                        {"decoupled", Domain::kFlag},
                                        {"maximize", Domain::kFlag},
                                        {"bias_correction", Domain::kFlag},
                                        {"grad_averaging", Domain::kFlag},
                                        {"always_adapt", Domain::kFlag},
                                        {"trust_clip", Domain::kBound},
                                        {"phi_low", Domain::kBound},
                                        {"phi_high", Domain::kBound}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, decoupled, maximize, bias_correction, grad_averaging, always_adapt,
        trust_clip, phi_low, phi_high;
  };

  Gradient<F> gradient;
  SecondMoment<F> square;
  F beta1, rate1, eps, decay, mean_scale, root_scale;
  double lr, trust_clip, phi_low, phi_high;
  bool adapts;

  FUSEDOPT_HD Lamb(const Numbers& n, double count, double scale)
      : gradient(scale, n.maximize != 0, n.decoupled != 0 ? 0 : n.weight_decay), square(n.beta2), beta1(F(n.beta1)),
        rate1(F(n.grad_averaging != 0 ? 1 - n.beta1 : 1)), eps(F(n.eps)),
        decay(F(n.decoupled != 0 ? n.weight_decay : 0)),
        mean_scale(F(n.bias_correction != 0 ? 1 / bias_correction<F>(n.beta1, count) : 1)),
        root_scale(F(n.bias_correction != 0 ? 1 / square_root(bias_correction<F>(n.beta2, count)) : 1)), lr(n.lr),
        trust_clip(n.trust_clip), phi_low(n.phi_low), phi_high(n.phi_high),
        adapts(n.weight_decay != 0 || n.always_adapt != 0) {}

  FUSEDOPT_HD void operator()(F param, F grad, F& exp_avg, F& exp_avg_sq, F&) const {
    const F g = gradient(grad, param);
    exp_avg = madd(beta1, exp_avg, rate1 * g);
    exp_avg_sq = square(exp_avg_sq, g);
  }

  // The squares of the parameter and of its update by the moments as they are stored: that is what the second pass
  // reads, and in half precision the smallest squares are stored as zero.
  FUSEDOPT_HD void add(double& param_square_sum, double& update_square_sum, F param, F, F exp_avg, F exp_avg_sq,
                       F) const {
    const F u = update(param, exp_avg, exp_avg_sq);
    param_square_sum += double(param) * double(param), update_square_sum += double(u) * double(u);
  }

  FUSEDOPT_HD F update(F param, F exp_avg, F exp_avg_sq) const {
    const F adam = exp_avg * mean_scale / madd(square_root(exp_avg_sq), root_scale, eps);
    return madd(decay, decay != 0 ? param : F(0), adam);
  }

  FUSEDOPT_HD void second(F step_size, F& param, F, F exp_avg, F exp_avg_sq, F&) const {
    param = madd(-step_size, update(param, exp_avg, exp_avg_sq), param);
  }

  // lr * trust ratio, from the squared norms of a tensor and of its update. The ratio is 1 where either norm is 0.
  FUSEDOPT_HD double settle(double param_square_sum, double update_square_sum) const {
    double param_norm = square_root(param_square_sum);
    if (param_norm < phi_low) param_norm = phi_low;
    if (param_norm > phi_high) param_norm = phi_high;
    const double update_norm = square_root(update_square_sum);
    const double ratio = param_norm == 0 || update_norm == 0 ? 1 : param_norm / update_norm;
    return !adapts ? lr : lr * (ratio > trust_clip ? trust_clip : ratio);
  }
};

}  // namespace fusedopt
