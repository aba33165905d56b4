// Barriers, warp collectives and atomics under the names that kernels call them by.
#pragma once

#include <algorithm>
#include <cstring>

#include "block.h"

namespace fedsparse::shim {

// A collective in which every lane brings an `Argument` and `complete(arguments of each lane, mask)` fills in answers.
template <typename Argument, void (*complete)(Argument* const*, unsigned)>
void collective(const char* name, Place place, unsigned mask, Argument& argument) {
  warp_collective(name, place, mask, &argument, [](void* const* arguments, unsigned lanes) {
    Argument* typed[kWarp];
    for (unsigned i = 0; i < kWarp; ++i) typed[i] = static_cast<Argument*>(arguments[i]);
    complete(typed, lanes);
  });
}

template <typename F>
void each_lane(unsigned mask, F&& visit) {
  for (unsigned i = 0; i < kWarp; ++i)
    if (mask >> i & 1) visit(i);
}

// ---- shuffles: each lane names the one that it reads
template <typename T>
struct Shuffle {
  T value;
  unsigned source;
  T answer;
};

// A lane that is read without taking part gives nothing useful on a device either.
template <typename T>
void complete_shuffle(Shuffle<T>* const* lanes, unsigned mask) {
  each_lane(mask, [&](unsigned i) {
    const Shuffle<T>* source = lanes[lanes[i]->source];
    if (source)
      lanes[i]->answer = source->value;
    else
      std::memset(static_cast<void*>(&lanes[i]->answer), 0xff, sizeof(T));
  });
}

template <typename T>
T shuffle(const char* name, Place place, unsigned mask, T value, unsigned source) {
  Shuffle<T> argument = {value, source, value};
  collective<Shuffle<T>, &complete_shuffle<T>>(name, place, mask, argument);
  return argument.answer;
}

// Lanes of the segment of `width` that this lane is in: the first of them, and its place among them.
struct Segment {
  unsigned first, place;

  explicit Segment(int width) : first(lane() / width * width), place(lane() % width) {}
};

// ---- votes and reductions: every lane of the mask gets the same answer
template <typename T>
struct Vote {
  T value;
  T answer;
};

template <typename T, typename Combine>
void complete_reduction(Vote<T>* const* lanes, unsigned mask) {
  bool first = true;
  T total{};
  each_lane(mask, [&](unsigned i) {
    total = first ? lanes[i]->value : Combine()(total, lanes[i]->value);
    first = false;
  });
  each_lane(mask, [&](unsigned i) { lanes[i]->answer = total; });
}

template <typename Combine, typename T>
T reduce(const char* name, Place place, unsigned mask, T value) {
  Vote<T> argument = {value, value};
  collective<Vote<T>, &complete_reduction<T, Combine>>(name, place, mask, argument);
  return argument.answer;
}

struct Plus {
  template <typename T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <typename T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};
struct Most {
  template <typename T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};
struct Both {
  unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Either {
  unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct OneOf {
  unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

template <typename T>
struct Match {
  T value;
  unsigned equal;
};

template <typename T>
void complete_match(Match<T>* const* lanes, unsigned mask) {
  each_lane(mask, [&](unsigned i) {
    lanes[i]->equal = 0;
    each_lane(mask, [&](unsigned j) {
      if (!std::memcmp(&lanes[i]->value, &lanes[j]->value, sizeof(T))) lanes[i]->equal |= 1u << j;
    });
  });
}

template <typename T>
unsigned match(const char* name, Place place, unsigned mask, T value) {
  Match<T> argument = {value, 0};
  collective<Match<T>, &complete_match<T>>(name, place, mask, argument);
  return argument.equal;
}

struct Nothing {};
inline void complete_nothing(Nothing* const*, unsigned) {}

// ---- atomics: one thread runs at a time; what is left to chance is which comes first
template <typename T, typename F>
T exchange(T* address, F&& change) {
  let_others_run();
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace fedsparse::shim

// ---- barriers
inline void __syncthreads(fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  fedsparse::shim::block_barrier("__syncthreads", place);
}

inline void __syncwarp(unsigned mask = fedsparse::shim::kAllLanes,
                       fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  Nothing nothing;
  collective<Nothing, &complete_nothing>("__syncwarp", place, mask, nothing);
}

// Memory is one here: whatever a thread has written, the next one to run sees.
inline void __threadfence() { fedsparse::shim::let_others_run(); }
inline void __threadfence_block() { fedsparse::shim::let_others_run(); }

// ---- shuffles
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  return shuffle("__shfl_sync", place, mask, value, Segment(width).first + static_cast<unsigned>(source) % width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  const unsigned source = lane() ^ static_cast<unsigned>(bits);
  // A lane of an earlier segment may be read, one of a later segment may not.
  return shuffle("__shfl_xor_sync", place, mask, value, source < Segment(width).first + width ? source : lane());
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  return shuffle("__shfl_up_sync", place, mask, value, Segment(width).place < delta ? lane() : lane() - delta);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  const bool inside = Segment(width).place + delta < static_cast<unsigned>(width);
  return shuffle("__shfl_down_sync", place, mask, value, inside ? lane() + delta : lane());
}

// ---- votes
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  return reduce<Either>("__ballot_sync", place, mask, predicate ? 1u << lane() : 0u);
}

inline int __any_sync(unsigned mask, int predicate, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  return reduce<Most>("__any_sync", place, mask, predicate ? 1 : 0);
}

inline int __all_sync(unsigned mask, int predicate, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  using namespace fedsparse::shim;
  return reduce<Least>("__all_sync", place, mask, predicate ? 1 : 0);
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::match("__match_any_sync", place, mask, value);
}

template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* all,
                          fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  *all = fedsparse::shim::match("__match_all_sync", place, mask, value) == mask;
  return *all ? mask : 0;
}

// ---- reductions of whole numbers
template <typename T>
T __reduce_add_sync(unsigned mask, T value, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::Plus>("__reduce_add_sync", place, mask, value);
}

template <typename T>
T __reduce_min_sync(unsigned mask, T value, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::Least>("__reduce_min_sync", place, mask, value);
}

template <typename T>
T __reduce_max_sync(unsigned mask, T value, fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::Most>("__reduce_max_sync", place, mask, value);
}

inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::Both>("__reduce_and_sync", place, mask, value);
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::Either>("__reduce_or_sync", place, mask, value);
}

inline unsigned __reduce_xor_sync(unsigned mask, unsigned value,
                                  fedsparse::shim::Place place = fedsparse::shim::Place::here()) {
  return fedsparse::shim::reduce<fedsparse::shim::OneOf>("__reduce_xor_sync", place, mask, value);
}

// ---- atomics
template <typename T>
T atomicAdd(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return static_cast<T>(old + value); });
}

template <typename T>
T atomicMin(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return std::min(old, value); });
}

template <typename T>
T atomicMax(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return std::max(old, value); });
}

template <typename T>
T atomicOr(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return static_cast<T>(old | value); });
}

template <typename T>
T atomicAnd(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return static_cast<T>(old & value); });
}

template <typename T>
T atomicExch(T* address, T value) {
  return fedsparse::shim::exchange(address, [&](T) { return value; });
}

template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return fedsparse::shim::exchange(address, [&](T old) { return old == expected ? value : old; });
}

// ---- what needs no other thread
using std::max;
using std::min;

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
