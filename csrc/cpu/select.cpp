// Exact selection of the k highest scores, by counting instead of sorting.
//
// A score becomes a key, an unsigned number that is larger the earlier the score is taken. The k-th largest key is
// found digit by digit from histograms. Where k is a small part, a bound estimated from a sample first discards most
// scores in one vectorised pass; it only ever discards what cannot be taken, so the result does not depend on it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "arena.h"
#include "fedsparse/api.h"
#include "kernels/simd.h"

namespace fedsparse {
namespace {

using Key = std::uint32_t;

constexpr Key kSign = 0x80000000u, kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
constexpr Key kNan = 0xffffffffu;  // above every number: a NaN always reaches the lists, where it is counted
constexpr Key kBarred = 0;         // below every number: a position that may not be taken

// Scores that are tested at once, by a register. The compiler makes no such code of a plain loop over a block.
constexpr std::int64_t kBlock = 16;
static_assert(kBlock % kLanes == 0);
using Mask = decltype(Vec{} < Vec{});
typedef std::int64_t Halves __attribute__((vector_size(sizeof(Vec))));

float magnitude(float x) { return std::fabs(x); }
Vec magnitude(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(x) & static_cast<int>(kMagnitude)); }

bool all(Mask mask) {
  const Halves halves = reinterpret_cast<Halves>(mask);
  std::int64_t every = -1;
  for (std::size_t i = 0; i < sizeof(Vec) / sizeof(std::int64_t); ++i) every &= halves[i];
  return every == -1;
}

// ---- orders: key of a score's bits, bits of a key, and whether a score comes after `bound` for sure (not so for NaN)
struct Largest {
  static Key key(Key bits) {
    const Key magnitude = bits & kMagnitude;
    const Key signless = magnitude == 0 ? 0 : bits;  // -0.0 ties with 0.0
    const Key order = signless & kSign ? ~signless : signless | kSign;
    return magnitude > kInfinity ? kNan : order;
  }
  static Key bits(Key key) { return key & kSign ? key ^ kSign : ~key; }
  template <typename T>
  static auto after(T x, T bound) {
    return x < bound;
  }
};

struct LargestMagnitude {
  static Key key(Key bits) {
    const Key magnitude = bits & kMagnitude;
    return magnitude > kInfinity ? kNan : magnitude + 1;
  }
  static Key bits(Key key) { return key - 1; }
  template <typename T>
  static auto after(T x, T bound) {
    return magnitude(x) < bound;
  }
};

struct SmallestMagnitude {
  static Key key(Key bits) {
    const Key magnitude = bits & kMagnitude;
    return magnitude > kInfinity ? kNan : kInfinity - magnitude + 1;
  }
  static Key bits(Key key) { return kInfinity - (key - 1); }
  template <typename T>
  static auto after(T x, T bound) {
    return magnitude(x) > bound;
  }
};

Key bits_of(float x) {
  Key bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(Key bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// ---- lists
// What is left of one contiguous range of scores, in order of position.
struct List {
  std::int64_t first = 0, size = 0;         // the range
  Key* keys = nullptr;                      // (size), room for half as many when positions are listed as well
  std::uint32_t* positions = nullptr;       // (count); null when count == size, and position i is first + i
  std::int64_t count = 0;
  std::int64_t above = 0, ties = 0, out = 0;  // keys above the cut and equal to it, where the first one goes
};

struct Lists {
  List* list;
  std::int64_t count;
  Key* histograms;  // (count, kBins)
  int threads;

  template <typename F>
  void each(F&& visit) const {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < count; ++i) visit(list[i], histograms + i * kBins);
  }

  static constexpr int kBits = 11, kFewBits = 8;  // of a digit: few keys are counted faster than many bins are cleared
  static constexpr std::int64_t kBins = 1 << kBits;
  static constexpr std::int64_t kFew = 1 << 14;
};

constexpr std::int64_t kGrain = 1 << 17;  // scores a thread is worth starting for
constexpr std::int64_t kMaxSample = 1 << 13;

template <typename Order>
bool block_after(const float* x, float bound) {
  const Vec bounds = broadcast(bound);
  Mask after = Order::after(load_loose(x), bounds);
  for (std::int64_t i = kLanes; i < kBlock; i += kLanes) after &= Order::after(load_loose(x + i), bounds);
  return all(after);
}

template <typename Order>
void list_all(const Scores& scores, List& list) {
  const float* x = scores.data + list.first;
  const std::uint8_t* among = scores.among ? scores.among + list.first : nullptr;
  list.positions = nullptr;
  list.count = list.size;
  if (among)
    for (std::int64_t i = 0; i < list.size; ++i) list.keys[i] = among[i] ? Order::key(bits_of(x[i])) : kBarred;
  else
    for (std::int64_t i = 0; i < list.size; ++i) list.keys[i] = Order::key(bits_of(x[i]));
}

// Lists what does not certainly come after `bound`; false when that is more than half of the range.
template <typename Order, bool kMasked>
bool list_some(const Scores& scores, float bound, List& list) {
  const float* x = scores.data + list.first;
  const std::uint8_t* among = kMasked ? scores.among + list.first : nullptr;
  const std::int64_t room = list.size / 2;
  list.positions = list.keys + room;
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < list.size; i += kBlock) {
    const std::int64_t block = std::min(kBlock, list.size - i);
    if (block == kBlock && block_after<Order>(x + i, bound)) continue;
    if (kept + block > room) return false;
    for (std::int64_t j = i; j < i + block; ++j) {
      list.positions[kept] = static_cast<std::uint32_t>(list.first + j);
      kept += !Order::after(x[j], bound) & (!kMasked || among[j]);
    }
  }
  list.count = kept;
  for (std::int64_t i = 0; i < kept; ++i) list.keys[i] = Order::key(bits_of(scores.data[list.positions[i]]));
  return true;
}

// ---- the cut
struct Cut {
  Key key;            // all above it are taken
  std::int64_t ties;  // and so many equal to it, the first ones
};

void count_digits(const List& list, Cut known, Key digits, int shift, Key bins, Key* histogram) {
  std::memset(histogram, 0, sizeof(Key) * bins);
  for (std::int64_t i = 0; i < list.count; ++i)
    if ((list.keys[i] & digits) == known.key) ++histogram[(list.keys[i] >> shift) & (bins - 1)];
}

// The k-th largest of `total` keys, 1 <= k <= total.
Cut find_cut(const Lists& lists, std::int64_t total, std::int64_t k) {
  Cut cut{0, k};
  Key digits = 0;  // those of the key that are known
  for (int shift = 32; shift > 0;) {
    const int width = std::min(shift, total <= Lists::kFew ? Lists::kFewBits : Lists::kBits);
    const Key bins = Key{1} << width;
    shift -= width;
    lists.each([&](const List& list, Key* histogram) { count_digits(list, cut, digits, shift, bins, histogram); });
    for (Key bin = bins; bin-- > 0;) {
      std::int64_t sum = 0;
      for (std::int64_t i = 0; i < lists.count; ++i) sum += lists.histograms[i * Lists::kBins + bin];
      if (cut.ties <= sum) {
        cut.key |= bin << shift;
        break;
      }
      cut.ties -= sum;
    }
    digits |= (bins - 1) << shift;
  }
  return cut;
}

// ---- the sample
// A score that most likely about k and at least k scores do not come after; NaN when none is worth the try.
template <typename Order>
float sampled_bound(const Scores& scores, std::int64_t k, Key* keys, Key* histogram) {
  const std::int64_t wanted = std::min(kMaxSample, scores.size / 64);
  const std::int64_t step = (scores.size / std::max<std::int64_t>(wanted, 1)) | 1;
  List sample;
  sample.keys = keys;
  for (std::int64_t i = 0; i < scores.size && sample.count < wanted; i += step)
    if (!scores.among || scores.among[i]) keys[sample.count++] = Order::key(bits_of(scores.data[i]));
  const double expected = static_cast<double>(k) * static_cast<double>(sample.count) /
                          static_cast<double>(std::max<std::int64_t>(scores.candidates, 1));
  const std::int64_t rank = static_cast<std::int64_t>(expected + 4 * std::sqrt(expected)) + 8;
  if (rank * 5 > sample.count * 2) return float_of(kNan);
  return float_of(Order::bits(find_cut({&sample, 1, histogram, 1}, sample.count, rank).key));
}

// ---- the result
std::int64_t count_nans(const Lists& lists) {
  std::int64_t nans = 0;
  lists.each([](List& list, Key*) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < list.count; ++i) found += list.keys[i] == kNan;
    list.above = found;
  });
  for (std::int64_t i = 0; i < lists.count; ++i) nans += lists.list[i].above;
  return nans;
}

