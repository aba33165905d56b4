// Chosen lanes of a register moved next to each other and back. What the compilers' vector extension cannot say stands
// here, once for AVX-512, once for AVX2 and once in plain C++.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "number.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

using LaneBits = std::uint32_t;  // one bit for each lane

template <std::size_t... I>
inline IntVec each_lane_bit(std::index_sequence<I...>) {
  return IntVec{(1 << I)...};
}

// All ones in the chosen lanes.
inline IntVec lanes_of(LaneBits bits) {
  return ((IntVec{} + static_cast<std::int32_t>(bits)) & each_lane_bit(std::make_index_sequence<kLanes>{})) != 0;
}

// Lanes that are all ones; the others are zero.
inline LaneBits bits_of(IntVec lanes) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes));
#elif defined(__AVX2__)
  return static_cast<LaneBits>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#elif defined(__SSE2__)
  return static_cast<LaneBits>(_mm_movemask_ps(reinterpret_cast<__m128>(lanes)));
#else
  LaneBits bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<LaneBits>(lanes[i] & 1) << i;
  return bits;
#endif
}

// The lanes in which a is larger.
inline LaneBits bits_above(IntVec a, IntVec b) {
#if defined(__AVX512F__)
  // Left alone, compilers make a register of the mask and a mask of that register.
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
  return bits_of(a > b);
#endif
}

inline int count(LaneBits bits) { return __builtin_popcount(bits); }

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each choice of eight lanes, which lane goes to each place: byte i for lane i.
constexpr std::array<std::uint64_t, 256> permutations(bool expand) {
  std::array<std::uint64_t, 256> table{};
  for (std::uint64_t bits = 0; bits < 256; ++bits)
    for (std::uint64_t lane = 0, rank = 0; lane < 8; ++lane) {
      if (!(bits >> lane & 1)) continue;
      table[bits] |= expand ? rank << (8 * lane) : lane << (8 * rank);
      ++rank;
    }
  return table;
}
constexpr std::array<std::uint64_t, 256> kCompress = permutations(false), kExpand = permutations(true);

inline Vec permute(Vec v, std::uint64_t places) {
  const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(places)));
  return reinterpret_cast<Vec>(_mm256_permutevar8x32_ps(reinterpret_cast<__m256>(v), order));
}
#endif

// The chosen lanes, in order, in the first places; anything behind them.
inline Vec compress(Vec v, LaneBits bits) {
#if defined(__AVX512F__)
  // To a register: compressing into memory is slower than the store of a whole register.
  return reinterpret_cast<Vec>(_mm512_maskz_compress_ps(static_cast<__mmask16>(bits), reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return permute(v, kCompress[bits]);
#else
  Vec out{};
  for (int i = 0, to = 0; i < kLanes; ++i)
    if (bits >> i & 1) out[to++] = v[i];
  return out;
#endif
}

// The first lanes, in order, in the chosen places; zeros elsewhere.
inline Vec expand(Vec v, LaneBits bits) {
#if defined(__AVX512F__)
  hold(v);  // in a register: expanding from memory is slower than the load of a whole register
  return reinterpret_cast<Vec>(_mm512_maskz_expand_ps(static_cast<__mmask16>(bits), reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(permute(v, kExpand[bits])) & lanes_of(bits));
#else
  Vec out{};
  for (int i = 0, from = 0; i < kLanes; ++i)
    if (bits >> i & 1) out[i] = v[from++];
  return out;
#endif
}

// ---- one bit for each element of blocked activations
inline LaneBits bits_at(const std::uint8_t* bits, std::int64_t line) {
  if constexpr (kLanes == 4) return bits[line / 2] >> (line % 2 * 4) & 15u;
  LaneBits found = 0;
  std::memcpy(&found, bits + line * (kLanes / 8), kLanes / 8);
  return found;
}

// Lines in order: the second half of a byte finds the first one there.
inline void put_bits(std::uint8_t* bits, std::int64_t line, LaneBits chosen) {
  if constexpr (kLanes == 4) {
    const LaneBits before = line % 2 ? bits[line / 2] & 15u : 0;
    bits[line / 2] = static_cast<std::uint8_t>(before | chosen << (line % 2 * 4));
  } else {
    std::memcpy(bits + line * (kLanes / 8), &chosen, kLanes / 8);
  }
}

}  // namespace
