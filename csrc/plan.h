// The plan of an optimizer: which parameters take the fused path, where their operands live, and how the work is cut.
// Built once, then refreshed by one walk per step that compares everything and patches what changed.
#pragma once
#include <torch/csrc/autograd/python_variable.h>

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/cpu.h"

namespace fusedopt {

class Plan {
 public:
  using Indices = std::vector<int64_t>;

  // Looks at every parameter, gradient and state; writes nothing. `numbers` has for each group a tuple of the rule and
  // its hyper-parameters. Returns the indices of the parameters that torch has to update and of those without a state;
  // once the latter have been given one, `initialized` says so, and the coming step is their first.
  std::pair<Indices, Indices> refresh(py::list groups, py::dict state, py::list numbers, bool initialized);
  // The sum of squares of the gradients on the fused path.
  double square_sum() { return cpu::square_sum(table_); }
  // Updates the parameters on the fused path, their gradients multiplied by `scale`.
  void run(double scale);

  // For each parameter why it is not on the fused path, null where it is.
  std::vector<const char*> reasons() const;
  // What the plan itself takes, in bytes.
  size_t memory() const {
    return entries_.capacity() * sizeof(Entry) + table_.tensors.capacity() * sizeof(Tensor) +
           table_.chunks.capacity() * sizeof(Chunk) + table_.sums.capacity() * sizeof(double);
  }

 private:
  static constexpr int kStep = kMaxOperands;
  enum Path : char { kIdle, kTorch, kFused };
  struct Entry {
    at::TensorImpl* impl[kStep + 1] = {};         // the operands and the step: borrowed, live from refresh() to run()
    const char *begin = nullptr, *end = nullptr;  // the parameter's memory
    void* step = nullptr;                         // the step count's address
    const char* reason = nullptr;                 // why it is not on the fused path
    int64_t numel = 0;
    int32_t group = 0;
    Path path = kIdle;
    bool double_step = false, fresh = false, overlaps = false;
  };
  struct Group {
    RuleId rule;
    double numbers[kMaxNumbers];
    PyObject* keys[1 + kMaxStates];  // of the step and of the states, in the order in which torch makes them
    int32_t last_row[2];             // by compute type
  };
  using Row = std::tuple<int32_t, bool, double>;  // group, whether it computes in double, step count

  void visit(size_t index, PyObject* param, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized);
  const char* gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& grad);
  const char* operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized);
  void mark_overlaps();

  std::vector<Entry> entries_;
  std::vector<Group> groups_;
  std::vector<Row> rows_;
  std::map<Row, int32_t> row_of_;
  std::vector<at::Tensor> held_;  // copies of gradients in the parameter's layout, for the length of a step
  Table table_;
  bool changed_ = false, running_ = false;
};

}  // namespace fusedopt
