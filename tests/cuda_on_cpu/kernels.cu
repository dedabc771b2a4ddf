// A step of Adam, of LAMB and of SWATS in the library's own kernels, on tensors that fill their memory exactly: for
// sanitizers, which the executor's blocks of 64 threads make quick enough.
#include <cmath>
#include <cstdio>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/second.cuh"

namespace {

using namespace fusedopt;
using namespace fusedopt::cuda;

constexpr int kTensors = 4;
constexpr int kNumels[kTensors] = {int(kChunkSize) + 11, 64, 1, 1003};
constexpr int kMisaligned = 3;  // this tensor's operands begin one element into their memory
constexpr double kGradScale = 8, kMaxNorm = 1, kScalar = 0.5;  // the last, of each scalar before the step

#define CHECK(condition) ((condition) ? void() : (std::printf("%s:%d: wrong\n", __FILE__, __LINE__), std::exit(1)))

float widen(float x) { return x; }
float narrow(float x, float) { return x; }
template <class T>
constexpr Storage kStorage = std::is_same_v<T, float>      ? Storage::kFloat32
                             : std::is_same_v<T, BFloat16> ? Storage::kBFloat16
                                                           : Storage::kFloat16;

// Of parameters and gradients in P, and states in S.
template <template <class> class Rule, class P, class S = P>
class Step {
  using F = float;
  static constexpr Form form = std::is_same_v<P, float> && std::is_same_v<S, float> ? Form::kFloat : Form::kCoded;

 public:
  explicit Step(bool folded = false) {
    for (int t = 0; t < kTensors; ++t) {
      const int offset = t == kMisaligned;
      for (int k = 0; k < 4; ++k) {
        const size_t size = k < 2 ? sizeof(P) : sizeof(S);
        operands_.emplace_back(new char[(kNumels[t] + offset) * size]);
        tensors_[t].addr[k] = operands_.back().get() + offset * size;
        tensors_[t].storage[k] = k < 2 ? kStorage<P> : kStorage<S>;
        for (int i = 0; i < kNumels[t]; ++i) set(t, k, i, F((i * 37 + t * 11 + k) % 101) / F(50));
      }
      for (int s = 0; s < scalars_of<Rule<F>>(); ++s) {
        beside_[t][s].reset(new float(kScalar));
        tensors_[t].addr[2 + Rule<F>::kStateCount + s] = beside_[t][s].get();
      }
      steps_[t].reset(new float(4));
      tensors_[t].step = steps_[t].get(), tensors_[t].numel = kNumels[t], tensors_[t].row = 0;
      tensors_[t].form = form;
    }
    chunks_ = cut(kTensors, [](int32_t t) { return kNumels[t]; }, kChunkSize);
    for (int32_t c = 0; c < int32_t(chunks_.size()); ++c)
      if (!chunks_[c].begin) first_chunks_.push_back(c);
    sums_.reset(new double[2 * chunks_.size()]), settled_.reset(new double[kTensors]);
    args_.view = {tensors_.get(), chunks_.data(),     first_chunks_.data(), sums_.get(), settled_.get(),
                  scalars_.get(), scalars_.get() + 1, done_.get(),          nullptr,     int32_t(kChunkSize)};
    args_.batch = {RuleId{}, form, 0, int32_t(chunks_.size()), 0, kTensors};
    args_.scaling = {1, grad_scale_.get(), found_inf_.get(), scalars_.get(), kMaxNorm, 1e-6};
    args_.rows = nullptr, args_.folded = args_.rescaled = folded, args_.counts = true;
    typename Rule<F>::Numbers numbers{};
    numbers.lr = 0.1, numbers.beta1 = 0.5, numbers.beta2 = 0.9, numbers.eps = 1e-3, numbers.weight_decay = 0.1;
    if (scope_of<Rule<F>>() == Scope::kGroup) args_.batch.decides_from = 0;
    const DeviceRow row{0, memory_, nullptr, false};
    std::memcpy(args_.inlined, &row, sizeof row);
    std::memcpy(args_.inlined + sizeof row, &numbers, sizeof numbers);
    if (folded) new (args_.inlined) Rule<F>(make<Rule<F>>(numbers, 5, 1, memory_));  // the host knows all but the scale
    numbers_ = numbers;
  }

