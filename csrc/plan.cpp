#include "plan.h"

#include <algorithm>
#include <set>

#include "walk.h"

namespace fusedopt {
std::optional<Plan::Found> Plan::refresh(py::object groups, py::object state, py::list numbers, py::list counted,
                                         bool initialized, bool placed, bool at_once, const Indices& done) {
  release();
  const py::object all = sequence(groups.ptr());
  const size_t count = numbers.size();
  if (size_t(PySequence_Fast_GET_SIZE(all.ptr())) != count)
    throw py::value_error("the param groups changed in the step");
  groups_.resize(count);
  for (size_t g = 0; g < count; ++g)
    read_group(groups_[g], PySequence_Fast_GET_ITEM(all.ptr(), Py_ssize_t(g)),
               PyList_GET_ITEM(numbers.ptr(), Py_ssize_t(g)), PyList_GET_ITEM(counted.ptr(), Py_ssize_t(g)) == Py_True);
  held_state_ = PyDict_Check(state.ptr()) ? py::object() : py::object(py::dict(state));
  PyObject* states = held_state_ ? held_state_.ptr() : state.ptr();
  rows_.clear();
  row_of_.clear();
  has_company_ = runs_python_ || PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get()));
  for (auto& [device, gpu] : gpus_) gpu.abandon();
  placed_ = placed, sharded_ = false;

  size_t index = 0;
  Py_ssize_t cursor = 0;
  for (size_t g = 0; g < count; ++g) {
    const py::object params = params_of(PySequence_Fast_GET_ITEM(all.ptr(), Py_ssize_t(g)));
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(params.ptr()); ++i) {
      PyObject* param = PySequence_Fast_GET_ITEM(params.ptr(), i);
      if (!has_company_ && !is_torchs(param)) {  // once more, with everything kept
        runs_python_ = true;
        return refresh(groups, state, numbers, counted, initialized, placed, at_once, done);
      }
      visit(index++, param, int32_t(g), states, cursor, initialized);
    }
  }
  if (index != entries_.size()) changed_ = resharded_ = true;
  entries_.resize(index);
  table_.tensors.resize(index);
  Indices left_over, stateless, host_steps, unplaced;
  if (sharded_ && !placed)
    for (size_t i = 0; i < index; ++i)
      if (entries_[i].reason == kUnplaced) unplaced.push_back(int64_t(i));
  waits_ = !unplaced.empty();
  if (!sharded_ || table_.slots.size() != index) table_.slots.clear();  // those of other parameters
  if (waits_) return Found{left_over, stateless, host_steps, unplaced};

  if (changed_) find_written();
  const bool had_conflicts = !conflicts_.empty();
  changed_ |= find_shared_gradients() || had_conflicts;
  if (changed_) {
    mark_conflicts();
    entries_.shrink_to_fit(), table_.tensors.shrink_to_fit();
    std::set<int> devices;
    for (size_t i = 0; i < index; ++i)
      if (entries_[i].path == kFused && !entries_[i].conflict) devices.insert(table_.tensors[i].device);
    devices_.assign(devices.begin(), devices.end());
  }
  for (const int64_t i : done)
    if (Entry& e = entries_.at(size_t(i)); !e.reason) e.reason = kStepped;
  bool recut = changed_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    Tensor& t = table_.tensors[i];
    if (e.conflict && e.path == kFused) e.reason = e.conflict;
    patch(t.numel, e.reason ? 0 : e.numel, recut);
    patch(e.active, !e.reason, recut);
    if (e.active) continue;
    t.row = -1;
    if (e.reason == kNoState && !initialized) stateless.push_back(int64_t(i));
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
  changed_ = false;  // only now: what a walk that ended in an exception had noticed is still to be done
  Found found{left_over, stateless, host_steps, unplaced};
  if (at_once && !(sharded_ && takes_sums()) && found == Found() &&
      (devices_.empty() || devices_.back() < 0 || !gpu::is_capturing())) {
    run(1, {}, 0, 0);
    return std::nullopt;
  }
  return found;
}

// Whether a rule takes sums, of which processes may have parts.
bool Plan::takes_sums() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return info(group.rule).scope != Scope::kNone; });
}

