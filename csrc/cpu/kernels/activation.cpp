// Selection of activation.h for one instruction set, and its table of kernels.
#include "../arena.h"
#include "packing.h"

namespace {

using fedsparse::Arena;
using fedsparse::Choice;

constexpr std::int32_t kAlways = kNever;

// The k-th largest key, digit by digit, from histograms with one column for each lane
struct Digit {
  int shift, width;

  int bins() const { return 1 << width; }
};
constexpr Digit kDigits[] = {{20, 11}, {10, 10}, {0, 10}};
constexpr std::int64_t kCounters = (std::int64_t{1} << kDigits[0].width) * kLanes;

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
      const IntVec keys = magnitude(read(load(numbers + line * kLanes)));
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
      const IntVec ties = (magnitude(read(load(numbers + line * kLanes))) == key) & (taken > 0);
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

// Of k elements at and above a key, of which `taken` are at it, zeros are not stored.
std::int64_t stored(std::int64_t k, std::int32_t key, std::int64_t taken) { return key > 0 ? k : k - taken; }

template <typename Number>
std::int64_t select_each(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t k,
                         std::int32_t* keys, std::int32_t* last, std::uint32_t* counters, int threads) {
  const std::int64_t groups = shape.groups(kLanes), lines = shape.channels * shape.pixels();
  std::int64_t count = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : count)
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
      for (int i = 0; i < images_in(shape, group); ++i) count += stored(k, search.known[i], search.left[i]);
    }
  return count;
}

// Elements of each image whose key is `key`.
template <typename Number>
IntVec count_equal(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t group, std::int32_t key) {
  const std::int64_t lines = shape.channels * shape.pixels();
  IntVec equal = {};
  each_run(shape, group * lines, (group + 1) * lines, [&](const Run& run) {
    const Reader read(x.term, run.channel);
    for (std::int64_t line = run.first; line < run.last; ++line)
      equal -= magnitude(read(load(numbers + line * kLanes))) == key;
  });
  for (int i = images_in(shape, group); i < kLanes; ++i) equal[i] = 0;
  return equal;
}

template <typename Number>
std::int64_t select_together(const Blocked& shape, const Held& x, const Number* numbers, std::int64_t k,
                             std::int32_t* keys, std::int32_t* last, std::uint32_t* counters, int threads) {
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
  const std::int64_t count = stored(k, key, left);
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
  return count;
}

std::int64_t select(const Blocked& shape, const Held& x, const Choice& choice, std::int32_t* key, std::int32_t* last,
                    void* workspace, int threads) {
  Arena arena(workspace);
  std::uint32_t* counters = arena.take<std::uint32_t>(threads * kCounters);
  if (!workspace) return arena.used();
  if (choice.k == 0) {
    std::fill_n(key, shape.groups(kLanes) * kLanes, kNever);
    std::fill_n(last, shape.groups(kLanes) * kLanes, -1);
    return 0;
  }
  std::int64_t count = 0;
  with_numbers(x, [&](const auto* numbers) {
    count = (choice.together ? select_together(shape, x, numbers, choice.k, key, last, counters, threads)
                             : select_each(shape, x, numbers, choice.k, key, last, counters, threads));
  });
  return count;
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const ActivationKernels activation;
const ActivationKernels activation = {select, mark, pack, unpack};
}  // namespace fedsparse::FEDSPARSE_ISA
