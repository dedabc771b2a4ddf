// The executor's controls, as fusedopt._C.executor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "executor.h"

namespace py = pybind11;

void bind_executor(py::module_& m) {
  py::module_ e = m.def_submodule("executor");
  e.def(
      "counters",
      [] {
        const executor::Counters c = executor::counters;
        executor::counters = {};
        return std::tuple(c.launches, c.copies, c.memsets, c.loaded, c.stored);
      },
      "Launches, copies, memsets, and bytes that kernels loaded and stored, since the last call.");
  e.def("set_stream", [](int number) { executor::set_stream(number ? executor::stream(number) : nullptr); });
  e.def("begin_capture", [] { executor::begin_capture(executor::current_stream()); });
  e.def("end_capture", &executor::end_capture);
  e.def("replay", &executor::replay);
  e.def("destroy", &executor::destroy, "A graph, with what was left to it.");
  e.def("stall", &executor::stall, "Lets each launch wait, ten seconds at most.");
  e.def("stalled", &executor::stalled, "Whether a launch waits.");
  e.def("let_go", &executor::let_go, "Lets the launch go that waits.");
  e.def("unstall", &executor::unstall, "Ends that. Returns how many launches have waited in vain.");
  e.def("skip", &executor::skip, "Whether kernels are left out, so that the host's work alone remains.");
  e.def("retained", &executor::retained, "Objects left to graphs that exist.");
}
