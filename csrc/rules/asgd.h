// Averaged SGD (Polyak and Juditsky, 1992), as torch.optim.ASGD: SGD with a rate eta that decays, beside the average ax
// of the parameters since step t0; until then ax is the parameter.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Asgd {
  static constexpr const char* kStates[] = {"ax"};
  static constexpr int kStateCount = 1;
  static constexpr const char* kScalars[] = {"eta", "mu"};
  static constexpr bool kCountsSteps = true;
  static constexpr Operands kOperands{0b111, 0b101};
  // With a negative number in them, the base of eta's power could be one.
  static constexpr Number kNumbers[] = {{"lr", Domain::kNotNegative},
                                        {"lambd", Domain::kNotNegative},
                                        {"alpha"},
                                        {"t0", Domain::kAnySize},
                                        {"weight_decay"},
                                        {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, lambd, alpha, t0, weight_decay, maximize;
  };
  struct Scalars {
    Scalar eta, mu;  // the rate and the weight of the parameter in its average, of the step to come
  };

  Gradient<F> gradient;
  DecoupledDecay<F> decay;
  F rate, weight, averages;

  FUSEDOPT_HD Asgd(const Numbers& n, double, double scale, const Scalars& s)
      : gradient(scale, n.maximize != 0, n.weight_decay), decay(n.lambd * s.eta.value), rate(F(s.eta.value)),
        weight(F(s.mu.value)), averages(F(s.mu.value != 1)) {}

  FUSEDOPT_HD static void advance(const Numbers& n, double count, Scalars& s) {
    const double since = count - n.t0;
    s.eta.set(n.lr / __builtin_pow(1 + n.lambd * n.lr * count, n.alpha));
    s.mu.set(1 / (since > 1 ? since : 1));
  }

  FUSEDOPT_HD void operator()(F& param, F grad, F& ax, F&, F&) const {
    const F g = gradient(grad, param);
    param = madd(-rate, g, decay(param));
    ax = madd(weight, averages != 0 ? param - ax : F(0), averages != 0 ? ax : param);
  }
};

}  // namespace fusedopt
