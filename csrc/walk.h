// How the plan's walk looks at tensors and dicts: what it does for every operand of every parameter in every step.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/TensorOptions.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <map>

#include "gpu.h"
#include "reasons.h"

#define INLINE inline __attribute__((always_inline))  // where the walk spends its time

namespace fusedopt {

// Who would see the operations of a step go through torch's dispatcher, if anybody. Function modes need a closer look:
// a default device is one.
inline Reason observer() {
  const c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set;
  if (!keys.empty()) return kDispatchMode;
  return at::impl::PythonTorchFunctionTLS::stack_len() ? kFunctionMode : kNone;
}

// The dispatch keys of an ordinary dense tensor on a device. Anything else has other keys: sparse and mkldnn layouts,
// conjugate views, inference tensors, functorch wrappers, fake and meta tensors, subclasses with __torch_dispatch__.
// Read off a tensor that no factory made: those ask the modes that are in force.
inline c10::DispatchKeySet plain_keys(at::DeviceType device) {
  const c10::InferenceMode ordinary(false);
  const auto key = c10::computeDispatchKey(std::nullopt, std::nullopt, c10::Device(device, 0));
  return c10::make_intrusive<at::TensorImpl>(key, caffe2::TypeMeta::Make<float>(), c10::Device(device, 0))->key_set();
}
static const c10::DispatchKeySet kPlain = plain_keys(at::kCPU);

INLINE bool is_plain(const at::TensorImpl& t) {
  if (t.key_set() == kPlain) return true;
  if (t.device().type() != gpu::kDeviceType) return false;
  static const c10::DispatchKeySet on_gpu = plain_keys(gpu::kDeviceType);
  return t.key_set() == on_gpu;
}

// Whether the tensor has memory of its own kind, unlike a sparse one or a subclass that wraps others.
INLINE bool has_memory(const at::TensorImpl& t) {
  return t.has_storage() && !t.key_set().has(c10::DispatchKey::Python) && t.device().type() != at::kMeta;
}

// Whether the memory is torch's own: not made around that of NumPy, of another library or process, where two storages
// can be of the same memory.
INLINE bool is_allocated(const at::TensorImpl& t) {
  static const c10::DeleterFnPtr on_cpu = c10::GetAllocator(at::kCPU)->raw_deleter();
  const c10::DeleterFnPtr deleter = t.unsafe_storage().data_ptr().get_deleter();
  if (deleter == on_cpu) return true;
  return t.device().type() == gpu::kDeviceType && deleter == c10::GetAllocator(gpu::kDeviceType)->raw_deleter();
}

// The elements of a strided tensor, from the first byte to the last, whatever lies between them.
inline std::pair<const char*, const char*> extent(const at::TensorImpl& t) {
  int64_t last = t.storage_offset();
  const char* data = static_cast<const char*>(t.unsafe_storage().data());
  if (!t.numel() || !data) return {};
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return {data + t.storage_offset() * int64_t(t.itemsize()), data + (last + 1) * int64_t(t.itemsize())};
}

enum class Match { kNo, kSizes, kLayout };  // nothing alike; all but the memory layout; everything

// Compares an operand with its parameter, which is on the GPU of that number, -1 for the CPU: all but what the two are
// stored in. Strides must agree wherever a dimension has more than one element.
INLINE Match match(const at::TensorImpl& a, const at::TensorImpl& b, int8_t gpu) {
  const auto sizes = a.sizes(), others = b.sizes(), x = a.strides(), y = b.strides();
  if (b.key_set() != a.key_set() || sizes.size() != others.size()) return Match::kNo;
  if (gpu >= 0 && gpu_index(b.device()) != gpu) return Match::kNo;
  bool layout = true;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != others[i]) return Match::kNo;
    layout &= x[i] == y[i] || sizes[i] <= 1;
  }
  return layout ? Match::kLayout : Match::kSizes;
}

// Why an operand is not for the rules, or null and what it is stored in.
INLINE Reason stored_in(const at::TensorImpl& t, Storage& storage) {
  switch (t.dtype().toScalarType()) {
    case at::kFloat: storage = Storage::kFloat32; break;
    case at::kDouble: storage = Storage::kFloat64; break;
    case at::kBFloat16: storage = Storage::kBFloat16; break;
    case at::kHalf: storage = Storage::kFloat16; break;
    default: return kNotReal;
  }
  return kNone;
}

// The first element of a tensor that will be written: one that shares its memory copy-on-write gets its own.
INLINE void* address(const at::TensorImpl& t) {
  return static_cast<char*>(t.unsafe_storage().mutable_data()) + t.storage_offset() * int64_t(t.itemsize());
}

// Whether it is of torch's own two classes, whose hashes are known. To hash any other runs Python code, and with it
// whatever waits for some to run: signal handlers, which may drop what the walk has only borrowed.
INLINE bool is_torchs(PyObject* object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == ParameterClass || type == THPVariableClass;
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
  // The hash of a tensor is its address.
  value = is_torchs(key) ? _PyDict_GetItem_KnownHash(dict, key, reinterpret_cast<Py_hash_t>(key))
                         : PyDict_GetItemWithError(dict, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

template <class T>
INLINE void patch(T& value, T now, bool& changed) {
  changed |= value != now;
  value = now;
}

// Whether the rules of PyDict_GetItem are those of its own subscript, which torch's classes use.
INLINE bool is_ordinary(PyObject* dict) {
  if (PyDict_CheckExact(dict)) return true;
  return PyDict_Check(dict) && Py_TYPE(dict)->tp_as_mapping->mp_subscript == PyDict_Type.tp_as_mapping->mp_subscript;
}

// Interned, so that equal keys are identical; never freed.
inline PyObject* interned(const char* name) {
  static std::map<const char*, PyObject*> keys;
  PyObject*& key = keys[name];
  return key ? key : key = PyUnicode_InternFromString(name);
}

}  // namespace fusedopt