void Plan::recut_gpus() {
  std::vector<int32_t> joint;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const int32_t group = entries_[i].group;
    joint.push_back(!groups_[group].joint ? -1 : table_.is_shared(int32_t(i)) ? -2 : group);
  }
  for (auto& [device, gpu] : gpus_) gpu.recut(table_.tensors, joint);
}

// All the memory that the step will write, on either path, in the order of its addresses.
void Plan::find_written() {
  written_.clear();
  foreign_ = false;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    e.clear = {};
    if (e.path == kIdle || !e.impl[0]) continue;
    const auto add = [&](const void* memory, int64_t bytes, const at::TensorImpl& t) {
      const char* begin = static_cast<const char*>(memory);
      if (bytes) written_.push_back({begin, begin + bytes, nullptr, int32_t(i)});
      foreign_ |= !is_allocated(t);
    };
    add(e.begin, e.end - e.begin, *e.impl[0]);
    if (e.reason) continue;
    const Tensor& t = table_.tensors[i];
    const auto add_state = [&](int k, const void* memory, int64_t elements) {
      if (e.impl[k]) add(memory, elements * int64_t(e.impl[k]->itemsize()), *e.impl[k]);
    };
    for (int k = 2; k < kMaxOperands; ++k) add_state(k, t.addr[k], e.impl[k] ? e.impl[k]->numel() : 0);
    add_state(kStep, e.step, 1), add_state(kMean, t.average, e.numel);
    for (int k = 0; k < kMaxOperands; ++k)
      add_state(kBeside + k, t.beside[k], e.impl[kBeside + k] ? e.impl[kBeside + k]->numel() : 0);
  }
  std::sort(written_.begin(), written_.end());
  const char* reach = nullptr;
  for (Range& range : written_) range.reach = reach = std::max(reach, range.end);
}

// Finds the gradients that lie in memory which the step writes: whoever reads them sees what has been written before.
// Most are known not to. The others are looked up, once as long as they and all that is written stay where they are.
bool Plan::find_shared_gradients() {
  conflicts_.clear();
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    if (e.path == kIdle || !e.impl[1] || (e.alone && !foreign_) || !has_memory(*e.impl[1])) continue;
    const auto memory = extent(*e.impl[1]);
    if (memory == e.clear) continue;
    const auto [begin, end] = memory;
    const auto after = std::lower_bound(written_.begin(), written_.end(), Range{end});
    const size_t before = conflicts_.size();
    for (auto range = after; range != written_.begin() && (--range)->reach > begin;)
      if (range->end > begin) conflicts_.emplace_back(int32_t(i), range->owner);
    if (conflicts_.size() == before) e.clear = memory;
  }
  return !conflicts_.empty();
}

// What torch would do in an order of its own takes torch's path: parameters, states and gradients that share memory, if
// one of them is written. And a joint group takes one path.
void Plan::mark_conflicts() {
  for (Entry& e : entries_) e.conflict = kNone;
  const auto mark = [&](int32_t a, int32_t b, Reason why) { entries_[a].conflict = entries_[b].conflict = why; };
  const Range* farthest = nullptr;  // of those before
  for (const Range& range : written_) {
    if (farthest && range.begin < farthest->end) mark(range.owner, farthest->owner, kSharedMemory);
    if (!farthest || range.end > farthest->end) farthest = &range;
  }
  for (const auto& [reader, writer] : conflicts_) mark(reader, writer, kSharedGradient);
  std::set<int32_t> on_torchs_path;
  for (const Entry& e : entries_)
    if (groups_[e.group].joint && (e.path == kTorch || e.conflict)) on_torchs_path.insert(e.group);
  for (Entry& e : entries_)
    if (!e.conflict && on_torchs_path.contains(e.group)) e.conflict = kGroupNotFused;
}

std::pair<at::Tensor, at::Tensor> Plan::norm(int device, double scale, const MaybeTensor& grad_scale) {
  gpu::Scaling scaling{scale};
  if (grad_scale) scaling.grad_scale = grad_scale->data_ptr<float>();
  Gpu& gpu = gpus_.at(device);
  std::pair<at::Tensor, at::Tensor> sums;
  aside([&] {
    gpu.refresh(table_.tensors);
    sums = gpu.norm(scaling);
  });
  return sums;
}

