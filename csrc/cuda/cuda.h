// The CUDA back end as plain C++, without torch: what a step launches. All of it is asynchronous on the stream.
#pragma once
#include <algorithm>
#include <bit>

#include "../chunks.h"

namespace fusedopt::cuda {

using Stream = void*;  // cudaStream_t

// Chunks of one rule and one form, neighbours in the table: one launch. Its tensors begin at `first_chunks`[tensor].
struct Batch {
  RuleId rule;
  Form form;
  int32_t chunk, chunks, tensor, tensors;
  int32_t decides_from = -1;  // of a joint group's last batch the group's first chunk
};

// A chunk is cut so that each multiprocessor gets eight, within these bounds: small steps are over sooner in many
// blocks, and in large ones each block has to pay off its beginning. Benchmarks try others.
#ifndef FUSEDOPT_CUDA_CHUNK
#define FUSEDOPT_CUDA_CHUNK 16384
#endif
constexpr int64_t kMinChunk = 2048, kMaxChunk = FUSEDOPT_CUDA_CHUNK;
inline int64_t chunk_size(int64_t elements, int multiprocessors) {
  const auto share = uint64_t(elements / (8 * multiprocessors));
  return std::clamp<int64_t>(int64_t(std::bit_ceil(share)), kMinChunk, kMaxChunk);
}

// The table in device memory.
struct View {
  const Tensor* tensors;
  const Chunk* chunks;
  const int32_t* first_chunks;  // of every tensor that takes part, in the order of the batches
  double* sums;                 // two per chunk, of those rules that take sums
  double* settled;              // what became of them, by tensor
  double *square_sum, *norm;    // of all gradients as they are; their norm, unscaled
  unsigned* done;               // blocks that have finished; zero between launches
  const char* rows;             // those that do not fit into the arguments of a launch
  int32_t chunk_size;
};

// What the gradients are multiplied by. Pointers lie on the device and are null where they do not apply.
struct Scaling {
  double scale = 1;                    // known to the host
  const float* grad_scale = nullptr;   // divides
  const float* found_inf = nullptr;    // not 0: the step does not happen
  const double* square_sum = nullptr;  // of the gradients as they are, for clipping
  double max_norm = 0, epsilon = 0;    // clip_coefficient's
};

struct DeviceRow {  // a Row as a block needs it to make a rule, with the rule's numbers behind it, then scalars
  double count;
  double* memory;
  const void* lr;
  bool double_lr;
};
struct WholeRow : DeviceRow {
  double numbers[kMaxNumbers];
};

// The rows of a launch. Folded by the host, where it knows the learning rate and the step count: `rescaled`, when only
// a block knows what the gradients are multiplied by, which is one number of a rule. Otherwise folded by each block
// from a DeviceRow.
struct Rows {
  const char* bytes;
  int32_t size, stride;
  bool folded, rescaled;
};
// Whether they travel with the launch; otherwise they have to be in view.rows by then.
bool fit_in_arguments(const Rows& rows, Form form);

// What of a table's sums belongs together: the chunks of each slot.
struct Slots {
  const int32_t *first, *chunks;  // those of slot s are chunks[first[s]] to chunks[first[s + 1] - 1]
  int32_t count;
};

// One launch, or three of a rule that takes sums over tensors. With `counts`, the last block to finish adds one to the
// steps that lie on the device. The second pass is the last two; in between the sums may be made those of all
// processes.
void update(const View& view, const Batch& batch, const Rows& rows, const Scaling& scaling, bool counts, Pass pass,
            Stream stream);
// Adds up view.sums by slot, two totals each; and puts totals in their place.
void gather(const View& view, const Slots& slots, double* totals, Stream stream);
void spread(const View& view, const Slots& slots, const double* totals, Stream stream);
// What becomes of a joint group whose sums several processes share.
void decide(RuleId rule, const WholeRow& row, const Scaling& scaling, const double* sums, Stream stream);
// view.square_sum and view.norm, of the gradients of all chunks. One launch.
void gradient_norm(const View& view, int32_t chunks, const Scaling& scaling, Stream stream);

constexpr int kPatches = 2500;  // words that one launch replaces at most
void patch(uint64_t* words, const int32_t* indices, const uint64_t* values, int count, Stream stream);

}  // namespace fusedopt::cuda