// Each list's share of the ties and place in the output.
void share_out(const Lists& lists, const Cut& cut) {
  lists.each([&](List& list, Key*) {
    std::int64_t above = 0, ties = 0;
    for (std::int64_t i = 0; i < list.count; ++i) {
      above += list.keys[i] > cut.key;
      ties += list.keys[i] == cut.key;
    }
    list.above = above;
    list.ties = ties;
  });
  std::int64_t out = 0, ties = cut.ties;
  for (std::int64_t i = 0; i < lists.count; ++i) {
    List& list = lists.list[i];
    list.ties = std::min(list.ties, ties);
    list.out = out;
    ties -= list.ties;
    out += list.above + list.ties;
  }
}

void write(const List& list, Key cut, std::int64_t* positions) {
  const std::int64_t end = list.out + list.above + list.ties;
  std::int64_t ties = list.ties;
  // The place after the last taken one belongs to the next list: stop in time instead of testing each store.
  for (std::int64_t i = 0, at = list.out; at < end; ++i) {
    const bool tie = list.keys[i] == cut && ties > 0;
    positions[at] = list.positions ? list.positions[i] : list.first + i;
    ties -= tie;
    at += tie || list.keys[i] > cut;
  }
}

template <typename Order>
bool list_within(const Scores& scores, float bound, const Lists& lists) {
  bool fits = true;
#pragma omp parallel for num_threads(lists.threads) schedule(static) reduction(&& : fits)
  for (std::int64_t i = 0; i < lists.count; ++i)
    fits = (scores.among ? list_some<Order, true>(scores, bound, lists.list[i])
                         : list_some<Order, false>(scores, bound, lists.list[i])) && fits;
  return fits;
}

