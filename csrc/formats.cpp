// What the plan's walk does at what a state has beyond its rule's: master weights, rounding by chance, averages.
#include "plan.h"
#include "random.h"
#include "walk.h"

namespace fusedopt {

// What a state has beyond its rule's: a tensor like the parameter but for the dtype. Null, and why, where there is
// none.
at::TensorImpl* Plan::extra(Entry& e, const Tensor& t, int k, const char* name, const at::TensorImpl& param,
                            PyObject* values, Py_ssize_t& cursor, Reason& reason) {
  PyObject* value = find(values, interned(name), cursor);
  if (reason = kNoState; !value) return nullptr;
  if (reason = kLacksState; !THPVariable_Check(value)) return nullptr;
  keep(value);
  const at::Tensor* here = &THPVariable_Unpack(value);
  if (e.shard)
    if (here = local(*e.shard, k, value, reason); !here) return nullptr;
  const Match same = match(param, *here->unsafeGetTensorImpl(), t.device);
  reason = same == Match::kSizes ? kStateLayout : kStateMismatch;
  return same == Match::kLayout ? e.impl[k] = here->unsafeGetTensorImpl() : nullptr;
}

// A state of codes in blocks: a tuple of them, like the parameter, and of the largest magnitude of each block.
Reason Plan::in_blocks(Entry& e, Tensor& t, int k, const at::TensorImpl& param, PyObject* value, Storage& storage) {
  if (PyTuple_GET_SIZE(value) != 2) return kLacksState;
  PyObject *const first = PyTuple_GET_ITEM(value, 0), *const second = PyTuple_GET_ITEM(value, 1);
  if (!THPVariable_Check(first) || !THPVariable_Check(second)) return kLacksState;
  if (e.shard) return kShardMismatch;
  at::TensorImpl &codes = *THPVariable_Unpack(first).unsafeGetTensorImpl(),
                 &largest = *THPVariable_Unpack(second).unsafeGetTensorImpl();
  const Match same = match(param, codes, t.device);
  if (same == Match::kSizes) return kStateLayout;
  const auto type = codes.dtype().toScalarType();
  if (same == Match::kNo || (type != at::kByte && type != at::kChar)) return kStateMismatch;
  storage = type == at::kByte ? Storage::kCodes : Storage::kSignedCodes;
  if (largest.key_set() != param.key_set() || largest.device() != param.device() || !largest.is_contiguous() ||
      largest.dtype().toScalarType() != at::kFloat || largest.numel() * 4 != bytes_beside(storage, param.numel()))
    return kStateMismatch;
  patch(t.addr[k], address(codes), changed_);
  patch(t.beside[k], address(largest), changed_);
  e.impl[k] = &codes, e.impl[kBeside + k] = &largest;
  return kNone;
}

// The rest of a master weight.
Reason Plan::beside(Entry& e, Tensor& t, const at::TensorImpl& param, Storage& storage, PyObject* values,
                    Py_ssize_t& cursor) {
  const bool splits = storage == Storage::kBFloat16;
  if (!splits && storage != Storage::kFloat16) return kNone;  // it is its own master
  Reason reason;
  const at::TensorImpl* s = extra(e, t, kBeside, splits ? kRest : kMaster, param, values, cursor, reason);
  if (!s) return reason;
  if (s->dtype().toScalarType() != (splits ? at::kBFloat16 : at::kFloat)) return kStateMismatch;
  storage = splits ? Storage::kSplit : Storage::kMaster;
  patch(t.beside[0], address(*s), changed_);
  return kNone;
}

Reason Plan::average(Entry& e, Tensor& t, const at::TensorImpl& param, PyObject* values, Py_ssize_t& cursor,
                     double count) {
  const Group& group = groups_[e.group];
  Reason reason;
  const at::TensorImpl* s = extra(e, t, kMean, kAverage, param, values, cursor, reason);
  if (!s) return reason;
  Storage storage;
  if ((reason = stored_in(*s, storage))) return reason;
  if (storage == Storage::kFloat64) return kMixedFloat64;
  if (group.by_chance && storage == Storage::kBFloat16) storage = Storage::kStochastic;
  patch(t.average_storage, storage, changed_);
  patch(t.average, address(*s), changed_);
  t.share = t.step ? group.ema_decay : share_of_step(group.ema_decay, count);
  return kNone;
}

// What of a parameter is rounded by chance, and the key of its random bits.
Reason Plan::by_chance(Tensor& t, Storage (&stored)[kMaxOperands], PyObject* values, Py_ssize_t& cursor, double count) {
  bool rounds = false;
  for (int k = 0; k < 2 + info(t.rule).state_count; ++k)
    if (k != 1) stored[k] = fusedopt::by_chance(stored[k]), rounds |= is_by_chance(stored[k]);
  if (!rounds) return kNone;
  PyObject* value = find(values, interned(kKey), cursor);
  if (!value) return kNoState;
  if (!PyLong_CheckExact(value)) return kLacksState;
  const uint64_t seed = PyLong_AsUnsignedLongLongMask(value);
  t.key = t.step ? seed : key_of_step(seed, count);
  return kNone;
}

}  // namespace fusedopt
