// Elements that stay of blocked activations, marked and packed (activation.h), for one instruction set. A thread owns
// whole chunks, so no two write the same cache line of bits and the result does not depend on their number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lines.h"
#include "saved.h"

namespace {

using fedsparse::Cuts;
using fedsparse::Held;
using fedsparse::Packed;

constexpr std::int64_t kChunkLines = Packed::kChunk / kLanes, kChunkBytes = Packed::kChunk / 8;
constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

std::int64_t line_count(const Blocked& shape) { return shape.groups(kLanes) * shape.channels * shape.pixels(); }
std::int64_t chunk_count(std::int64_t lines) { return (lines + kChunkLines - 1) / kChunkLines; }

// call(numbers) with float32 or bfloat16 data.
template <typename Call>
void with_numbers(const Held& x, Call call) {
  with_number(x.half, [&](auto zero) { call(static_cast<const decltype(zero)*>(x.term.data)); });
}

// Lines [first, last) of one channel of one group.
struct Run {
  std::int64_t group, channel, first, last;
};

// The runs that lines [first, last) of a tensor fall into.
template <typename Visit>
inline void each_run(const Blocked& shape, std::int64_t first, std::int64_t last, Visit visit) {
  for (std::int64_t next; first < last; first = next) {
    const std::int64_t plane = first / shape.pixels();
    next = std::min((plane + 1) * shape.pixels(), last);
    visit(Run{plane / shape.channels, plane % shape.channels, first, next});
  }
}

// Where all channels are read alike, an image is one long run.
Blocked walked(const Blocked& shape, const fedsparse::Term& term) {
  if (term.scale || term.shift) return shape;
  return {shape.batch, 1, shape.channels, shape.pixels()};
}

// visit(first chunk, last chunk) of each thread's share.
template <typename Visit>
void share_chunks(std::int64_t lines, int threads, Visit visit) {
  const std::int64_t chunks = chunk_count(lines);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t) visit(chunks * t / threads, chunks * (t + 1) / threads);
}

// Of lanes without an image nothing stays.
GroupCuts group_cuts(const Blocked& shape, const Cuts& cuts, std::int64_t group) {
  GroupCuts found(cuts, group);
  for (int i = images_in(shape, group); i < kLanes; ++i) {
    found.key[i] = kNever;
    found.last[i] = -1;
  }
  return found;
}

// ---- bits
std::int32_t count_bits(const std::uint8_t* bits) {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < kChunkBytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bits + i, sizeof word);
    sum += __builtin_popcountll(word);
  }
  return static_cast<std::int32_t>(sum);
}

// Lines of one channel, a word of bits at a time where they fill one.
template <typename Number>
void mark_lines(const Number* numbers, const Reader& read, IntVec floor, std::int64_t first, std::int64_t last,
                std::uint8_t* bits) {
  constexpr int kWordLines = 64 / kLanes;
  const auto stay = [&](std::int64_t line) {
    return bits_above(magnitude(read(load(numbers + line * kLanes))), floor);
  };
  std::int64_t line = first;
  for (; line < last && line % kWordLines; ++line) put_bits(bits, line, stay(line));
  for (; line + kWordLines <= last; line += kWordLines) {
    std::uint64_t word = 0;
#pragma GCC unroll 16
    for (int i = 0; i < kWordLines; ++i) word |= std::uint64_t{stay(line + i)} << (i * kLanes);
    std::memcpy(bits + line * kLanes / 8, &word, sizeof word);
  }
  for (; line < last; ++line) put_bits(bits, line, stay(line));
}

// Bits of chunks [begin, end), and behind each chunk's start how many they are.
template <typename Number>
void mark_chunks(const Blocked& shape, const Held& x, const Number* numbers, const Cuts& cuts,
                 std::int64_t begin, std::int64_t end, std::uint8_t* bits, std::int32_t* starts) {
  const std::int64_t lines = line_count(shape), image_lines = shape.channels * shape.pixels();
  if (end * kChunkLines > lines) std::memset(bits + (end - 1) * kChunkBytes, 0, kChunkBytes);
  each_run(walked(shape, x.term), begin * kChunkLines, std::min(end * kChunkLines, lines), [&](const Run& run) {
    const Reader read(x.term, run.channel);
    const GroupCuts stays = group_cuts(shape, cuts, run.group);
    const std::int64_t image = run.group * image_lines;
    for (std::int64_t line = run.first, next; line < run.last; line = next) {
      next = image + stays.floor_changes(line - image, run.last - image);
      mark_lines(numbers, read, stays.floor(line - image), line, next, bits);
    }
  });
  for (std::int64_t c = begin; c < end; ++c) starts[c + 1] = count_bits(bits + c * kChunkBytes);
}

