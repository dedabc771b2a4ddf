// Why a parameter is not on the fused path: all of it, for the engine and for Python, where REASONS has the texts by
// name. X(name, text).
#pragma once

#define FUSEDOPT_REASONS(X)                                                                                  \
  /* Nothing to do, or not yet: what is missing can be made, moved or placed. */                             \
  X(NoGradient, "no gradient")                                                                               \
  X(NoState, "no state yet")                                                                                 \
  X(HostStep, "the step count is not on the GPU yet")                                                        \
  X(Unplaced, "it is placed otherwise than the parameter")                                                   \
  /* Of one parameter, for torch's path. */                                                                  \
  X(OtherDevice, "this build has no fused path for the device")                                              \
  X(OddNumber, "a hyper-parameter is not a plain number of the usual size")                                  \
  X(PartialSum, "the parameter is a partial sum")                                                            \
  X(NotPlain, "not a plain dense tensor")                                                                    \
  X(NotDense, "the parameter's memory is not dense")                                                         \
  X(NotReal, "the rules compute in real floating-point types only")                                          \
  X(MixedFloat64, "float64 beside other dtypes")                                                             \
  X(SparseGradient, "the gradient is sparse")                                                                \
  X(GradientMismatch, "the gradient does not match the parameter")                                           \
  X(StateMismatch, "the state does not match the parameter")                                                 \
  X(StateLayout, "the state's memory layout is not the parameter's")                                         \
  X(NoDict, "the state of the parameter is not a dict")                                                      \
  X(NoStep, "the state has no `step` tensor")                                                                \
  X(OddStep, "the state's `step` is not one float32 or float64 number on the CPU or its parameter's device") \
  X(OddScalar, "a state of one number is not float32 or float64, or not where `step` is")                    \
  X(LacksState, "the state lacks a tensor that the rule needs")                                              \
  X(NotSharded, "the parameter is a DTensor and its gradient or state is not")                               \
  X(ShardMismatch, "the gradient or state does not match the parameter")                                     \
  /* Of one beside others. */                                                                                \
  X(SharedMemory, "shares memory with another parameter or state")                                           \
  X(SharedGradient, "a gradient shares memory with what is updated")                                         \
  X(OtherGroupDevice, "it is on another device than the first of its group")                                 \
  X(GroupNotFused, "another parameter of its group is not fused")                                            \
  X(Stepped, "PyTorch has stepped it, and made its state")                                                   \
  /* Of the whole step. */                                                                                   \
  X(Native, "fusedopt.native() or FUSEDOPT_DISABLE=1")                                                       \
  X(Differentiable, "differentiable=True")                                                                   \
  X(Spread, "its sums go over several processes")                                                            \
  X(ForwardMode, "forward-mode differentiation is active")                                                   \
  X(DispatchMode, "a dispatch mode or function transform is active")                                         \
  X(FunctionMode, "a TorchFunctionMode is active")                                                           \
  X(NoStepYet, "no step yet")

namespace fusedopt {

#define X(name, text) k##name,
enum Reason : unsigned char { kNone, FUSEDOPT_REASONS(X) };
#undef X
#define X(name, text) text,
inline constexpr const char* kReasonTexts[] = {nullptr, FUSEDOPT_REASONS(X)};
#undef X
#define X(name, text) #name,
inline constexpr const char* kReasonNames[] = {nullptr, FUSEDOPT_REASONS(X)};
#undef X

}  // namespace fusedopt
