// Pooling of pool.h for one instruction set: a line at a time, so borders and strides cost no masks. A thread owns
// whole planes, and a plane stays in the cache while its windows overlap.
#include "../pool.h"

#include <algorithm>
#include <limits>
#include <vector>

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

  // visit(first number of the place in its plane, number of the place in its window), in reading order.
  template <typename Visit>
  inline __attribute__((always_inline)) void each(Visit visit) const {
    for (std::int64_t ky = y.first; ky < y.last; ++ky) {
      const std::int64_t row = (y.origin + ky * window.dilation_h) * width + x.origin;
      for (std::int64_t kx = x.first; kx < x.last; ++kx)
        visit((row + kx * window.dilation_w) * kLanes, ky * window.kernel_w + kx);
    }
  }
};

// visit(number of the plane) for every channel of every group.
template <typename Visit>
inline void each_plane(const Blocked& shape, int threads, Visit visit) {
  const std::int64_t planes = shape.groups(kLanes) * shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t plane = 0; plane < planes; ++plane) visit(plane);
}

// visit(places, first number of the output line) for every output pixel of one plane.
template <typename Visit>
inline __attribute__((always_inline)) void each_window(const Blocked& shape, const Window& window, std::int64_t plane,
                                                       Visit visit) {
  std::int64_t out = plane * window.out_height * window.out_width * kLanes;
  for (std::int64_t y = 0; y < window.out_height; ++y)
    for (std::int64_t x = 0; x < window.out_width; ++x, out += kLanes) visit(WindowPlaces(shape, window, y, x), out);
}

template <typename Number, bool WINNER>
void max_pool_planes(const Blocked& shape, const Window& window, const Number* x, Number* y, std::uint8_t* winner,
                     int threads) {
  each_plane(shape, threads, [=](std::int64_t plane) {
    const Number* const from = x + plane * shape.pixels() * kLanes;
    each_window(shape, window, plane, [=](const WindowPlaces& places, std::int64_t out) {
      Vec best = broadcast(-std::numeric_limits<float>::infinity());
      IntVec place = IntVec{} + static_cast<std::int32_t>(places.y.first * window.kernel_w + places.x.first);
      places.each([&](std::int64_t at, std::int64_t number) __attribute__((always_inline)) {
        const Vec v = load(from + at);
        const IntVec wins = (v > best) | (v != v);
        best = wins ? v : best;
        if constexpr (WINNER) place = wins ? IntVec{} + static_cast<std::int32_t>(number) : place;
      });
      store(y + out, best);
      if constexpr (WINNER) *reinterpret_cast<ByteVec*>(winner + out) = __builtin_convertvector(place, ByteVec);
    });
  });
}

void max_pool(const Blocked& shape, const Window& window, const void* x, void* y, std::uint8_t* winner, int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    (winner ? max_pool_planes<Number, true> : max_pool_planes<Number, false>)(
        shape, window, static_cast<const Number*>(x), static_cast<Number*>(y), winner, threads);
  });
}

// Where the windows of a plane, which may overlap, add up its gradient: in place, or apart where that would be rounded
// at every step.
inline float* sums_of(float* plane, std::vector<float>&) { return plane; }
inline float* sums_of(Half*, std::vector<float>& apart) { return apart.data(); }

inline void deliver(const float*, float*, std::int64_t) {}
inline void deliver(const float* sums, Half* plane, std::int64_t size) {
  for (std::int64_t at = 0; at < size; at += kLanes) store(plane + at, load_loose(sums + at));
}

// spread(places, first number of the output line, first number of the plane's sums).
template <typename Number, typename Spread>
inline void spread_gradient(const Blocked& shape, const Window& window, Number* grad_x, int threads, Spread spread) {
  const std::int64_t size = shape.pixels() * kLanes;
  each_plane(shape, threads, [=](std::int64_t plane) {
    std::vector<float> apart(static_cast<std::size_t>(sizeof(Number) < sizeof(float) ? size : 0));
    float* const sums = sums_of(grad_x + plane * size, apart);
    std::fill(sums, sums + size, 0.0f);
    each_window(shape, window, plane,
                [=](const WindowPlaces& places, std::int64_t out) { spread(places, out, sums); });
    deliver(sums, grad_x + plane * size, size);
  });
}

template <typename Number>
void max_pool_backward_of(const Blocked& shape, const Window& window, const Number* grad, const std::uint8_t* winner,
                          Number* grad_x, int threads) {
  spread_gradient(shape, window, grad_x, threads, [=](const WindowPlaces& places, std::int64_t out, float* sums) {
    const Vec g = load(grad + out);
    const IntVec place = __builtin_convertvector(*reinterpret_cast<const ByteVec*>(winner + out), IntVec);
    places.each([&](std::int64_t at, std::int64_t number) __attribute__((always_inline)) {
      store_loose(sums + at, load_loose(sums + at) + (place == static_cast<std::int32_t>(number) ? g : Vec{}));
    });
  });
}

void max_pool_backward(const Blocked& shape, const Window& window, const void* grad, const std::uint8_t* winner,
                       void* grad_x, int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    max_pool_backward_of(shape, window, static_cast<const Number*>(grad), winner, static_cast<Number*>(grad_x),
                         threads);
  });
}

inline float divisor_of(const WindowPlaces& places, std::int64_t divisor) {
  return static_cast<float>(divisor ? divisor : places.count());
}

template <typename Number>
void average_pool_of(const Blocked& shape, const Window& window, std::int64_t divisor, const Number* x, Number* y,
                     int threads) {
  each_plane(shape, threads, [=](std::int64_t plane) {
    const Number* const from = x + plane * shape.pixels() * kLanes;
    each_window(shape, window, plane, [=](const WindowPlaces& places, std::int64_t out) {
      Vec sum = {};
      places.each([&](std::int64_t at, std::int64_t) __attribute__((always_inline)) { sum += load(from + at); });
      store(y + out, sum / divisor_of(places, divisor));
    });
  });
}

void average_pool(const Blocked& shape, const Window& window, std::int64_t divisor, const void* x, void* y,
                  int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    average_pool_of(shape, window, divisor, static_cast<const Number*>(x), static_cast<Number*>(y), threads);
  });
}

template <typename Number>
void average_pool_backward_of(const Blocked& shape, const Window& window, std::int64_t divisor, const Number* grad,
                              Number* grad_x, int threads) {
  spread_gradient(shape, window, grad_x, threads, [=](const WindowPlaces& places, std::int64_t out, float* sums) {
    const Vec share = load(grad + out) / divisor_of(places, divisor);
    places.each([&](std::int64_t at, std::int64_t) __attribute__((always_inline)) {
      store_loose(sums + at, load_loose(sums + at) + share);
    });
  });
}

void average_pool_backward(const Blocked& shape, const Window& window, std::int64_t divisor, const void* grad,
                           void* grad_x, int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    average_pool_backward_of(shape, window, divisor, static_cast<const Number*>(grad), static_cast<Number*>(grad_x),
                             threads);
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const PoolKernels pool;
const PoolKernels pool = {max_pool, max_pool_backward, average_pool, average_pool_backward};
}  // namespace fedsparse::FEDSPARSE_ISA
