#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FUSEDOPT_ISA avx2
#define FUSEDOPT_HAS_FMA  // by hand: not every compiler updates its own macros after the pragma
#define FUSEDOPT_HAS_F16C
#include "kernels_impl.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
