// Transposes a register block at a time.
#include "../layout.h"

#include <algorithm>

#include "number.h"

namespace {

// One group: `images` rows of `size` numbers <-> size lines.
template <typename Number>
void pack_group(const Number* rows, std::int64_t size, std::int64_t images, Number* lines, std::int64_t first,
                std::int64_t last) {
  for (std::int64_t at = first; at < last; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, last - at);
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = Vec{};
      if (i >= images) continue;
      const Number* from = rows + i * size + at;
      block[i] = some == kLanes ? load_loose(from) : load_some(from, some);
    }
    transpose(block);
    for (std::int64_t i = 0; i < some; ++i) store(lines + (at + i) * kLanes, block[i]);
  }
}

template <typename Number>
void unpack_group(const Number* lines, std::int64_t size, std::int64_t images, Number* rows, std::int64_t first,
                  std::int64_t last) {
  for (std::int64_t at = first; at < last; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, last - at);
    Vec block[kLanes] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(some, kLanes); ++i) block[i] = load(lines + (at + i) * kLanes);
    transpose(block);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(images, kLanes); ++i) {
      Number* to = rows + i * size + at;
      if (some == kLanes)
        store_loose(to, block[i]);
      else
        store_some(to, block[i], some);
    }
  }
}

// Pieces of a group long enough to stream, short enough to share out.
constexpr std::int64_t kPiece = 64 * kLanes;

template <typename Convert>
void each_piece(std::int64_t batch, std::int64_t size, int threads, Convert&& convert) {
  const std::int64_t groups = (batch + kLanes - 1) / kLanes, pieces = (size + kPiece - 1) / kPiece;
#pragma omp parallel for num_threads(threads) schedule(static) if (groups * pieces > 1)
  for (std::int64_t i = 0; i < groups * pieces; ++i) {
    const std::int64_t group = i / pieces, first = i % pieces * kPiece;
    const std::int64_t images = std::min<std::int64_t>(kLanes, batch - group * kLanes);
    convert(group, images, first, std::min(first + kPiece, size));
  }
}

void to_blocked(std::int64_t batch, std::int64_t size, bool half, const void* rows, void* blocked, int threads) {
  with_number(half, [&](auto zero) {
    using Number = decltype(zero);
    const Number* from = static_cast<const Number*>(rows);
    Number* to = static_cast<Number*>(blocked);
    each_piece(batch, size, threads, [=](auto group, auto images, auto begin, auto end) {
      pack_group(from + group * kLanes * size, size, images, to + group * kLanes * size, begin, end);
    });
  });
}

void from_blocked(std::int64_t batch, std::int64_t size, bool half, const void* blocked, void* rows, int threads) {
  with_number(half, [&](auto zero) {
    using Number = decltype(zero);
    const Number* from = static_cast<const Number*>(blocked);
    Number* to = static_cast<Number*>(rows);
    each_piece(batch, size, threads, [=](auto group, auto images, auto begin, auto end) {
      unpack_group(from + group * kLanes * size, size, images, to + group * kLanes * size, begin, end);
    });
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const LayoutKernels layout;
const LayoutKernels layout = {to_blocked, from_blocked};
}  // namespace fedsparse::FEDSPARSE_ISA
