#include "plan.h"

#include <algorithm>
#include <bit>
#include <set>

#include "walk.h"

namespace fusedopt {
namespace {

// Whether a kernel can read it where it lies.
bool is_gpu_number(const at::Tensor& t) {
  return gpu_index(t.device()) >= 0 && t.numel() == 1 &&
         (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble);
}

}  // namespace

std::tuple<Plan::Indices, Plan::Indices, Plan::Indices, Plan::Indices> Plan::refresh(py::list groups, py::dict state,
                                                                                     py::list numbers, py::list counted,
                                                                                     bool initialized, bool placed) {
  if (running_) throw std::runtime_error("another thread is inside step() of this optimizer");
  groups_.resize(numbers.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* tuple = PyList_GET_ITEM(numbers.ptr(), Py_ssize_t(g));
    Group& group = groups_[g];
    group.rule = static_cast<RuleId>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)));
    const RuleInfo& rule = info(group.rule);
    if (PyTuple_GET_SIZE(tuple) != 1 + rule.numbers) throw py::value_error("wrong number of hyper-parameters");
    group.lr = nullptr, group.joint = false;
    group.counted = PyList_GET_ITEM(counted.ptr(), Py_ssize_t(g)) == Py_True;
    for (int i = 0; i < rule.numbers; ++i) {
      PyObject* number = PyTuple_GET_ITEM(tuple, 1 + i);
      if (PyFloat_Check(number) || !THPVariable_Check(number)) group.numbers[i] = PyFloat_AsDouble(number);
      else if (const at::Tensor& t = THPVariable_Unpack(number); i == 0 && is_gpu_number(t)) group.lr = number;
      else if (group.rule != RuleId::swats || i + 1 < rule.numbers) group.numbers[i] = t.item<double>();
      else {  // the group's `switch`, which the rule reads and writes
        TORCH_CHECK_VALUE(t.numel() == 3 && t.is_contiguous(), "a group's switch must be three float64 numbers");
        group.joint = true, group.device = gpu_index(t.device());
        group.numbers[i] = std::bit_cast<double>(t.data_ptr<double>());
      }
    }
    if (PyErr_Occurred()) throw py::error_already_set();
    group.keys[0] = interned("step");
    for (int i = 0; i < rule.state_count; ++i) group.keys[1 + i] = interned(rule.states[i]);
    for (int32_t& row : group.last_rows) row = -1;
  }
  rows_.clear();
  row_of_.clear();
  held_.clear();
  for (auto& [device, gpu] : gpus_) gpu.abandon();
  if (!waits_) changed_ = false;
  placed_ = placed, sharded_ = false;

  size_t index = 0;
  Py_ssize_t cursor = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* params = PyDict_GetItemWithError(PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g)), interned("params"));
    if (!params || !(PyList_Check(params) || PyTuple_Check(params)))
      throw py::type_error("a param group's 'params' must be a list of tensors");
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(params); ++i)
      visit(index++, PySequence_Fast_GET_ITEM(params, i), int32_t(g), state.ptr(), cursor, initialized);
  }
  if (index != entries_.size()) changed_ = resharded_ = true;
  entries_.resize(index);
  table_.tensors.resize(index);
  Indices left_over, stateless, host_steps, unplaced;
  if (sharded_ && !placed)
    for (size_t i = 0; i < index; ++i)
      if (entries_[i].reason == kUnplaced) unplaced.push_back(int64_t(i));
  waits_ = !unplaced.empty();
  if (!sharded_) table_.slots.clear();
  if (waits_) return {left_over, stateless, host_steps, unplaced};

  if (changed_) {
    mark_conflicts();
    entries_.shrink_to_fit(), table_.tensors.shrink_to_fit();
    std::set<int> devices;
    for (size_t i = 0; i < index; ++i)
      if (entries_[i].path == kFused && !entries_[i].conflict) devices.insert(table_.tensors[i].device);
    devices_.assign(devices.begin(), devices.end());
  }
  bool recut = changed_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    Tensor& t = table_.tensors[i];
    if (e.conflict && e.path == kFused) e.reason = e.conflict;
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
    recut_gpus();
  }
  return {left_over, stateless, host_steps, unplaced};
}