  void run() {
    const unsigned blocks = unsigned(chunks_.size());
    double square_sum = 0;
    for (int t = 0; t < kTensors; ++t)
      for (int i = 0; i < kNumels[t]; ++i) square_sum += double(get(t, 1, i)) * double(get(t, 1, i));
    auto unscaled = args_.scaling;
    unscaled.square_sum = nullptr;
    launch(sum_squares, blocks, kThreads, nullptr, args_.view, unscaled);
    const double norm = square_root(square_sum) / kGradScale;
    CHECK(std::abs(scalars_[0] / square_sum - 1) < 1e-12 && std::abs(scalars_[1] / norm - 1) < 1e-12);

    const double scale = clip_coefficient(scalars_[1], kMaxNorm, 1e-6) / kGradScale;
    Scalar scalars[kMaxScalars] = {{kScalar, 0}, {kScalar, 0}};
    const auto rule = make<Rule<F>>(numbers_, 5, scale, memory_, scalars);
    std::vector<F> expected;
    F unused = 0;
    [[maybe_unused]] double sums[2] = {};
    for (int t = 0; t < kTensors; ++t)
      for (int i = 0; i < kNumels[t]; ++i) {
        F x[] = {get(t, 0, i), get(t, 1, i), get(t, 2, i), get(t, 3, i)};
        if constexpr (scope_of<Rule<F>>() == Scope::kGroup) rule(sums[0], sums[1], x[0], x[1], x[2], x[3], unused);
        else rule(x[0], x[1], x[2], x[3], unused);
        for (const int k : {0, 2, 3}) expected.push_back(k < 2 ? widen(narrow(x[k], P{})) : widen(narrow(x[k], S{})));
      }
    launch(apply<Rule, form, 1024>, blocks, kThreads, nullptr, args_);
    auto value = expected.begin();
    for (int t = 0; t < kTensors; ++t)
      for (int i = 0; i < kNumels[t]; ++i)
        for (const int k : {0, 2, 3}) CHECK(std::abs(get(t, k, i) - *value++) <= F(1e-6));

    if constexpr (scope_of<Rule<F>>() == Scope::kGroup) {
      double found[3] = {};
      std::swap_ranges(found, found + 3, memory_);
      rule.decide(sums[0], sums[1]);
      CHECK(found[0] == 1 && std::abs(found[1] / memory_[1] - 1) < 1e-6 && found[2] == 0);
    }
    if constexpr (scope_of<Rule<F>>() == Scope::kTensor) {
      for (int t = 0; t < kTensors; ++t) {
        double param = 0, update = 0;
        for (int i = 0; i < kNumels[t]; ++i) {
          const F p = get(t, 0, i), u = rule.update(p, get(t, 2, i), get(t, 3, i));
          param += double(p) * double(p), update += double(u) * double(u);
        }
        expected.push_back(F(rule.settle(param, update)));
      }
      launch(settle<Rule, form, 1024>, kTensors, kThreads, nullptr, args_);
      for (int t = 0; t < kTensors; ++t) CHECK(std::abs(F(settled_[t]) - *value++) <= F(1e-6));
      launch(second_pass<Rule, form, 1024>, blocks, kThreads, nullptr, args_);
    }
    for (int t = 0; t < kTensors; ++t) CHECK(*steps_[t] == 5);
    advance<Rule<F>>(numbers_, 5, scalars);
    for (int t = 0; t < kTensors; ++t)
      for (int s = 0; s < scalars_of<Rule<F>>(); ++s) CHECK(*beside_[t][s] == float(scalars[s].value));
    CHECK(*done_ == 0);
  }

 private:
  F get(int t, int k, int i) const {
    void* const addr = tensors_[t].addr[k];
    return k < 2 ? widen(static_cast<P*>(addr)[i]) : widen(static_cast<S*>(addr)[i]);
  }
  void set(int t, int k, int i, F x) {
    void* const addr = tensors_[t].addr[k];
    if (k < 2) static_cast<P*>(addr)[i] = narrow(x, P{});
    else static_cast<S*>(addr)[i] = narrow(x, S{});
  }

  std::vector<std::unique_ptr<char[]>> operands_;
  std::unique_ptr<Tensor[]> tensors_{new Tensor[kTensors]};
  std::unique_ptr<float> steps_[kTensors], beside_[kTensors][kMaxScalars];
  std::vector<Chunk> chunks_;
  std::vector<int32_t> first_chunks_;
  std::unique_ptr<double[]> sums_, settled_, scalars_{new double[2]{}};
  std::unique_ptr<float> grad_scale_{new float(kGradScale)}, found_inf_{new float(0)};
  std::unique_ptr<unsigned> done_{new unsigned(0)};
  Arguments<1024> args_;
  typename Rule<F>::Numbers numbers_;
  double memory_[3] = {};
};

void patch() {
  std::vector<uint64_t> words(500, 7);
  Patches<300> patches{words.data(), 300, {}, {}};
  for (int i = 0; i < 300; ++i) patches.indices[i] = 499 - i, patches.values[i] = uint64_t(i);
  launch(patch_words<300>, 1, kThreads, nullptr, patches);
  for (int i = 0; i < 500; ++i) CHECK(words[i] == (i < 200 ? 7u : uint64_t(499 - i)));
}

}  // namespace

int main() {
  Step<by_name::adam, float>().run();
  Step<by_name::adam, float>(/*folded=*/true).run();
  Step<Lamb, float>().run();
  Step<Swats, float>().run();
  Step<NAdam, float>().run();
#ifndef FUSEDOPT_FLOAT_ALONE  // which compiles in half the time, and has every line that a bug is planted in
  Step<by_name::adam, BFloat16>().run();
  Step<by_name::adam, BFloat16, float>().run();
  Step<by_name::adam, float, Float16>().run();
  Step<by_name::adam, BFloat16>(/*folded=*/true).run();
  Step<Lamb, Float16>().run();
  Step<Lamb, float, BFloat16>().run();
  Step<NAdam, BFloat16, float>().run();
#endif
  patch();
}
