#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define FUSEDOPT_ISA avx512
#define FUSEDOPT_HAS_FMA
#define FUSEDOPT_HAS_F16C
#include "kernels_impl.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
