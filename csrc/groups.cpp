// What the plan's walk learns of the param groups: their hyper-parameters as numbers.
#include <cmath>
#include <limits>
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
  if (std::isinf(x)) return domain == Domain::kBound || domain == Domain::kAnySize;
  return std::abs(x) <= (domain == Domain::kAnySize ? double{std::numeric_limits<float>::max()} : kLargestNumber);
}

// A group's option that is beyond torch's, which it names only where it has it; else null.
py::object option(PyObject* group, const char* name) {
  PyObject* key = interned(name);
  if (!PyDict_Check(group)) return PyMapping_HasKey(group, key) ? py::object(py::handle(group)[key]) : py::object();
  PyObject* value = PyDict_GetItemWithError(group, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(value);
}
bool has_option(PyObject* group, const char* name) {
  const py::object value = option(group, name);
  return value && is_flag(value.ptr());
}

py::value_error wrong_names(const RuleInfo& rule) {
  std::string names;
  for (int i = 0; i < rule.number_count; ++i) names += (i ? ", " : "") + std::string(rule.numbers[i].name);
  return py::value_error("the hyper-parameters of " + std::string(rule.name) + " are " + names);
}

}  // namespace

// Interned once, so that equal names are identical.
const Names& names_of(RuleId id) {
  static Names names[int(RuleId::kCount)];
  Names& known = names[int(id)];
  if (known.step) return known;
  const RuleInfo& rule = info(id);
  for (int i = 0; i < rule.number_count; ++i) known.numbers[i] = interned(rule.numbers[i].name);
  for (int i = 0; i < rule.state_count; ++i) known.states[i] = interned(rule.states[i]);
  for (int i = 0; i < rule.scalar_count; ++i) known.scalars[i] = interned(rule.scalars[i]);
  known.step = interned("step");
  return known;
}

void Plan::read_group(Group& group, PyObject* options, PyObject* declared, bool counted) {
  const Py_ssize_t size = PyTuple_Check(declared) ? PyTuple_GET_SIZE(declared) : 0;
  PyObject* numbers = size > 1 ? PyTuple_GET_ITEM(declared, 1) : nullptr;
  const long id = numbers && PyDict_Check(numbers) ? PyLong_AsLong(PyTuple_GET_ITEM(declared, 0)) : -1;
  if (id < 0 || id >= long(RuleId::kCount))
    throw py::value_error("a group needs a rule, its hyper-parameters by name, and what it remembers where it does");
  group.rule = static_cast<RuleId>(id);
  const RuleInfo& rule = info(group.rule);
  group.names = &names_of(group.rule);
  group.lr = nullptr, group.odd = nullptr, group.by_dimension = false;
  group.masters = has_option(options, "master_weights"), group.by_chance = has_option(options, "stochastic_rounding");
  const py::object decay = option(options, "ema_decay");
  group.ema_decay = decay && !decay.is_none() && PyFloat_Check(decay.ptr()) ? PyFloat_AS_DOUBLE(decay.ptr()) : 0;
  if (decay && !decay.is_none() && !(0 < group.ema_decay && group.ema_decay < 1))
    throw py::value_error("Invalid ema_decay: it must be None or a float between 0 and 1");
  group.counted = counted || group.by_chance || group.ema_decay != 0;
  if (PyDict_GET_SIZE(numbers) != rule.number_count) throw wrong_names(rule);
  Py_ssize_t cursor = 0;
  for (int i = 0; i < rule.number_count; ++i) {
    const auto [name, domain] = rule.numbers[i];
    PyObject* object = find(numbers, group.names->numbers[i], cursor);
    if (!object) throw wrong_names(rule);
    double& number = group.numbers[i];
    if (domain == Domain::kFlag || domain == Domain::kFlagOf1d) {
      number = object == Py_True || (object != Py_False && is_flag(object));
      group.by_dimension |= domain == Domain::kFlagOf1d && number != 0;
    } else if (i == 0 && THPVariable_Check(object) && is_gpu_number(THPVariable_Unpack(object))) {
      group.lr = object;
    } else if (!read(object, i == 0, number) || !is_within(domain, number)) {
      group.odd = name;
    }
  }
  // What becomes of scalars may hang on a rate that only the GPU knows.
  group.counted |= group.lr && rule.scalar_count;
  if (group.by_dimension)
    for (int i = 0; i < rule.number_count; ++i)
      group.of_more[i] = rule.numbers[i].domain == Domain::kFlagOf1d ? 0 : group.numbers[i];
  group.joint = rule.scope == Scope::kGroup, group.memory = nullptr, group.device = kNoDevice;
  if (rule.memory) read_memory(group, size > 2 ? PyTuple_GET_ITEM(declared, 2) : Py_None);
  for (int32_t& row : group.last_rows) row = -1;
}

void Plan::read_memory(Group& group, PyObject* tensor) {
  TORCH_CHECK_VALUE(THPVariable_Check(tensor), "the rule needs what its group remembers, a tensor");
  const at::Tensor& t = THPVariable_Unpack(tensor);
  TORCH_CHECK_VALUE(t.numel() == info(group.rule).memory && t.is_contiguous() && t.scalar_type() == at::kDouble,
                    "what a group remembers must be ", info(group.rule).memory, " float64 numbers");
  if (!is_plain(*t.unsafeGetTensorImpl())) return;
  group.device = gpu_index(t.device());
  group.memory = t.data_ptr<double>();
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
