// Pooling of pool.h for one instruction set: a line at a time, so borders and strides cost no masks. A thread owns
// whole planes, and a plane stays in the cache while its windows overlap.
#include "../pool.h"

#include <algorithm>
#include <limits>

#include "lines.h"

namespace {

using fedsparse::Window;

typedef std::uint8_t ByteVec __attribute__((vector_size(kLanes), may_alias, aligned(1)));

// The places of one window that lie inside the picture: k in [first, last) of one direction.
struct Places {
  std::int64_t origin, first, last;

  // Only windows over the border pay for divisions.
  Places(std::int64_t out, std::int64_t kernel, std::int64_t stride, std::int64_t pad, std::int64_t dilation,
         std::int64_t size)
      : origin(out * stride - pad), first(0), last(kernel) {
    if (origin < 0) first = std::min(kernel, (-origin + dilation - 1) / dilation);
    if (origin >= size)
      last = first;
    else if (origin + (kernel - 1) * dilation >= size)
      last = std::max(first, (size - 1 - origin) / dilation + 1);
  }
};

struct WindowPlaces {
  Places y, x;
  const Window& window;
  std::int64_t width;

  WindowPlaces(const Blocked& shape, const Window& w, std::int64_t out_y, std::int64_t out_x)
      : y(out_y, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h, shape.height),
        x(out_x, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w, shape.width),
        window(w),
        width(shape.width) {}

  std::int64_t count() const { return (y.last - y.first) * (x.last - x.first); }

  // visit(float of the place in its plane, number of the place in its window), in reading order.
  template <typename Visit>
  inline __attribute__((always_inline)) void each(Visit visit) const {
    for (std::int64_t ky = y.first; ky < y.last; ++ky) {
      const std::int64_t row = (y.origin + ky * window.dilation_h) * width + x.origin;
      for (std::int64_t kx = x.first; kx < x.last; ++kx)
        visit((row + kx * window.dilation_w) * kLanes, ky * window.kernel_w + kx);
    }
  }
};

// visit(places, first float of the plane, first float of the output line) for every output pixel of every plane;
// begin(first float of the plane) before the first of a plane.
template <typename Begin, typename Visit>
inline void each_window(const Blocked& shape, const Window& window, int threads, Begin begin, Visit visit) {
  const std::int64_t planes = shape.groups(kLanes) * shape.channels;
  const std::int64_t plane_size = shape.pixels() * kLanes, out_size = window.out_height * window.out_width * kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    begin(plane * plane_size);
    std::int64_t out = plane * out_size;
    for (std::int64_t y = 0; y < window.out_height; ++y)
      for (std::int64_t x = 0; x < window.out_width; ++x, out += kLanes)
        visit(WindowPlaces(shape, window, y, x), plane * plane_size, out);
  }
}

inline void nothing(std::int64_t) {}

template <bool WINNER>
void max_pool_of(const Blocked& shape, const Window& window, const float* x, float* y, std::uint8_t* winner,
                 int threads) {
  each_window(shape, window, threads, nothing, [=](const WindowPlaces& places, std::int64_t plane, std::int64_t out) {
    Vec best = broadcast(-std::numeric_limits<float>::infinity());
    IntVec place = IntVec{} + static_cast<std::int32_t>(places.y.first * window.kernel_w + places.x.first);
    places.each([&](std::int64_t at, std::int64_t number) __attribute__((always_inline)) {
      const Vec v = load(x + plane + at);
      const IntVec wins = (v > best) | (v != v);
      best = wins ? v : best;
      if constexpr (WINNER) place = wins ? IntVec{} + static_cast<std::int32_t>(number) : place;
    });
    store(y + out, best);
    if constexpr (WINNER) *reinterpret_cast<ByteVec*>(winner + out) = __builtin_convertvector(place, ByteVec);
  });
}

void max_pool(const Blocked& shape, const Window& window, const float* x, float* y, std::uint8_t* winner,
              int threads) {
  (winner ? max_pool_of<true> : max_pool_of<false>)(shape, window, x, y, winner, threads);
}

// Windows may overlap, so each adds to the zeros its plane begins with.
template <typename Spread>
inline void spread_gradient(const Blocked& shape, const Window& window, float* grad_x, int threads, Spread spread) {
  const std::int64_t plane_size = shape.pixels() * kLanes;
  each_window(
      shape, window, threads,
      [=](std::int64_t plane) { std::fill(grad_x + plane, grad_x + plane + plane_size, 0.0f); }, spread);
}

void max_pool_backward(const Blocked& shape, const Window& window, const float* grad, const std::uint8_t* winner,
                       float* grad_x, int threads) {
  spread_gradient(
      shape, window, grad_x, threads, [=](const WindowPlaces& places, std::int64_t plane, std::int64_t out) {
        const Vec g = load(grad + out);
        const IntVec place = __builtin_convertvector(*reinterpret_cast<const ByteVec*>(winner + out), IntVec);
        places.each([&](std::int64_t at, std::int64_t number) __attribute__((always_inline)) {
          float* const to = grad_x + plane + at;
          store(to, load(to) + (place == static_cast<std::int32_t>(number) ? g : Vec{}));
        });
      });
}

inline float divisor_of(const WindowPlaces& places, std::int64_t divisor) {
  return static_cast<float>(divisor ? divisor : places.count());
}

void average_pool(const Blocked& shape, const Window& window, std::int64_t divisor, const float* x, float* y,
                  int threads) {
  each_window(shape, window, threads, nothing, [=](const WindowPlaces& places, std::int64_t plane, std::int64_t out) {
    Vec sum = {};
    places.each([&](std::int64_t at, std::int64_t) __attribute__((always_inline)) { sum += load(x + plane + at); });
    store(y + out, sum / divisor_of(places, divisor));
  });
}

void average_pool_backward(const Blocked& shape, const Window& window, std::int64_t divisor, const float* grad,
                           float* grad_x, int threads) {
  spread_gradient(
      shape, window, grad_x, threads, [=](const WindowPlaces& places, std::int64_t plane, std::int64_t out) {
        const Vec share = load(grad + out) / divisor_of(places, divisor);
        places.each([&](std::int64_t at, std::int64_t) __attribute__((always_inline)) {
          float* const to = grad_x + plane + at;
          store(to, load(to) + share);
        });
      });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const PoolKernels pool;
const PoolKernels pool = {max_pool, max_pool_backward, average_pool, average_pool_backward};
}  // namespace fedsparse::FEDSPARSE_ISA