// Makes starts of the counts behind chunks [begin, end), `before` values before them. Returns the values up to there.
std::int64_t add_up(std::int64_t before, std::int64_t begin, std::int64_t end, std::int32_t* starts) {
  for (std::int64_t c = begin; c < end; ++c) starts[c + 1] = static_cast<std::int32_t>(before += starts[c + 1]);
  return before;
}

std::int64_t mark_alone(const Blocked& shape, const Held& x, const Cuts& cuts, std::uint8_t* bits,
                        std::int32_t* starts, int threads) {
  const std::int64_t lines = line_count(shape);
  with_numbers(x, [&](const auto* numbers) {
    share_chunks(lines, threads, [&](std::int64_t begin, std::int64_t end) {
      mark_chunks(shape, x, numbers, cuts, begin, end, bits, starts);
    });
  });
  starts[0] = 0;
  return add_up(0, 0, chunk_count(lines), starts);
}

// ---- values
// The chosen numbers of lines [first, last), next to each other. Up to a register is written behind them.
template <typename Number>
void compress_lines(const Blocked& shape, const Held& x, const Number* numbers, const std::uint8_t* bits,
                    std::int64_t first, std::int64_t last, float* to) {
  each_run(shape, first, last, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line) {
      const LaneBits chosen = bits_at(bits, line);
      store_loose(to, compress(read(load(numbers + line * kLanes)), chosen));
      to += count(chosen);
    }
  });
}

// Lines [first, last) of which every number is chosen.
template <typename Number, typename Value>
void copy_lines(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t first, std::int64_t last,
                Value* to) {
  each_run(shape, first, last, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line, to += kLanes)
      store_loose(to, read(load(numbers + line * kLanes)));
  });
}

// What follows the values of the last chunks belongs to another thread, or to nobody.
void write_values(const float* from, std::int64_t count, float* to, bool) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}
void write_values(const float* from, std::int64_t count, Half* to, bool room) {
  std::int64_t i = 0;
  for (; i + (room ? 1 : kLanes) <= count; i += kLanes) store_loose(to + i, load_loose(from + i));
  if (i < count) store_some(to + i, load_loose(from + i), count - i);
}

// Chunk number c; from `limit` on, values are not its thread's.
template <typename Number, typename Value>
void pack_chunk(const Blocked& shape, const Held& x, const Number* numbers, const std::uint8_t* bits,
                const std::int32_t* starts, std::int64_t c, std::int64_t limit, Value* values) {
  const std::int64_t first = c * kChunkLines, last = std::min(first + kChunkLines, line_count(shape));
  const std::int64_t count = starts[c + 1] - starts[c];
  const bool room = limit - starts[c + 1] >= kLanes;
  Value* to = values + starts[c];
  if (count == Packed::kChunk) return copy_lines(shape, x, numbers, first, last, to);
  if constexpr (std::is_same_v<Value, float>)
    if (room) return compress_lines(shape, x, numbers, bits, first, last, to);
  // Rounded afterwards, bfloat16 costs no more than the values there are.
  alignas(64) float some[Packed::kChunk + kLanes];
  compress_lines(shape, x, numbers, bits, first, last, some);
  write_values(some, count, to, room);
}

template <typename Value>
void pack_values(const Blocked& shape, const Held& x, const std::uint8_t* bits, const std::int32_t* starts,
                 Value* values, int threads) {
  const Blocked walk = walked(shape, x.term);
  with_numbers(x, [&](const auto* numbers) {
    share_chunks(line_count(shape), threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) pack_chunk(walk, x, numbers, bits, starts, c, starts[end], values);
    });
  });
}

// ---- both at once
// Chunks that are marked before their values are packed: few enough to stay in the cache until then. Several threads
// wait for each other at every block, so that theirs are larger.
constexpr std::int64_t block_chunks(int threads) { return threads == 1 ? 8 : 64; }

// Blocks of a thread between the one it packs and the one it asks for, and activations, in bytes, that are asked for:
// where caches hold all of them it only takes time.
constexpr std::int64_t kAhead = 4, kFar = std::int64_t{8} << 20;

