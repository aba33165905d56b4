// Packing of activation.h for one instruction set. A thread owns whole chunks, so no two write the same cache line of
// bits and the result does not depend on their number.
#include "../arena.h"
#include "lines.h"
#include "saved.h"

namespace {

using fedsparse::Arena;
using fedsparse::Choice;
using fedsparse::Cuts;
using fedsparse::Held;
using fedsparse::Packed;

constexpr std::int64_t kChunkLines = Packed::kChunk / kLanes;
constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max(), kAlways = kNever;

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

// ---- packing
std::int32_t count_bits(const std::uint8_t* bits) {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < Packed::kChunk / 8; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bits + i, sizeof word);
    sum += __builtin_popcountll(word);
  }
  return static_cast<std::int32_t>(sum);
}

std::int64_t mark(const Blocked& shape, const Held& x, const Cuts& cuts, std::uint8_t* bits, std::int32_t* starts,
                  int threads) {
  const std::int64_t lines = line_count(shape), chunks = chunk_count(lines), bytes = Packed::kChunk / 8;
  std::memset(bits + (chunks - 1) * bytes, 0, bytes);  // the last one may not be full
  with_numbers(x, [&](const auto* numbers) {
    share_chunks(lines, threads, [&](std::int64_t begin, std::int64_t end) {
      each_run(shape, begin * kChunkLines, std::min(end * kChunkLines, lines), [&](const Run& run) {
        const Reader read(x.term, run.channel);
        const GroupCuts stays = group_cuts(shape, cuts, run.group);
        const std::int64_t image = run.group * shape.channels * shape.pixels();
        for (std::int64_t line = run.first; line < run.last; ++line) {
          const Vec v = read(load(numbers + line * kLanes));
          put_bits(bits, line, bits_of(stays(v, line - image)));
        }
      });
      for (std::int64_t c = begin; c < end; ++c) starts[c + 1] = count_bits(bits + c * bytes);
    });
  });
  std::int64_t sum = 0;
  starts[0] = 0;
  for (std::int64_t c = 1; c <= chunks; ++c) starts[c] = static_cast<std::int32_t>(sum += starts[c]);
  return sum;
}

template <typename Number, typename Value>
void pack_chunks(const Blocked& shape, const Held& x, const Number* numbers, const std::uint8_t* bits, Value* to,
                 const Value* end, std::int64_t first, std::int64_t last) {
  each_run(shape, first, last, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line) {
      const LaneBits chosen = bits_at(bits, line);
      const Vec v = compress(read(load(numbers + line * kLanes)), chosen);
      if (end - to >= kLanes)
        store_loose(to, v);
      else  // what follows belongs to another thread
        store_some(to, v, count(chosen));
      to += count(chosen);
    }
  });
}

template <typename Value>
void pack_values(const Blocked& shape, const Held& x, const std::uint8_t* bits, const std::int32_t* starts,
                 Value* values, int threads) {
  const std::int64_t lines = line_count(shape);
  with_numbers(x, [&](const auto* numbers) {
    share_chunks(lines, threads, [&](std::int64_t begin, std::int64_t end) {
      pack_chunks(shape, x, numbers, bits, values + starts[begin], values + starts[end], begin * kChunkLines,
                  std::min(end * kChunkLines, lines));
    });
  });
}

void pack(const Blocked& shape, const Held& x, const std::uint8_t* bits, const std::int32_t* starts, void* values,
          bool half, int threads) {
  if (half)
    pack_values(shape, x, bits, starts, static_cast<Half*>(values), threads);
  else
    pack_values(shape, x, bits, starts, static_cast<float*>(values), threads);
}

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

// ---- selection: the k-th largest key, digit by digit, from histograms with one column for each lane
struct Digit {
  int shift, width;

  int bins() const { return 1 << width; }
};
constexpr Digit kDigits[] = {{20, 11}, {10, 10}, {0, 10}};
constexpr std::int64_t kCounters = (std::int64_t{1} << kDigits[0].width) * kLanes;

IntVec keys_of(Vec v) { return reinterpret_cast<IntVec>(v) & kNever; }

// Counts the digit of the keys whose higher digits are `known`, of lines [first, last).
template <typename Number>
void count_digits(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t first, std::int64_t last,
                  Digit digit, IntVec known, std::uint32_t* counts) {
  const bool every = digit.shift == kDigits[0].shift;
  const int higher = digit.shift + digit.width;
  std::fill_n(counts, kLanes << digit.width, 0u);
  each_run(shape, first, last, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    const int images = images_in(shape, run.group);
    const LaneBits exist = static_cast<LaneBits>((std::uint64_t{1} << images) - 1);
    for (std::int64_t line = run.first; line < run.last; ++line) {
      const IntVec keys = keys_of(read(load(numbers + line * kLanes)));
      const IntVec bins = ((keys >> digit.shift) & (digit.bins() - 1)) * kLanes;
      if (every && images == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) ++counts[bins[i] + i];
        continue;
      }
      for (LaneBits left = exist & (every ? exist : bits_of((keys >> higher) == (known >> higher))); left;
           left &= left - 1)
        ++counts[bins[__builtin_ctz(left)] + __builtin_ctz(left)];
    }
  });
}

// Each lane's search for its own key.
struct Search {
  IntVec known = {};  // the digits found so far
  IntVec left;        // of the keys with these digits, how many are taken
  IntVec equal = {};  // and how many there are

  explicit Search(std::int32_t k) : left(IntVec{} + k) {}

