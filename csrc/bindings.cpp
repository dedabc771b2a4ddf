// The Python side of the engine: fusedopt._C.
#include <pybind11/stl.h>

#include "cpu/cpu.h"
#include "plan.h"

PYBIND11_MODULE(_C, m) {
  using namespace fusedopt;

  py::dict rules;
  py::list states, transfers;
  for (const RuleInfo& rule : kRuleInfo) {
    rules[rule.name] = rules.size();
    states.append(std::vector<std::string>(rule.states, rule.states + rule.state_count));
    transfers.append(rule.operands.transfers());
  }
  transfers[size_t(RuleId::lamb)] = Lamb<float>::kOperands.transfers() + Lamb<float>::kUpdateOperands.transfers();
  m.attr("RULES") = rules;
  m.attr("STATES") = states;
  m.attr("TRANSFERS") = transfers;  // of an element in one step, reads and writes

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
      .def("refresh", &Plan::refresh)
      .def("square_sum", &Plan::square_sum)
      .def("run", &Plan::run)
      .def("reasons", &Plan::reasons)
      .def("memory", &Plan::memory);
}
