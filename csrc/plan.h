// The plan of an optimizer: which parameters take the fused path, where their operands live, and how the work is cut.
// Built once, then refreshed by one walk per step that compares everything and patches what changed.
#pragma once
#include <torch/csrc/autograd/python_variable.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/cpu.h"
#include "gpu.h"
#include "reasons.h"

namespace fusedopt {

struct Names {  // of a rule, as Python objects
  PyObject *numbers[kMaxNumbers], *states[kMaxStates], *scalars[kMaxScalars], *step;
};
// And, of every rule, of what a state has beyond that of its torch class.
// The rest is 16 bits of no type, in a tensor of bfloat16, as collectives know no integers of that size.
constexpr const char *kRest = "master_rest", *kMaster = "master", *kKey = "rounding_key", *kAverage = "average";
const Names& names_of(RuleId rule);

class Plan {
 public:
  using Indices = std::vector<int64_t>;

  // What a step multiplies the gradients of a device by, beside `scale`: GradScaler's two numbers and the sum of
  // squares for clipping, tensors on that device or None.
  using MaybeTensor = std::optional<at::Tensor>;
  using Scalings = std::map<int, std::tuple<MaybeTensor, MaybeTensor, MaybeTensor>>;

  // Looks at every parameter, gradient and state; writes nothing. `numbers` has for each group a tuple of the rule, its
  // hyper-parameters by name and, for some, what the group remembers; `counted` whether a GPU is to count its steps.
  // Returns the indices of the parameters that torch has to update, of those without a state, of those whose `step` has
  // to be moved to their device, and of the DTensors whose gradient or state is placed otherwise than they are. Once
  // states have been made, `initialized` says so, and the coming step is their first; once DTensors have been placed,
  // `placed` says so: until then the plan waits and cannot run; `done` are the parameters that torch has updated by
  // then. `at_once`, a step that leaves nothing of this to do is done with a scale of 1, and nothing is returned.
  using Found = std::tuple<Indices, Indices, Indices, Indices>;
  std::optional<Found> refresh(py::object groups, py::object state, py::list numbers, py::list counted,
                               bool initialized, bool placed, bool at_once, const Indices& done);
  // The devices on which the fused path has work, -1 for the CPU.
  const std::vector<int>& devices() const { return devices_; }
  // The sum of squares of the gradients on the fused path of the CPU; of a GPU that and their norm, unscaled, as
  // scalars there.
  double square_sum() { return cpu::square_sum(table_); }
  std::pair<at::Tensor, at::Tensor> norm(int device, double scale, const MaybeTensor& grad_scale);
  // Lets go of what is kept for the length of a step, where one has ended in an exception.
  void release();
  // Updates the parameters on the fused path, their gradients multiplied by `scale`.
  void run(double scale, const Scalings& scalings, double max_norm, double epsilon);

  // Whether there are DTensors, and whether they are others, or elsewhere, than set_domains() was told.
  bool sharded() const { return sharded_; }
  bool resharded() const { return sharded_ && resharded_; }
  // For each parameter the processes that share it, as an index, and where among their sums its own stand, -1 where
  // what becomes of it depends on none.
  void set_domains(std::vector<int32_t> domains, std::vector<int32_t> slots);
  // float64 numbers by domain, on the device of its parameters, to which what is here is added: of the gradients the
  // sum of squares; in begin(), the first half of run(), two sums for each slot. end() takes the sums of all processes.
  using Parts = std::vector<at::Tensor>;
  void add_square_sums(Parts parts);
  void begin(double scale, const Scalings& scalings, double max_norm, double epsilon, Parts parts);
  void end(double scale, const Scalings& scalings, double max_norm, double epsilon, Parts parts);

