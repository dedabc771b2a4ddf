// The kernels and their launches, compiled for the executor.
#include "../../csrc/cuda/launch.cu"
