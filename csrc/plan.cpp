#include "plan.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "cpu/step.h"
#include "rules/info.h"

namespace fusedopt {
namespace {

constexpr const char* kNoGradient = "no gradient";
constexpr const char* kNoState = "no state yet";
constexpr int64_t kReleaseGil = 1 << 20;  // elements; a shorter step is over before another thread could use the lock

// The dispatch keys of an ordinary dense CPU tensor. Anything else has other keys: other devices, sparse and mkldnn
// layouts, conjugate views, functorch wrappers, fake and meta tensors, subclasses with __torch_dispatch__.
c10::DispatchKeySet plain_keys() {
  static const c10::DispatchKeySet keys = at::empty({0}).key_set();
  return keys;
}
bool plain(const at::TensorImpl& t) { return t.key_set() == plain_keys(); }

bool dtype_of(const at::TensorImpl& t, Dtype& out) {
  const auto type = t.dtype().toScalarType();
  if (type == at::kFloat) out = Dtype::kFloat32;
  else if (type == at::kDouble) out = Dtype::kFloat64;
  else if (type == at::kBFloat16) out = Dtype::kBFloat16;
  else if (type == at::kHalf) out = Dtype::kFloat16;
  else return false;
  return true;
}

// The same order in memory: strides agree wherever a dimension has more than one element.
bool same_layout(const at::TensorImpl& a, const at::TensorImpl& b) {
  const auto sizes = a.sizes(), x = a.strides(), y = b.strides();
  if (x == y) return true;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1 && x[i] != y[i]) return false;
  return true;
}

const char* unfit(const at::TensorImpl& param) {
  if (!plain(param)) {
    if (param.device().type() != at::kCPU) return "the fused path covers CPU tensors only";
    return "not a plain dense tensor";
  }
  return param.is_non_overlapping_and_dense() ? nullptr : "the parameter's memory is not dense";
}

}  // namespace

Plan::~Plan() {
  for (Entry& e : entries_) Py_XDECREF(e.param);
  for (auto& [name, key] : keys_) Py_DECREF(key.name), Py_DECREF(key.seen);
}

Plan::Key* Plan::key(const char* name) {
  const auto [it, is_new] = keys_.try_emplace(name);
  if (is_new) it->second.name = PyUnicode_InternFromString(name), it->second.seen = Py_NewRef(it->second.name);
  return &it->second;
}

// Looks `key` up at the cursor, where it stands when the dict was filled in the order of the walk: this avoids hashing,
// which for tensors costs more than everything else. Borrowed reference, or null.
PyObject* Plan::find(PyObject* dict, Key& key, Py_ssize_t& cursor) {
  Py_ssize_t next = cursor;
  PyObject *name = nullptr, *value = nullptr;
  if (PyDict_Next(dict, &next, &name, &value)) {
    if (name != key.seen && PyUnicode_CheckExact(name) && PyUnicode_Compare(name, key.name) == 0) {
      Py_INCREF(name);
      Py_SETREF(key.seen, name);
    }
    if (name == key.seen) {
      cursor = next;
      return value;
    }
  }
  value = PyDict_GetItemWithError(dict, key.name);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

void Plan::read_numbers(const py::list& numbers) {
  groups_.resize(numbers.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* tuple = PyList_GET_ITEM(numbers.ptr(), Py_ssize_t(g));
    Group& group = groups_[g];
    group.rule = static_cast<RuleId>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)));
    const int count = info(group.rule).numbers;
    if (PyTuple_GET_SIZE(tuple) != 1 + count) throw py::value_error("wrong number of hyper-parameters for the rule");
    for (int i = 0; i < count; ++i) group.numbers[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, 1 + i));
    if (PyErr_Occurred()) throw py::error_already_set();
    group.keys[0] = key("step");
    for (int i = 0; i < info(group.rule).state_count; ++i) group.keys[1 + i] = key(info(group.rule).states[i]);
    group.last_row[0] = group.last_row[1] = -1;
  }
}

