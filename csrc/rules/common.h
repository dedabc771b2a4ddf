// What every rule is made of. A rule is the arithmetic of one element on registers: its constructor folds a group's
// hyper-parameters and a step count into numbers (in double, rounded once), its call operator updates one element, and
// its Operands say what is read and written. No torch, no CUDA, no standard headers: the same source is compiled for
// every instruction set and for the GPU.
#pragma once

#if defined(__CUDACC__)
#define FUSEDOPT_HD __host__ __device__ __forceinline__
#else
// always_inline, because a copy that is compiled for AVX-512 and not inlined could be linked into baseline code.
#define FUSEDOPT_HD inline __attribute__((always_inline))
#endif

namespace fusedopt {

constexpr int kMaxStates = 3, kMaxOperands = 2 + kMaxStates;  // parameter, gradient, states
constexpr int kMaxNumbers = 16;                               // hyper-parameters of one group
constexpr int kMaxScalars = 2;                                // of one parameter, beside its step count
constexpr int kMaxRowBytes = 160;                             // a rule object in double

// Which values of a hyper-parameter a rule takes. What torch's operators do with others is their own affair: they
// refuse an alpha that a dtype does not hold, Python refuses to divide by 1 - beta = 0. So a group with such a value is
// torch's.
enum class Domain : unsigned char {
  kNumber,       // of a size up to kLargestNumber
  kNotNegative,  // that, and at least 0
  kFraction,     // at least 0, below 1
  kBound,        // a number, or infinity
  kAnySize,      // what float32 holds, or infinity: no element is computed with it
  kFlag,         // anything that is true or false
  kFlagOf1d,     // that, and false for parameters of more than one dimension
};
struct Number {  // a hyper-parameter
  const char* name;
  Domain domain = Domain::kNumber;
};
constexpr double kLargestNumber = 32768;  // half of what float16 holds

struct Scalar {  // a number of a parameter that changes in every step, as float or double wherever it lies
  double value, is_double;
  FUSEDOPT_HD double rounded(double x) const { return is_double != 0 ? x : double(float(x)); }
  FUSEDOPT_HD void set(double x) { value = rounded(x); }
};

// The operands of one pass over memory, as bits: 0 parameter, 1 gradient, 2 and up the states in the rule's order.
// A rule is called with all of them; one that is neither read nor written is a register that starts at zero.
struct Operands {
  unsigned reads, writes;
  constexpr int transfers() const { return __builtin_popcount(reads) + __builtin_popcount(writes); }
};

// What a rule may declare beyond one pass over memory.
//
// Sums, of the kScope that it says. Over a tensor: add(sum, sum, operands...) follows the pass, on the operands as they
// are stored; settle(sum, sum) makes a number of the two, with which a second pass is called, second(number,
// operands...), on kSecondOperands. Over a group: the pass itself is called with two doubles to add to before the
// operands; by them, decide(sum, sum) changes what the group remembers, and once is_late() says so, its parameters take
// another pass, late(late_rate(), operands...), on kLateOperands and without sums.
//
// Memory that outlives a step: kMemory doubles in a tensor of the group, on the device of its parameters. Their address
// is the last argument of the constructor.
//
// Scalars: numbers in the state of a parameter, as its step count is, named in kScalars in the order of the rule's
// struct Scalars of as many Scalar. As they are before the step they are the last argument of the constructor;
// advance(numbers, count, scalars) makes of them what they are after it.
enum class Scope : unsigned char { kNone, kTensor, kGroup };
template <class Rule>
constexpr Scope scope_of() {
  if constexpr (requires { Rule::kScope; }) return Rule::kScope;
  else return Scope::kNone;
}
template <class Rule>
constexpr bool kTakesSums = scope_of<Rule>() != Scope::kNone;
template <class Rule>
constexpr int memory_of() {
  if constexpr (requires { Rule::kMemory; }) return Rule::kMemory;
  else return 0;
}
template <class Rule>
constexpr int scalars_of() {
  if constexpr (requires { Rule::kScalars; }) return sizeof Rule::kScalars / sizeof *Rule::kScalars;
  else return 0;
}
template <class Rule>
FUSEDOPT_HD Rule make(const typename Rule::Numbers& numbers, double count, double scale, double* memory,
                      const Scalar* scalars = nullptr) {
  if constexpr (memory_of<Rule>() != 0) return Rule(numbers, count, scale, memory);
  else if constexpr (scalars_of<Rule>() != 0)
    return Rule(numbers, count, scale, *reinterpret_cast<const typename Rule::Scalars*>(scalars));
  else return Rule(numbers, count, scale);
}
template <class Rule>
FUSEDOPT_HD void advance(const typename Rule::Numbers& numbers, double count, Scalar* scalars) {
  if constexpr (scalars_of<Rule>() != 0)
    Rule::advance(numbers, count, *reinterpret_cast<typename Rule::Scalars*>(scalars));
}

// a * b + c, rounded once where the target has the instruction. Elsewhere a call to fma() would cost 35 times as much.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__CUDA_ARCH__)
FUSEDOPT_HD float madd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FUSEDOPT_HD double madd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
FUSEDOPT_HD float madd(float a, float b, float c) { return a * b + c; }
FUSEDOPT_HD double madd(double a, double b, double c) { return a * b + c; }
#endif

FUSEDOPT_HD float square_root(float x) { return __builtin_sqrtf(x); }
FUSEDOPT_HD double square_root(double x) { return __builtin_sqrt(x); }

// 1 - beta^count. For a rule in float the power is made by squaring: its error is as far below a float's as that of
// pow(), of which a GPU's block would have to wait for some 200 instructions in double.
template <class F>
FUSEDOPT_HD double bias_correction(double beta, double count) {
  if (sizeof(F) > sizeof(float) || !(count >= 0 && count < 4294967296.0) || count != double(unsigned(count)))
    return 1 - __builtin_pow(beta, count);
  double power = 1;
  for (unsigned n = unsigned(count); n; n /= 2, beta *= beta)
    if (n % 2) power *= beta;
  return 1 - power;
}

// What the gradients are multiplied by to clip their norm: torch.nn.utils.clip_grad_norm_'s rule, where a norm that is
// not finite goes through; with epsilon 0 apex's, where NaN does not clip.
FUSEDOPT_HD double clip_coefficient(double norm, double max_norm, double epsilon) {
  if (epsilon == 0) return norm > max_norm ? max_norm / norm : 1;
  const double coefficient = max_norm / (norm + epsilon);
  return coefficient > 1 ? 1 : coefficient;
}

// A choice in a rule is one between operands, not between multiply-adds, and hangs on a number of the element's type,
// not on a bool: that is what compilers vectorize.

// Moving average towards x, in the form that torch.lerp takes on each side of one half.
template <class F>
struct Lerp {
  F factor, near;
  FUSEDOPT_HD Lerp(double weight) : factor(F(weight < 0.5 ? weight : weight - 1)), near(F(weight < 0.5)) {}
  FUSEDOPT_HD F operator()(F average, F x) const { return madd(factor, x - average, near != 0 ? average : x); }
};

// Moving average of x^2. The weight comes first, so that x^2 alone cannot overflow.
template <class F>
struct SecondMoment {
  F decay, weight;
  FUSEDOPT_HD SecondMoment(double decay) : decay(F(decay)), weight(F(1 - decay)) {}
  FUSEDOPT_HD F operator()(F average, F x) const { return madd(weight * x, x, decay * average); }
};

// The gradient as the rule sees it: unscaled, clipped and negated by one factor, then with L2 weight decay. Without
// decay the parameter is left out, not multiplied by zero: an infinite parameter must not turn the gradient into NaN.
template <class F>
struct Gradient {
  F factor, decay;
  FUSEDOPT_HD Gradient(double scale, bool maximize, double decay)
      : factor(F(maximize ? -scale : scale)), decay(F(decay)) {}
  FUSEDOPT_HD F operator()(F grad, F param) const { return madd(decay, decay != 0 ? param : F(0), grad * factor); }
};

// Weight decay beside the gradient: p - (lr * wd) * p, not p * (1 - lr * wd), as the factor would round to 1 for a
// small product. Of an infinite p the factor it is, as the difference of two infinities would be NaN.
template <class F>
struct DecoupledDecay {
  F decay, keep;
  FUSEDOPT_HD DecoupledDecay(double decay) : decay(F(decay)), keep(F(1 - decay)) {}
  FUSEDOPT_HD F operator()(F param) const {
    const F finite = param - param;  // then 0, else NaN
    return madd(finite == 0 ? -decay : keep, param, finite == 0 ? param : F(0));
  }
};

// NaN if either is, as torch.maximum.
template <class F>
FUSEDOPT_HD F larger(F x, F y) {
  return x > y || x != x ? x : y;
}

// The sign, 0 of NaN, as torch.sign.
template <class F>
FUSEDOPT_HD F sign(F x) {
  return x > 0 ? F(1) : x < 0 ? F(-1) : F(0);
}

}  // namespace fusedopt
