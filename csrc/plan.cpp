#include "plan.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <set>

#include "walk.h"

namespace fusedopt {
namespace {

constexpr const char* kNoGradient = "no gradient";
constexpr const char* kNoState = "no state yet";
constexpr const char* kHostStep = "the step count is not on the GPU yet";
constexpr const char* kOtherDevice = "this build has no fused path for the device";
constexpr int64_t kReleaseGil = 1 << 20;  // elements; a shorter step is over before another thread could use the lock
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};  // in the order of Dtype

// Whether a kernel can read it where it lies.
bool is_gpu_number(const at::Tensor& t) {
  return gpu_index(t.device()) >= 0 && t.numel() == 1 &&
         (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble);
}

}  // namespace

std::tuple<Plan::Indices, Plan::Indices, Plan::Indices> Plan::refresh(py::list groups, py::dict state, py::list numbers,
                                                                      const std::vector<bool>& counted,
                                                                      bool initialized) {
  if (running_) throw std::runtime_error("another thread is inside step() of this optimizer");
  groups_.resize(numbers.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* tuple = PyList_GET_ITEM(numbers.ptr(), Py_ssize_t(g));
    Group& group = groups_[g];
    group.rule = static_cast<RuleId>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)));
    const RuleInfo& rule = info(group.rule);
    if (PyTuple_GET_SIZE(tuple) != 1 + rule.numbers) throw py::value_error("wrong number of hyper-parameters");
    group.lr = nullptr;
    group.counted = counted[g];
    for (int i = 0; i < rule.numbers; ++i) {
      PyObject* number = PyTuple_GET_ITEM(tuple, 1 + i);
      if (PyFloat_Check(number) || !THPVariable_Check(number)) group.numbers[i] = PyFloat_AsDouble(number);
      else if (i == 0 && is_gpu_number(THPVariable_Unpack(number))) group.lr = number;
      else group.numbers[i] = THPVariable_Unpack(number).item<double>();
    }
    if (PyErr_Occurred()) throw py::error_already_set();
    group.keys[0] = interned("step");
    for (int i = 0; i < rule.state_count; ++i) group.keys[1 + i] = interned(rule.states[i]);
    for (int32_t& row : group.last_rows) row = -1;
  }
  rows_.clear();
  row_of_.clear();
  held_.clear();
  changed_ = false;

  size_t index = 0;
  Py_ssize_t cursor = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* params = PyDict_GetItemWithError(PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g)), interned("params"));
    if (!params || !(PyList_Check(params) || PyTuple_Check(params)))
      throw py::type_error("a param group's 'params' must be a list of tensors");
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(params); ++i)
      visit(index++, PySequence_Fast_GET_ITEM(params, i), int32_t(g), state.ptr(), cursor, initialized);
  }
  changed_ |= index != entries_.size();
  entries_.resize(index);
  table_.tensors.resize(index);

  if (changed_) {
    mark_overlaps();
    entries_.shrink_to_fit(), table_.tensors.shrink_to_fit();
    std::set<int> devices;
    for (size_t i = 0; i < index; ++i)
      if (entries_[i].path == kFused) devices.insert(table_.tensors[i].device);
    devices_.assign(devices.begin(), devices.end());
  }
  Indices left_over, stateless, host_steps;
  bool recut = changed_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    Tensor& t = table_.tensors[i];
    if (e.overlaps && e.path == kFused) e.reason = "shares memory with another parameter or state";
    patch(t.numel, e.reason ? 0 : e.numel, recut);
    patch(e.active, !e.reason, recut);
    if (e.active) continue;
    t.row = -1;
    if (e.reason == kNoState) stateless.push_back(int64_t(i));
    else if (e.reason == kHostStep) host_steps.push_back(int64_t(i));
    else if (e.reason != kNoGradient) left_over.push_back(int64_t(i));
  }
  if (recut) {
    const auto numel = [&](int32_t t) { return table_.tensors[t].device < 0 ? table_.tensors[t].numel : 0; };
    table_.chunks = cut(int32_t(index), numel, kChunkSize);
    table_.sums.resize(2 * table_.chunks.size());
    table_.elements = 0;
    for (const Chunk& chunk : table_.chunks) table_.elements += chunk.count;
    for (const Tensor& t : table_.tensors)
      if (t.device >= 0) gpus_.try_emplace(t.device, t.device);
    for (auto& [device, gpu] : gpus_) gpu.recut(table_.tensors);
  }
  return {left_over, stateless, host_steps};
}

