// How the plan's walk looks at tensors and dicts: what it does for every operand of every parameter in every step.
#pragma once
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/python_variable.h>

#include <map>

#include "gpu.h"

#define INLINE inline __attribute__((always_inline))  // where the walk spends its time

namespace fusedopt {

// Reasons that are not final.
inline constexpr char kNoGradient[] = "no gradient";
inline constexpr char kNoState[] = "no state yet";
inline constexpr char kHostStep[] = "the step count is not on the GPU yet";
inline constexpr char kUnplaced[] = "it is placed otherwise than the parameter";

// The dispatch keys of an ordinary dense CPU tensor. Anything else has other keys: other devices, sparse and mkldnn
// layouts, conjugate views, functorch wrappers, fake and meta tensors, subclasses with __torch_dispatch__.
static const c10::DispatchKeySet kPlain = at::empty({0}).key_set();

INLINE bool is_plain(const at::TensorImpl& t) {
  if (t.key_set() == kPlain) return true;
  if (t.device().type() != gpu::kDeviceType) return false;
  static const c10::DispatchKeySet on_gpu = at::empty({0}, at::device(gpu::kDeviceType)).key_set();
  return t.key_set() == on_gpu;
}

enum class Match { kNo, kSizes, kLayout };  // nothing alike; all but the memory layout; everything

// Compares an operand with its parameter, which is on the GPU of that number, -1 for the CPU. Strides must agree
// wherever a dimension has more than one element.
INLINE Match match(const at::TensorImpl& a, const at::TensorImpl& b, int8_t gpu) {
  const auto sizes = a.sizes(), others = b.sizes(), x = a.strides(), y = b.strides();
  if (b.key_set() != a.key_set() || a.dtype() != b.dtype() || sizes.size() != others.size()) return Match::kNo;
  if (gpu >= 0 && gpu_index(b.device()) != gpu) return Match::kNo;
  bool layout = true;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != others[i]) return Match::kNo;
    layout &= x[i] == y[i] || sizes[i] <= 1;
  }
  return layout ? Match::kLayout : Match::kSizes;
}

// The first element of a tensor that will be written: one that shares its memory copy-on-write gets its own.
INLINE void* address(const at::TensorImpl& t) {
  return static_cast<char*>(t.unsafe_storage().mutable_data()) + t.storage_offset() * int64_t(t.itemsize());
}

// Looks `key` up at the cursor, where it stands when the dict was filled in the order of the walk: this avoids hashing,
// which for tensors costs more than all the rest. Borrowed reference, or null.
INLINE PyObject* find(PyObject* dict, PyObject* key, Py_ssize_t& cursor) {
  Py_ssize_t next = cursor;
  PyObject *name, *value;
  if (PyDict_Next(dict, &next, &name, &value) && name == key) {
    cursor = next;
    return value;
  }
  value = PyDict_GetItemWithError(dict, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

template <class T>
INLINE void patch(T& value, T now, bool& changed) {
  changed |= value != now;
  value = now;
}

// Interned, so that equal keys are identical; never freed.
inline PyObject* interned(const char* name) {
  static std::map<const char*, PyObject*> keys;
  PyObject*& key = keys[name];
  return key ? key : key = PyUnicode_InternFromString(name);
}

}  // namespace fusedopt
