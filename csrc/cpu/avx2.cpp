#ifdef __x86_64__
#define FUSEDOPT_ISA avx2
#include "kernels.h"
#endif