void Plan::visit(size_t index, PyObject* object, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized) {
  if (index == entries_.size()) {
    entries_.emplace_back();
    table_.tensors.emplace_back();
  }
  // The walk waits for memory more than it computes, and knows from the last step where it will go next.
  if (index + 3 < entries_.size())
    for (const at::TensorImpl* impl : entries_[index + 3].impl)
      for (int line = 0; line < 3; ++line) __builtin_prefetch(reinterpret_cast<const char*>(impl) + 64 * line);
  Entry& e = entries_[index];
  Tensor& t = table_.tensors[index];
  if (!THPVariable_Check(object)) throw py::type_error("optimizer can only optimize Tensors");
  e.group = group;
  PyObject* values = find(state, object, cursor);
  const at::Tensor& param = THPVariable_Unpack(object);
  const at::TensorImpl& p = *param.unsafeGetTensorImpl();
  const auto* autograd = static_cast<const torch::autograd::AutogradMeta*>(p.autograd_meta());
  e.numel = p.numel();
  if (!autograd || !autograd->grad_.defined()) e.reason = kNoGradient;
  else if (p.device().type() != at::kCPU && p.device().type() != gpu::kDeviceType) e.reason = kOtherDevice;
  else if (!is_plain(p)) e.reason = "not a plain dense tensor";
  else if (!p.is_non_overlapping_and_dense()) e.reason = "the parameter's memory is not dense";
  else if (!(e.reason = gradient(e, t, param, autograd->grad_))) e.reason = operands(e, t, param, values, initialized);
  const bool fused = !e.reason || e.reason == kNoState || e.reason == kHostStep;
  patch(e.path, fused ? kFused : e.reason == kNoGradient ? kIdle : kTorch, changed_);
  if (e.path == kIdle || !p.has_storage()) return;
  // On torch's path a parameter may be strided: it gets all of its storage.
  const char* storage = static_cast<const char*>(p.unsafe_storage().data());
  patch(e.begin, e.path == kFused ? static_cast<const char*>(t.addr[0]) : storage, changed_);
  const int64_t bytes = e.path == kFused ? e.numel * int64_t(p.itemsize()) : int64_t(p.unsafe_storage().nbytes());
  patch(e.end, e.begin + bytes, changed_);
}

INLINE const char* Plan::gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& grad) {
  const at::TensorImpl& g = *grad.unsafeGetTensorImpl();
  const Match same = match(*param.unsafeGetTensorImpl(), g);
  if (same == Match::kNo) return "the gradient does not match the parameter";
  e.impl[1] = grad.unsafeGetTensorImpl();
  t.addr[1] =
      static_cast<char*>(const_cast<void*>(g.unsafe_storage().data())) + g.storage_offset() * int64_t(g.itemsize());
  if (same == Match::kSizes) {
    at::NoGradGuard no_grad;
    held_.push_back(at::empty_like(param).copy_(grad));
    t.addr[1] = held_.back().data_ptr();
  }
  return nullptr;
}