std::pair<std::vector<int64_t>, std::vector<int64_t>> Plan::refresh(py::list groups, py::dict state, py::list numbers,
                                                                    bool initialized) {
  if (running_) throw std::runtime_error("another thread is inside step() of this optimizer");
  read_numbers(numbers);
  rows_.clear();
  row_of_.clear();
  copies_.clear();
  moved_ = false;

  static PyObject* const params_key = PyUnicode_InternFromString("params");
  size_t index = 0;
  Py_ssize_t cursor = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* params = PyDict_GetItemWithError(PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g)), params_key);
    if (!params || !PyList_Check(params)) throw py::type_error("a param group's 'params' must be a list of tensors");
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i)
      visit(index++, PyList_GET_ITEM(params, i), int32_t(g), state.ptr(), cursor, initialized);
  }
  for (size_t i = index; i < entries_.size(); ++i) Py_XDECREF(entries_[i].param);
  moved_ |= index != entries_.size();
  entries_.resize(index);
  table_.tensors.resize(index);

  for (Entry& e : entries_) moved_ |= std::exchange(e.taken, !e.reason || e.reason == kNoState) != e.taken;
  if (moved_) mark_overlaps();
  std::pair<std::vector<int64_t>, std::vector<int64_t>> result;
  bool recut = false;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    if (e.overlaps) e.reason = "shares memory with another parameter or state";
    const int64_t numel = e.reason ? 0 : e.numel;
    recut |= numel != table_.tensors[i].numel;
    table_.tensors[i].numel = numel;
    if (e.reason == kNoState) result.second.push_back(int64_t(i));
    else if (e.reason && e.reason != kNoGradient) result.first.push_back(int64_t(i));
  }
  if (recut || moved_) {
    table_.chunks = cut(int32_t(index), [&](int32_t t) { return table_.tensors[t].numel; }, kChunkSize);
    table_.chunks.shrink_to_fit();
    table_.sums.resize(2 * table_.chunks.size());
    table_.elements = 0;
    for (const Tensor& t : table_.tensors) table_.elements += t.numel;
  }
  return result;
}

void Plan::set_address(Tensor& t, int operand, void* addr) {
  moved_ |= t.addr[operand] != addr;
  t.addr[operand] = addr;
}

void Plan::visit(size_t index, PyObject* object, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized) {
  if (index == entries_.size()) {
    entries_.emplace_back();
    table_.tensors.emplace_back();
  }
  Entry& e = entries_[index];
  Tensor& t = table_.tensors[index];
  if (e.param != object) {
    if (!THPVariable_Check(object)) throw py::type_error("optimizer can only optimize Tensors");
    Py_INCREF(object);
    Py_XSETREF(e.param, object);
    moved_ = true;
  }
  e.group = group;

  // The state of this parameter stands at the cursor, or somewhere else, or nowhere.
  PyObject *owner = nullptr, *values = nullptr;
  Py_ssize_t next = cursor;
  if (PyDict_Next(state, &next, &owner, &values) && owner == object) cursor = next;
  else if (!(values = PyDict_GetItemWithError(state, object)) && PyErr_Occurred()) throw py::error_already_set();

  const at::Tensor& param = THPVariable_Unpack(object);
  const at::Tensor& grad = param.unsafeGetTensorImpl()->grad();
  e.numel = param.numel();
  if (!grad.defined()) e.reason = kNoGradient;
  else if (!(e.reason = unfit(*param.unsafeGetTensorImpl())))
    e.reason = gradient(e, t, param, grad) ? operands(e, t, param, values, initialized) : "the gradient does not match";
}

bool Plan::gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& grad) {
  const at::TensorImpl &p = *param.unsafeGetTensorImpl(), &g = *grad.unsafeGetTensorImpl();
  if (!plain(g) || g.dtype() != p.dtype() || g.sizes() != p.sizes()) return false;
  e.grad = grad.unsafeGetTensorImpl();
  t.addr[1] = const_cast<void*>(g.data());
  if (!same_layout(p, g)) {
    c10::InferenceMode guard(false);
    at::NoGradGuard no_grad;
    copies_.push_back(at::empty_like(param).copy_(grad));
    t.addr[1] = copies_.back().data_ptr();
  }
  return true;
}

// Fills in the operands other than the gradient. Returns why they do not fit, or null.
const char* Plan::operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized) {
  const Group& group = groups_[e.group];
  const RuleInfo& rule = info(group.rule);
  at::TensorImpl& p = *param.unsafeGetTensorImpl();
  if (!dtype_of(p, t.dtype)) return "the dtype is not a real floating-point type that the rules compute in";
  moved_ |= t.rule != group.rule;
  t.rule = group.rule;
  set_address(t, 0, p.mutable_data());
  e.written[0] = &p;
  e.step = nullptr;

  Py_ssize_t cursor = 0;
  const auto missing = [&] { e.fresh = true; return kNoState; };
  if (rule.state_count && (!values || !PyDict_Check(values) || PyDict_GET_SIZE(values) == 0)) return missing();

  double count = 1;
  if (rule.counts_steps) {
    PyObject* step = find(values, *group.keys[0], cursor);
    if (!step || !THPVariable_Check(step)) return "the state has no `step` tensor";
    at::TensorImpl& s = *THPVariable_Unpack(step).unsafeGetTensorImpl();
    e.double_step = s.dtype().toScalarType() == at::kDouble;
    if (!plain(s) || s.numel() != 1 || !(e.double_step || s.dtype().toScalarType() == at::kFloat))
      return "the state's `step` is not one float32 or float64 number on the CPU";
    e.step = s.mutable_data();
    e.written[kMaxStates + 1] = &s;
    count = 1 + (e.double_step ? *static_cast<double*>(e.step) : double{*static_cast<float*>(e.step)});
  }
  for (int i = 0; i < rule.state_count; ++i) {
    PyObject* value = find(values, *group.keys[1 + i], cursor);
    if (!rule.counts_steps && (!value || value == Py_None)) return missing();
    if (!value || !THPVariable_Check(value)) return "the state lacks a tensor that the rule needs";
    at::TensorImpl& s = *THPVariable_Unpack(value).unsafeGetTensorImpl();
    if (!plain(s) || s.dtype() != p.dtype() || s.sizes() != p.sizes()) return "the state does not match the parameter";
    if (!same_layout(p, s)) return "the state's memory layout is not the parameter's";
    set_address(t, 2 + i, s.mutable_data());
    e.written[1 + i] = &s;
  }
  if (!initialized) e.fresh = false;
  if (!rule.counts_steps) count = e.fresh ? 1 : 2;
  t.row = row(e, t, count);
  return nullptr;
}

