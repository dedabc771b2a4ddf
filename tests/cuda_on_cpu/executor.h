// Runs CUDA kernels on the CPU: the part of CUDA that our kernels use, for a C++ compiler, without any header of
// NVIDIA's. Build with
//   g++ -std=c++20 -x c++ -DFUSEDOPT_CUDA_ON_CPU -I tests/cuda_on_cpu -I csrc -ffp-contract=off -Wno-unknown-pragmas
//       kernels.cu tests/cuda_on_cpu/*.cpp
// Contraction is off because a*b+c is rounded once or twice as the compiler likes. #pragma unroll means nothing to g++,
// and no pragma in a header can stop g++ 12 from saying so under -Wall.
//
// The threads of a block take turns on one OS thread, and blocks run one after the other, in an order that
// FUSEDOPT_EXECUTOR_ORDER sets at every launch: forward (the default), reverse, or the seed of a shuffle.
//
// What is checked, with a message and abort():
//   all threads of a block reach the same __syncthreads(), and none has returned before it
//   all lanes that a mask names meet in the same warp operation, and each reads from one of them
//   the limits of a launch and of shared memory, and what a capture forbids
// Shared memory is 0xFF before each block: a NaN in either type. AddressSanitizer sees each shared variable as a heap
// block of its own. UBSan (g++'s: clang's leaves vectors out) sees misaligned access. ThreadSanitizer sees each CUDA
// thread as a thread, and blocks as unordered; use blocks of 64 threads, more exhaust its history of accesses.
//
// What does not show: how nvcc compiles, timing, real scheduling and the hardware's memory model beyond the fences
// below. A block that waits for another one hangs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#ifndef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __grid_constant__

// SHARED(part, double[32]) declares `part`. There is no __shared__ here: as a static variable it would keep its values
// from block to block, and g++'s AddressSanitizer puts no guard around those.
#define SHARED(name, ...)      \
  static char name##_identity; \
  auto& name = *static_cast<std::add_pointer_t<__VA_ARGS__>>(executor::shared(&name##_identity, sizeof(__VA_ARGS__)))

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern uint3 threadIdx, blockIdx;  // grids and blocks have one dimension
extern dim3 blockDim, gridDim;

enum cudaError_t { cudaSuccess };  // an error ends the program
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
};
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
// Memory that is not registered counts as pageable.
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* memory);

namespace executor {

// What has run. Work that is captured counts when it is replayed, each time.
struct Counters {
  int64_t launches = 0, copies = 0, memsets = 0;
  int64_t loaded = 0, stored = 0;  // bytes, of __ldcg and __stcg
};
extern Counters counters;  // to be read and reset (counters = {}) by tests

// No kernel's thread races with another for it.
inline void count(int64_t& counter, int64_t more) {
  __atomic_store_n(&counter, __atomic_load_n(&counter, __ATOMIC_RELAXED) + more, __ATOMIC_RELAXED);
}

// As if the queue of the device were full: from then on each launch waits until it is let go, ten seconds at most.
void stall();
bool stalled();  // a launch waits
void let_go();   // that launch
int unstall();   // how many launches have waited in vain

// Leaves kernels out from then on, or no longer: what remains is the host's work.
void skip(bool kernels);

// Streams 1 to 8, for tests, and new ones; the default stream is null. On all of them work is done when the call
// returns.
cudaStream_t stream(int number);
cudaStream_t create_stream();
void set_stream(cudaStream_t stream);
cudaStream_t current_stream();

// Between the two, work on this stream is recorded and not run, with copies of the kernels' arguments. One capture at
// a time. Work on other streams runs at once.
void begin_capture(cudaStream_t stream);
int end_capture();
bool capturing(cudaStream_t stream);
void replay(int graph);
// Leaves an object to the graph that is being captured; to destroy the graph is to destroy its objects.
void retain(void* object, void (*destroy)(void*));
void destroy(int graph);
int retained();  // objects of all graphs

// ---- What the kernels' names below are made of ----
using Where = std::source_location;  // no number converts to it: a width cannot be taken for a line
using Work = std::function<void()>;

constexpr unsigned kWarp = 32, kMaxThreads = 1024;

[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));
void run(unsigned grid, unsigned threads, const Work& thread);
void launch(unsigned grid, unsigned threads, cudaStream_t stream, size_t argument_bytes, Work thread);
void* shared(const void* identity, size_t bytes);
void barrier(Where where);
void fence();
void atomic(const void* address);  // the thread has just done one
// Meets the lanes of the mask. Returns the value of lane `source`, or with kBallot which lanes' values are not zero.
uint64_t meet(unsigned mask, uint64_t value, unsigned source, Where where);
constexpr unsigned kBallot = ~0u;

template <class V>
V shuffle(unsigned mask, V value, unsigned source, Where where) {
  static_assert(sizeof(V) <= sizeof(uint64_t) && std::is_arithmetic_v<V>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = meet(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

inline unsigned lane() { return threadIdx.x % kWarp; }

// How far arguments reach when each is aligned as its type wants, which is how CUDA counts them.
template <class... P>
constexpr size_t argument_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(P) - 1) / alignof(P) * alignof(P) + sizeof(P)), ...);
  return bytes;
}

}  // namespace executor

// kernel<<<grid, threads, 0, stream>>>(args...). A kernel that takes a large argument by reference to const gets one to
// the launch's copy; by value, every thread makes a copy of its own.
template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned grid, unsigned threads, cudaStream_t stream, A&&... args) {
  static_assert((std::is_trivially_copyable_v<std::decay_t<P>> && ...));
  const std::tuple<std::decay_t<P>...> copies(std::forward<A>(args)...);
  executor::launch(grid, threads, stream, executor::argument_bytes<std::decay_t<P>...>(),
                   [=] { std::apply(kernel, copies); });
}

inline void __syncthreads(executor::Where where = executor::Where::current()) { executor::barrier(where); }

// A lane that a shift leads out of the warp keeps its value. These order no access to memory.
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int bits, executor::Where where = executor::Where::current()) {
  return executor::shuffle(mask, value, executor::lane() ^ unsigned(bits), where);
}
template <class V>
V __shfl_down_sync(unsigned mask, V value, unsigned by, executor::Where where = executor::Where::current()) {
  const unsigned source = executor::lane() + by;
  return executor::shuffle(mask, value, source < executor::kWarp ? source : executor::lane(), where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, executor::Where where = executor::Where::current()) {
  return unsigned(executor::meet(mask, predicate != 0, executor::kBallot, where));
}
inline int __any_sync(unsigned mask, int predicate, executor::Where where = executor::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

// Threads of different blocks are ordered by (fence, atomic) in the one before (atomic, fence) in the other, on the
// same address, as in the memory models of PTX and C++. Each fence counts for one atomic on either side of it.
inline void __threadfence() { executor::fence(); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  executor::atomic(address);
  return before;
}

template <class V>
V __ldg(const V* address) {
  return *address;
}
template <class V>
V __ldcg(const V* address) {
  executor::count(executor::counters.loaded, sizeof(V));
  return *address;
}
template <class V>
void __stcg(V* address, V value) {
  executor::count(executor::counters.stored, sizeof(V));
  *address = value;
}
