#include "back_end.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "capture.h"

namespace fusedopt::cuda {

static at::Tensor scalar(const at::Tensor& bytes, size_t at) {
  return bytes.narrow(0, int64_t(at), sizeof(double)).view(at::kDouble).squeeze();
}

BackEnd::~BackEnd() { free_released(); }

void BackEnd::recut(const std::vector<Tensor>& tensors, const std::vector<int32_t>& joint) {
  std::vector<int32_t> order;
  for (size_t t = 0; t < tensors.size(); ++t)
    if (tensors[t].device == device_ && tensors[t].row >= 0) order.push_back(int32_t(t));
  const auto kind = [&](int32_t t) { return std::tuple(tensors[t].rule, joint[t], tensors[t].form); };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return kind(a) < kind(b); });

  batches_.clear(), first_chunks_.clear();
  // A tensor without elements has a chunk too: its steps are counted.
  const auto numel = [&](int32_t i) { return std::max<int64_t>(tensors[order[i]].numel, 1); };
  int64_t elements = 0;
  for (const int32_t t : order) elements += tensors[t].numel;
  chunk_size_ = chunk_size(elements, multiprocessors_);
  chunks_ = cut(int32_t(order.size()), numel, chunk_size_);
  for (int32_t c = 0; c < int32_t(chunks_.size()); ++c) {
    const int32_t i = chunks_[c].tensor, t = order[i];
    chunks_[c].tensor = t;
    if (!tensors[t].numel) chunks_[c].count = 0;
    if (!chunks_[c].begin) {
      const int32_t before = i ? order[i - 1] : t;
      if (!i || kind(t) != kind(before)) {
        const bool goes_on = i && joint[t] >= 0 && joint[t] == joint[before];
        const int32_t first = joint[t] == -2 ? -1 : goes_on ? std::exchange(batches_.back().decides_from, -1) : c;
        batches_.push_back({tensors[t].rule, tensors[t].form, c, 0, i, 0, first});
      }
      ++batches_.back().tensors;
      first_chunks_.push_back(c);
    }
    ++batches_.back().chunks;
  }
  tables_.clear();
}

void BackEnd::refresh(const std::vector<Tensor>& tensors) {
  if (current_ || chunks_.empty()) return;
  free_released();
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  current_ = is_capturing() ? &captured_ : &tables_[current_stream()];
  if (current_->memory.defined()) patch(*current_, tensors);
  else build(*current_, tensors);
  counts_ = std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.device == device_ && t.step; });
}

void BackEnd::build(DeviceTable& table, const std::vector<Tensor>& tensors) {
  // What is uploaded, then what is only written on the device.
  std::vector<char> bytes;
  const auto append = [&](const void* data, size_t size) {
    const size_t at = bytes.size();
    bytes.resize(at + (size + 15) / 16 * 16);
    if (data) std::memcpy(&bytes[at], data, size);
    return at;
  };
  const size_t tensors_at = append(tensors.data(), tensors.size() * sizeof(Tensor));
  const size_t chunks_at = append(chunks_.data(), chunks_.size() * sizeof(Chunk));
  const size_t first_chunks_at = append(first_chunks_.data(), first_chunks_.size() * sizeof(int32_t));
  const size_t square_sum_at = append(nullptr, sizeof(double)), done_at = append(nullptr, sizeof(unsigned));
  const size_t sums_at = bytes.size(), settled_at = sums_at + chunks_.size() * 2 * sizeof(double);
  table.memory = copy(bytes, settled_at + tensors.size() * sizeof(double) - bytes.size());
  char* base = static_cast<char*>(table.memory.data_ptr());
  const auto at = [&]<class T>(T*& pointer, size_t offset) { pointer = reinterpret_cast<T*>(base + offset); };
  at(table.view.tensors, tensors_at), at(table.view.chunks, chunks_at), at(table.view.first_chunks, first_chunks_at);
  at(table.view.square_sum, square_sum_at), at(table.view.done, done_at);
  at(table.view.sums, sums_at), at(table.view.settled, settled_at);
  table.view.chunk_size = int32_t(chunk_size_);
  table.square_sum = scalar(table.memory, square_sum_at);
  table.tensors = tensors;
}

void BackEnd::patch(DeviceTable& table, const std::vector<Tensor>& tensors) {
  constexpr size_t kWords = sizeof(Tensor) / sizeof(uint64_t);
  std::vector<int32_t> indices;
  std::vector<uint64_t> values;
  for (size_t t = 0; t < tensors.size(); ++t) {
    uint64_t now[kWords], before[kWords];
    std::memcpy(now, &tensors[t], sizeof now), std::memcpy(before, &table.tensors[t], sizeof before);
    for (size_t w = 0; w < kWords; ++w)
      if (now[w] != before[w]) indices.push_back(int32_t(t * kWords + w)), values.push_back(now[w]);
    table.tensors[t] = tensors[t];
  }
  uint64_t* words = reinterpret_cast<uint64_t*>(const_cast<Tensor*>(table.view.tensors));
  for (size_t i = 0; i < indices.size(); i += kPatches)
    cuda::patch(words, &indices[i], &values[i], int(std::min<size_t>(indices.size() - i, kPatches)), current_stream());
}