// Fills in the operands other than the gradient. Returns why they do not fit, or null.
INLINE const char* Plan::operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized) {
  Group& group = groups_[e.group];
  const RuleInfo& rule = info(group.rule);
  const at::TensorImpl& p = *param.unsafeGetTensorImpl();
  const auto* type = std::find(std::begin(kDtypes), std::end(kDtypes), p.dtype().toScalarType());
  if (type == std::end(kDtypes)) return "the rules compute in real floating-point types only";
  patch(t.dtype, static_cast<Dtype>(type - kDtypes), changed_);
  patch(t.device, gpu_index(p.device()), changed_);
  patch(t.rule, group.rule, changed_);
  patch(t.addr[0], address(p), changed_);
  e.impl[0] = param.unsafeGetTensorImpl();
  for (int k = 2; k <= kStep; ++k) e.impl[k] = nullptr;
  t.step = nullptr;

  Py_ssize_t cursor = 0;
  if (rule.state_count && (!values || !PyDict_Check(values) || PyDict_GET_SIZE(values) == 0))
    return e.fresh = true, kNoState;
  double count = 0;
  PyObject* step = rule.counts_steps || (t.device >= 0 && values) ? find(values, group.keys[0], cursor) : nullptr;
  if (rule.counts_steps || step)
    if (const char* reason = this->step(e, t, step, count)) return reason;
  for (int i = 0; i < rule.state_count; ++i) {
    PyObject* value = find(values, group.keys[1 + i], cursor);
    if (!rule.counts_steps && (!value || value == Py_None)) return e.fresh = true, kNoState;
    if (!value || !THPVariable_Check(value)) return "the state lacks a tensor that the rule needs";
    at::TensorImpl& s = *THPVariable_Unpack(value).unsafeGetTensorImpl();
    const Match same = match(p, s);
    if (same == Match::kNo) return "the state does not match the parameter";
    if (same == Match::kSizes) return "the state's memory layout is not the parameter's";
    patch(t.addr[2 + i], address(s), changed_);
    e.impl[2 + i] = &s;
  }
  if (!initialized) e.fresh = false;
  if (!rule.counts_steps) count = e.fresh ? 1 : 2;
  // A rule that keeps states but no count starts from the count, too, where the host does not know whether it started.
  if (t.device >= 0 && group.counted && rule.state_count && !t.step) return kHostStep;
  t.row = row(e.group, t, count);
  return nullptr;
}

// The step count: where it lies, and, where the host keeps it, what the coming step's is.
INLINE const char* Plan::step(Entry& e, Tensor& t, PyObject* value, double& count) {
  if (!value || !THPVariable_Check(value)) return "the state has no `step` tensor";
  at::TensorImpl& s = *THPVariable_Unpack(value).unsafeGetTensorImpl();
  e.double_step = s.dtype().toScalarType() == at::kDouble;
  if (!is_plain(s) || s.numel() != 1 || !(e.double_step || s.dtype().toScalarType() == at::kFloat))
    return "the state's `step` is not one float32 or float64 number";
  const bool on_gpu = t.device >= 0 && gpu::counts(s, t.device, groups_[e.group].counted);
  if (!on_gpu && s.device().type() != at::kCPU) return "the state's `step` is on another device";
  patch(e.step, address(s), changed_);
  e.impl[kStep] = &s;
  t.step = on_gpu ? e.step : nullptr;
  t.double_step = e.double_step;
  if (on_gpu) count = 0;
  else count = 1 + (e.double_step ? *static_cast<double*>(e.step) : double{*static_cast<float*>(e.step)});
  return nullptr;
}

// The row of a tensor: that of the tensor before, as a rule.
INLINE int32_t Plan::row(int32_t g, const Tensor& t, double count) {
  Group& group = groups_[g];
  const bool is_double = t.dtype == Dtype::kFloat64;
  int32_t& row = group.last_rows[2 * (t.device >= 0) + is_double];
  if (row >= 0 && rows_[row].count == count && rows_[row].device == t.device) return row;
  const auto [it, is_new] = row_of_.try_emplace({g, is_double, t.device, count}, int32_t(rows_.size()));
  row = it->second;
  if (!is_new) return row;
  rows_.push_back({group.numbers, nullptr, count, group.rule, is_double, false, t.device});
  if (!group.lr) return row;
  const at::Tensor& lr = THPVariable_Unpack(group.lr);
  if (t.device != gpu_index(lr.device())) return group.numbers[0] = lr.item<double>(), row;
  rows_.back().lr = lr.data_ptr(), rows_.back().double_lr = lr.scalar_type() == at::kDouble;
  return row;
}

