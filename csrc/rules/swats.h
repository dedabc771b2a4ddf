// SWATS (Keskar and Socher, arXiv 1712.07628, algorithm 1): Adam, until the step size that its steps p have along the
// gradient g settles; from then on SGD with momentum and that step size.
#pragma once
#include "common.h"

namespace fusedopt {

// When a group goes over to SGD. What it remembers lies in the group's own tensor, on the device of its parameters.
struct Switch {
  struct Memory {
    double count, average;  // k and lambda_k
    double ratio;           // Lambda / lr where it switched, 0 before
  };
  Memory* memory;
  double lr, beta1, beta2, eps;

  FUSEDOPT_HD bool is_sgd() const { return memory->ratio != 0; }
  FUSEDOPT_HD double step_size() const { return (1 - beta1) * memory->ratio * lr; }

  // The end of a step of Adam, given p.p and p.g over the group. Where nothing has moved, as with a rate of 0, there
  // was no step.
  FUSEDOPT_HD void decide(double step_square, double step_dot_grad) const {
    if (step_square == 0) return;
    memory->count += 1;
    if (step_dot_grad == 0) return;
    const double projection = step_square / -step_dot_grad;
    memory->average = beta2 * memory->average + (1 - beta2) * projection;
    const double settled = memory->average / bias_correction<double>(beta2, memory->count),
                 error = settled - projection;
    if (memory->count > 1 && -eps < error && error < eps && settled > 0) memory->ratio = settled / lr;
  }
};

template <class F>
struct Swats {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq", "momentum_buffer"};
  static constexpr int kStateCount = 3;
  static constexpr bool kCountsSteps = true, kSums = true;
  static constexpr Operands kOperands{0b01111, 0b01101}, kSgdOperands{0b10011, 0b10001};
  static constexpr Number kNumbers[] = {
      {"lr"},           {"beta1", Domain::kFraction}, {"beta2", Domain::kFraction}, {"eps"},
      {"weight_decay"}, {"maximize", Domain::kFlag},  {"switch", Domain::kMemory}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, maximize;
    Switch::Memory* memory;
  };

  Switch group;  // first, where it is found whatever F is
  Gradient<F> gradient;
  SecondMoment<F> square;
  F beta1, rate1, step_size, eps;

  FUSEDOPT_HD Swats(const Numbers& n, double count, double scale)
      : group{n.memory, n.lr, n.beta1, n.beta2, n.eps}, gradient(scale, n.maximize != 0, n.weight_decay),
        square(n.beta2), beta1(F(n.beta1)), rate1(F(1 - n.beta1)),
        step_size(F(n.lr * square_root(bias_correction<F>(n.beta2, count)) / bias_correction<F>(n.beta1, count))),
        eps(F(n.eps)) {}

  // Adam, with epsilon beside the root that is not corrected, as in the paper. Adds to p.p and p.g.
  FUSEDOPT_HD void operator()(double& step_square, double& step_dot_grad, F& param, F grad, F& exp_avg, F& exp_avg_sq,
                              F&, auto) const {
    const F g = gradient(grad, param);
    exp_avg = madd(beta1, exp_avg, rate1 * g);
    exp_avg_sq = square(exp_avg_sq, g);
    const F step = -step_size * (exp_avg / (square_root(exp_avg_sq) + eps));
    step_square += double(step) * double(step), step_dot_grad += double(step) * double(g);
    param += step;
  }

  FUSEDOPT_HD void descend(F rate, F& param, F grad, F& momentum_buffer) const {
    momentum_buffer = madd(beta1, momentum_buffer, gradient(grad, param));
    param = madd(-rate, momentum_buffer, param);
  }
};

}  // namespace fusedopt