  // For each parameter why it is not on the fused path, null where it is.
  std::vector<std::optional<std::string>> reasons() const;
  // Whether a group takes torch's path for its hyper-parameters, which torch may refuse half way.
  bool has_odd_numbers() const;
  // What the last step had to read and write on the fused path at least, in bytes; `late` says of each group whether it
  // takes its rule's other pass.
  int64_t bytes_per_step(bool clips, const std::vector<bool>& late) const;
  // What the plan itself takes in host memory, in bytes.
  size_t memory() const;

 private:
  // What belongs to a parameter, by number: operands, step count, average, and what lies beside each operand.
  static constexpr int kStep = kMaxOperands, kMean = kStep + 1, kBeside = kMean + 1, kTensors = kBeside + kMaxOperands;
  static constexpr int8_t kNoDevice = -2;
  // Elements; a shorter step is over before another thread could use the lock.
  static constexpr int64_t kReleaseGil = 1 << 20;
  enum Path : char { kIdle, kTorch, kFused };
  struct Shard {                           // what belongs to a DTensor parameter
    at::TensorImpl* whole[kTensors] = {};  // the DTensors around the operands: borrowed, as Entry::impl
    py::object specs[kTensors];            // how they are placed; of all but the first once it has been compared
    bool is_partial = false;               // the parameter is a sum that is still to be taken
  };
  struct Entry {
    at::TensorImpl* impl[kTensors] = {};          // borrowed, from refresh() to run()
    const char *begin = nullptr, *end = nullptr;  // the parameter's memory
    std::pair<const char*, const char*> clear;    // where the gradient was apart from all that is written
    void* step = nullptr;                         // the step count's address
    Reason reason = kNone;                        // why it is not on the fused path
    std::unique_ptr<Shard> shard;                 // where the parameter is a DTensor
    int64_t numel = 0;
    int32_t group = 0;
    Path path = kIdle;
    Reason conflict = kNone;  // why it cannot be fused beside the others
    bool active = false, double_step = false, fresh = false;
    bool alone = true;      // no other tensor can share the gradient's memory
    bool complete = false;  // nothing is missing for the fused path
  };
  struct Range {                      // of memory that the step writes
    const char *begin, *end, *reach;  // up to where this one and those before go
    int32_t owner;
    bool operator<(const Range& other) const { return begin < other.begin; }
  };
  struct Group {
    RuleId rule;
    double numbers[kMaxNumbers];
    double of_more[kMaxNumbers];  // of parameters of more than one dimension, where `by_dimension`
    const Names* names;           // the rule's
    PyObject* lr;                 // where it is a tensor on a GPU, else null
    const char* odd;              // a hyper-parameter that is not for its rule, or null
    double* memory;               // what it remembers, where its rule says so
    bool by_dimension;            // there are numbers of Domain::kFlagOf1d that are true
    bool masters, by_chance;      // its parameters have master weights; are rounded by chance
    double ema_decay;             // of their averages, 0 without
    bool joint;                   // what becomes of one of its parameters depends on all
    int8_t device;                // where it is decided then
    bool counted;                 // by a GPU
    int32_t last_rows[8];         // of each compute type on the CPU and on a GPU, and of `of_more`
  };
  // Group, `of_more`, whether in double, device, step count, scalars bit by bit.
  using RowKey = std::tuple<int32_t, bool, bool, int, double, std::array<uint64_t, sizeof(Scalars) / sizeof(uint64_t)>>;

