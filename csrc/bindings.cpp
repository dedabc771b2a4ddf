// The Python side of the engine: fusedopt._C.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <array>

#include "cpu/cpu.h"
#include "plan.h"
#include "walk.h"

#define FUSEDOPT_STRING_OF(text) #text
#define FUSEDOPT_STRING(macro) FUSEDOPT_STRING_OF(macro)

#ifdef FUSEDOPT_CUDA_ON_CPU
void bind_executor(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  using namespace fusedopt;

  py::dict rules;
  py::list states, scalars, scopes;
  for (const RuleInfo& rule : kRuleInfo) {
    rules[rule.name] = rules.size();
    states.append(std::vector<std::string>(rule.states, rule.states + rule.state_count));
    scalars.append(std::vector<std::string>(rule.scalars, rule.scalars + rule.scalar_count));
    scopes.append(std::array{py::object(py::none()), py::object(py::str("tensor")),
                             py::object(py::str("group"))}[size_t(rule.scope)]);
  }
  m.attr("RULES") = rules;
  m.attr("STATES") = states;
  m.attr("SCALARS") = scalars;
  m.attr("SCOPES") = scopes;  // over what they take sums
  m.attr("BLOCK") = kBlock;   // elements of a state of 8 bits that share a scale

  // One literal: fusedopt/_extension.py looks for it in a file that cannot be loaded.
  m.attr("BUILT_FOR") = "fusedopt._C for torch " FUSEDOPT_STRING(FUSEDOPT_TORCH);
  m.attr("GPU") = kHasGpu ? py::object(py::str(c10::DeviceTypeName(gpu::kDeviceType, true))) : py::none();
  m.def("is_capturing", &gpu::is_capturing, "Whether the current stream of the GPU is being captured.");
  m.def(
      "observer", [] { return kReasonTexts[observer()]; },
      "Who would see a step's operations pass PyTorch's dispatcher, or None.");
  py::dict reasons;
  for (size_t r = 1; r < std::size(kReasonNames); ++r) reasons[kReasonNames[r]] = kReasonTexts[r];
  m.attr("REASONS") = reasons;  // why a parameter is not on the fused path
  m.def("clip_coefficient", &clip_coefficient, "What gradients of a norm are multiplied by to clip it.");
  m.def("isa", &cpu::isa, "The instruction set in use on the CPU.");
  m.def(
      "cut",
      [](const std::vector<int64_t>& numels, int64_t size) {
        std::vector<std::tuple<int32_t, int64_t, int32_t>> chunks;
        for (const Chunk& c : cut(int32_t(numels.size()), [&](int32_t t) { return numels[t]; }, size))
          chunks.emplace_back(c.tensor, c.begin, c.count);
        return chunks;
      },
      "(tensor, begin, count) of every chunk.");

  py::class_<Plan>(m, "Plan")
      .def(py::init<>())
      .def("refresh", &Plan::refresh, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
           py::arg("at_once") = false, py::arg("done") = Plan::Indices{})
      .def_property_readonly("devices", &Plan::devices)
      .def("square_sum", &Plan::square_sum)
      .def("norm", &Plan::norm)
      .def("run", &Plan::run)
      .def("run", [](Plan& plan, double scale) { plan.run(scale, {}, 0, 0); })
      .def_property_readonly("sharded", &Plan::sharded)
      .def_property_readonly("resharded", &Plan::resharded)
      .def("release", &Plan::release)
      .def("set_domains", &Plan::set_domains)
      .def("add_square_sums", &Plan::add_square_sums)
      .def("begin", &Plan::begin)
      .def("end", &Plan::end)
      .def("reasons", &Plan::reasons)
      .def_property_readonly("has_odd_numbers", &Plan::has_odd_numbers)
      .def("bytes_per_step", &Plan::bytes_per_step)
      .def("memory", &Plan::memory);
#ifdef FUSEDOPT_CUDA_ON_CPU
  bind_executor(m);
#endif
}
