// What the plan's walk does at one parameter.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <bit>

#include "dtensor.h"
#include "plan.h"
#include "walk.h"

namespace fusedopt {

void Plan::visit(size_t index, PyObject* object, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized) {
  if (index == entries_.size()) {
    entries_.emplace_back();
    table_.tensors.emplace_back();
    resharded_ = true;
  }
  // The walk waits for memory more than it computes, and knows from the last step where it will go next.
  if (index + 3 < entries_.size())
    for (int k = 0; k <= kStep; ++k)
      for (int line = 0; line < 3; ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(entries_[index + 3].impl[k]) + 64 * line);
  Entry& e = entries_[index];
  Tensor& t = table_.tensors[index];
  if (!THPVariable_Check(object)) throw py::type_error("optimizer can only optimize Tensors");
  if (e.group != group) e.group = group, changed_ = resharded_ = true;
  keep(object);
  PyObject* values = find(state, object, cursor);
  if (values) keep(values);
  const at::Tensor& whole = THPVariable_Unpack(object);
  const auto* autograd =
      static_cast<const torch::autograd::AutogradMeta*>(whole.unsafeGetTensorImpl()->autograd_meta());
  const bool is_shard = whole.key_set().has(c10::DispatchKey::Python) && is_dtensor(object);
  if (is_shard || e.shard) place(e, is_shard ? object : nullptr);
  const at::Tensor& param = is_shard ? local_of(object) : whole;
  const at::TensorImpl& p = *param.unsafeGetTensorImpl();
  e.numel = p.numel();
  e.impl[0] = e.impl[1] = nullptr;
  bool moved = false;
  if (!autograd || !autograd->grad_.defined()) e.reason = kNoGradient;
  else if (patch(t.device, gpu_index(p.device()), moved); t.device < 0 && p.device().type() != at::kCPU)
    e.reason = kOtherDevice;
  else if (groups_[group].odd) e.reason = kOddNumber;
  else if (is_shard && e.shard->is_partial) e.reason = kPartialSum;
  else if (!is_plain(p)) e.reason = kNotPlain;
  else if (!p.is_non_overlapping_and_dense()) e.reason = kNotDense;
  else if (!(e.reason = gradient(e, t, param, autograd->grad_))) e.reason = operands(e, t, param, values, initialized);
  if (moved) changed_ = resharded_ = true;
  if (e.reason == kUnplaced && !placed_) return;  // until it is placed
  const bool fused = !e.reason || e.reason == kNoState || e.reason == kHostStep;
  patch(e.path, fused ? kFused : e.reason == kNoGradient ? kIdle : kTorch, changed_);
  patch(e.complete, !e.reason, changed_);
  if (e.path == kIdle) return;
  if (!is_shard) e.impl[1] = autograd->grad_.unsafeGetTensorImpl();
  e.alone = !e.impl[1] || !has_memory(*e.impl[1]) ||
            (autograd->grad_.use_count() == 1 && !is_shard && e.impl[1]->unsafe_storage().use_count() == 1 &&
             is_allocated(*e.impl[1]));
  if (!has_memory(p)) return;
  e.impl[0] = param.unsafeGetTensorImpl();
  // On torch's path a parameter may be strided: it gets all of its storage.
  const char* storage = static_cast<const char*>(p.unsafe_storage().data());
  patch(e.begin, e.path == kFused ? static_cast<const char*>(t.addr[0]) : storage, changed_);
  const int64_t bytes = e.path == kFused ? e.numel * int64_t(p.itemsize()) : int64_t(p.unsafe_storage().nbytes());
  patch(e.end, e.begin + bytes, changed_);
}

// Takes notice of a DTensor, or, without one, that the parameter is none any more.
void Plan::place(Entry& e, PyObject* dtensor) {
  if (!dtensor) {
    e.shard.reset();
    resharded_ = true;
    return;
  }
  if (!e.shard) e.shard = std::make_unique<Shard>();
  sharded_ = true;
  PyObject* spec = spec_of(dtensor);
  e.shard->whole[0] = THPVariable_Unpack(dtensor).unsafeGetTensorImpl();
  if (e.shard->specs[0].ptr() == spec) return;
  resharded_ |= !e.shard->specs[0] || !is_placed_as(e.shard->specs[0], spec);
  e.shard->is_partial = false;
  for (const py::handle placement : py::handle(spec).attr("placements"))
    e.shard->is_partial |= placement.attr("is_partial")().cast<bool>();
  for (py::object& known : e.shard->specs) known = {};
  e.shard->specs[0] = py::reinterpret_borrow<py::object>(spec);
}

// Of a DTensor's operand k what is here, if it is placed as the parameter; otherwise null, and why.
const at::Tensor* Plan::local(Shard& shard, int k, PyObject* value, Reason& reason) {
  reason = kNotSharded;
  if (!is_dtensor(value)) return nullptr;
  PyObject* spec = spec_of(value);
  reason = kUnplaced;
  if (shard.specs[0].ptr() != spec && shard.specs[k].ptr() != spec) {
    if (!is_placed_as(shard.specs[0], spec)) return nullptr;
    shard.specs[k] = py::reinterpret_borrow<py::object>(spec);
  }
  const at::Tensor& local = local_of(value);
  if (local.key_set().has(c10::DispatchKey::Python)) return nullptr;  // a collective that is still under way
  reason = kShardMismatch;
  shard.whole[k] = THPVariable_Unpack(value).unsafeGetTensorImpl();
  return shard.whole[k]->sizes() == shard.whole[0]->sizes() ? &local : nullptr;
}

INLINE Reason Plan::gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& whole) {
  const at::Tensor* here = &whole;
  if (has_company_) held_.push_back(whole);
  if (e.shard) {
    Reason reason;
    const auto value = py::reinterpret_steal<py::object>(THPVariable_Wrap(whole));
    if (here = local(*e.shard, 1, value.ptr(), reason); !here) return reason;
  }
  const at::Tensor& grad = *here;
  const at::TensorImpl& g = *grad.unsafeGetTensorImpl();
  const Match same = match(*param.unsafeGetTensorImpl(), g, t.device);
  if (same == Match::kNo) return g.is_sparse() ? kSparseGradient : kGradientMismatch;
  Storage storage;
  if (Reason reason = stored_in(g, storage)) return reason;
  patch(t.storage[1], storage, changed_);
  e.impl[1] = grad.unsafeGetTensorImpl();
  t.addr[1] =
      static_cast<char*>(const_cast<void*>(g.unsafe_storage().data())) + g.storage_offset() * int64_t(g.itemsize());
  if (same == Match::kSizes) {
    at::NoGradGuard no_grad;
    held_.push_back(at::empty_like(param, grad.options()).copy_(grad));
    t.addr[1] = held_.back().data_ptr();
  }
  return kNone;
}

