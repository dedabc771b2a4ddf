#include "plan.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "walk.h"

namespace fusedopt {
namespace {

constexpr const char* kNoGradient = "no gradient";
constexpr const char* kNoState = "no state yet";
constexpr int64_t kReleaseGil = 1 << 20;  // elements; a shorter step is over before another thread could use the lock
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};  // in the order of Dtype

}  // namespace

std::pair<Plan::Indices, Plan::Indices> Plan::refresh(py::list groups, py::dict state, py::list numbers,
                                                      bool initialized) {
  if (running_) throw std::runtime_error("another thread is inside step() of this optimizer");
  groups_.resize(numbers.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* tuple = PyList_GET_ITEM(numbers.ptr(), Py_ssize_t(g));
    Group& group = groups_[g];
    group.rule = static_cast<RuleId>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)));
    const RuleInfo& rule = info(group.rule);
    if (PyTuple_GET_SIZE(tuple) != 1 + rule.numbers) throw py::value_error("wrong number of hyper-parameters");
    for (int i = 0; i < rule.numbers; ++i) {
      PyObject* number = PyTuple_GET_ITEM(tuple, 1 + i);
      group.numbers[i] = PyFloat_Check(number) || !THPVariable_Check(number)
                             ? PyFloat_AsDouble(number)
                             : THPVariable_Unpack(number).item<double>();
    }
    if (PyErr_Occurred()) throw py::error_already_set();
    group.keys[0] = interned("step");
    for (int i = 0; i < rule.state_count; ++i) group.keys[1 + i] = interned(rule.states[i]);
    group.last_row[0] = group.last_row[1] = -1;
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

  if (changed_) mark_overlaps(), entries_.shrink_to_fit(), table_.tensors.shrink_to_fit();
  std::pair<Indices, Indices> result;
  bool recut = changed_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    if (e.overlaps && e.path == kFused) e.reason = "shares memory with another parameter or state";
    const int64_t numel = e.reason ? 0 : e.numel;
    recut |= numel != table_.tensors[i].numel;
    table_.tensors[i].numel = numel;
    if (e.reason == kNoState) result.second.push_back(int64_t(i));
    else if (e.reason && e.reason != kNoGradient) result.first.push_back(int64_t(i));
  }
  if (recut) {
    table_.chunks = cut(int32_t(index), [&](int32_t t) { return table_.tensors[t].numel; }, kChunkSize);
    table_.sums.resize(2 * table_.chunks.size());
    table_.elements = 0;
    for (const Tensor& t : table_.tensors) table_.elements += t.numel;
  }
  return result;
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
  else if (p.device().type() != at::kCPU) e.reason = "the fused path covers CPU tensors only";
  else if (p.key_set() != kPlain) e.reason = "not a plain dense tensor";
  else if (!p.is_non_overlapping_and_dense()) e.reason = "the parameter's memory is not dense";
  else if (!(e.reason = gradient(e, t, param, autograd->grad_))) e.reason = operands(e, t, param, values, initialized);
  patch(e.path, !e.reason || e.reason == kNoState ? kFused : e.reason == kNoGradient ? kIdle : kTorch, changed_);
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
  t.dtype = static_cast<Dtype>(type - kDtypes);
  patch(t.rule, group.rule, changed_);
  patch(t.addr[0], address(p), changed_);
  e.impl[0] = param.unsafeGetTensorImpl();
  e.impl[kStep] = nullptr;

  Py_ssize_t cursor = 0;
  double count = 1;
  if (rule.state_count && (!values || !PyDict_Check(values) || PyDict_GET_SIZE(values) == 0))
    return e.fresh = true, kNoState;
  if (rule.counts_steps) {
    PyObject* step = find(values, group.keys[0], cursor);
    if (!step || !THPVariable_Check(step)) return "the state has no `step` tensor";
    at::TensorImpl& s = *THPVariable_Unpack(step).unsafeGetTensorImpl();
    e.double_step = s.dtype().toScalarType() == at::kDouble;
    if (s.key_set() != kPlain || s.numel() != 1 || !(e.double_step || s.dtype().toScalarType() == at::kFloat))
      return "the state's `step` is not one float32 or float64 number on the CPU";
    patch(e.step, address(s), changed_);
    e.impl[kStep] = &s;
    count += e.double_step ? *static_cast<double*>(e.step) : double{*static_cast<float*>(e.step)};
  }
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
  for (int k = 2 + rule.state_count; k < kStep; ++k) e.impl[k] = nullptr;
  if (!initialized) e.fresh = false;
  if (!rule.counts_steps) count = e.fresh ? 1 : 2;
  const bool is_double = t.dtype == Dtype::kFloat64;
  int32_t& row = group.last_row[is_double];
  if (row < 0 || std::get<2>(rows_[row]) != count) {
    const auto [it, is_new] = row_of_.try_emplace({e.group, is_double, count}, int32_t(rows_.size()));
    if (is_new) rows_.push_back(it->first);
    row = it->second;
  }
  t.row = row;
  return nullptr;
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

void Plan::run(double scale) {
  table_.rows.resize(rows_.size() * kMaxRowBytes / sizeof(double));
  for (size_t r = 0; r < rows_.size(); ++r) {
    const auto& [g, is_double, count] = rows_[r];
    info(groups_[g].rule).fold[is_double](table_.row(int32_t(r)), groups_[g].numbers, count, scale);
  }
  if (table_.elements < kReleaseGil) {
    cpu::step(table_);
  } else {
    for (const Entry& e : entries_)  // keep every operand alive while other Python threads run
      for (at::TensorImpl* impl : e.impl)
        if (!e.reason && impl)
          held_.emplace_back(
              c10::intrusive_ptr<at::TensorImpl, c10::UndefinedTensorImpl>::unsafe_reclaim_from_nonowning(impl));
    running_ = true;
    Py_BEGIN_ALLOW_THREADS;
    cpu::step(table_);
    Py_END_ALLOW_THREADS;
    running_ = false;
  }
  for (Entry& e : entries_) {
    e.fresh = false;
    if (e.reason) continue;
    for (int k = 0; k <= kStep; ++k)
      if (k != 1 && e.impl[k]) e.impl[k]->bump_version();
    if (!e.impl[kStep]) continue;
    if (e.double_step) *static_cast<double*>(e.step) += 1;
    else *static_cast<float*>(e.step) += 1;
  }
  held_.clear();
}

std::vector<const char*> Plan::reasons() const {
  std::vector<const char*> reasons;
  for (const Entry& e : entries_) reasons.push_back(e.reason);
  return reasons;
}

}  // namespace fusedopt
