// The step of a plan with DTensors, whose sums go over several processes: Python adds them up between two halves of it.
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <set>

#include "plan.h"

namespace fusedopt {

void Plan::set_domains(std::vector<int32_t> domains, std::vector<int32_t> slots) {
  if (domains.size() != entries_.size() || slots.size() != entries_.size())
    throw py::value_error("there must be a domain and a slot for each parameter");
  domains_ = std::move(domains), table_.slots = std::move(slots);
  resharded_ = false;
  recut_gpus();
}

void Plan::add_square_sums(Parts parts) {
  if (!table_.chunks.empty()) cpu::square_sum(table_);
  for (size_t c = 0; c < table_.chunks.size(); ++c)
    parts.at(domains_[table_.chunks[c].tensor]).data_ptr<double>()[0] += table_.sums[2 * c];
  for_gpus([&](int device, Gpu& gpu) {
    gpu.refresh(table_.tensors);
    if (!gpu.works()) return;
    gpu.norm({});
    const at::Tensor totals = gpu.gather(Gpu::kSquares, domains_, int32_t(parts.size()));
    for (size_t d = 0; d < parts.size(); ++d)
      if (gpu_index(parts[d].device()) == device) parts[d].add_(totals[int64_t(d)][0]);
  });
}

std::pair<std::vector<int32_t>, std::vector<int64_t>> Plan::slots_on(int device, const Parts& parts) const {
  std::vector<int64_t> first{0};
  for (const at::Tensor& part : parts)
    first.push_back(first.back() + (gpu_index(part.device()) == device ? part.numel() / 2 : 0));
  std::vector<int32_t> slots = table_.slots;
  for (size_t t = 0; t < slots.size(); ++t)
    if (slots[t] >= 0) slots[t] += int32_t(first[domains_[t]]);
  return {slots, first};
}

void Plan::begin(double scale, const Scalings& scalings, double max_norm, double epsilon, Parts parts) {
  run_gpus(scale, scalings, max_norm, epsilon, Pass::kFirst);
  for_gpus([&](int device, Gpu& gpu) {
    const auto [slots, first] = slots_on(device, parts);
    if (!gpu.works() || !first.back()) return;
    const at::Tensor totals = gpu.gather(Gpu::kSums, slots, int32_t(first.back()));
    for (size_t d = 0; d < parts.size(); ++d)
      if (const int64_t size = first[d + 1] - first[d])
        parts[d].add_(totals.narrow(0, first[d], size).reshape({2 * size}));
  });
  if (table_.chunks.empty()) return;
  fold(scale);
  on_cpu([&] { cpu::first_pass(table_); });
  for (size_t c = 0; c < table_.chunks.size(); ++c) {
    const int32_t tensor = table_.chunks[c].tensor, slot = table_.slots[tensor];
    if (slot < 0) continue;
    double* sums = parts.at(domains_[tensor]).data_ptr<double>() + 2 * slot;
    sums[0] += table_.sums[2 * c], sums[1] += table_.sums[2 * c + 1];
  }
}

// A tensor's whole sums take the place of those of its first chunk, and nothing that of the others': what the second
// pass adds up is then right.
void Plan::end(double scale, const Scalings& scalings, double max_norm, double epsilon, Parts parts) {
  for_gpus([&](int device, Gpu& gpu) {
    const auto [slots, first] = slots_on(device, parts);
    if (!gpu.works() || !first.back()) return;
    at::Tensor totals =
        at::zeros({first.back(), 2}, at::device(at::Device(gpu::kDeviceType, device)).dtype(at::kDouble));
    for (size_t d = 0; d < parts.size(); ++d)
      if (const int64_t size = first[d + 1] - first[d])
        totals.narrow(0, first[d], size).copy_(parts[d].reshape({size, 2}));
    gpu.spread(slots, totals);
  });
  for (size_t c = 0; c < table_.chunks.size(); ++c) {
    const int32_t tensor = table_.chunks[c].tensor, slot = table_.slots[tensor];
    if (slot < 0) continue;
    const double* sums = parts.at(domains_[tensor]).data_ptr<double>() + 2 * slot;
    const bool first = table_.chunks[c].begin == 0;
    table_.sums[2 * c] = first ? sums[0] : 0, table_.sums[2 * c + 1] = first ? sums[1] : 0;
  }
  if (!table_.chunks.empty()) on_cpu([&] { cpu::second_pass(table_); });
  // Every process decides alike on a joint group, whatever of it is there.
  const auto decide = [&](int32_t g) {
    const at::Tensor sums = total(g, parts);
    if (!sums.defined()) return;
    if (groups_[g].device < 0) {
      double rule[kMaxRowBytes / sizeof(double)];
      const RuleInfo& declared = info(groups_[g].rule);
      declared.fold[1](rule, groups_[g].numbers, 1, 1, groups_[g].memory, nullptr);
      declared.decide[1](rule, sums[0].item<double>(), sums[1].item<double>());
      return;
    }
    Row row{groups_[g].numbers, groups_[g].memory, nullptr, 1, groups_[g].rule, true, false, groups_[g].device};
    if (groups_[g].lr) {
      const at::Tensor& lr = THPVariable_Unpack(groups_[g].lr);
      row.lr = lr.data_ptr(), row.double_lr = lr.scalar_type() == at::kDouble;
    }
    const auto scaling = scaling_of(groups_[g].device, scale, scalings, max_norm, epsilon);
    gpus_.try_emplace(groups_[g].device, groups_[g].device).first->second.decide(row, scaling, sums);
  };
  for (int32_t g = 0; g < int32_t(groups_.size()); ++g) {
    if (!groups_[g].joint) continue;
    if (groups_[g].device < 0) decide(g);
    else aside([&] { decide(g); });
  }
  run_gpus(scale, scalings, max_norm, epsilon, Pass::kSecond);
  finish();
}

// The two sums of a joint group over all its domains, in a fixed order; undefined of one that is all here.
at::Tensor Plan::total(int32_t group, const Parts& parts) const {
  std::set<std::pair<int32_t, int32_t>> found;  // domain, slot
  for (size_t i = 0; i < entries_.size(); ++i)
    if (entries_[i].group == group && table_.is_shared(int32_t(i))) found.emplace(domains_[i], table_.slots[i]);
  std::vector<at::Tensor> sums;
  for (const auto& [domain, slot] : found) sums.push_back(parts.at(domain).narrow(0, 2 * slot, 2));
  return sums.empty() ? at::Tensor() : at::stack(sums).sum(0);
}

}  // namespace fusedopt
