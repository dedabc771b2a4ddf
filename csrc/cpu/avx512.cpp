#ifdef __x86_64__
#define FUSEDOPT_ISA avx512
#define FUSEDOPT_TARGET "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,prefer-vector-width=512"
#include "kernels.h"
#endif
