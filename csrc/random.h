// Random bits by counting: those of a number are the same for any number of threads, on every device and after a
// resume.
#pragma once
#include <cstdint>

#include "rules/common.h"

namespace fusedopt {

// The last step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
FUSEDOPT_HD uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// What the bits of a tensor follow from at a step.
FUSEDOPT_HD uint64_t key_of_step(uint64_t seed, double count) {
  return mixed(seed + uint64_t(int64_t(count)) * 0x9e3779b97f4a7c15u);
}

struct Key {  // and those of one of its operands
  uint32_t a, b;
};
FUSEDOPT_HD Key key_of(uint64_t key, int operand) {
  key = mixed(key + uint64_t(operand + 1) * 0x9e3779b97f4a7c15u);
  return {uint32_t(key), uint32_t(key >> 32)};
}

// 16 bits for each of two neighbours, elements 2 * pair and the next, which has the upper ones; or a vector of them:
// Wellons' integer hash lowbias32, with a key before each multiplication. One for both, because multiplications of 32
// bits are what rounding by chance takes its time for.
template <class Word>
FUSEDOPT_HD Word random_bits(Word pair, Key key) {
  pair = pair ^ key.a;
  pair = (pair ^ pair >> 16) * 0x7feb352du;
  pair = (pair ^ pair >> 15 ^ key.b) * 0x846ca68bu;
  return pair ^ pair >> 16;
}

// What a parameter gets of its average at a step: all at the first, then 1 - decay, but at first more than that, so
// that the average of a short run does not remember where it began.
FUSEDOPT_HD double share_of_step(double decay, double count) {
  const double at_most = count / (9 + count);
  return count <= 1 ? 1 : 1 - (decay < at_most ? decay : at_most);
}

}  // namespace fusedopt
