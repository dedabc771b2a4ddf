// How a block goes over the elements of a chunk: fetches the operands, computes, and puts them back.
#pragma once
#include "codecs.cuh"

namespace fusedopt::cuda {

struct Nothing {};

// Moves the average of neighbours towards what is stored of them.
template <int N, bool Grouped>
__device__ __forceinline__ void follow(Coded<N> param, const Place& from, const Place& average, double share, int i,
                                       int there) {
  Coded<N> mean;
  mean.template fetch<Grouped>(average, i, there);
  param.decode(from, i, there), mean.decode(average, i, there);
  const Lerp<float> lerp(share);
#pragma unroll
  for (int n = 0; n < N; ++n) mean.set(n, lerp(mean.get(n), param.get(n)));
  mean.encode(average, i, there);
  mean.template put<Grouped>(average, i, there);
}

// Fetches neighbours of every operand that is read, for U places apart, before it computes on any of them, and puts
// those that are written: what `body` has made of them in registers. What is stored then goes to `after`. Coded ones
// that are not grouped may end anywhere; then all of a warp come along, for the sake of a block that they make
// together.
template <class Neighbours, int N, int U, bool Grouped, Operands Ops, class Body, class After>
__device__ __forceinline__ void visit(const Place (&p)[kMaxOperands], const Place& average, double share, int begin,
                                      int end, Body& body, After& after) {
  using F = typename Neighbours::F;
  constexpr bool kMasked = !Grouped && std::is_same_v<Neighbours, Coded<N>>;
  const int stop = kMasked ? begin + (end - begin + 32 * N - 1) / (32 * N) * (32 * N) : end;
  for (int first = begin + int(threadIdx.x) * N; first < stop; first += kThreads * N * U) {
    Neighbours x[U][kMaxOperands];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if ((Ops.reads >> k & 1) && i < stop) x[u][k].template fetch<Grouped>(p[k], i, end - i);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * kThreads * N;
      if (i >= stop) break;
      const int there = end - i;
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if (Ops.reads >> k & 1) x[u][k].decode(p[k], i, there);
      const auto each = [&]<unsigned Known>(auto& what, std::integral_constant<unsigned, Known>) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          if (kMasked && n >= there) continue;
          F v[kMaxOperands];
#pragma unroll
          for (int k = 0; k < kMaxOperands; ++k) v[k] = Known >> k & 1 ? x[u][k].get(n) : F(0);
          what(v[0], v[1], v[2], v[3], v[4]);
#pragma unroll
          for (int k = 0; k < kMaxOperands; ++k)
            if (Ops.writes >> k & 1) x[u][k].set(n, v[k]);
        }
      };
      each(body, std::integral_constant<unsigned, Ops.reads>());
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k) {
        if (!(Ops.writes >> k & 1)) continue;
        x[u][k].encode(p[k], i, there);
        x[u][k].template put<Grouped>(p[k], i, there);
        if constexpr (std::is_same_v<Neighbours, Coded<N>>)
          if (k == 0 && average.at) follow<N, Grouped>(x[u][0], p[0], average, share, i, there);
        if constexpr (!std::is_same_v<After, Nothing>) x[u][k].decode(p[k], i, there);
      }
      if constexpr (!std::is_same_v<After, Nothing>)
        each(after, std::integral_constant<unsigned, Ops.reads | Ops.writes>());
    }
  }
}

// A chunk, in groups that are accesses of 16 bytes where the addresses allow, and the rest element by element. Which
// thread takes an element does not depend on the address, so that sums do not.
template <Operands Ops, Form form, class Body, class After = Nothing>
__device__ __forceinline__ void sweep(const Tensor& t, const Tensor* there, const Chunk& chunk, Body body,
                                      After after = {}) {
  constexpr int kNumber = form == Form::kCoded ? 8 : 16 / sizeof(Compute<form>), kReads = __builtin_popcount(Ops.reads);
  // Enough loads in flight to cover their latency, and no more than there are registers for.
  constexpr int kUnroll = kReads == 1 ? 4 : kReads <= 3 && form != Form::kCoded ? 2 : 1;
  Place p[kMaxOperands];
  uintptr_t address = 0;
  for (int k = 0; k < kMaxOperands; ++k) {
    const int size = form == Form::kCoded ? item_size(t.storage[k]) : int(sizeof(Compute<form>));
    p[k] = {static_cast<char*>(t.addr[k]) + chunk.begin * size,
            nullptr,
            t.storage[k],
            0,
            k,
            uint32_t(chunk.begin),
            uint32_t(chunk.begin / kBlock),
            there};
    // An access of less than 16 bytes asks for less.
    if ((Ops.reads | Ops.writes) >> k & 1) address |= reinterpret_cast<uintptr_t>(p[k].at) << (size == 1);
  }
  Place average{};
  double share = 0;
  if constexpr (form == Form::kCoded) {
    p[0].beside = static_cast<char*>(t.beside[0]) + bytes_beside(t.storage[0], chunk.begin);
    if ((Ops.reads | Ops.writes) & 1) address |= reinterpret_cast<uintptr_t>(p[0].beside);
    const double count = t.step ? number(t.step, t.double_step) + 1 : 0;
    const uint64_t key = t.step ? key_of_step(t.key, count) : t.key;
    for (int k = 0; k < kMaxOperands; ++k) p[k].key = key;
    if ((Ops.writes & 1) && t.average) {
      char* const at = static_cast<char*>(t.average) + chunk.begin * item_size(t.average_storage);
      average = {at, nullptr, t.average_storage, key, kMaxOperands, uint32_t(chunk.begin), 0, there};
      share = t.step ? share_of_step(t.share, count) : t.share;
      address |= reinterpret_cast<uintptr_t>(at);
    }
  }
  constexpr int kTogether = form == Form::kCoded ? int(kBlock) : kNumber;
  const int whole = chunk.count / kTogether * kTogether;
  using Group = typename InRegisters<form>::template Neighbours<kNumber>;
  if constexpr (form == Form::kCoded) {
    const int grouped = address % 16 == 0 ? whole : 0;
    visit<Group, kNumber, kUnroll, true, Ops>(p, average, share, 0, grouped, body, after);
    visit<Group, kNumber, 1, false, Ops>(p, average, share, grouped, chunk.count, body, after);
  } else {
    if (address % 16 == 0) visit<Group, kNumber, kUnroll, true, Ops>(p, average, share, 0, whole, body, after);
    else visit<Group, kNumber, kUnroll, false, Ops>(p, average, share, 0, whole, body, after);
    using One = typename InRegisters<form>::template Neighbours<1>;
    visit<One, 1, 1, false, Ops>(p, average, share, whole, chunk.count, body, after);
  }
}

}  // namespace fusedopt::cuda