  void descend(const std::uint32_t* counts, Digit digit) {
    IntVec found = {};
    for (int bin = digit.bins(); bin-- > 0 && bits_of(found) + 1 != LaneBits{1} << kLanes;) {
      IntVec here;
      std::memcpy(&here, counts + bin * kLanes, sizeof here);
      const IntVec hit = ~found & (left <= here);
      known |= hit & (bin << digit.shift);
      equal = hit ? here : equal;
      found |= hit;
      left -= ~found & here;
    }
  }
};

// Where the ties of a group's images end: the position of the equal key number `taken`, counted from 1.
template <typename Number>
void place_ties(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t group, IntVec key,
                IntVec taken, std::int32_t* last) {
  const std::int64_t lines = shape.channels * shape.pixels();
  each_run(shape, group * lines, (group + 1) * lines, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line) {
      const IntVec ties = (keys_of(read(load(numbers + line * kLanes))) == key) & (taken > 0);
      taken += ties;
      for (LaneBits done = bits_of(ties & (taken == 0)); done; done &= done - 1)
        last[__builtin_ctz(done)] = static_cast<std::int32_t>(line - group * lines);
    }
  });
}

// The cuts of a group whose images take `taken` of the `equal` elements at their key.
template <typename Number>
void write_cuts(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t group, IntVec key,
                IntVec taken, IntVec equal, std::int32_t* keys, std::int32_t* last) {
  IntVec split = {};
  for (int i = 0; i < kLanes; ++i) {
    const bool some = i < images_in(shape, group) && key[i] > 0;  // zeros are never stored
    keys[i] = i < images_in(shape, group) ? key[i] : kNever;
    last[i] = some && taken[i] == equal[i] ? kAlways : -1;
    if (some && taken[i] < equal[i]) split[i] = taken[i];
  }
  if (bits_of(split > 0)) place_ties(shape, x, numbers, group, key, split, last);
}

template <typename Number>
void select_each(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t k, std::int32_t* keys,
                 std::int32_t* last, std::uint32_t* counters, int threads) {
  const std::int64_t groups = shape.groups(kLanes), lines = shape.channels * shape.pixels();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t)
    for (std::int64_t group = groups * t / threads; group < groups * (t + 1) / threads; ++group) {
      Search search(static_cast<std::int32_t>(k));
      for (const Digit digit : kDigits) {
        std::uint32_t* counts = counters + t * kCounters;
        count_digits(shape, x, numbers, group * lines, (group + 1) * lines, digit, search.known, counts);
        search.descend(counts, digit);
      }
      write_cuts(shape, x, numbers, group, search.known, search.left, search.equal, keys + group * kLanes,
                 last + group * kLanes);
    }
}

// Elements of each image whose key is `key`.
template <typename Number>
IntVec count_equal(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t group, std::int32_t key) {
  const std::int64_t lines = shape.channels * shape.pixels();
  IntVec equal = {};
  each_run(shape, group * lines, (group + 1) * lines, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line)
      equal -= keys_of(read(load(numbers + line * kLanes))) == key;
  });
  for (int i = images_in(shape, group); i < kLanes; ++i) equal[i] = 0;
  return equal;
}

template <typename Number>
void select_together(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t k, std::int32_t* keys,
                     std::int32_t* last, std::uint32_t* counters, int threads) {
  const std::int64_t lines = line_count(shape);
  std::int32_t key = 0;
  std::int64_t left = k, equal = 0;
  for (const Digit digit : kDigits) {
    const IntVec known = IntVec{} + key;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t)
      count_digits(shape, x, numbers, lines * t / threads, lines * (t + 1) / threads, digit, known,
                   counters + t * kCounters);
    for (int bin = digit.bins(); bin-- > 0; left -= equal) {
      equal = 0;
      for (int t = 0; t < threads; ++t)
        for (int i = 0; i < kLanes; ++i) equal += counters[t * kCounters + bin * kLanes + i];
      if (left > equal) continue;
      key |= bin << digit.shift;
      break;
    }
  }
  // Ties are shared out to the images in their order.
  const bool split = key > 0 && left < equal;
  for (std::int64_t group = 0; group < shape.groups(kLanes); ++group) {
    const IntVec here = split ? count_equal(shape, x, numbers, group, key) : IntVec{};
    IntVec taken = {};
    for (int i = 0; i < kLanes; ++i) {
      taken[i] = static_cast<std::int32_t>(std::min<std::int64_t>(here[i], left));
      left -= taken[i];
    }
    write_cuts(shape, x, numbers, group, IntVec{} + key, taken, here, keys + group * kLanes, last + group * kLanes);
  }
}

std::int64_t select(const Blocked& shape, const Held& x, const Choice& choice, std::int32_t* key, std::int32_t* last,
                    void* workspace, int threads) {
  Arena arena(workspace);
  std::uint32_t* counters = arena.take<std::uint32_t>(threads * kCounters);
  if (!workspace) return arena.used();
  if (choice.k == 0) {
    std::fill_n(key, shape.groups(kLanes) * kLanes, kNever);
    std::fill_n(last, shape.groups(kLanes) * kLanes, -1);
    return arena.used();
  }
  with_numbers(x, [&](const auto* numbers) {
    if (choice.together)
      select_together(shape, x, numbers, choice.k, key, last, counters, threads);
    else
      select_each(shape, x, numbers, choice.k, key, last, counters, threads);
  });
  return arena.used();
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const ActivationKernels activation;
const ActivationKernels activation = {select, mark, pack, unpack};
}  // namespace fedsparse::FEDSPARSE_ISA
