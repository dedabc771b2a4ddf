// The loops over one chunk, compiled once per instruction set. No torch here.
#pragma once
#include <cstdint>

#include "../rules/all.h"

namespace fusedopt::cpu {

constexpr int kRules = static_cast<int>(RuleId::kCount), kDtypes = static_cast<int>(Dtype::kCount);

struct Kernels {
  // Applies a rule to n elements. LAMB's first pass adds the squared norms of parameter and update to sums[0], sums[1].
  void (*apply[kRules][kDtypes])(void* const* addr, int64_t n, const void* rule, double* sums);
  void (*lamb_update[kDtypes])(void* const* addr, int64_t n, const void* rule, double step_size);
  double (*square_sum[kDtypes])(const void* x, int64_t n);
};

namespace default_isa { extern const Kernels kKernels; }
namespace avx2 { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }

// The best set for this machine, or the one that FUSEDOPT_ISA (or ATEN_CPU_CAPABILITY) names: default, avx2, avx512.
const Kernels& kernels();
const char* isa();

}  // namespace fusedopt::cpu