// Asks for a chunk: reading it for its marks alone would leave the memory idle that writes.
template <typename Number>
void ask_for(const Number* numbers, std::int64_t c) {
  constexpr std::int64_t kLine = 64 / sizeof(Number);
  for (std::int64_t i = 0; i < Packed::kChunk; i += kLine) __builtin_prefetch(numbers + c * Packed::kChunk + i);
}

// Chunks [begin, end) where they are packed as they are; false where they are not. A copy of many chunks is faster than
// that of their lines.
template <typename Number, typename Value>
bool copied_whole(const Held& x, const Number* numbers, const std::int32_t* starts, std::int64_t begin,
                  std::int64_t end, Value* values) {
  const std::int64_t count = starts[end] - starts[begin];
  const bool plain = !x.term.scale && !x.term.shift && !x.term.relu && std::is_same_v<Number, float>;
  if (!plain || !std::is_same_v<Value, float> || count < (end - begin) * Packed::kChunk) return false;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Value);
  std::memcpy(values + starts[begin], numbers + begin * Packed::kChunk, bytes);
  return true;
}

// Threads take blocks in turn; which values are before a block is known once the block before it is marked.
template <typename Value>
std::int64_t mark_and_pack(const Blocked& shape, const Held& x, const Cuts& cuts, std::uint8_t* bits,
                           std::int32_t* starts, Value* values, std::int64_t room, int threads) {
  const Blocked walk = walked(shape, x.term);
  const std::int64_t chunks = chunk_count(line_count(shape)), block = block_chunks(threads);
  std::int64_t sum = 0;
  starts[0] = 0;
  with_numbers(x, [&](const auto* numbers) {
    const bool far = chunks * Packed::kChunk * static_cast<std::int64_t>(sizeof *numbers) > kFar;
    const std::int64_t ahead = far ? kAhead * block * threads : chunks;
#pragma omp parallel for ordered num_threads(threads) schedule(static, 1)
    for (std::int64_t begin = 0; begin < chunks; begin += block) {
      const std::int64_t end = std::min(begin + block, chunks);
      std::int64_t limit = 0;
      mark_chunks(shape, x, numbers, cuts, begin, end, bits, starts);
#pragma omp ordered
      limit = sum = add_up(sum, begin, end, starts);
      if (limit > room || copied_whole(x, numbers, starts, begin, end, values)) continue;
      for (std::int64_t c = begin; c < end; ++c) {
        if (c + ahead < chunks - 1) ask_for(numbers, c + ahead);
        pack_chunk(walk, x, numbers, bits, starts, c, limit, values);
      }
    }
  });
  return sum;
}

std::int64_t mark(const Blocked& shape, const Held& x, const Cuts& cuts, std::uint8_t* bits, std::int32_t* starts,
                  void* values, bool half, std::int64_t room, int threads) {
  if (room == 0) return mark_alone(shape, x, cuts, bits, starts, threads);
  if (half) return mark_and_pack(shape, x, cuts, bits, starts, static_cast<Half*>(values), room, threads);
  return mark_and_pack(shape, x, cuts, bits, starts, static_cast<float*>(values), room, threads);
}

void pack(const Blocked& shape, const Held& x, const std::uint8_t* bits, const std::int32_t* starts, void* values,
          bool half, int threads) {
  if (half)
    pack_values(shape, x, bits, starts, static_cast<Half*>(values), threads);
  else
    pack_values(shape, x, bits, starts, static_cast<float*>(values), threads);
}

// ---- back
template <typename Value>
void unpack_values(std::int64_t lines, const Packed& packed, const Value* values, float* x, int threads) {
  share_chunks(lines, threads, [&](std::int64_t begin, std::int64_t end) {
    const Value* from = values + packed.starts[begin];
    for (std::int64_t line = begin * kChunkLines; line < std::min(end * kChunkLines, lines); ++line) {
      const LaneBits chosen = bits_at(packed.bits, line);
      store(x + line * kLanes, expand(load_loose(from), chosen));
      from += count(chosen);
    }
  });
}

void unpack(std::int64_t lines, const Packed& packed, float* x, int threads) {
  if (packed.half)
    unpack_values(lines, packed, static_cast<const Half*>(packed.values), x, threads);
  else
    unpack_values(lines, packed, static_cast<const float*>(packed.values), x, threads);
}

}  // namespace
