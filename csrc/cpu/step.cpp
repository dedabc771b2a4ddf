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

// f(chunk index, tensor, the chunk), for a contiguous share of the chunks in each thread.
template <class F>
void for_each_chunk(Table& table, bool backwards, F f) {
  const auto chunks = static_cast<int64_t>(table.chunks.size());
  const int64_t threads = table.elements < kSerialElements ? 1 : at::get_num_threads();
  const auto share = [&](int64_t first, int64_t last) {
    for (int64_t i = chunks * first / threads, end = chunks * last / threads; i < end; ++i) {
      const int64_t c = backwards ? chunks - 1 - i : i;
      const Tensor& t = table.tensors[table.chunks[c].tensor];
      f(c, t, span_of(t, table.chunks[c].begin, table.chunks[c].count));
    }
  };
  if (threads == 1) share(0, 1);
  else at::parallel_for(0, threads, 1, share);
}

const RuleInfo& rule_of(const Tensor& t) { return info(t.rule); }
bool has_second(const Tensor& t) { return rule_of(t).scope == Scope::kTensor; }

// From the sums of a tensor's chunks, in their order, the number that its second pass is called with.
double settle(Table& table, const Tensor& t, int64_t chunk) {
  double first = 0, second = 0;
  for (const auto last = chunk + (t.numel - 1) / kChunkSize; chunk <= last; ++chunk)
    first += table.sums[2 * chunk], second += table.sums[2 * chunk + 1];
  return rule_of(t).settle[t.form == Form::kDouble](table.row(t.row), first, second);
}

// Whether a tensor needs no second pass: it is one chunk, and its sums are all here.
bool ends_early(const Table& table, int32_t tensor) {
  return table.tensors[tensor].numel <= kChunkSize && !table.is_shared(tensor);
}

// What the chunks of a group have left, in their order, decides on it. A group's are neighbours.
void decide(Table& table) {
  const Tensor* of = nullptr;  // one of the group's
  double first = 0, second = 0;
  for (size_t c = 0; c <= table.chunks.size(); ++c) {
    const Tensor* t = c < table.chunks.size() ? &table.tensors[table.chunks[c].tensor] : nullptr;
    if (t && (rule_of(*t).scope != Scope::kGroup || table.is_shared(table.chunks[c].tensor))) t = nullptr;
    if (of && (!t || table.memories[t->row] != table.memories[of->row])) {
      rule_of(*of).decide[of->form == Form::kDouble](table.row(of->row), first, second);
      first = second = 0;
    }
    if ((of = t)) first += table.sums[2 * c], second += table.sums[2 * c + 1];
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
  for_each_chunk(table, false, [&](int64_t c, const Tensor& t, const Span& span) {
    double* sums = &table.sums[2 * c];
    sums[0] = sums[1] = 0;
    k.apply[int(t.rule)][int(t.form)](span, table.row(t.row), sums);
    if (has_second(t) && ends_early(table, table.chunks[c].tensor))  // still in the first-level cache
      k.second[int(t.rule)][int(t.form)](span, table.row(t.row), settle(table, t, c));
  });
}

void second_pass(Table& table) {
  const Kernels& k = kKernels;
  decide(table);
  bool is_needed = false;  // for larger tensors; what it is called with goes where their first chunk's sums were
  for (size_t c = 0; c < table.chunks.size(); ++c) {
    const Tensor& t = table.tensors[table.chunks[c].tensor];
    if (!has_second(t) || table.chunks[c].begin || ends_early(table, table.chunks[c].tensor)) continue;
    table.sums[2 * c] = settle(table, t, int64_t(c));
    is_needed = true;
  }
  if (!is_needed) return;
  // Backwards: what the first pass touched last is still in the cache.
  for_each_chunk(table, true, [&](int64_t c, const Tensor& t, const Span& span) {
    if (!has_second(t) || ends_early(table, table.chunks[c].tensor)) return;
    const double number = table.sums[2 * (c - table.chunks[c].begin / kChunkSize)];
    k.second[int(t.rule)][int(t.form)](span, table.row(t.row), number);
  });
}

double square_sum(Table& table) {
  for_each_chunk(table, false, [&](int64_t c, const Tensor& t, const Span& span) {
    table.sums[2 * c] = table.sums[2 * c + 1] = 0;
    kKernels.square_sum[int(t.form)](span, &table.sums[2 * c]);
  });
  double sum = 0;
  for (size_t c = 0; c < table.chunks.size(); ++c) sum += table.sums[2 * c];
  return sum;
}

}  // namespace fusedopt::cpu