// Device memory with these bytes, and room behind them. In the order of the stream; for a capture at once, and not
// again in its replays.
at::Tensor BackEnd::copy(const std::vector<char>& bytes, size_t room) {
  const bool capturing = is_capturing();
  std::optional<BesideCapture> beside;
  if (capturing) beside.emplace(device_);
  const auto options = at::TensorOptions(at::kByte).device(kDeviceType, static_cast<c10::DeviceIndex>(device_));
  at::Tensor memory = at::empty({int64_t(bytes.size() + room)}, options);
  upload(memory, bytes);
  if (!capturing) return memory;
  beside->wait();
  beside.reset();
  keep_for_graph(memory);
  return memory;
}

std::pair<at::Tensor, at::Tensor> BackEnd::norm(const Scaling& scaling) {
  if (!current_) throw std::logic_error("there is no gradient on the GPU to take the norm of");
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  if (!norm_.defined()) norm_ = scalar(copy(std::vector<char>(sizeof(double)), 0), 0);
  if (is_capturing()) keep_for_graph(norm_);
  else if (const Stream stream = current_stream(); std::exchange(norm_stream_, stream) != stream) record_use(norm_);
  current_->view.norm = norm_.data_ptr<double>();
  gradient_norm(current_->view, int32_t(chunks_.size()), scaling, current_stream());
  return {current_->square_sum, norm_};
}

void BackEnd::update(const std::vector<Row>& rows, const Scaling& scaling, Pass pass) {
  if (!current_) return;
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  const bool folded = !counts_ && std::none_of(rows.begin(), rows.end(), [](const Row& row) { return row.lr; });
  const bool rescaled = folded && (scaling.grad_scale || scaling.square_sum);
  std::vector<char> bytes;
  for (const Batch& batch : batches_) {
    const bool is_double = batch.form == Form::kDouble;
    const RuleInfo& rule = info(batch.rule);
    const int32_t stride =
        folded ? (rule.bytes[is_double] + 7) / 8 * 8
               : int32_t(sizeof(DeviceRow) + rule.number_count * sizeof(double) + rule.scalar_count * sizeof(Scalar));
    bytes.resize(rows.size() * stride);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = rows[r];
      char* at = &bytes[r * stride];
      if (row.rule != batch.rule || row.is_double != is_double) continue;  // another launch's
      if (folded) {
        rule.fold[is_double](at, row.numbers, row.count, rescaled ? 1 : scaling.scale, row.memory, row.scalars.data());
      } else {
        const DeviceRow unfolded{row.count, row.memory, row.lr, row.double_lr};
        std::memcpy(at, &unfolded, sizeof unfolded);
        std::memcpy(at += sizeof unfolded, row.numbers, rule.number_count * sizeof(double));
        std::memcpy(at + rule.number_count * sizeof(double), row.scalars.data(), rule.scalar_count * sizeof(Scalar));
      }
    }
    const Rows arguments{bytes.data(), int32_t(bytes.size()), stride, folded, rescaled};
    if (!fit_in_arguments(arguments, batch.form)) {
      if (current_ != &captured_) current_->rows.clear();
      current_->rows.push_back(copy(bytes, 0));
      current_->view.rows = static_cast<const char*>(current_->rows.back().data_ptr());
    }
    cuda::update(current_->view, batch, arguments, scaling, counts_, pass, current_stream());
  }
  if (pass != Pass::kFirst) abandon();
}

const Slots& BackEnd::slots_of(Sums kind, const std::vector<int32_t>& slots, int32_t count) {
  auto& [memory, view] = current_->slots[kind];
  if (memory.defined()) return view;
  std::vector<std::vector<int32_t>> members(count);
  for (size_t c = 0; c < chunks_.size(); ++c)
    if (const int32_t slot = slots[chunks_[c].tensor]; slot >= 0) members[slot].push_back(int32_t(c));
  std::vector<int32_t> words{0};
  for (const auto& chunks : members) words.push_back(words.back() + int32_t(chunks.size()));
  for (const auto& chunks : members) words.insert(words.end(), chunks.begin(), chunks.end());
  const char* bytes = reinterpret_cast<const char*>(words.data());
  memory = copy(std::vector<char>(bytes, bytes + words.size() * sizeof(int32_t)), 0);
  const auto* first = static_cast<const int32_t*>(memory.data_ptr());
  return view = {first, first + count + 1, count};
}

at::Tensor BackEnd::gather(Sums kind, const std::vector<int32_t>& slots, int32_t count) {
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  const auto options = at::TensorOptions(at::kDouble).device(kDeviceType, static_cast<c10::DeviceIndex>(device_));
  at::Tensor totals = at::empty({count, 2}, options);
  cuda::gather(current_->view, slots_of(kind, slots, count), totals.data_ptr<double>(), current_stream());
  return totals;
}

void BackEnd::spread(const std::vector<int32_t>& slots, const at::Tensor& totals) {
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  const Slots& view = slots_of(kSums, slots, int32_t(totals.size(0)));
  cuda::spread(current_->view, view, totals.data_ptr<double>(), current_stream());
}

void BackEnd::decide(const Row& row, const Scaling& scaling, const at::Tensor& sums) {
  const DeviceGuard guard(static_cast<c10::DeviceIndex>(device_));
  WholeRow unfolded{{row.count, row.memory, row.lr, row.double_lr}, {}};
  std::copy_n(row.numbers, kMaxNumbers, unfolded.numbers);
  cuda::decide(row.rule, unfolded, scaling, sums.data_ptr<double>(), current_stream());
}

size_t BackEnd::memory() const {
  size_t bytes = chunks_.capacity() * sizeof(Chunk) + first_chunks_.capacity() * sizeof(int32_t);
  for (const auto& [stream, table] : tables_) bytes += table.tensors.capacity() * sizeof(Tensor);
  return bytes;
}

}  // namespace fusedopt::cuda
