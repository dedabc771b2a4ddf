// The threads of a block as fibres, and what they do together.
#include "executor.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "fibre.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace executor {
namespace {

constexpr size_t kMaxSharedBytes = 48 << 10;

enum State { kReady, kAtBarrier, kInWarp, kReturned };

struct Thread {
  Fibre fibre;
  State state;
  Where where;  // it waits
  unsigned index, mask, source;
  uint64_t value, result;
  bool fenced;         // since its last atomic
  const void* atomic;  // its last one since the last fence
};

// What a block runs on, made once and reused. Two of these take turns, so that to ThreadSanitizer a block and the next
// are on different threads.
struct Block {
  Thread threads[kMaxThreads];
  unsigned waiting[kMaxThreads / kWarp];  // lanes in a warp operation
  unsigned size, at_barrier, returned, barriers;
  char barrier_tags[2];  // in turns: who comes late out of one barrier must not see what was done before the next
};
Block blocks[2];

Block* block = blocks;
Thread* current = nullptr;  // null outside of kernels
unsigned block_index;
Fibre scheduler;
const Work* kernel;
char launch_tag, return_tag;

struct Shared {
  const void* identity;
  void* memory;
};
Shared shared_variables[64];
unsigned shared_count;
size_t shared_bytes;

NO_SANITIZE void wait(State state, Where where) {
  Thread& me = *current;
  me.state = state;
  me.where = where;
  me.fibre.switch_to(scheduler);
}

NO_SANITIZE void resume(Thread& thread) {
  current = &thread;
  threadIdx = {thread.index, 0, 0};
  blockIdx = {block_index, 0, 0};
  scheduler.switch_to(thread.fibre);
  current = nullptr;
}

// A fibre runs one thread of a block after the other.
NO_SANITIZE void fibre_main() {
  Fibre::entered(scheduler);
  for (;;) {
    __tsan_acquire(&launch_tag);
    (*kernel)();
    __tsan_release(&return_tag);
    ++block->returned;
    wait(kReturned, {});
  }
}

bool same(Where a, Where b) { return a.line() == b.line() && a.column() == b.column(); }

// Nobody can go on: everybody waits at the barrier, or something is wrong.
void release_barrier() {
  const Thread* first = nullptr;
  for (Thread& thread : std::span(block->threads, block->size)) {
    current = &thread;  // whom a message is about
    const Where where = thread.where;
    if (thread.state == kReturned) continue;
    if (thread.state == kInWarp)
      die("%s:%u: waits for lanes %08x of its warp, where only %08x are; %u threads wait at a barrier, %u have "
          "returned",
          where.file_name(), where.line(), thread.mask, block->waiting[thread.index / kWarp], block->at_barrier,
          block->returned);
    if (block->returned)
      die("%s:%u: waits at a barrier, %u threads have returned before it", where.file_name(), where.line(),
          block->returned);
    if (!first) first = &thread;
    if (!same(where, first->where))
      die("%s:%u: waits at another barrier than thread %u, which is at line %u", where.file_name(), where.line(),
          first->index, first->where.line());
    thread.state = kReady;
  }
  current = nullptr;
  block->at_barrier = 0;
  ++block->barriers;
}

void run_block(const std::vector<unsigned>& order) {
  block->size = unsigned(order.size());
  block->at_barrier = block->returned = block->barriers = 0;
  std::ranges::fill(block->waiting, 0u);
  for (unsigned i = 0; i < block->size; ++i) {
    Thread& thread = block->threads[i];
    if (!thread.fibre.started() && !thread.fibre.start(fibre_main, i)) die("no memory for the stack of a thread");
    thread.index = i;
    thread.state = kReady;
    thread.fenced = false;
    thread.atomic = nullptr;
  }
  while (block->returned < block->size) {
    bool any = false;
    for (unsigned i : order)
      if (Thread& thread = block->threads[i]; thread.state == kReady) any = true, resume(thread);
    if (!any) release_barrier();
  }
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  while (shared_count) std::free(shared_variables[--shared_count].memory);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  shared_bytes = 0;
}

// The orders of blocks and of threads.
struct Order {
  std::vector<unsigned> blocks, threads;
  std::mt19937 random;
  bool shuffled = false;

