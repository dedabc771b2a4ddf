// One step of the CPU back end: at most two parallel regions over all chunks of all tensors.
#pragma once
#include "../chunks.h"

namespace fusedopt::cpu {

// Applies every tensor's rule. The rows are folded, the addresses are live.
void step(Table& table);

// The sum of squares of all gradients, the same for any number of threads.
double square_sum(Table& table);

}  // namespace fusedopt::cpu
