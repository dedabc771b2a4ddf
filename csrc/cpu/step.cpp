#include <ATen/Parallel.h>

#include <cstdlib>
#include <string_view>

#include "cpu.h"

namespace fusedopt::cpu {
namespace {

// Below this many elements waking a second thread costs more than it brings.
constexpr int64_t kSerialElements = 96 * 1024;

using Isa = std::pair<const char*, const Kernels&>;
const auto [kIsaName, kKernels] = []() -> Isa {
#ifdef __x86_64__
  const char* name = std::getenv("FUSEDOPT_ISA");
  if (!name) name = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view asked = name ? name : "";  // what we do not know asks for the best
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (has_avx2 && has_avx512 && asked != "avx2" && asked != "default") return {"avx512", avx512::kKernels};
  if (has_avx2 && asked != "default") return {"avx2", avx2::kKernels};
#endif
  return {"default", baseline::kKernels};
}();

// f(chunk index, tensor, addresses of the chunk's operands), for a contiguous share of the chunks in each thread.
template <class F>
void for_each_chunk(Table& table, bool backwards, F f) {
  const auto chunks = static_cast<int64_t>(table.chunks.size());
  const int64_t threads = table.elements < kSerialElements ? 1 : at::get_num_threads();
  const auto share = [&](int64_t first, int64_t last) {
    for (int64_t i = chunks * first / threads, end = chunks * last / threads; i < end; ++i) {
      const int64_t c = backwards ? chunks - 1 - i : i;
      const Tensor& t = table.tensors[table.chunks[c].tensor];
      void* addr[kMaxOperands];
      for (int k = 0; k < kMaxOperands; ++k)
        addr[k] = static_cast<char*>(t.addr[k]) + table.chunks[c].begin * kItemSize[int(t.dtype)];
      f(c, t, addr);
    }
  };
  if (threads == 1) share(0, 1);
  else at::parallel_for(0, threads, 1, share);
}

// From the partial sums of a tensor's chunks, in their order.
double lamb_step_size(Table& table, const Tensor& t, int64_t chunk) {
  double param = 0, update = 0;
  for (const auto last = chunk + (t.numel - 1) / kChunkSize; chunk <= last; ++chunk)
    param += table.sums[2 * chunk], update += table.sums[2 * chunk + 1];
  const void* row = table.row(t.row);
  return t.dtype == Dtype::kFloat64 ? static_cast<const Lamb<double>*>(row)->step_size(param, update)
                                    : static_cast<const Lamb<float>*>(row)->step_size(param, update);
}

// Whether a tensor needs no second pass: it is one chunk, and its sums are all here.
bool ends_early(const Table& table, int32_t tensor) {
  return table.tensors[tensor].numel <= kChunkSize && !table.is_shared(tensor);
}

// SWATS: what the chunks of a group have left, in their order, decides on its phase. A group's are neighbours.
void decide(Table& table) {
  const Switch* group = nullptr;
  double square = 0, dot = 0;
  for (size_t c = 0; c <= table.chunks.size(); ++c) {
    const Tensor* t = c < table.chunks.size() ? &table.tensors[table.chunks[c].tensor] : nullptr;
    const bool decides = t && t->rule == RuleId::swats && !table.is_shared(table.chunks[c].tensor);
    const auto* next = decides ? static_cast<const Switch*>(table.row(t->row)) : nullptr;
    if (group && (!next || next->memory != group->memory)) {
      if (!group->is_sgd()) group->decide(square, dot);
      square = dot = 0;
    }
    if ((group = next)) square += table.sums[2 * c], dot += table.sums[2 * c + 1];
  }
}

}  // namespace

const char* isa() { return kIsaName; }

void step(Table& table) {
  first_pass(table);
  second_pass(table);
}

void first_pass(Table& table) {
  const Kernels& k = kKernels;
  for_each_chunk(table, false, [&](int64_t c, const Tensor& t, void** addr) {
    const int64_t n = table.chunks[c].count;
    double* sums = &table.sums[2 * c];
    sums[0] = sums[1] = 0;
    k.apply[int(t.rule)][int(t.dtype)](addr, n, table.row(t.row), sums);
    if (t.rule == RuleId::lamb && ends_early(table, table.chunks[c].tensor))  // still in the first-level cache
      k.lamb_update[int(t.dtype)](addr, n, table.row(t.row), lamb_step_size(table, t, c));
  });
}

void second_pass(Table& table) {
  const Kernels& k = kKernels;
  decide(table);
  bool second_pass = false;  // for LAMB's larger tensors; their step size goes where their first chunk's sums were
  for (size_t c = 0; c < table.chunks.size(); ++c) {
    const Tensor& t = table.tensors[table.chunks[c].tensor];
    if (t.rule != RuleId::lamb || table.chunks[c].begin || ends_early(table, table.chunks[c].tensor)) continue;
    table.sums[2 * c] = lamb_step_size(table, t, int64_t(c));
    second_pass = true;
  }
  if (!second_pass) return;
  // Backwards: what the first pass touched last is still in the cache.
  for_each_chunk(table, true, [&](int64_t c, const Tensor& t, void** addr) {
    if (t.rule != RuleId::lamb || ends_early(table, table.chunks[c].tensor)) return;
    const double step_size = table.sums[2 * (c - table.chunks[c].begin / kChunkSize)];
    k.lamb_update[int(t.dtype)](addr, table.chunks[c].count, table.row(t.row), step_size);
  });
}

void decide(const double* numbers, double square, double dot) {
  Swats<double>::Numbers n;
  __builtin_memcpy(&n, numbers, sizeof n);
  const Switch group = Swats<double>(n, 1, 1).group;
  if (!group.is_sgd()) group.decide(square, dot);
}

double square_sum(Table& table) {
  for_each_chunk(table, false, [&](int64_t c, const Tensor& t, void** addr) {
    table.sums[2 * c] = table.sums[2 * c + 1] = 0;
    kKernels.square_sum[int(t.dtype)](addr, table.chunks[c].count, &table.sums[2 * c]);
  });
  double sum = 0;
  for (size_t c = 0; c < table.chunks.size(); ++c) sum += table.sums[2 * c];
  return sum;
}

}  // namespace fusedopt::cpu
