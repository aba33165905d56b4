// A stack of one's own: what a CUDA thread runs on when kernels run on the CPU.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace fedsparse::shim {

// Not movable while started: the stack refers to it. Abandoning a fibre halfway is allowed, its frames are forgotten.
class Fibre {
 public:
  using Entry = void (*)();

  Fibre() = default;  // stands for the stack that the process runs on
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // The next switch to this fibre calls `entry` on an empty stack. `entry` never returns: it switches away.
  void start(Entry entry);

  // Suspends `from`, which is running, and continues `to`; returns when something switches back to `from`.
  static void change(Fibre& from, Fibre& to);

 private:
  static void arrive(Fibre& self);
  static void begin();

  Entry entry_ = nullptr;
  char* stack_ = nullptr;  // the mapping: a page that faults, then kStack bytes
#ifdef __x86_64__
  void* pointer_ = nullptr;  // of the suspended stack
#else
  ucontext_t context_ = {};
#endif
  // What AddressSanitizer is told about stacks.
  void* shadow_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace fedsparse::shim
