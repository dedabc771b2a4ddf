// Times one build of the kernels, without torch: share of the device's copy bandwidth by case, a line of JSON.
// Built and run by tune_gpu.py, with csrc/cuda/launch.cu and the choices as macros.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "cuda/cuda.h"

using namespace fusedopt;
using namespace fusedopt::cuda;

#define CHECK(call)                                   \
  if (cudaError_t error = call; error != cudaSuccess) \
  std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)), std::exit(1)

namespace {

constexpr int kRepeats = 15;
int processors;
char* cold;  // read before each step, so that it finds nothing in the cache
size_t cold_bytes;

template <class T>
T* upload(const std::vector<T>& values, size_t room = 0) {
  void* memory;
  CHECK(cudaMalloc(&memory, values.size() * sizeof(T) + room + 16));
  CHECK(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(memory);
}

template <class Run>
double seconds(Run run) {
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepeats + 3; ++i) {
    CHECK(cudaMemsetAsync(cold, i, cold_bytes));
    CHECK(cudaEventRecord(start));
    run();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    if (i >= 3) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[kRepeats / 2] * 1e-3;
}

// Tensors of these sizes with all their operands in one piece of memory, and the table of them.
struct Set {
  std::vector<Tensor> tensors;
  std::vector<Chunk> chunks;
  std::vector<int32_t> first_chunks;
  View view{};
  Batch batch{};
  char* memory = nullptr;
  int64_t elements = 0;

  Set(const std::vector<int64_t>& numels, RuleId rule, Storage storage) {
    for (const int64_t n : numels) elements += n;
    const int operands = 2 + info(rule).state_count;
    const int64_t item = item_size(storage), padding = 256;
    const Form form = storage == Storage::kFloat32 ? Form::kFloat : Form::kCoded;
    CHECK(cudaMalloc(&memory, (elements * item + int64_t(numels.size()) * padding) * operands));
    CHECK(cudaMemset(memory, 0x11, elements * item * operands));  // small positive numbers in every dtype
    char* next = memory;
    for (const int64_t n : numels) {
      Tensor t;
      for (int k = 0; k < operands; ++k) t.addr[k] = next, next += (n * item + padding - 1) / padding * padding;
      t.numel = n, t.row = 0, t.rule = rule, t.form = form, t.device = 0;
      std::fill(std::begin(t.storage), std::end(t.storage), storage);
      tensors.push_back(t);
    }
    view.chunk_size = int32_t(chunk_size(elements, processors));
    chunks = cut(int32_t(numels.size()), [&](int32_t t) { return numels[t]; }, view.chunk_size);
    for (int32_t c = 0; c < int32_t(chunks.size()); ++c)
      if (!chunks[c].begin) first_chunks.push_back(c);
    view.tensors = upload(tensors), view.chunks = upload(chunks), view.first_chunks = upload(first_chunks);
    view.sums = upload(std::vector<double>(2 * chunks.size())),
    view.settled = upload(std::vector<double>(numels.size()));
    view.square_sum = upload(std::vector<double>(2)), view.norm = view.square_sum + 1;
    view.done = upload(std::vector<unsigned>(1));
    batch = {rule, form, 0, int32_t(chunks.size()), 0, int32_t(numels.size())};
  }
  ~Set() { cudaFree(memory); }

  int64_t bytes() const {
    const RuleInfo& rule = info(batch.rule);
    return elements * item_size(tensors[0].storage[0]) * (rule.operands.transfers() + rule.second.transfers());
  }
};

std::vector<int64_t> resnet50() {  // its sizes: a few large, many small
  std::vector<int64_t> sizes{9408, 64, 64, 2048000, 1000};
  int64_t into = 64;
  for (const auto [width, blocks] : {std::pair{64, 3}, {128, 4}, {256, 6}, {512, 3}})
    for (int b = 0; b < blocks; ++b) {
      for (const int64_t n : {into * width, int64_t(9) * width * width, int64_t(4) * width * width}) sizes.push_back(n);
      for (int i = 0; i < 2; ++i) sizes.insert(sizes.end(), {width, width, 4 * width});
      if (!b) sizes.insert(sizes.end(), {into * width * 4, 4 * width, 4 * width});
      into = 4 * width;
    }
  return sizes;
}

double numbers[kMaxNumbers];

void fill(RuleId rule) {
  std::fill(std::begin(numbers), std::end(numbers), 0);
  const double adam[] = {1e-6, 0.9, 0.999, 1e-8, 0.01, 1}, sgd[] = {1e-6, 0.9, 0, 1, 5e-4, 0, 0};
  const double lamb[] = {1e-6, 0.9, 0.999, 1e-6, 0.01, 1, 0, 1, 1, 0, 1e9, 0, 1e9},
               rmsprop[] = {1e-6, 0.99, 1e-8, 0, 0, 0};
  if (rule == RuleId::lamb) std::copy(std::begin(lamb), std::end(lamb), numbers);
  else if (rule == RuleId::sgd_momentum) std::copy(std::begin(sgd), std::end(sgd), numbers);
  else if (rule == RuleId::rmsprop) std::copy(std::begin(rmsprop), std::end(rmsprop), numbers);
  else std::copy(std::begin(adam), std::end(adam), numbers);
}

double share(const std::vector<int64_t>& sizes, RuleId rule, Storage storage, bool clip, double copy) {
  Set set(sizes, rule, storage);
  fill(rule);
  std::vector<char> row((info(rule).bytes[0] + 7) / 8 * 8);
  info(rule).fold[0](row.data(), numbers, 5, 1, nullptr, nullptr);
  const Rows rows{row.data(), int32_t(row.size()), int32_t(row.size()), true, clip};
  Scaling scaling;
  if (clip) scaling.square_sum = set.view.square_sum, scaling.max_norm = 1e9, scaling.epsilon = 1e-6;
  const double taken = seconds([&] {
    if (clip) gradient_norm(set.view, int32_t(set.chunks.size()), Scaling{}, nullptr);
    update(set.view, set.batch, rows, scaling, false, Pass::kBoth, nullptr);
  });
  const double bytes = double(set.bytes()) + (clip ? double(set.elements) * item_size(storage) : 0);
  return bytes / taken / copy;
}

}  // namespace

int main() {
  CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  int cache;
  CHECK(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, 0));
  cold_bytes = 4 * size_t(cache);
  CHECK(cudaMalloc(&cold, cold_bytes));
  const size_t gib = size_t(1) << 30;
  char *from, *to;
  CHECK(cudaMalloc(&from, gib));
  CHECK(cudaMalloc(&to, gib));
  CHECK(cudaMemset(from, 1, gib));
  const double copy =
      2 * double(gib) / seconds([&] { CHECK(cudaMemcpyAsync(to, from, gib, cudaMemcpyDeviceToDevice)); });

