// Numbers in memory, float32 or bfloat16, as registers of float32: load, store, load_loose and store_loose for either.
#pragma once

#include <cstdint>
#include <cstring>

#include "../blocked.h"
#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

using fedsparse::Half;

typedef std::uint32_t WordVec __attribute__((vector_size(kLanes * sizeof(std::uint32_t)), may_alias));
typedef Half HalfVec __attribute__((vector_size(kLanes * sizeof(Half)), may_alias, aligned(2)));

// Left alone, compilers widen the two halves of a register one after the other.
inline WordVec words_of(HalfVec halves) {
#if defined(__AVX512F__)
  return reinterpret_cast<WordVec>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves)));
#else
  return __builtin_convertvector(halves, WordVec);
#endif
}

inline Vec load_loose(const Half* p) {
  return reinterpret_cast<Vec>(words_of(*reinterpret_cast<const HalfVec*>(p)) << 16);
}

// The low halves of words. Left alone, compilers move every one of them by itself.
inline HalfVec low_halves(WordVec words) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfVec>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i whole = reinterpret_cast<__m256i>(words);
  const __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
  return reinterpret_cast<HalfVec>(_mm_packus_epi32(low, high));
#else
  return __builtin_convertvector(words, HalfVec);
#endif
}

// To nearest, ties to even; NaN stays NaN.
inline void store_loose(Half* p, Vec v) {
  const WordVec words = reinterpret_cast<WordVec>(v);
  const WordVec rounded = words + 0x7fffu + ((words >> 16) & 1u), quiet = words | 0x400000u;
  *reinterpret_cast<HalfVec*>(p) = low_halves((v != v ? quiet : rounded) >> 16);
}

// Lines of bfloat16 are narrower than a register: nothing is gained by knowing that they are aligned.
inline Vec load(const Half* p) { return load_loose(p); }
inline void store(Half* p, Vec v) { store_loose(p, v); }

// The first numbers of a register, where a whole one would reach too far; zeros are read behind them.
template <typename Number>
inline Vec load_some(const Number* p, std::int64_t some) {
  Number whole[kLanes] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(some) * sizeof(Number));
  return load_loose(whole);
}
template <typename Number>
inline void store_some(Number* p, Vec v, std::int64_t some) {
  Number whole[kLanes];
  store_loose(whole, v);
  std::memcpy(p, whole, static_cast<std::size_t>(some) * sizeof(Number));
}

// call(a number of the type that is stored).
template <typename Call>
inline void with_number(bool half, Call&& call) {
  half ? call(Half{}) : call(float{});
}

}  // namespace