  Order(unsigned grid, unsigned size) : blocks(grid), threads(size) {
    const char* name = std::getenv("FUSEDOPT_EXECUTOR_ORDER");
    const std::string_view order = name ? name : "forward";
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::iota(threads.begin(), threads.end(), 0u);
    if (order == "reverse") {
      std::ranges::reverse(blocks);
      std::ranges::reverse(threads);
    } else if (order != "forward") {
      char* end;
      random.seed(unsigned(std::strtoul(name, &end, 10)));
      if (order.empty() || *end) die("FUSEDOPT_EXECUTOR_ORDER is \"%s\", not forward, reverse or a number", name);
      shuffled = true;
      std::ranges::shuffle(blocks, random);
    }
  }
  const std::vector<unsigned>& next_threads() {
    if (shuffled) std::ranges::shuffle(threads, random);
    return threads;
  }
};

}  // namespace

NO_SANITIZE void die(const char* format, ...) {
  std::fputs("executor: ", stderr);
  if (current) std::fprintf(stderr, "block %u, thread %u: ", block_index, current->index);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  std::fputs("\n", stderr);
  std::abort();
}

NO_SANITIZE void* shared(const void* identity, size_t bytes) {
  for (unsigned i = 0; i < shared_count; ++i)
    if (shared_variables[i].identity == identity) return shared_variables[i].memory;
  shared_bytes += bytes;
  if (shared_bytes > kMaxSharedBytes) die("%zu bytes of shared memory, %zu at most", shared_bytes, kMaxSharedBytes);
  void* memory;
  // The thread that comes first did not write this, and memory of an earlier block that is used again is new memory.
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  if (shared_count == std::size(shared_variables) || posix_memalign(&memory, 128, bytes)) die("no shared memory left");
  std::memset(memory, 0xFF, bytes);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  shared_variables[shared_count++] = {identity, memory};
  return memory;
}

NO_SANITIZE void barrier(Where where) {
  char* tag = &block->barrier_tags[block->barriers % 2];
  __tsan_release(tag);
  ++block->at_barrier;
  wait(kAtBarrier, where);
  __tsan_acquire(tag);
}

// The last lane to arrive hands out the results.
NO_SANITIZE uint64_t meet(unsigned mask, uint64_t value, unsigned source, Where where) {
  Thread& me = *current;
  Thread* lanes = &block->threads[me.index / kWarp * kWarp];
  unsigned& waiting = block->waiting[me.index / kWarp];
  if (!(mask >> lane() & 1)) die("%s:%u: not in its own mask %08x", where.file_name(), where.line(), mask);
  if (source != kBallot && (source >= kWarp || !(mask >> source & 1)))
    die("%s:%u: reads from lane %u, not in mask %08x", where.file_name(), where.line(), source, mask);
  me.mask = mask;
  me.value = value;
  me.source = source;
  me.where = where;
  waiting |= 1u << lane();
  if ((waiting & mask) != mask) {
    wait(kInWarp, where);
    return me.result;
  }
  unsigned ballot = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    if (lanes[i].mask != mask || !same(lanes[i].where, where))
      die("%s:%u: with mask %08x meets lane %u at line %u with mask %08x", where.file_name(), where.line(), mask, i,
          lanes[i].where.line(), lanes[i].mask);
    ballot |= unsigned(lanes[i].value != 0) << i;
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    lanes[i].result = source == kBallot ? ballot : lanes[lanes[i].source].value;
    lanes[i].state = kReady;
  }
  waiting &= ~mask;
  return me.result;
}

NO_SANITIZE void fence() {
  if (current->atomic) __tsan_acquire(const_cast<void*>(current->atomic));
  current->atomic = nullptr;
  current->fenced = true;
}

NO_SANITIZE void atomic(const void* address) {
  if (current->fenced) __tsan_release(const_cast<void*>(address));
  current->fenced = false;
  current->atomic = address;
}

void run(unsigned grid, unsigned threads, const Work& thread) {
  Order order(grid, threads);
  gridDim = {grid};
  blockDim = {threads};
  kernel = &thread;
  scheduler.adopt();
  __tsan_release(&launch_tag);
  for (unsigned i : order.blocks) {
    if (kThreadSanitizer) block = &blocks[block == &blocks[0]];
    block_index = i;
    run_block(order.next_threads());
  }
  __tsan_acquire(&return_tag);
}

}  // namespace executor
