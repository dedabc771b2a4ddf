// A fibre is a stack of its own, to and from which control passes by hand: no OS thread, a few nanoseconds a switch.
// The sanitizers are told, or they would take each switch for a corrupted stack and all fibres for one thread.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#if defined(__has_feature)  // clang++; g++ defines the macros itself
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

// For functions that run on a fibre and touch the executor's own data. These are shared by all fibres without
// synchronisation, which ThreadSanitizer would report; functions that switch must not be checked for other reasons too:
// the stack that they enter on is not the one that the sanitizer has in mind.
#define NO_SANITIZE __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
constexpr bool kThreadSanitizer = true;
#else
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
constexpr bool kThreadSanitizer = false;
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

// Any other CPU takes the C library's switch, which is a hundred times slower: it calls the kernel for the signal mask.
#if defined(__x86_64__) && !defined(EXECUTOR_UCONTEXT)
extern "C" void executor_switch(void** save, void* load);
asm(R"(
.text
.type executor_switch, @function
executor_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size executor_switch, .-executor_switch
)");

struct Context {
  void* stack_pointer = nullptr;
  void prepare(void* stack, size_t bytes, void (*entry)()) {
    // As executor_switch() leaves a stack: six registers, then where to return. Above it a null return address for
    // `entry`, which also puts the stack where a called function expects it, 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes) - 2;
    *top = reinterpret_cast<void*>(entry);
    stack_pointer = top - 6;
  }
  NO_SANITIZE void switch_to(Context& to) { executor_switch(&stack_pointer, to.stack_pointer); }
};
#else
#include <ucontext.h>
struct Context {
  ucontext_t context;
  void prepare(void* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  NO_SANITIZE void switch_to(Context& to) { swapcontext(&context, &to.context); }
};
#endif

class Fibre {
 public:
  bool started() const { return stack_; }

  // `entry` must never return, and call entered() first.
  bool start(void (*entry)(), unsigned index) {
    constexpr size_t kBytes = 256 << 10, kGuard = 64 << 10;
    // Were all stacks to begin at the same place in a page, they would all want the same few lines of the caches.
    const size_t stagger = index % 128 * 576;
    void* memory =
        mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) return false;  // an overflow hits the guard
    stack_ = static_cast<char*>(memory) + kGuard;
    bytes_ = kBytes - stagger;
    context_.prepare(const_cast<void*>(stack_), bytes_, entry);
    thread_ = __tsan_create_fiber(0);
    return true;
  }

  // The fibre that the calling OS thread has been on all along.
  void adopt() { thread_ = __tsan_get_current_fiber(); }

  // Returns when `to` switches back.
  NO_SANITIZE void switch_to(Fibre& to) {
    constexpr unsigned kUnordered = 1;  // to be scheduled one after the other is no synchronisation
    __tsan_switch_to_fiber(to.thread_, kUnordered);
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.bytes_);
    context_.switch_to(to.context_);
    __sanitizer_finish_switch_fiber(fake_stack_, &to.stack_, &to.bytes_);
  }
  // First words of a fibre that `from` has switched to. Tells where the stack of an adopted one is.
  NO_SANITIZE static void entered(Fibre& from) { __sanitizer_finish_switch_fiber(nullptr, &from.stack_, &from.bytes_); }

 private:
  Context context_;
  const void* stack_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* thread_ = nullptr;      // ThreadSanitizer's
};
