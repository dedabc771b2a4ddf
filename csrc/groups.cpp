// What the plan's walk learns of the param groups: their hyper-parameters as numbers.
#include <bit>
#include <cmath>
#include <map>
#include <string>

#include "plan.h"
#include "walk.h"

namespace fusedopt {
namespace {

bool is_real(const at::Tensor& t) { return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble; }

// Whether a kernel can read it where it lies.
bool is_gpu_number(const at::Tensor& t) { return gpu_index(t.device()) >= 0 && t.numel() == 1 && is_real(t); }

// A tensor on the CPU as the number that torch's operators take it for. Those of other types they compute with in
// these.
bool read(const at::Tensor& t, bool is_lr, double& number) {
  if (!is_plain(*t.unsafeGetTensorImpl()) || gpu_index(t.device()) >= 0 || !is_real(t)) return false;
  if (is_lr ? t.numel() != 1 : t.dim() != 0 || t.requires_grad()) return false;
  number = t.scalar_type() == at::kDouble ? *t.const_data_ptr<double>() : double{*t.const_data_ptr<float>()};
  return true;
}

bool read(PyObject* object, bool is_lr, double& number) {
  static const PyObject* numpy_float32 = py::object(py::module_::import("numpy").attr("float32")).release().ptr();
  if (PyFloat_Check(object)) return number = PyFloat_AS_DOUBLE(object), true;
  if (THPVariable_CheckExact(object)) return read(THPVariable_Unpack(object), is_lr, number);
  if (!PyLong_CheckExact(object) && reinterpret_cast<PyObject*>(Py_TYPE(object)) != numpy_float32) return false;
  number = PyLong_CheckExact(object) ? PyLong_AsDouble(object) : PyFloat_AsDouble(object);
  if (!PyErr_Occurred()) return true;
  PyErr_Clear();  // an int beyond any double
  return false;
}

bool is_flag(PyObject* object) {
  const int truth = PyObject_IsTrue(object);
  if (truth < 0) throw py::error_already_set();
  return truth;
}

bool is_within(Domain domain, double x) {
  if (domain == Domain::kFraction) return 0 <= x && x < 1;
  if (domain == Domain::kNotNegative && !(x >= 0)) return false;
  return std::abs(x) <= kLargestNumber || (domain == Domain::kBound && std::isinf(x));
}

// Why a group with this hyper-parameter takes torch's path. The text stays as long as the process.
const char* odd_number(const char* name) {
  static std::map<const char*, std::string> reasons;
  std::string& reason = reasons[name];
  if (reason.empty()) reason = "`" + std::string(name) + "` is not a plain number of the usual size";
  return reason.c_str();
}

}  // namespace

void Plan::read_group(Group& group, PyObject* rule_and_numbers, bool counted) {
  if (PyTuple_GET_SIZE(rule_and_numbers) < 1) throw py::value_error("a group needs a rule");
  group.rule = static_cast<RuleId>(PyLong_AsLong(PyTuple_GET_ITEM(rule_and_numbers, 0)));
  const RuleInfo& rule = info(group.rule);
  if (PyTuple_GET_SIZE(rule_and_numbers) != 1 + rule.number_count)
    throw py::value_error("wrong number of hyper-parameters");
  group.lr = nullptr, group.odd = nullptr, group.joint = false, group.counted = counted;
  for (int i = 0; i < rule.number_count; ++i) {
    const auto [name, domain] = rule.numbers[i];
    PyObject* object = PyTuple_GET_ITEM(rule_and_numbers, 1 + i);
    double& number = group.numbers[i];
    if (domain == Domain::kFlag) {
      number = object == Py_True || (object != Py_False && is_flag(object));
    } else if (domain == Domain::kMemory) {
      const at::Tensor& t = THPVariable_Unpack(object);
      TORCH_CHECK_VALUE(t.numel() == 3 && t.is_contiguous(), "a group's switch must be three float64 numbers");
      group.joint = true, group.device = kNoDevice;
      if (!is_plain(*t.unsafeGetTensorImpl())) continue;
      group.device = gpu_index(t.device());
      number = std::bit_cast<double>(t.data_ptr<double>());
    } else if (i == 0 && THPVariable_Check(object) && is_gpu_number(THPVariable_Unpack(object))) {
      group.lr = object;
    } else if (!read(object, i == 0, number) || !is_within(domain, number)) {
      group.odd = odd_number(name);
    }
  }
  group.keys[0] = interned("step");
  for (int i = 0; i < rule.state_count; ++i) group.keys[1 + i] = interned(rule.states[i]);
  for (int32_t& row : group.last_rows) row = -1;
}

bool Plan::has_odd_numbers() const {
  for (const Group& group : groups_)
    if (group.odd) return true;
  return false;
}

// What a container holds, in a list or tuple: itself, or a new one.
py::object sequence(PyObject* container) {
  PyObject* items = PySequence_Fast(container, "the param groups, and the 'params' of each, must be iterable");
  if (!items) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(items);
}

py::object params_of(PyObject* group) {
  if (PyDict_CheckExact(group))
    if (PyObject* params = PyDict_GetItemWithError(group, interned("params"))) return sequence(params);
  PyObject* params = PyObject_GetItem(group, interned("params"));
  if (!params) throw py::error_already_set();
  return sequence(py::reinterpret_steal<py::object>(params).ptr());
}

}  // namespace fusedopt
