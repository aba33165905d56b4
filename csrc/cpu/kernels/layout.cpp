// Transposes a register block at a time.
#include "../layout.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace {

// One group: `images` rows of `size` numbers <-> size lines.
void pack_group(const float* rows, std::int64_t size, std::int64_t images, float* lines, std::int64_t first, std::int64_t last) {
  for (std::int64_t at = first; at < last; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, last - at);
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = Vec{};
      if (i >= images) continue;
      const float* from = rows + i * size + at;
      if (some == kLanes)
        block[i] = load_loose(from);
      else
        std::memcpy(&block[i], from, static_cast<std::size_t>(some) * sizeof(float));
    }
    transpose(block);
    for (std::int64_t i = 0; i < some; ++i) store(lines + (at + i) * kLanes, block[i]);
  }
}

void unpack_group(const float* lines, std::int64_t size, std::int64_t images, float* rows, std::int64_t first, std::int64_t last) {
  for (std::int64_t at = first; at < last; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, last - at);
    Vec block[kLanes] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(some, kLanes); ++i) block[i] = load(lines + (at + i) * kLanes);
    transpose(block);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(images, kLanes); ++i) {
      float* to = rows + i * size + at;
      if (some == kLanes)
        store_loose(to, block[i]);
      else
        std::memcpy(to, &block[i], static_cast<std::size_t>(some) * sizeof(float));
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

void to_blocked(std::int64_t batch, std::int64_t size, const float* rows, float* blocked, int threads) {
  each_piece(batch, size, threads, [&](std::int64_t group, std::int64_t images, std::int64_t first, std::int64_t last) {
    pack_group(rows + group * kLanes * size, size, images, blocked + group * kLanes * size, first, last);
  });
}

void from_blocked(std::int64_t batch, std::int64_t size, const float* blocked, float* rows, int threads) {
  each_piece(batch, size, threads, [&](std::int64_t group, std::int64_t images, std::int64_t first, std::int64_t last) {
    unpack_group(blocked + group * kLanes * size, size, images, rows + group * kLanes * size, first, last);
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const LayoutKernels layout;
const LayoutKernels layout = {to_blocked, from_blocked};
}  // namespace fedsparse::FEDSPARSE_ISA