template <typename Order>
std::int64_t select(const Scores& scores, std::int64_t k, Lists lists, std::int64_t* positions) {
  // The keys of the sample lie where the lists will be: they are not needed any more by then.
  const float bound = sampled_bound<Order>(scores, k, lists.list[0].keys, lists.histograms);
  std::int64_t left = 0;
  if (bound == bound && list_within<Order>(scores, bound, lists))
    for (std::int64_t i = 0; i < lists.count; ++i) left += lists.list[i].count;
  if (left < std::max<std::int64_t>(k, 1)) {
    lists.each([&](List& list, Key*) { list_all<Order>(scores, list); });
    left = scores.size;
  }
  if (left < 2 * kGrain) lists.threads = 1;
  const std::int64_t nans = count_nans(lists);
  if (nans > 0 || k == 0) return nans;
  const Cut cut = find_cut(lists, left, k);
  share_out(lists, cut);
  lists.each([&](const List& list, Key*) { write(list, cut.key, positions); });
  return 0;
}

}  // namespace

std::int64_t select_top(const Scores& scores, std::int64_t k, SelectOrder order, int threads, std::int64_t* positions,
                        void* workspace) {
  const auto workers = static_cast<int>(std::clamp<std::int64_t>(scores.size / kGrain, 1, threads));
  Arena arena(workspace);
  Lists lists{arena.take<List>(workers), workers, arena.take<Key>(workers * Lists::kBins), workers};
  Key* keys = arena.take<Key>(scores.size);
  if (!workspace) return arena.used();
  for (int i = 0; i < workers; ++i) {
    List& list = *new (lists.list + i) List;
    list.first = scores.size * i / workers;
    list.size = scores.size * (i + 1) / workers - list.first;
    list.keys = keys + list.first;
  }
  switch (order) {
    case SelectOrder::largest_magnitude: return select<LargestMagnitude>(scores, k, lists, positions);
    case SelectOrder::smallest_magnitude: return select<SmallestMagnitude>(scores, k, lists, positions);
    default: return select<Largest>(scores, k, lists, positions);
  }
}

}  // namespace fedsparse
