// Carves aligned arrays out of one buffer that the caller owns.
// Run a plan once on an empty Arena to learn its size and again on the buffer: the same code does both.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fedsparse {

class Arena {
 public:
  static constexpr std::size_t kAlign = 64;  // one cache line, one AVX-512 register

  explicit Arena(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  std::int64_t used() const { return static_cast<std::int64_t>(used_); }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace fedsparse
