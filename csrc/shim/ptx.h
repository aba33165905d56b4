// Twins of the instructions in csrc/cuda/ptx.cuh, written from the fragment layouts of the PTX ISA ("Matrix Fragments
// for mma.m16n8k16", "... mma.m16n8k8", "ldmatrix"). In all of them a lane is (group, member): group = lane / 4 counts
// rows or columns, member = lane % 4 pairs of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "warp.h"

namespace fedsparse::shim {

// ---- mma: d = a * b + d, a is 16 x depth by rows, b is depth x 8 by columns
struct Tile {
  float a[16][16], b[16][8];
};

struct MmaArgument {
  float* d;           // [4]
  const unsigned* a;  // [4]
  const unsigned* b;  // [2]
};

inline float bits_to_float(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

struct Bf16 {
  static float read(std::uint16_t bits) { return bits_to_float(std::uint32_t{bits} << 16); }
};

struct Fp16 {
  static float read(std::uint16_t bits) {
    _Float16 number;
    std::memcpy(&number, &bits, sizeof number);
    return static_cast<float>(number);
  }
};

// Sixteen-bit fragments: register r of a holds rows group + 8 * (r % 2), columns 8 * (r / 2) + 2 * member and the next
// one; register r of b the same positions of a column.
template <typename Number>
void unpack_k16(const MmaArgument& fragment, unsigned lane, Tile& tile) {
  const unsigned group = lane / 4, member = lane % 4;
  for (unsigned r = 0; r < 4; ++r)
    for (unsigned half = 0; half < 2; ++half)
      tile.a[group + 8 * (r % 2)][8 * (r / 2) + 2 * member + half] =
          Number::read(static_cast<std::uint16_t>(fragment.a[r] >> 16 * half));
  for (unsigned r = 0; r < 2; ++r)
    for (unsigned half = 0; half < 2; ++half)
      tile.b[8 * r + 2 * member + half][group] = Number::read(static_cast<std::uint16_t>(fragment.b[r] >> 16 * half));
}

// The lower 13 bits of a TF32 operand are not read.
inline void unpack_tf32(const MmaArgument& fragment, unsigned lane, Tile& tile) {
  const auto read = [](std::uint32_t bits) { return bits_to_float(bits & ~0x1fffu); };
  const unsigned group = lane / 4, member = lane % 4;
  for (unsigned r = 0; r < 4; ++r) tile.a[group + 8 * (r % 2)][4 * (r / 2) + member] = read(fragment.a[r]);
  for (unsigned r = 0; r < 2; ++r) tile.b[4 * r + member][group] = read(fragment.b[r]);
}

template <void (*unpack)(const MmaArgument&, unsigned, Tile&), int depth>
void complete_mma(MmaArgument* const* lanes, unsigned mask) {
  Tile tile;
  each_lane(mask, [&](unsigned i) { unpack(*lanes[i], i, tile); });
  each_lane(mask, [&](unsigned i) {
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned row = i / 4 + 8 * (r / 2), column = 2 * (i % 4) + r % 2;
      float sum = lanes[i]->d[r];
      for (int k = 0; k < depth; ++k) sum += tile.a[row][k] * tile.b[k][column];
      lanes[i]->d[r] = sum;
    }
  });
}

template <void (*unpack)(const MmaArgument&, unsigned, Tile&), int depth>
void mma(const char* name, Place place, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MmaArgument argument = {d, a, b};
  collective<MmaArgument, &complete_mma<unpack, depth>>(name, place, kAllLanes, argument);
}

// ---- ldmatrix: lanes 8 m to 8 m + 7 name the rows of matrix m, 8 sixteen-bit numbers each
struct LoadArgument {
  const void* row;
  unsigned* registers;
};

template <int matrices, bool transposed>
void complete_load(LoadArgument* const* lanes, unsigned mask) {
  each_lane(mask, [&](unsigned i) {
    for (unsigned m = 0; m < matrices; ++m) {
      std::uint16_t pair[2];
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned outer = i / 4, inner = 2 * (i % 4) + half;
        const unsigned row = transposed ? inner : outer, column = transposed ? outer : inner;
        std::memcpy(&pair[half], static_cast<const char*>(lanes[8 * m + row]->row) + 2 * column, 2);
      }
      lanes[i]->registers[m] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
  });
}

template <int matrices, bool transposed>
void load_matrices(const char* name, Place place, unsigned (&registers)[matrices], const void* row) {
  if (lane() < 8 * matrices && reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    fail("ldmatrix of a row that is not aligned to 16 bytes");
  LoadArgument argument = {row, registers};
  collective<LoadArgument, &complete_load<matrices, transposed>>(name, place, kAllLanes, argument);
}

}  // namespace fedsparse::shim
