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
  // Codes of 8 bits, beside them a float32 for each block of kBlock: the largest magnitude in it (codes.h). Signed, or
  // of numbers that are never negative; rounded to nearest, or by chance.
  kCodes,
  kSignedCodes,
  kCodesByChance,
  kSignedCodesByChance,
};
constexpr int64_t kBlock = 256;
FUSEDOPT_HD bool is_in_blocks(Storage s) { return s >= Storage::kCodes; }
FUSEDOPT_HD bool is_signed(Storage s) { return s == Storage::kSignedCodes || s == Storage::kSignedCodesByChance; }
FUSEDOPT_HD bool is_by_chance(Storage s) {
  return s == Storage::kStochastic || s == Storage::kCodesByChance || s == Storage::kSignedCodesByChance;
}
// The same, rounded by chance, of what can be.
FUSEDOPT_HD Storage by_chance(Storage s) {
  if (s == Storage::kBFloat16) return Storage::kStochastic;
  if (s == Storage::kCodes) return Storage::kCodesByChance;
  return s == Storage::kSignedCodes ? Storage::kSignedCodesByChance : s;
}
FUSEDOPT_HD int item_size(Storage s) {
  return s == Storage::kFloat64 ? 8 : s == Storage::kFloat32 ? 4 : is_in_blocks(s) ? 1 : 2;
}
// Of what lies beside n elements, elsewhere in memory.
FUSEDOPT_HD int64_t bytes_beside(Storage s, int64_t n) {
  if (is_in_blocks(s)) return (n + kBlock - 1) / kBlock * 4;
  return s == Storage::kMaster ? 4 * n : s == Storage::kSplit ? 2 * n : 0;
}

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
