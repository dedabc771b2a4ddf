// Small kernels that use what ours use, to test the executor itself. `sample scale` and `sample sum` check results,
// with the name of a bug after them one that is planted.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "executor.h"

#ifndef FUSEDOPT_CUDA_THREADS
#define FUSEDOPT_CUDA_THREADS 64
#endif
constexpr unsigned kThreads = FUSEDOPT_CUDA_THREADS, kWarps = kThreads / 32, kAll = 0xffffffff;

const char* bug = "";
#define PLANTED(name) (!std::strcmp(bug, #name))

#define CHECK(condition) \
  if (!(condition)) std::printf("sample.cu:%d: wrong: %s\n", __LINE__, #condition), std::exit(1)

// ---- scale: chunks of several tensors, 16 bytes at a time where they are aligned ----

struct alignas(16) Vector {
  float v[4];
};
struct Chunk {
  float* begin;
  unsigned count;
};
struct Chunks {
  Chunk chunk[64];
};

__global__ void __launch_bounds__(kThreads) scale(const __grid_constant__ Chunks chunks, float factor) {
  const Chunk chunk = chunks.chunk[blockIdx.x];
  const bool aligned = reinterpret_cast<uintptr_t>(chunk.begin) % sizeof(Vector) == 0 || PLANTED(misaligned);
  const unsigned vectors = aligned ? chunk.count / 4 : 0;
  for (unsigned i = threadIdx.x; i < vectors; i += blockDim.x) {
    Vector x = reinterpret_cast<Vector*>(chunk.begin)[i];
#pragma unroll
    for (float& v : x.v) v *= factor;
    reinterpret_cast<Vector*>(chunk.begin)[i] = x;
  }
  for (unsigned i = 4 * vectors + threadIdx.x; i < chunk.count + PLANTED(out_of_bounds); i += blockDim.x)
    chunk.begin[i] *= factor;
}

void test_scale() {
  constexpr unsigned kSize = 300;
  std::vector<std::vector<float>> tensors;
  for (size_t size : {1, 4, 299, 300, 301, 1203}) tensors.emplace_back(size + 1, 1.f);
  for (int offset : {0, 1}) {
    Chunks chunks;
    unsigned blocks = 0;
    for (auto& tensor : tensors)
      for (unsigned begin = offset; begin < tensor.size(); begin += kSize) {
        const unsigned rest = tensor.size() - begin;
        chunks.chunk[blocks++] = {&tensor[begin], rest > kSize ? kSize + PLANTED(overlapping_chunks) : rest};
      }
    launch(scale, blocks, kThreads, nullptr, chunks, 2);
  }
  for (auto& tensor : tensors)
    for (size_t i = 0; i < tensor.size(); ++i) CHECK(tensor[i] == (i ? 4 : 2));
}

// ---- sum: of all blocks, by the last one to finish ----

template <class T>
__device__ T block_sum(T x) {
  SHARED(part, T[kWarps]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int bits = 16; bits; bits /= 2) x += __shfl_xor_sync(kAll, x, bits);
  if (lane == 0) part[warp + PLANTED(shared_overrun)] = x;
  if (PLANTED(shared_overrun_by_pointer) && lane == 0) (&part[0])[kWarps + warp] = x;
  if (!PLANTED(missing_barrier)) __syncthreads();
  if (warp == 0) {
    x = lane < kWarps ? part[lane] : 0;
    if (!PLANTED(wrong_mask) || lane < 16)
      for (int by = 16; by; by /= 2) x += __shfl_down_sync(kAll, x, by);
  }
  if (!PLANTED(missing_barrier_before_reuse)) __syncthreads();
  return x;  // of the block, in thread 0
}

struct Result {
  double sum, squares;
  unsigned nans;  // blocks with one
};

__global__ void __launch_bounds__(kThreads)
    sum(Result* result, Result* partial, unsigned* done, const float* x, unsigned count, unsigned chunk) {
  SHARED(last, bool);
  double sum = 0, squares = 0;
  bool nan = false;
  for (unsigned i = threadIdx.x; i < chunk && blockIdx.x * chunk + i < count; i += blockDim.x) {
    const double value = __ldg(x + blockIdx.x * chunk + i);
    nan |= value != value;
    sum += value, squares += value * value;
  }
  if (PLANTED(early_return) && threadIdx.x / 32 == kWarps - 1) return;
  if (PLANTED(lane_outside_mask)) __ballot_sync(0x0000ffff, true);
  if (PLANTED(source_outside_mask) && threadIdx.x % 32 < 16) __shfl_xor_sync(0x0000ffff, sum, 16);
  if (PLANTED(other_shuffle)) {
    if (threadIdx.x % 2) __ballot_sync(kAll, true);
    else __ballot_sync(kAll, true);
  }
  if (!PLANTED(divergent_barrier) || threadIdx.x < 32) sum = block_sum(sum);
  squares = block_sum(squares);
  const bool any = block_sum(float(__any_sync(kAll, nan))) > 0;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = {sum, squares, any};
    if (!PLANTED(missing_fence_before_atomic)) __threadfence();
    last = atomicAdd(done, 1) == gridDim.x - 1;
    if (!PLANTED(missing_fence_after_atomic)) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  Result total = {};
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
    total.sum += __ldcg(&partial[i].sum), total.squares += __ldcg(&partial[i].squares);
    total.nans += __ldcg(&partial[i].nans);
  }
  total = {block_sum(total.sum), block_sum(total.squares), unsigned(block_sum(float(total.nans)))};
  if (threadIdx.x == 0) *result = total, *done = 0;
}