// Fills in the operands other than the gradient. Returns why they do not fit, or null.
INLINE Reason Plan::operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized) {
  Group& group = groups_[e.group];
  const RuleInfo& rule = info(group.rule);
  const at::TensorImpl& p = *param.unsafeGetTensorImpl();
  Storage stored[kMaxOperands] = {};
  stored[1] = t.storage[1];
  if (Reason reason = stored_in(p, stored[0])) return reason;
  if (group.joint && group.device != t.device) return kOtherGroupDevice;
  patch(t.rule, group.rule, changed_);
  patch(t.addr[0], address(p), changed_);
  for (int k = 2; k < kTensors; ++k) e.impl[k] = nullptr;
  t.step = nullptr;

  Py_ssize_t cursor = 0;
  if (values && !is_ordinary(values)) return kNoDict;
  const bool needs_count = group.by_chance || group.ema_decay, keeps = group.masters || needs_count;
  if ((rule.state_count || keeps) && (!values || PyDict_GET_SIZE(values) == 0)) return e.fresh = true, kNoState;
  double count = 0;
  const bool counts = rule.counts_steps || needs_count;
  PyObject* step = counts || (t.device >= 0 && values) ? find(values, group.names->step, cursor) : nullptr;
  if (!step && needs_count && !rule.counts_steps) return kNoState;
  if (rule.counts_steps || step)
    if (Reason reason = this->step(e, t, step, count)) return reason;
  Scalars now{};
  if (rule.scalar_count)
    if (Reason reason = scalars(e, t, values, cursor, now)) return reason;
  for (int i = 0; i < rule.state_count; ++i) {
    PyObject* value = find(values, group.names->states[i], cursor);
    if (!rule.counts_steps && (!value || value == Py_None)) return e.fresh = true, kNoState;
    if (!value) return kLacksState;
    keep(value);
    if (PyTuple_CheckExact(value)) {
      if (Reason reason = in_blocks(e, t, 2 + i, p, value, stored[2 + i])) return reason;
      continue;
    }
    if (!THPVariable_Check(value)) return kLacksState;
    const at::Tensor* here = &THPVariable_Unpack(value);
    Reason reason;
    if (e.shard)
      if (here = local(*e.shard, 2 + i, value, reason); !here) return reason;
    at::TensorImpl& s = *here->unsafeGetTensorImpl();
    const Match same = match(p, s, t.device);
    if (same == Match::kNo) return kStateMismatch;
    if (same == Match::kSizes) return kStateLayout;
    if (Reason reason = stored_in(s, stored[2 + i])) return reason;
    patch(t.addr[2 + i], address(s), changed_);
    e.impl[2 + i] = &s;
  }
  if (group.masters)
    if (Reason reason = beside(e, t, p, stored[0], values, cursor)) return reason;
  if (group.by_chance)
    if (Reason reason = by_chance(t, stored, values, cursor, count)) return reason;
  if (!group.ema_decay) patch<void*>(t.average, nullptr, changed_);
  else if (Reason reason = average(e, t, p, values, cursor, count)) return reason;
  for (int k = 0; k < 2 + rule.state_count; ++k) patch(t.storage[k], stored[k], changed_);
  const Storage *first = t.storage, *last = first + 2 + rule.state_count;
  const bool alike = std::all_of(first, last, [&](Storage storage) { return storage == t.storage[0]; });
  if (!alike && std::find(first, last, Storage::kFloat64) != last) return kMixedFloat64;
  const Form native = t.storage[0] == Storage::kFloat64 ? Form::kDouble : Form::kFloat;
  if (t.average && native == Form::kDouble) return kMixedFloat64;
  patch(t.form, alike && t.storage[0] <= Storage::kFloat64 && !t.average ? native : Form::kCoded, changed_);
  if (!initialized) e.fresh = false;
  if (!rule.counts_steps) count = e.fresh ? 1 : 2;
  // A rule that keeps states but no count starts from the count, too, where the host does not know whether it started.
  if (t.device >= 0 && group.counted && (rule.state_count || keeps) && !t.step) return kHostStep;
  t.row = row(e.group, t, p.dim(), count, now);
  return kNone;
}

