// What a step needs while it is captured: a stream beside the capture, and memory that lives as long as the graph.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "device.h"

namespace fusedopt::cuda {

// A stream for each device that nobody else is given. The streams of torch's pool go round, and a capture takes its own
// from there, too: sooner or later the pool would hand out the very stream that is being captured.
inline Stream own_stream(int device) {
  static std::mutex mutex;
  static std::map<int, Stream> streams;
  const std::lock_guard lock(mutex);
  Stream& stream = streams[device];
  return stream ? stream : stream = new_stream();
}

// Makes a stream beside the capture the current one: for work to be done once, on memory that is not the graph's own,
// where each replay writes over what was freed earlier in the capture.
class BesideCapture {
 public:
  explicit BesideCapture(int device) : stream_(own_stream(device)), guard_(stream_) {}
  void wait() { synchronize(stream_); }

 private:
  RelaxedCapture relaxed_;  // first: a stream may have to be made
  Stream stream_;
  StreamGuard guard_;
};

// Memory that a graph reads. CUDA says when nothing can replay the graph any more and its last replay is over, on a
// thread that must neither call CUDA nor wait for anybody: what is released then is freed by the next step.
struct Kept {
  at::Tensor memory;
  Kept* next = nullptr;
};
inline std::atomic<Kept*> released{nullptr};

inline void release(void* object) {
  Kept* kept = static_cast<Kept*>(object);
  kept->next = released.load();
  while (!released.compare_exchange_weak(kept->next, kept)) {
  }
}

inline void free_released() {
  if (!released.load(std::memory_order_relaxed)) return;
  for (Kept* kept = released.exchange(nullptr); kept;) delete std::exchange(kept, kept->next);
}

// Gives the graph that is being captured a share in this memory.
inline void keep_for_graph(const at::Tensor& memory) {
  auto kept = std::make_unique<Kept>(memory);
  retain_for_graph(kept.get(), release);
  kept.release();  // NOLINT: the graph's
}

}  // namespace fusedopt::cuda
