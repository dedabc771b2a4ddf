// What the host does: launches, copies, captures.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "executor.h"

namespace executor {

Counters counters;

namespace {

constexpr size_t kMaxArgumentBytes = 32764;

std::mutex mutex;  // one OS thread at a time
std::condition_variable moved_on;
bool stalling;
int waiting, let_through, in_vain;
char streams[9];
bool skipping;
cudaStream_t selected, captured;  // null: the default stream; no capture
struct Graph {
  std::vector<Work> work;
  std::vector<std::pair<void*, void (*)(void*)>> objects;
};
Graph recording;
std::vector<Graph> graphs;
std::vector<std::pair<const char*, size_t>> registered;

cudaError_t submit(cudaStream_t stream, Work work) {
  const std::lock_guard lock(mutex);
  if (capturing(stream)) recording.work.push_back(std::move(work));
  else work();
  return cudaSuccess;
}

void wait_in_queue() {
  std::unique_lock lock(mutex);
  if (!stalling) return;
  ++waiting;
  const bool moved = moved_on.wait_for(lock, std::chrono::seconds(10), [] { return let_through || !stalling; });
  --waiting;
  if (!moved) ++in_vain;
  else if (let_through) --let_through;
}

bool pinned(const void* memory, size_t bytes) {
  const char* begin = static_cast<const char*>(memory);
  const std::lock_guard lock(mutex);
  return std::ranges::any_of(registered,
                             [=](auto r) { return r.first <= begin && begin + bytes <= r.first + r.second; });
}

}  // namespace

void launch(unsigned grid, unsigned threads, cudaStream_t stream, size_t argument_bytes, Work thread) {
  if (argument_bytes > kMaxArgumentBytes)
    die("a launch with %zu bytes of arguments, %zu at most", argument_bytes, kMaxArgumentBytes);
  if (grid < 1 || grid > 0x7fffffff || threads < 1 || threads > kMaxThreads)
    die("a launch of %u blocks of %u threads", grid, threads);
  wait_in_queue();
  if (skipping) ++counters.launches;
  else submit(stream, [=, thread = std::move(thread)] { ++counters.launches, run(grid, threads, thread); });
}

void stall() {
  const std::lock_guard lock(mutex);
  stalling = true, let_through = in_vain = 0;
}
bool stalled() {
  const std::lock_guard lock(mutex);
  return waiting;
}
void let_go() {
  const std::lock_guard lock(mutex);
  if (waiting) ++let_through, moved_on.notify_all();
}
int unstall() {
  const std::lock_guard lock(mutex);
  stalling = false;
  moved_on.notify_all();
  return in_vain;
}

cudaStream_t stream(int number) {
  if (number < 1 || number >= int(std::size(streams))) die("no stream %d", number);
  return reinterpret_cast<cudaStream_t>(&streams[number]);
}
void skip(bool kernels) { skipping = kernels; }
cudaStream_t create_stream() { return reinterpret_cast<cudaStream_t>(new char); }
void set_stream(cudaStream_t stream) { selected = stream; }
cudaStream_t current_stream() { return selected; }

bool capturing(cudaStream_t stream) { return stream && stream == captured; }
void begin_capture(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (!stream) die("the default stream cannot be captured");
  if (captured) die("a capture within a capture");
  captured = stream;
}
int end_capture() {
  const std::lock_guard lock(mutex);
  if (!captured) die("the end of a capture without a beginning");
  captured = nullptr;
  graphs.push_back(std::exchange(recording, {}));
  return int(graphs.size()) - 1;
}
void replay(int graph) {
  const std::lock_guard lock(mutex);
  if (graph < 0 || graph >= int(graphs.size())) die("no graph %d", graph);
  for (const Work& work : graphs[graph].work) work();
}
void retain(void* object, void (*destroy)(void*)) {
  const std::lock_guard lock(mutex);
  if (!captured) die("an object for a graph, and nothing is captured");
  recording.objects.emplace_back(object, destroy);
}
void destroy(int graph) {
  const std::lock_guard lock(mutex);
  for (const auto& [object, destroy] : std::exchange(graphs.at(graph), {}).objects) destroy(object);
}
int retained() {
  int objects = 0;
  for (const Graph& graph : graphs) objects += int(graph.objects.size());
  return objects;
}

}  // namespace executor

using namespace executor;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost;
  const bool to_host = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost;
  // A replay would use memory that its owner may have freed by then.
  if (capturing(stream) && ((from_host && !pinned(from, bytes)) || (to_host && !pinned(to, bytes))))
    die("a copy of %zu bytes between the device and pageable memory is captured", bytes);
  return submit(stream, [=] { ++counters.copies, std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return submit(stream, [=] { ++counters.memsets, std::memset(to, value, bytes); });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (capturing(stream)) die("a wait for a stream that is captured");
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  const std::lock_guard lock(mutex);
  registered.emplace_back(static_cast<const char*>(memory), bytes);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* memory) {
  const std::lock_guard lock(mutex);
  if (!std::erase_if(registered, [=](auto r) { return r.first == memory; })) die("memory that was not registered");
  return cudaSuccess;
}