// The step count: where it lies, and, where the host keeps it, what the coming step's is.
INLINE Reason Plan::step(Entry& e, Tensor& t, PyObject* value, double& count) {
  if (!value || !THPVariable_Check(value)) return kNoStep;
  keep(value);
  at::TensorImpl& s = *THPVariable_Unpack(value).unsafeGetTensorImpl();
  e.double_step = s.dtype().toScalarType() == at::kDouble;
  const bool on_gpu = t.device >= 0 && gpu::counts(s, t.device, groups_[e.group].counted);
  if (!(on_gpu ? is_plain(s) : s.key_set() == kPlain) || s.numel() != 1 ||
      !(e.double_step || s.dtype().toScalarType() == at::kFloat))
    return kOddStep;
  patch(e.step, address(s), changed_);
  e.impl[kStep] = &s;
  t.step = on_gpu ? e.step : nullptr;
  t.double_step = e.double_step;
  if (on_gpu) count = 0;
  else count = 1 + (e.double_step ? *static_cast<double*>(e.step) : double{*static_cast<float*>(e.step)});
  return kNone;
}

// The scalars, which lie where the step count does: where, and, where the host counts, what they are now.
Reason Plan::scalars(Entry& e, Tensor& t, PyObject* values, Py_ssize_t& cursor, Scalars& now) {
  const Group& group = groups_[e.group];
  const RuleInfo& rule = info(group.rule);
  for (int i = 0; i < rule.scalar_count; ++i) {
    PyObject* value = find(values, group.names->scalars[i], cursor);
    if (!value || !THPVariable_Check(value)) return kLacksState;
    keep(value);
    at::TensorImpl& s = *THPVariable_Unpack(value).unsafeGetTensorImpl();
    const bool is_double = s.dtype().toScalarType() == at::kDouble;
    if (!is_plain(s) || s.numel() != 1 || !(is_double || s.dtype().toScalarType() == at::kFloat)) return kOddScalar;
    if (t.step ? !gpu::counts(s, t.device, group.counted) : s.key_set() != kPlain)
      return t.device < 0 ? kOddScalar : kHostStep;
    const int k = 2 + rule.state_count + i;
    patch(t.storage[k], is_double ? Storage::kFloat64 : Storage::kFloat32, changed_);
    patch(t.addr[k], address(s), changed_);
    e.impl[k] = &s;
    now[i].is_double = is_double;
    if (!t.step) now[i].value = is_double ? *static_cast<double*>(t.addr[k]) : double{*static_cast<float*>(t.addr[k])};
  }
  return kNone;
}

// The row of a tensor: that of the tensor before, as a rule.
INLINE int32_t Plan::row(int32_t g, const Tensor& t, int64_t dimensions, double count, const Scalars& scalars) {
  Group& group = groups_[g];
  const bool of_more = group.by_dimension && dimensions > 1;
  double* numbers = of_more ? group.of_more : group.numbers;
  const bool is_double = t.form == Form::kDouble;
  int32_t& row = group.last_rows[4 * of_more + 2 * (t.device >= 0) + is_double];
  const auto bits = std::bit_cast<std::tuple_element_t<5, RowKey>>(scalars);
  if (row >= 0 && rows_[row].count == count && rows_[row].device == t.device &&
      std::bit_cast<decltype(bits)>(rows_[row].scalars) == bits)
    return row;
  const auto [it, is_new] = row_of_.try_emplace({g, of_more, is_double, t.device, count, bits}, int32_t(rows_.size()));
  row = it->second;
  if (!is_new) return row;
  rows_.push_back({numbers, group.memory, nullptr, count, group.rule, is_double, false, t.device, scalars});
  if (!group.lr) return row;
  const at::Tensor& lr = THPVariable_Unpack(group.lr);
  if (t.device != gpu_index(lr.device())) return numbers[0] = lr.item<double>(), row;
  rows_.back().lr = lr.data_ptr(), rows_.back().double_lr = lr.scalar_type() == at::kDouble;
  return row;
}

}  // namespace fusedopt