void test_sum() {
  constexpr unsigned kCount = 1000, kChunk = 130, kBlocks = (kCount + kChunk - 1) / kChunk;
  std::vector<float> x(kCount);
  double expected = 0, squares = 0;
  for (unsigned i = 0; i < kCount; ++i) x[i] = i % 7, expected += x[i], squares += x[i] * x[i];
  std::vector<Result> partial(kBlocks);
  Result result = {};
  unsigned done = 0;
  for (int repetition = 0; repetition < 2; ++repetition) {
    launch(sum, kBlocks, kThreads, nullptr, &result, partial.data(), &done, x.data(), kCount, kChunk);
    CHECK(result.sum == expected && result.squares == squares && result.nans == 0 && done == 0);
  }
  x[kChunk - 1] = x[kChunk] = __builtin_nanf("");
  launch(sum, kBlocks, kThreads, nullptr, &result, partial.data(), &done, x.data(), kCount, kChunk);
  CHECK(result.nans == 2);
}

// ---- What a kernel sees ----

struct Seen {
  unsigned ballot, down, threads, blocks, poison[2];
};
__global__ void look(Seen* seen) {
  SHARED(never_written, unsigned[2]);
  Seen& mine = seen[blockIdx.x * blockDim.x + threadIdx.x];
  mine = {__ballot_sync(kAll, threadIdx.x % 2),
          unsigned(__shfl_down_sync(kAll, float(threadIdx.x), 30)),
          blockDim.x,
          gridDim.x,
          {never_written[0], never_written[1]}};
  __syncthreads();
  if (threadIdx.x == 0) never_written[0] = 0;
}
void test_seen() {
  std::vector<Seen> seen(3 * kThreads);
  launch(look, 3, kThreads, nullptr, seen.data());
  for (unsigned i = 0; i < seen.size(); ++i) {
    const unsigned thread = i % kThreads;
    CHECK(seen[i].ballot == 0xaaaaaaaa && seen[i].threads == kThreads && seen[i].blocks == 3);
    CHECK(seen[i].down == (thread % 32 < 2 ? thread + 30 : thread));
    CHECK(seen[i].poison[0] == 0xffffffff && seen[i].poison[1] == 0xffffffff);
  }
}

void test_os_threads() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(test_sum);
  for (std::thread& thread : threads) thread.join();
}

int main(int, char** arguments) {
  const std::string name = arguments[1];
  if (arguments[2]) bug = arguments[2];
  if (name == "scale") test_scale();
  else if (name == "sum") test_sum();
  else if (name == "seen") test_seen();
  else if (name == "os_threads") test_os_threads();
  else CHECK(!"a test");
}