// Parameters and states must not overlap: the order in which chunks are written is nobody's promise.
void Plan::mark_overlaps() {
  std::vector<std::tuple<const char*, const char*, Entry*>> ranges;  // begin, end, owner
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    e.overlaps = false;
    if (e.path == kIdle) continue;
    ranges.emplace_back(e.begin, e.end, &e);
    if (e.reason) continue;
    for (int k = 2; k < 2 + info(table_.tensors[i].rule).state_count; ++k) {
      const char* state = static_cast<const char*>(table_.tensors[i].addr[k]);
      ranges.emplace_back(state, state + (e.end - e.begin), &e);
    }
    const char* step = static_cast<const char*>(e.step);
    if (e.impl[kStep]) ranges.emplace_back(step, step + 4, &e);
  }
  std::sort(ranges.begin(), ranges.end());
  const char* reach = nullptr;  // the farthest end of those before, and whose it is
  Entry* farthest = nullptr;
  for (auto& [begin, end, owner] : ranges) {
    if (begin == end) continue;
    if (begin < reach) owner->overlaps = farthest->overlaps = true;
    if (end > reach) reach = end, farthest = owner;
  }
}

std::pair<at::Tensor, at::Tensor> Plan::norm(int device, double scale, const MaybeTensor& grad_scale) {
  gpu::Scaling scaling{scale};
  if (grad_scale) scaling.grad_scale = grad_scale->data_ptr<float>();
  Gpu& gpu = gpus_.at(device);
  gpu.refresh(table_.tensors);
  return gpu.norm(scaling);
}

void Plan::run(double scale, const Scalings& scalings, double max_norm, double epsilon) {
  for (auto& [device, gpu] : gpus_) {
    gpu::Scaling scaling{scale, nullptr, nullptr, nullptr, max_norm, epsilon};
    if (const auto found = scalings.find(device); found != scalings.end()) {
      const auto& [grad_scale, found_inf, square_sum] = found->second;
      if (grad_scale) scaling.grad_scale = grad_scale->data_ptr<float>();
      if (found_inf) scaling.found_inf = found_inf->data_ptr<float>();
      if (square_sum) scaling.square_sum = square_sum->data_ptr<double>();
    }
    gpu.refresh(table_.tensors);
    gpu.update(rows_, scaling);
  }
  if (!table_.chunks.empty()) run_cpu(scale);
  for (Entry& e : entries_) {
    e.fresh = false;
    if (!e.active) continue;
    for (int k = 0; k <= kStep; ++k)
      if (k != 1 && e.impl[k]) e.impl[k]->bump_version();
    if (!e.impl[kStep] || table_.tensors[&e - entries_.data()].step) continue;
    if (e.double_step) *static_cast<double*>(e.step) += 1;
    else *static_cast<float*>(e.step) += 1;
  }
  held_.clear();
}

void Plan::run_cpu(double scale) {
  table_.rows.resize(rows_.size() * kMaxRowBytes / sizeof(double));
  for (size_t r = 0; r < rows_.size(); ++r)
    info(rows_[r].rule).fold[rows_[r].is_double](table_.row(int32_t(r)), rows_[r].numbers, rows_[r].count, scale);
  if (table_.elements < kReleaseGil) return cpu::step(table_);
  for (const Entry& e : entries_)  // keep every operand alive while other Python threads run
    for (at::TensorImpl* impl : e.impl)
      if (e.active && impl)
        held_.emplace_back(
            c10::intrusive_ptr<at::TensorImpl, c10::UndefinedTensorImpl>::unsafe_reclaim_from_nonowning(impl));
  running_ = true;
  Py_BEGIN_ALLOW_THREADS;
  cpu::step(table_);
  Py_END_ALLOW_THREADS;
  running_ = false;
}

size_t Plan::memory() const {
  size_t bytes = entries_.capacity() * sizeof(Entry) + table_.tensors.capacity() * sizeof(Tensor) +
                 table_.chunks.capacity() * sizeof(Chunk) + table_.sums.capacity() * sizeof(double);
  for (const auto& [device, gpu] : gpus_) bytes += gpu.memory();
  return bytes;
}

std::vector<const char*> Plan::reasons() const {
  std::vector<const char*> reasons;
  for (const Entry& e : entries_) reasons.push_back(e.reason);
  return reasons;
}

}  // namespace fusedopt
