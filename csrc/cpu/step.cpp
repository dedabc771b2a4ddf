#include "step.h"

#include <ATen/Parallel.h>

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fusedopt::cpu {
namespace {

// Below this many elements waking a second thread costs more than it brings.
constexpr int64_t kSerialElements = 96 * 1024;

// f(begin, end) over the chunks, a contiguous share for each thread.
template <class F>
void parallel(const Table& table, F f) {
  const auto chunks = static_cast<int64_t>(table.chunks.size());
  const int64_t threads = table.elements < kSerialElements ? 1 : at::get_num_threads();
  if (threads == 1) return f(0, chunks);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    f(chunks * first / threads, chunks * last / threads);
  });
}

struct Operand {  // the operands of one chunk
  void* addr[kMaxOperands];
  Operand(const Tensor& t, int64_t begin) {
    const int64_t offset = begin * kItemSize[static_cast<int>(t.dtype)];
    for (int k = 0; k < kMaxOperands; ++k) addr[k] = static_cast<char*>(t.addr[k]) + offset;
  }
};

double lamb_step_size(const Table& table, const Tensor& t, const double* sums, int64_t chunks) {
  double param = 0, update = 0;
  for (int64_t c = 0; c < chunks; ++c) param += sums[2 * c], update += sums[2 * c + 1];
  const void* row = table.row(t.row);
  return t.dtype == Dtype::kFloat64 ? static_cast<const Lamb<double>*>(row)->step_size(param, update)
                                    : static_cast<const Lamb<float>*>(row)->step_size(param, update);
}

// The second pass. It goes backwards: what the first pass touched last is still in the cache.
void lamb_updates(Table& table) {
  std::vector<double> step_sizes(table.tensors.size());
  for (size_t c = 0; c < table.chunks.size();) {
    const int32_t t = table.chunks[c].tensor;
    size_t end = c + 1;
    while (end < table.chunks.size() && table.chunks[end].tensor == t) ++end;
    if (end > c + 1) step_sizes[t] = lamb_step_size(table, table.tensors[t], &table.sums[2 * c], int64_t(end - c));
    c = end;
  }
  parallel(table, [&](int64_t begin, int64_t end) {
    for (int64_t c = end; c-- > begin;) {
      const Chunk& chunk = table.chunks[c];
      const Tensor& t = table.tensors[chunk.tensor];
      if (t.numel == chunk.count) continue;  // done in the first pass
      kernels().lamb_update[int(t.dtype)](Operand(t, chunk.begin).addr, chunk.count, table.row(t.row),
                                          step_sizes[chunk.tensor]);
    }
  });
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#ifdef __x86_64__
    const char* name = std::getenv("FUSEDOPT_ISA");
    if (!name) name = std::getenv("ATEN_CPU_CAPABILITY");
    const auto wants = [&](const char* isa) { return !name || !std::strcmp(name, isa); };
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (has_avx2 && has_avx512 && wants("avx512")) return avx512::kKernels;
    if (has_avx2 && (wants("avx2") || wants("avx512"))) return avx2::kKernels;
#endif
    return default_isa::kKernels;
  }();
  return chosen;
}

const char* isa() {
#ifdef __x86_64__
  if (&kernels() == &avx512::kKernels) return "avx512";
  if (&kernels() == &avx2::kKernels) return "avx2";
#endif
  return "default";
}

void step(Table& table) {
  bool second_pass = false;
  for (const Chunk& chunk : table.chunks) {
    const Tensor& t = table.tensors[chunk.tensor];
    second_pass |= t.rule == RuleId::lamb && t.numel != chunk.count;
  }
  parallel(table, [&](int64_t begin, int64_t end) {
    const Kernels& k = kernels();
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = table.chunks[c];
      const Tensor& t = table.tensors[chunk.tensor];
      const Operand x(t, chunk.begin);
      double* sums = &table.sums[2 * c];
      sums[0] = sums[1] = 0;
      k.apply[int(t.rule)][int(t.dtype)](x.addr, chunk.count, table.row(t.row), sums);
      if (t.rule == RuleId::lamb && t.numel == chunk.count)  // a tensor of one chunk is still in the first-level cache
        k.lamb_update[int(t.dtype)](x.addr, chunk.count, table.row(t.row), lamb_step_size(table, t, sums, 1));
    }
  });
  if (second_pass) lamb_updates(table);
}

double square_sum(Table& table) {
  parallel(table, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = table.chunks[c];
      const Tensor& t = table.tensors[chunk.tensor];
      table.sums[2 * c] = kernels().square_sum[int(t.dtype)](Operand(t, chunk.begin).addr[1], chunk.count);
    }
  });
  double sum = 0;
  for (size_t c = 0; c < table.chunks.size(); ++c) sum += table.sums[2 * c];
  return sum;
}

}  // namespace fusedopt::cpu
