// One register of floats for the instruction set this file is compiled for, written with the compilers' portable
// vector extension: the same source serves AVX-512, AVX2, SSE2 and NEON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#define FEDSPARSE_LANES 16
#elif defined(__AVX2__)
#define FEDSPARSE_LANES 8
#else
#define FEDSPARSE_LANES 4
#endif

namespace {

constexpr int kLanes = FEDSPARSE_LANES;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef float LooseVec __attribute__((vector_size(kLanes * sizeof(float)), may_alias, aligned(4)));

// What comparisons of registers give: all ones where they hold.
typedef std::int32_t IntVec __attribute__((vector_size(kLanes * sizeof(std::int32_t)), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec load_loose(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store_loose(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec broadcast(float x) { return x - Vec{}; }

// Keeps a loaded line in a register: left alone, the compiler folds the load into each of its two uses, and the
// second trip to the cache costs what the fused backward pass saves.
inline void hold(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// Lanes whose index has bit S set come from the partner row, shifted by S: one stage of a butterfly.
template <int S, std::size_t... I>
inline Vec low_half(Vec a, Vec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? kLanes + static_cast<int>(I) - S : static_cast<int>(I))...);
}
template <int S, std::size_t... I>
inline Vec high_half(Vec a, Vec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? kLanes + static_cast<int>(I) : static_cast<int>(I) + S)...);
}

template <int S = 1>
inline void transpose(Vec* rows) {
  if constexpr (S < kLanes) {
    using Lanes = std::make_index_sequence<kLanes>;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & S) continue;
      const Vec a = rows[i], b = rows[i + S];
      rows[i] = low_half<S>(a, b, Lanes{});
      rows[i + S] = high_half<S>(a, b, Lanes{});
    }
    transpose<S * 2>(rows);
  }
}

// Lane j of the result is the sum over the lanes of rows[j].
template <int S = 1>
inline Vec sum_each(Vec* rows) {
  if constexpr (S < kLanes) {
    using Lanes = std::make_index_sequence<kLanes>;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * S)
      rows[i] = low_half<S>(rows[i], rows[i + S], Lanes{}) + high_half<S>(rows[i], rows[i + S], Lanes{});
    return sum_each<S * 2>(rows);
  } else {
    return rows[0];
  }
}

}  // namespace
