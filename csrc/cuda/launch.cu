// What is launched, with which arguments.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "second.cuh"
#include "shards.cuh"

namespace fusedopt::cuda {

#ifndef FUSEDOPT_CUDA_ON_CPU
template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned grid, unsigned threads, cudaStream_t stream, A&&... args) {
  kernel<<<grid, threads, 0, stream>>>(args...);
}
#endif

namespace {

// Of arguments, which are enough for most steps. Benchmarks try another number.
#ifndef FUSEDOPT_CUDA_FEW_BYTES
#define FUSEDOPT_CUDA_FEW_BYTES 1024
#endif
constexpr int kFewBytes = FUSEDOPT_CUDA_FEW_BYTES, kSomeBytes = 4096;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class... P, class... A>
void start(void (*kernel)(P...), unsigned grid, Stream stream, A&&... args) {
  launch(kernel, grid, kThreads, static_cast<cudaStream_t>(stream), args...);
  check(cudaGetLastError());
}

template <template <class> class Rule, Form form, int Bytes>
void update(const Header& header, const Rows& rows, Pass pass, Stream stream) {
  constexpr bool kTwoPasses = scope_of<Rule<float>>() == Scope::kTensor;
  if (!kTwoPasses && pass == Pass::kSecond) return;
  Arguments<Bytes> args;
  static_cast<Header&>(args) = header;
  if (!header.rows) std::memcpy(args.inlined, rows.bytes, rows.size);
  if (pass != Pass::kSecond) start(apply<Rule, form, Bytes>, header.batch.chunks, stream, args);
  if (pass == Pass::kFirst) return;
  if constexpr (kTwoPasses) {
    start(settle<Rule, form, Bytes>, header.batch.tensors, stream, args);
    start(second_pass<Rule, form, Bytes>, header.batch.chunks, stream, args);
  }
}

// Of floats, what most steps are made of, each size of arguments has kernels of its own.
template <template <class> class Rule, Form form>
void update(const Header& header, const Rows& rows, Pass pass, Stream stream) {
  if constexpr (form != Form::kFloat) return update<Rule, form, kSomeBytes>(header, rows, pass, stream);
  else if (header.rows || rows.size <= Arguments<kFewBytes>::kCapacity)
    update<Rule, form, kFewBytes>(header, rows, pass, stream);
  else if (rows.size <= Arguments<kSomeBytes>::kCapacity) update<Rule, form, kSomeBytes>(header, rows, pass, stream);
  else update<Rule, form, kArguments>(header, rows, pass, stream);
}

#define X(name, ...) \
  {update<by_name::name, Form::kFloat>, update<by_name::name, Form::kDouble>, update<by_name::name, Form::kCoded>},
using Update = void (*)(const Header&, const Rows&, Pass, Stream);
constexpr Update kUpdates[][int(Form::kCount)] = {FUSEDOPT_RULES(X)};
#undef X

using Decide = void (*)(const WholeRow&, const Scaling&, const double* sums, Stream);
template <template <class> class Rule>
constexpr Decide decide_of() {
  if constexpr (scope_of<Rule<double>>() != Scope::kGroup) return nullptr;
  else
    return [](const WholeRow& row, const Scaling& scaling, const double* sums, Stream stream) {
      start(decide_group<Rule>, 1, stream, row, scaling, sums);
    };
}
#define X(name, ...) decide_of<by_name::name>(),
constexpr Decide kDecides[] = {FUSEDOPT_RULES(X)};
#undef X

template <int Capacity>
void patch(uint64_t* words, const int32_t* indices, const uint64_t* values, int count, Stream stream) {
  Patches<Capacity> patches{words, count, {}, {}};
  std::copy_n(indices, count, patches.indices);
  std::copy_n(values, count, patches.values);
  start(patch_words<Capacity>, 1, stream, patches);
}

}  // namespace

bool fit_in_arguments(const Rows& rows, Form form) {
  return rows.size <= (form == Form::kFloat ? Arguments<kArguments>::kCapacity : Arguments<kSomeBytes>::kCapacity);
}

void update(const View& view, const Batch& batch, const Rows& rows, const Scaling& scaling, bool counts, Pass pass,
            Stream stream) {
  const char* on_device = fit_in_arguments(rows, batch.form) ? nullptr : view.rows;
  const Header header{view, batch, scaling, on_device, rows.stride, rows.folded, rows.rescaled, counts};
  kUpdates[int(batch.rule)][int(batch.form)](header, rows, pass, stream);
}

void gather(const View& view, const Slots& slots, double* totals, Stream stream) {
  start(gather_sums, slots.count, stream, view, slots, totals);
}

void spread(const View& view, const Slots& slots, const double* totals, Stream stream) {
  start(spread_sums, slots.count, stream, view, slots, totals);
}

void decide(RuleId rule, const WholeRow& row, const Scaling& scaling, const double* sums, Stream stream) {
  kDecides[int(rule)](row, scaling, sums, stream);
}

void gradient_norm(const View& view, int32_t chunks, const Scaling& scaling, Stream stream) {
  start(sum_squares, chunks, stream, view, scaling);
}

void patch(uint64_t* words, const int32_t* indices, const uint64_t* values, int count, Stream stream) {
  if (count <= kPatches / 8) patch<kPatches / 8>(words, indices, values, count, stream);
  else patch<kPatches>(words, indices, values, count, stream);
}

}  // namespace fusedopt::cuda
