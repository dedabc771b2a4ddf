// The yardstick for a step over large tensors: a loop with the same number of reads and writes per element and next to
// no arithmetic. Plain C++ and OpenMP, one contiguous share per thread.
#include <cstdint>

namespace {

// Stores the mean of R arrays in the first W of them: values stay finite and normal however often it runs.
template <int R, int W>
float pass(float* const* arrays, std::int64_t n, int threads) {
  float* __restrict__ a[5] = {};
  for (int i = 0; i < R; ++i) a[i] = arrays[i];
  float total = 0;
#pragma omp parallel for simd schedule(static) num_threads(threads) reduction(+ : total)
  for (std::int64_t i = 0; i < n; ++i) {
    float mean = 0;
    for (int r = 0; r < R; ++r) mean += a[r][i];
    mean *= 1.0f / R;
    for (int w = 0; w < W; ++w) a[w][i] = mean;
    if (W == 0) total += mean;  // Nothing is written: the sum keeps the reads alive.
  }
  return total;
}

}  // namespace

// Returns the sum over the pass (0 if the pass writes), or NaN for numbers of reads and writes that no rule has.
extern "C" float stream_pass(float* const* arrays, int reads, int writes, std::int64_t n, int threads) {
  switch (10 * reads + writes) {
    case 10: return pass<1, 0>(arrays, n, threads);
    case 20: return pass<2, 0>(arrays, n, threads);
    case 21: return pass<2, 1>(arrays, n, threads);
    case 31: return pass<3, 1>(arrays, n, threads);
    case 32: return pass<3, 2>(arrays, n, threads);
    case 42: return pass<4, 2>(arrays, n, threads);
    case 43: return pass<4, 3>(arrays, n, threads);
    case 54: return pass<5, 4>(arrays, n, threads);
    default: return __builtin_nanf("");
  }
}