  void read_group(Group& group, PyObject* options, PyObject* declared, bool counted);
  static void read_memory(Group& group, PyObject* tensor);
  void visit(size_t index, PyObject* param, int32_t group, PyObject* state, Py_ssize_t& cursor, bool initialized);
  void place(Entry& e, PyObject* dtensor);
  static const at::Tensor* local(Shard& shard, int k, PyObject* value, Reason& reason);
  Reason gradient(Entry& e, Tensor& t, const at::Tensor& param, const at::Tensor& whole);
  Reason operands(Entry& e, Tensor& t, const at::Tensor& param, PyObject* values, bool initialized);
  Reason beside(Entry& e, Tensor& t, const at::TensorImpl& param, Storage& storage, PyObject* values,
                Py_ssize_t& cursor);
  Reason in_blocks(Entry& e, Tensor& t, int k, const at::TensorImpl& param, PyObject* value, Storage& storage);
  static Reason by_chance(Tensor& t, Storage (&stored)[kMaxOperands], PyObject* values, Py_ssize_t& cursor,
                          double count);
  Reason average(Entry& e, Tensor& t, const at::TensorImpl& param, PyObject* values, Py_ssize_t& cursor, double count);
  at::TensorImpl* extra(Entry& e, const Tensor& t, int k, const char* name, const at::TensorImpl& param,
                        PyObject* values, Py_ssize_t& cursor, Reason& reason);
  Reason step(Entry& e, Tensor& t, PyObject* value, double& count);
  Reason scalars(Entry& e, Tensor& t, PyObject* values, Py_ssize_t& cursor, Scalars& now);
  int32_t row(int32_t group, const Tensor& t, int64_t dimensions, double count, const Scalars& scalars);
  void find_written();
  bool find_shared_gradients();
  void mark_conflicts();
  void run_gpus(double scale, const Scalings& scalings, double max_norm, double epsilon, Pass pass);
  void fold(double scale);
  // Keeps an operand alive for the length of a step, where other Python code that runs meanwhile might drop it.
  void keep(PyObject* operand) {
    if (has_company_) kept_.push_back(py::reinterpret_borrow<py::object>(operand));
  }
  // Does work for which the other threads of Python need not wait.
  template <class F>
  void aside(F work) {
    if (!has_company_) return work();
    const py::gil_scoped_release released;
    work();
  }
  template <class F>
  void on_cpu(F pass) {
    table_.elements < kReleaseGil ? pass() : aside(pass);
  }
  // A launch waits where the queue of the device is full, perhaps for what another thread has yet to do.
  template <class F>
  void for_gpus(F work) {
    if (gpus_.empty()) return;
    aside([&] {
      for (auto& [device, gpu] : gpus_) work(device, gpu);
    });
  }
  static gpu::Scaling scaling_of(int device, double scale, const Scalings& scalings, double max_norm, double epsilon);
  void finish();
  void recut_gpus();
  bool takes_sums() const;
  // Of the slots on a GPU, one after another by domain: each tensor's, and where each domain's begin, or their number.
  std::pair<std::vector<int32_t>, std::vector<int64_t>> slots_on(int device, const Parts& parts) const;
  at::Tensor total(int32_t group, const Parts& parts) const;

  std::vector<Entry> entries_;
  std::vector<Group> groups_;
  std::vector<Row> rows_;
  std::map<RowKey, int32_t> row_of_;
  std::vector<Range> written_;                          // by address
  std::vector<std::pair<int32_t, int32_t>> conflicts_;  // of gradients with what is written: the two owners
  std::vector<int32_t> domains_;
  py::object held_state_;         // a copy of the optimizer's state where that is not a dict, for the length of a step
  std::vector<at::Tensor> held_;  // gradients, or copies in the parameter's layout, for the length of a step
  std::vector<py::object> kept_;  // operands, where other Python code may run meanwhile
  bool has_company_ = false;      // it may: in another thread, or because
  bool runs_python_ = false;      // the walk itself runs some, and signal handlers with it
  Table table_;                   // all tensors; the chunks are the CPU's
  std::map<int, Gpu> gpus_;       // by device
  std::vector<int> devices_;
  bool changed_ = false;
  bool foreign_ = false;  // memory is written that torch did not allocate
  bool placed_ = false, waits_ = false;
  bool sharded_ = false, resharded_ = true;  // there are DTensors; they are others, or elsewhere, than before
};

// A group's parameters, in a list or tuple; groups of any kind of container.
py::object params_of(PyObject* group);
py::object sequence(PyObject* container);

}  // namespace fusedopt
