// What numbers lie in memory as. It is data, of each operand of each parameter; only what a rule computes in is a type.
#pragma once
#include "rules/common.h"

namespace fusedopt {

enum class Storage : unsigned char {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kStochastic,  // bfloat16, rounded up or down by chance
  kSplit,       // a float32: the bfloat16 that is nearest to it, and beside that the lower 16 bits
  kMaster,      // a float32 beside the float16 that is nearest to it
};
FUSEDOPT_HD int item_size(Storage s) { return s == Storage::kFloat64 ? 8 : s == Storage::kFloat32 ? 4 : 2; }
// Of what lies beside it, elsewhere in memory.
FUSEDOPT_HD int size_beside(Storage s) { return s == Storage::kMaster ? 4 : s == Storage::kSplit ? 2 : 0; }

// How a rule's loops are compiled. On floats or on doubles they work in place; on anything else of at most 32 bits,
// whatever each operand is stored in, they compute in float and decode and encode in registers.
enum class Form : unsigned char { kFloat, kDouble, kCoded, kCount };
template <Form form>
struct Computes {
  using Type = float;
};
template <>
struct Computes<Form::kDouble> {
  using Type = double;
};
template <Form form>
using Compute = typename Computes<form>::Type;

}  // namespace fusedopt
