// Pooling on blocked activations (blocked.h).
#pragma once

#include <cstdint>

#include "blocked.h"

namespace fedsparse {

struct Window {
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::int64_t out_height, out_width;  // given, so that ceil mode is the caller's affair
};

struct PoolKernels {
  // The winner's place in its window, ky * kernel_w + kx, goes to `winner` (one byte per output element, so a window
  // has at most 256 places); the first of equals wins and NaN wins over all, as in torch. winner may be null.
  void (*max_pool)(const Blocked& shape, const Window& window, const void* x, void* y, std::uint8_t* winner,
                   int threads);
  void (*max_pool_backward)(const Blocked& shape, const Window& window, const void* grad, const std::uint8_t* winner,
                            void* grad_x, int threads);
  // divisor: 0 counts the pixels inside the picture (count_include_pad=False), otherwise the number to divide by.
  void (*average_pool)(const Blocked& shape, const Window& window, std::int64_t divisor, const void* x, void* y,
                       int threads);
  void (*average_pool_backward)(const Blocked& shape, const Window& window, std::int64_t divisor, const void* grad,
                                void* grad_x, int threads);
};

}  // namespace fedsparse
