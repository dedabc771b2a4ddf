// What every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define FUSEDOPT_ISA baseline
#include "kernels.h"