  const std::vector<int64_t> large{int64_t(1) << 27}, thousand(1000, 3500),
      lenet{150, 6, 2400, 16, 30720, 120, 10080, 84, 840, 10};
  const struct {
    const char* name;
    const std::vector<int64_t>& sizes;
    RuleId rule;
    Storage storage;
    bool clip;
  } cases[] = {
      {"AdamW large", large, RuleId::adam, Storage::kFloat32, false},
      {"SGD large", large, RuleId::sgd_momentum, Storage::kFloat32, false},
      {"RMSprop large", large, RuleId::rmsprop, Storage::kFloat32, false},
      {"AdamW clip large", large, RuleId::adam, Storage::kFloat32, true},
      {"LAMB clip large", large, RuleId::lamb, Storage::kFloat32, true},
      {"AdamW bfloat16", large, RuleId::adam, Storage::kBFloat16, false},
      {"AdamW ResNet-50", resnet50(), RuleId::adam, Storage::kFloat32, false},
      {"AdamW 1,000", thousand, RuleId::adam, Storage::kFloat32, false},
      {"AdamW LeNet", lenet, RuleId::adam, Storage::kFloat32, false},
  };
  std::printf("{\"copy_gb_per_s\": %.1f", copy * 1e-9);
  for (const auto& c : cases)
    std::printf(", \"%s\": %.4f", c.name, share(c.sizes, c.rule, c.storage, c.clip, copy)), std::fflush(stdout);
  std::puts("}");
}
