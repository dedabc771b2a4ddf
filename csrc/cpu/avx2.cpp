#ifdef __x86_64__
#define FUSEDOPT_ISA avx2
#define FUSEDOPT_TARGET "avx2,fma,f16c"
#include "kernels.h"
#endif