int32_t Plan::row(Entry& e, const Tensor& t, double count) {
  const bool is_double = t.dtype == Dtype::kFloat64;
  int32_t& last = groups_[e.group].last_row[is_double];
  if (last < 0 || rows_[last].count != count) {
    const auto [it, is_new] = row_of_.try_emplace({e.group, is_double, count}, int32_t(rows_.size()));
    if (is_new) rows_.push_back({e.group, is_double, count});
    last = it->second;
  }
  return last;
}

// Parameters and states must not overlap: the order in which chunks are written is nobody's promise.
void Plan::mark_overlaps() {
  struct Range {
    const char *begin, *end;
    Entry* owner;
  };
  std::vector<Range> ranges;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    e.overlaps = false;
    if (e.numel == 0 || !e.taken) continue;
    const Tensor& t = table_.tensors[i];
    const int64_t bytes = e.numel * kItemSize[static_cast<int>(t.dtype)];
    const int states = e.reason ? 0 : info(t.rule).state_count;
    for (int k = 0; k < 2 + states; ++k) {
      const char* begin = static_cast<const char*>(t.addr[k]);
      if (k != 1) ranges.push_back({begin, begin + bytes, &e});
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const Range* widest = nullptr;  // of those before, the one that reaches farthest
  for (const Range& r : ranges) {
    if (widest && r.begin < widest->end) r.owner->overlaps = widest->owner->overlaps = true;
    if (!widest || r.end > widest->end) widest = &r;
  }
}

double Plan::square_sum() { return cpu::square_sum(table_); }

// References that keep every operand alive while other Python threads run.
std::vector<at::Tensor> Plan::hold() const {
  std::vector<at::Tensor> held;
  const auto add = [&](at::TensorImpl* impl) {
    held.emplace_back(c10::intrusive_ptr<at::TensorImpl, c10::UndefinedTensorImpl>::unsafe_reclaim_from_nonowning(impl));
  };
  for (const Entry& e : entries_) {
    if (e.reason) continue;
    add(e.grad);
    for (int k = 0; k <= info(groups_[e.group].rule).state_count; ++k) add(e.written[k]);
  }
  return held;
}

void Plan::run(double scale) {
  table_.rows.resize(rows_.size() * kMaxRowBytes / sizeof(double));
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Group& group = groups_[rows_[r].group];
    info(group.rule).fold[rows_[r].is_double](table_.row(int32_t(r)), group.numbers, rows_[r].count, scale);
  }
  if (table_.elements < kReleaseGil) {
    cpu::step(table_);
  } else {
    const std::vector<at::Tensor> held = hold();
    running_ = true;
    {
      py::gil_scoped_release release;
      cpu::step(table_);
    }
    running_ = false;
  }
  for (Entry& e : entries_) {
    e.fresh = false;
    if (e.reason) continue;
    for (int k = 0; k <= info(groups_[e.group].rule).state_count; ++k) e.written[k]->bump_version();
    if (!e.step) continue;
    if (e.double_step) *static_cast<double*>(e.step) += 1;
    else *static_cast<float*>(e.step) += 1;
    e.written[kMaxStates + 1]->bump_version();
  }
  copies_.clear();
}

std::vector<std::string> Plan::reasons() const {
  std::vector<std::string> reasons;
  for (const Entry& e : entries_) reasons.emplace_back(e.reason ? e.reason : "");
  return reasons;
}

int64_t Plan::bytes_per_step(bool with_norm) const {
  int64_t bytes = 0;
  for (const Tensor& t : table_.tensors) {
    const int transfers = info(t.rule).operands.transfers() + info(t.rule).second_pass.transfers() + with_norm;
    bytes += t.numel * kItemSize[static_cast<int>(t.dtype)] * transfers;
  }
  return bytes;
}

int64_t Plan::memory() const {
  return int64_t(entries_.capacity() * sizeof(Entry) + table_.tensors.capacity() * sizeof(Tensor) +
                 table_.chunks.capacity() * sizeof(Chunk) + table_.sums.capacity() * sizeof(double) +
                 rows_.capacity() * sizeof(Row) + table_.rows.capacity() * sizeof(double));
}

}  // namespace fusedopt
