#include "fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// void fedsparse_shim_switch(void** save, void* load): keeps the registers that a callee must keep on the old stack,
// takes them from the new one. swapcontext does the same in seven times the time, for it also saves the signal mask.
asm(R"(
.text
.local fedsparse_shim_switch
.type fedsparse_shim_switch, @function
fedsparse_shim_switch:
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
.size fedsparse_shim_switch, . - fedsparse_shim_switch
)");
extern "C" __attribute__((visibility("hidden"))) void fedsparse_shim_switch(void** save, void* load);
#endif

namespace fedsparse::shim {
namespace {

constexpr std::size_t kStack = 128 << 10;  // frames with sanitizers are several times larger than without

Fibre* suspended = nullptr;  // by the change under way
Fibre* continued = nullptr;

std::size_t page() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// Below the stack lies a page that faults: a kernel that overruns its stack must not write into its neighbour's.
char* map_stack() {
  void* memory = mmap(nullptr, page() + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page(), PROT_NONE);
  return static_cast<char*>(memory);
}

}  // namespace

Fibre::~Fibre() {
  if (stack_) munmap(stack_, page() + kStack);
}

void Fibre::start(Entry entry) {
  if (!stack_) stack_ = map_stack();
  entry_ = entry;
  shadow_ = nullptr;
  bottom_ = stack_ + page();
  size_ = kStack;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom_, size_);  // frames that were never left
#endif
#ifdef __x86_64__
  // As if `begin` had been called from nowhere and suspended before its first instruction.
  constexpr int kSaved = 6;
  auto* top = reinterpret_cast<std::uintptr_t*>(stack_ + page() + kStack) - 2;
  top[0] = reinterpret_cast<std::uintptr_t>(&Fibre::begin);
  top[1] = 0;
  pointer_ = std::memset(top - kSaved, 0, kSaved * sizeof *top);
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_ + page();
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fibre::begin, 0);
#endif
}

void Fibre::change(Fibre& from, Fibre& to) {
  suspended = &from;
  continued = &to;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.shadow_, to.bottom_, to.size_);
#endif
#ifdef __x86_64__
  fedsparse_shim_switch(&from.pointer_, to.pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  arrive(from);
}

// On the new stack. Where the process's own stack lies is learnt when it is left.
void Fibre::arrive([[maybe_unused]] Fibre& self) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.shadow_, &suspended->bottom_, &suspended->size_);
#endif
}

void Fibre::begin() {
  Fibre& self = *continued;
  arrive(self);
  self.entry_();
}

}  // namespace fedsparse::shim