void Plan::run(double scale, const Scalings& scalings, double max_norm, double epsilon) {
  run_gpus(scale, scalings, max_norm, epsilon, Pass::kBoth);
  if (!table_.chunks.empty()) {
    fold(scale);
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
  for_gpus([&](int device, Gpu& gpu) {
    gpu.refresh(table_.tensors);
    gpu.update(rows_, scaling_of(device, scale, scalings, max_norm, epsilon), pass);
  });
}

// Makes the rules of the CPU.
void Plan::fold(double scale) {
  table_.rows.resize(rows_.size() * kMaxRowBytes / sizeof(double));
  table_.memories.clear();
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    info(row.rule).fold[row.is_double](table_.row(int32_t(r)), row.numbers, row.count, scale, row.memory,
                                       row.scalars.data());
    table_.memories.push_back(row.memory);
  }
}

void Plan::release() {
  held_.clear();
  kept_.clear();
  held_state_ = {};
}

// What is left to do once everything has been written.
void Plan::finish() {
  for (Row& row : rows_)
    if (const RuleInfo& rule = info(row.rule); rule.scalar_count)
      rule.advance(row.numbers, row.count, row.scalars.data());
  for (Entry& e : entries_) {
    e.fresh = false;
    if (!e.active) continue;
    const Tensor& t = table_.tensors[&e - entries_.data()];
    const RuleInfo& rule = info(t.rule);
    for (int k = 0; k < kTensors; ++k)
      if (k != 1 && e.impl[k]) e.impl[k]->bump_version();
    if (e.shard)
      for (int k = 0; k < kTensors; ++k)
        if (k != 1 && (k < 2 + rule.state_count || k > kStep) && e.impl[k]) e.shard->whole[k]->bump_version();
    if (!e.impl[kStep] || t.step) continue;
    if (e.double_step) *static_cast<double*>(e.step) += 1;
    else *static_cast<float*>(e.step) += 1;
    for (int i = 0; i < rule.scalar_count; ++i) {
      const int k = 2 + rule.state_count + i;
      const double value = rows_[t.row].scalars[i].value;
      if (t.storage[k] == Storage::kFloat64) *static_cast<double*>(t.addr[k]) = value;
      else *static_cast<float*>(t.addr[k]) = float(value);
    }
  }
  release();
}

int64_t Plan::bytes_per_step(bool clips, const std::vector<bool>& late) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Tensor& t = table_.tensors[i];
    const RuleInfo& rule = info(t.rule);
    std::vector<Operands> passes{rule.operands, rule.second};
    if (late.at(size_t(entries_[i].group))) passes = {rule.late};
    if (clips) passes.push_back({0b10, 0});
    for (const Operands& pass : passes)
      for (int k = 0; k < kMaxOperands; ++k) {
        const int64_t size = item_size(t.storage[k]) * t.numel + bytes_beside(t.storage[k], t.numel);
        bytes += ((pass.reads >> k & 1) + (pass.writes >> k & 1)) * size;
      }
    if (t.average) bytes += 2 * item_size(t.average_storage) * t.numel;
  }
  return bytes;
}

size_t Plan::memory() const {
  size_t bytes = entries_.capacity() * sizeof(Entry) + table_.tensors.capacity() * sizeof(Tensor) +
                 table_.chunks.capacity() * sizeof(Chunk) + table_.sums.capacity() * sizeof(double) +
                 (held_.capacity() + kept_.capacity()) * sizeof(void*);
  for (const auto& [device, gpu] : gpus_) bytes += gpu.memory();
  return bytes;
}

std::vector<std::optional<std::string>> Plan::reasons() const {
  std::vector<std::optional<std::string>> reasons;
  for (const Entry& e : entries_) {
    if (!e.reason) reasons.emplace_back();
    else if (e.reason != kOddNumber) reasons.emplace_back(kReasonTexts[e.reason]);
    else reasons.emplace_back("`" + std::string(groups_[e.group].odd) + "` is not a plain number of the usual size");
  }
  return reasons;
}

}  // namespace fusedopt