void Plan::recut_gpus() {
  std::vector<int32_t> joint;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const int32_t group = entries_[i].group;
    joint.push_back(!groups_[group].joint ? -1 : table_.is_shared(int32_t(i)) ? -2 : group);
  }
  for (auto& [device, gpu] : gpus_) gpu.recut(table_.tensors, joint);
}

// Parameters and states must not overlap: the order in which chunks are written is nobody's promise. And a joint group
// takes one path.
void Plan::mark_conflicts() {
  std::vector<std::tuple<const char*, const char*, Entry*>> ranges;  // begin, end, owner
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    e.conflict = nullptr;
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
    if (begin < reach) owner->conflict = farthest->conflict = "shares memory with another parameter or state";
    if (end > reach) reach = end, farthest = owner;
  }
  std::set<int32_t> on_torchs_path;
  for (const Entry& e : entries_)
    if (groups_[e.group].joint && (e.path == kTorch || e.conflict)) on_torchs_path.insert(e.group);
  for (Entry& e : entries_)
    if (!e.conflict && on_torchs_path.contains(e.group)) e.conflict = "another parameter of its group is not fused";
}

std::pair<at::Tensor, at::Tensor> Plan::norm(int device, double scale, const MaybeTensor& grad_scale) {
  gpu::Scaling scaling{scale};
  if (grad_scale) scaling.grad_scale = grad_scale->data_ptr<float>();
  Gpu& gpu = gpus_.at(device);
  gpu.refresh(table_.tensors);
  return gpu.norm(scaling);
}

void Plan::run(double scale, const Scalings& scalings, double max_norm, double epsilon) {
  run_gpus(scale, scalings, max_norm, epsilon, Pass::kBoth);
  if (!table_.chunks.empty()) {
    fold(scale);
    if (table_.elements >= kReleaseGil) hold();
    on_cpu([&] { cpu::step(table_); });
  }
  finish();
}

gpu::Scaling Plan::scaling_of(int device, double scale, const Scalings& scalings, double max_norm, double epsilon) {
  gpu::Scaling scaling{scale, nullptr, nullptr, nullptr, max_norm, epsilon};
  if (const auto found = scalings.find(device); found != scalings.end()) {
    const auto& [grad_scale, found_inf, square_sum] = found->second;
    if (grad_scale) scaling.grad_scale = grad_scale->data_ptr<float>();
    if (found_inf) scaling.found_inf = found_inf->data_ptr<float>();
    if (square_sum) scaling.square_sum = square_sum->data_ptr<double>();
  }
  return scaling;
}

void Plan::run_gpus(double scale, const Scalings& scalings, double max_norm, double epsilon, Pass pass) {
  for (auto& [device, gpu] : gpus_) {
    gpu.refresh(table_.tensors);
    gpu.update(rows_, scaling_of(device, scale, scalings, max_norm, epsilon), pass);
  }
}

// Makes the rules of the CPU.
void Plan::fold(double scale) {
  table_.rows.resize(rows_.size() * kMaxRowBytes / sizeof(double));
  for (size_t r = 0; r < rows_.size(); ++r)
    info(rows_[r].rule).fold[rows_[r].is_double](table_.row(int32_t(r)), rows_[r].numbers, rows_[r].count, scale);
}

// Keeps every operand alive while other Python threads run.
void Plan::hold() {
  for (const Entry& e : entries_)
    for (at::TensorImpl* impl : e.impl)
      if (e.active && impl)
        held_.emplace_back(
            c10::intrusive_ptr<at::TensorImpl, c10::UndefinedTensorImpl>::unsafe_reclaim_from_nonowning(impl));
}

// What is left to do once everything has been written.
void Plan::finish() {
  for (Entry& e : entries_) {
    e.fresh = false;
    if (!e.active) continue;
    for (int k = 0; k <= kStep; ++k)
      if (k != 1 && e.impl[k]) e.impl[k]->bump_version();
    if (e.shard)
      for (int k = 0; k < kMaxOperands; ++k)
        if (k != 1 && e.impl[k]) e.shard->whole[k]->bump_version();
    if (!e.impl[kStep] || table_.tensors[&e - entries_.data()].step) continue;
    if (e.double_step) *static_cast<double*>(e.step) += 1;
    else *static_cast<float*>(e.step) += 1;
  }
  held_.clear();
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
