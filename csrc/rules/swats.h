// SWATS (Keskar and Socher, arXiv 1712.07628, algorithm 1): Adam, until the step size that its steps p have along the
// gradient g settles; from then on SGD with momentum and that step size.
#pragma once
#include "common.h"

namespace fusedopt {

template <class F>
struct Swats {
  static constexpr const char* kStates[] = {"exp_avg", "exp_avg_sq", "momentum_buffer"};
  static constexpr int kStateCount = 3;
  static constexpr bool kCountsSteps = true;
  static constexpr Scope kScope = Scope::kGroup;
  static constexpr Operands kOperands{0b01111, 0b01101}, kLateOperands{0b10011, 0b10001};
  static constexpr Number kNumbers[] = {
      {"lr"},           {"beta1", Domain::kFraction}, {"beta2", Domain::kFraction}, {"eps"},
      {"weight_decay"}, {"maximize", Domain::kFlag}};
  struct Numbers {
    double lr, beta1, beta2, eps, weight_decay, maximize;
  };
  struct Memory {           // a group's
    double count, average;  // k and lambda_k
    double ratio;           // Lambda / lr where it switched, 0 before
  };
  static constexpr int kMemory = sizeof(Memory) / sizeof(double);

  Gradient<F> gradient;
  SecondMoment<F> square;
  F beta1, rate1, step_size, eps;
  Memory* memory;
  Numbers numbers;  // to decide by, in double

  FUSEDOPT_HD Swats(const Numbers& n, double count, double scale, double* group)
      : gradient(scale, n.maximize != 0, n.weight_decay), square(n.beta2), beta1(F(n.beta1)), rate1(F(1 - n.beta1)),
        step_size(F(n.lr * square_root(bias_correction<F>(n.beta2, count)) / bias_correction<F>(n.beta1, count))),
        eps(F(n.eps)), memory(reinterpret_cast<Memory*>(group)), numbers(n) {}

  // Adam, with epsilon beside the root that is not corrected, as in the paper. Adds to p.p and p.g.
  FUSEDOPT_HD void operator()(double& step_square, double& step_dot_grad, F& param, F grad, F& exp_avg, F& exp_avg_sq,
                              F&) const {
    const F g = gradient(grad, param);
    exp_avg = madd(beta1, exp_avg, rate1 * g);
    exp_avg_sq = square(exp_avg_sq, g);
    const F step = -step_size * (exp_avg / (square_root(exp_avg_sq) + eps));
    step_square += double(step) * double(step), step_dot_grad += double(step) * double(g);
    param += step;
  }

  // The end of a step of Adam, given p.p and p.g over the group: whether it goes over to SGD. Where nothing has moved,
  // as with a rate of 0, there was no step.
  FUSEDOPT_HD void decide(double step_square, double step_dot_grad) const {
    if (step_square == 0) return;
    memory->count += 1;
    if (step_dot_grad == 0) return;
    const double projection = step_square / -step_dot_grad, beta2 = numbers.beta2;
    memory->average = beta2 * memory->average + (1 - beta2) * projection;
    const double settled = memory->average / bias_correction<double>(beta2, memory->count),
                 error = settled - projection;
    if (memory->count > 1 && -numbers.eps < error && error < numbers.eps && settled > 0)
      memory->ratio = settled / numbers.lr;
  }

  FUSEDOPT_HD bool is_late() const { return memory->ratio != 0; }
  FUSEDOPT_HD F late_rate() const { return F((1 - numbers.beta1) * memory->ratio * numbers.lr); }

  // SGD with momentum.
  FUSEDOPT_HD void late(F rate, F& param, F grad, F&, F&, F& momentum_buffer) const {
    momentum_buffer = madd(beta1, momentum_buffer, gradient(grad, param));
    param = madd(-rate, momentum_buffer, param);
  }
};

}  // namespace fusedopt
