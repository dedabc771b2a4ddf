#ifdef __x86_64__
#define FUSEDOPT_ISA avx512
#include "kernels.h"
#endif
