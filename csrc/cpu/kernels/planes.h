// Between torch's layouts and planes of batch-innermost lines, by transposing one register block at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "../gather.h"
#include "simd.h"

namespace {

using fedsparse::Planes;

inline float* line_of(const Planes& planes, std::int64_t channel, std::int64_t y, std::int64_t x) {
  return planes.data + (channel * planes.lines + (y + planes.top) * planes.pitch + x + planes.left) * kLanes;
}

// Walks the pixels of a picture in reading order and knows the line of each.
struct PixelWalk {
  float* line;
  std::int64_t x = 0, width, row_gap;

  PixelWalk(const Planes& planes, std::int64_t channel)
      : line(line_of(planes, channel, 0, 0)), width(planes.width), row_gap((planes.pitch - planes.width) * kLanes) {}

  void next() {
    line += kLanes;
    if (++x == width) {
      x = 0;
      line += row_gap;
    }
  }
};

// A channel of `images` neighbouring pictures -> one plane; lanes without a picture become zero.
inline void pack_picture(const float* first, std::int64_t picture_stride, std::int64_t images, const Planes& planes,
                         std::int64_t channel) {
  const std::int64_t pixels = planes.height * planes.width;
  PixelWalk walk(planes, channel);
  for (std::int64_t at = 0; at < pixels; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, pixels - at);
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = Vec{};
      if (i >= images) continue;
      const float* from = first + i * picture_stride + at;
      if (some == kLanes)
        block[i] = load_loose(from);
      else
        std::memcpy(&block[i], from, static_cast<std::size_t>(some) * sizeof(float));
    }
    transpose(block);
    for (std::int64_t i = 0; i < some; ++i, walk.next()) store(walk.line, block[i]);
  }
}

inline void unpack_picture(const Planes& planes, std::int64_t channel, float* first, std::int64_t picture_stride,
                           std::int64_t images) {
  const std::int64_t pixels = planes.height * planes.width;
  PixelWalk walk(planes, channel);
  for (std::int64_t at = 0; at < pixels; at += kLanes) {
    const std::int64_t some = std::min<std::int64_t>(kLanes, pixels - at);
    Vec block[kLanes] = {};
    for (std::int64_t i = 0; i < some; ++i, walk.next()) block[i] = load(walk.line);
    transpose(block);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(images, kLanes); ++i) {
      float* to = first + i * picture_stride + at;
      if (some == kLanes)
        store_loose(to, block[i]);
      else
        std::memcpy(to, &block[i], static_cast<std::size_t>(some) * sizeof(float));
    }
  }
}

inline void clear_plane(const Planes& planes, std::int64_t channel) {
  std::memset(planes.data + channel * planes.lines * kLanes, 0,
              static_cast<std::size_t>(planes.lines) * kLanes * sizeof(float));
}

// Channels [c, c + some) of a (batch, channels) matrix; a pixel's line holds kLanes consecutive batch entries.
inline void pack_rows(const float* matrix, std::int64_t width, std::int64_t first_row, std::int64_t batch,
                      const Planes& planes, std::int64_t column, std::int64_t channel, std::int64_t some) {
  const std::int64_t pixels = planes.height * planes.width;
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = Vec{};
      const std::int64_t row = first_row + pixel * kLanes + i;
      if (row < batch)
        std::memcpy(&block[i], matrix + row * width + column, static_cast<std::size_t>(some) * sizeof(float));
    }
    transpose(block);
    float* line = line_of(planes, channel, pixel / planes.width, pixel % planes.width);
    for (std::int64_t i = 0; i < some; ++i) store(line + i * planes.lines * kLanes, block[i]);
  }
}

inline void unpack_rows(const Planes& planes, std::int64_t channel, std::int64_t some, float* matrix,
                        std::int64_t width, std::int64_t first_row, std::int64_t batch) {
  const std::int64_t pixels = planes.height * planes.width;
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    Vec block[kLanes] = {};
    const float* line = line_of(planes, channel, pixel / planes.width, pixel % planes.width);
    for (std::int64_t i = 0; i < some; ++i) block[i] = load(line + i * planes.lines * kLanes);
    transpose(block);
    for (int i = 0; i < kLanes; ++i) {
      const std::int64_t row = first_row + pixel * kLanes + i;
      if (row < batch)
        std::memcpy(matrix + row * width + channel, &block[i], static_cast<std::size_t>(some) * sizeof(float));
    }
  }
}

}  // namespace
