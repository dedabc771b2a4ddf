// The plan of an optimizer: which parameters take the fused path, where their operands live, and how the work is cut.
// Built once, then refreshed by one walk per step that compares everything and patches what changed.
#pragma once
#include <torch/csrc/autograd/python_variable.h>

#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chunks.h"

namespace fusedopt {

namespace py = pybind11;

class Plan {
 public:
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan();

  // Looks at every parameter, gradient and state; writes nothing. `numbers` has for each group a tuple of the rule and
  // its hyper-parameters. Returns the indices of the parameters that torch has to update and of those without a state;
  // when the latter have been given one, `initialized` says so, and their first step is one.
  std::pair<std::vector<int64_t>, std::vector<int64_t>> refresh(py::list groups, py::dict state, py::list numbers,
                                                                bool initialized);
  // The sum of squares of the gradients on the fused path.
  double square_sum();
  // Updates the parameters on the fused path, their gradients multiplied by `scale`.
  void run(double scale);

  // For each parameter: "" on the fused path, else why not. A parameter without a gradient says so.
  std::vector<std::string> reasons() const;
  // What a step of the fused path reads and writes at least, by the rules' own declarations.
  int64_t bytes_per_step(bool with_norm) const;
  // What the plan itself takes.
  int64_t memory() const;

 private:
  struct Entry {
    PyObject* param = nullptr;               // strong, so that its identity cannot be reused
    at::TensorImpl* written[kMaxStates + 2];  // parameter, states, step: borrowed, live from refresh() to run()
    at::TensorImpl* grad;
    void* step = nullptr;                    // its step count, or null where the rule keeps none
    const char* reason = nullptr;            // why it is not on the fused path
    int64_t numel = 0;
    int32_t group = 0;
    bool double_step = false, fresh = false, taken = false, overlaps = false;
  };
  struct Row {
    int32_t group;
    bool is_double;
    double count;
  };
  struct Key {
    PyObject* name;
    PyObject* seen;  // the string object met in the state: unpickled keys are equal, not identical
  };
  struct Group {
    RuleId rule;
    double numbers[kMaxNumbers];
    Key* keys[1 + kMaxStates];  // of the step and of the states
    int32_t last_row[2];        // by compute type
  };

  void read_numbers(const py::list& numbers);
  void visit(size_t index, PyObject* param, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized);
  const char* operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized);
  bool gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& grad);
  Key* key(const char* name);
  PyObject* find(PyObject* dict, Key& key, Py_ssize_t& cursor);
  int32_t row(Entry& e, const Tensor& t, double count);
  void mark_overlaps();
  void set_address(Tensor& t, int operand, void* addr);
  std::vector<at::Tensor> hold() const;

  std::vector<Entry> entries_;
  std::vector<Group> groups_;
  std::vector<Row> rows_;
  std::map<std::tuple<int32_t, bool, double>, int32_t> row_of_;
  std::vector<at::Tensor> copies_;  // gradients in the parameter's layout, for the length of a step
  std::unordered_map<const char*, Key> keys_;
  Table table_;
  bool moved_ = false, running_ = false;
};

}  // namespace fusedopt
