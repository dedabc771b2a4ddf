// What the walk asks of a DTensor: what of it is here, and how it is placed. torch.distributed.tensor is never
// imported, only found where somebody else has done so.
#pragma once
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace fusedopt {

struct DTensorType {
  PyTypeObject* type;
  PyObject *local, *spec;  // the descriptors of its slots
};

// Null as long as nobody has imported it.
inline const DTensorType* dtensor_type() {
  static DTensorType found{};
  if (found.type) return &found;
  static const py::str name("torch.distributed.tensor");
  const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name.ptr()));
  if (!module || !py::hasattr(module, "DTensor")) return nullptr;
  const py::object type = module.attr("DTensor");
  const py::object slots = type.attr("__dict__");
  if (!slots.contains("_local_tensor") || !slots.contains("_spec")) return nullptr;
  found = {reinterpret_cast<PyTypeObject*>(type.ptr()), py::object(slots["_local_tensor"]).release().ptr(),
           py::object(slots["_spec"]).release().ptr()};
  type.inc_ref();
  return &found;
}

// Whether it is a DTensor; a subclass may mean something else.
inline bool is_dtensor(PyObject* value) {
  const DTensorType* dtensor = dtensor_type();
  return dtensor && Py_TYPE(value) == dtensor->type;
}

// Borrowed: live as long as the DTensor.
inline PyObject* slot(PyObject* descriptor, PyObject* dtensor) {
  PyObject* value =
      Py_TYPE(descriptor)->tp_descr_get(descriptor, dtensor, reinterpret_cast<PyObject*>(Py_TYPE(dtensor)));
  if (!value) throw py::error_already_set();
  Py_DECREF(value);
  return value;
}
inline const at::Tensor& local_of(PyObject* dtensor) {
  PyObject* local = slot(dtensor_type()->local, dtensor);
  if (!THPVariable_Check(local)) throw py::type_error("a DTensor has no local tensor");
  return THPVariable_Unpack(local);
}
inline PyObject* spec_of(PyObject* dtensor) { return slot(dtensor_type()->spec, dtensor); }

// Whether two specs say the same of where the elements are.
inline bool is_placed_as(py::handle a, py::handle b) {
  for (const char* name : {"mesh", "placements", "shard_order"})
    if (py::hasattr(a, name) && !a.attr(name).is(b.attr(name)) && !a.attr(name).equal(b.attr(name))) return false;
  return true;
}

}  // namespace fusedopt
