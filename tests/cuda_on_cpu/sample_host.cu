// The host's side of the executor: limits, counters, captures. The argument names a scenario.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "executor.h"

#define CHECK(condition) \
  if (!(condition)) std::printf("sample_host.cu:%d: wrong: %s\n", __LINE__, #condition), std::exit(1)

__global__ void too_much_shared() {
  SHARED(memory, char[(48 << 10) + 1]);
  memory[0] = 0;
}
void test_shared() { launch(too_much_shared, 1, 1, nullptr); }

__global__ void log_order(unsigned* next, unsigned* log) {
  log[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}
void test_order() {  // prints it
  unsigned next = 0, log[3 * 4];
  launch(log_order, 3, 4, nullptr, &next, log);
  for (unsigned i : log) std::printf("%u ", i);
}

template <size_t N>
struct Bytes {
  unsigned char byte[N];
};
template <size_t N>
__global__ void first_by_value(Bytes<N> bytes, unsigned char* first) {
  *first = bytes.byte[0];
}
template <size_t N>
__global__ void first_by_reference(const Bytes<N>& bytes, unsigned char* first) {
  *first = bytes.byte[0];
}
template <size_t N>
__global__ void no_work(Bytes<N>) {}
__global__ void aligned(Bytes<1>, double, Bytes<32764 - 15>) {}  // 16 bytes before the last

template <size_t N>
void test_arguments() {
  launch(no_work<N>, 1, 1, nullptr, Bytes<N>{});
}
void test_alignment() { launch(aligned, 1, 1, nullptr, Bytes<1>{}, 0, Bytes<32764 - 15>{}); }
void test_no_blocks() { launch(no_work<1>, 0, 1, nullptr, Bytes<1>{}); }
void test_many_threads() {
  launch(no_work<1>, 1, 1024, nullptr, Bytes<1>{});
  launch(no_work<1>, 1, 1025, nullptr, Bytes<1>{});
}

void test_counters() {
  int from = 7, to = 0;
  launch(no_work<1>, 2, 3, executor::stream(8), Bytes<1>{});
  cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyHostToDevice, nullptr);
  CHECK(to == 7);
  cudaMemcpyAsync(&from, &to, sizeof(to), cudaMemcpyDeviceToDevice, nullptr);
  cudaMemsetAsync(&to, 1, sizeof(to), nullptr);
  cudaMemsetAsync(&to, 1, 1, nullptr);
  cudaMemsetAsync(&to, 1, 1, nullptr);
  CHECK(to == 0x01010101);
  CHECK(executor::counters.launches == 1 && executor::counters.copies == 2 && executor::counters.memsets == 3);
  executor::counters = {};
  CHECK(executor::counters.launches == 0);
}

void test_capture() {
  const cudaStream_t stream = executor::stream(1), other = executor::stream(2);
  unsigned char value = 0, reference = 0, elsewhere = 0, set = 0, copied = 0, source = 3;
  Bytes<4> bytes = {1};
  executor::set_stream(stream);
  CHECK(executor::current_stream() == stream);
  executor::begin_capture(stream);
  CHECK(executor::capturing(stream) && !executor::capturing(other) && !executor::capturing(nullptr));
  launch(first_by_value<4>, 1, 1, stream, bytes, &value);
  launch(first_by_reference<4>, 1, 1, stream, bytes, &reference);
  launch(first_by_value<4>, 1, 1, other, bytes, &elsewhere);
  CHECK(elsewhere == 1);
  cudaMemsetAsync(&set, 2, 1, stream);
  cudaHostRegister(&source, 1, 0);
  cudaMemcpyAsync(&copied, &source, 1, cudaMemcpyHostToDevice, stream);
  bytes.byte[0] = 99;
  const int graph = executor::end_capture();
  CHECK(!executor::capturing(stream));
  CHECK(!value && !reference && !set && !copied);
  CHECK(executor::counters.launches == 1 && !executor::counters.copies && !executor::counters.memsets);
  executor::begin_capture(stream);
  launch(first_by_value<4>, 1, 1, stream, bytes, &value);
  const int second = executor::end_capture();
  for (int replays = 1; replays <= 2; ++replays) {
    value = reference = set = copied = 0;
    source = 3 + replays;  // registered memory is read by the replay
    executor::replay(graph);
    CHECK(value == 1 && reference == 1 && set == 2 && copied == 3 + replays);
    CHECK(executor::counters.launches == 1 + 2 * replays && executor::counters.copies == replays);
  }
  reference = 0;
  executor::replay(second);
  CHECK(value == 99 && reference == 0);
  cudaHostUnregister(&source);
  cudaStreamSynchronize(stream);
}

void capture() { executor::begin_capture(executor::stream(1)); }
void test_capture_copy_in() {
  int from = 0, to = 0;
  capture();
  cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyDeviceToDevice, executor::stream(1));
  cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyHostToDevice, executor::stream(2));
  std::puts("so far");
  std::fflush(stdout);
  cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyHostToDevice, executor::stream(1));
}
void test_capture_copy_out() {
  int from = 0, to = 0;
  capture();
  cudaMemcpyAsync(&to, &from, sizeof(to), cudaMemcpyDeviceToHost, executor::stream(1));
}
void test_capture_wait() {
  capture();
  cudaStreamSynchronize(executor::stream(2));
  cudaStreamSynchronize(executor::stream(1));
}
void test_capture_twice() { capture(), capture(); }
void test_capture_default() { executor::begin_capture(nullptr); }

int main(int, char** arguments) {
  const std::string name = arguments[1];
#define TEST(test) \
  if (name == #test) return test_##test(), 0
  TEST(shared);
  TEST(order);
  TEST(arguments<32764>);
  TEST(arguments<32765>);
  TEST(alignment);
  TEST(no_blocks);
  TEST(many_threads);
  TEST(counters);
  TEST(capture);
  TEST(capture_copy_in);
  TEST(capture_copy_out);
  TEST(capture_wait);
  TEST(capture_twice);
  TEST(capture_default);
  return 2;
}
