// Weight gradients on tensor cores: 16 lines of a slab times 8 target channels, the samples of two pixels being the
// depth. What the gradient of kept lines and that of all lines share.
#pragma once

#include "block_math.cuh"

namespace fedsparse::block {

constexpr int kTargets = 64;               // channels of a block
constexpr std::int64_t kFullDevice = 264;  // blocks that keep 132 SMs busy, two each
constexpr int kMostPixels = 32;            // of a tile
constexpr int kMostBytes = kStageBytes + kTargets * (kMostPixels + 1) * kBatch * 4;

// The pixels of a tile of grad_y, by channel of the strip; an odd number of lines from one to the next.
__host__ __device__ inline std::int32_t slope_pitch(const csr16::Problem& p) {
  return p.tile.pixels() | 1;
}

// Copies a tile of grad_y for `rows` channels from `first` on, zeros outside the picture and for channels that strips
// of `width` together lack.
template <typename T>
__device__ __forceinline__ void copy_slopes(T* slopes, const T* grad_y, const csr16::Problem& p,
                                            const csr16::Place& place, const Pixels& pixels, std::int32_t first,
                                            std::int32_t rows, std::int32_t width) {
  constexpr std::int32_t kPiece = 16 / sizeof(T), kPieces = kBatch / kPiece;
  const std::int32_t pieces = p.tile.pixels() * kPieces;
  for (std::int32_t i = threadIdx.x; i < width * pieces; i += csr16::kThreads) {
    const std::int32_t row = i / pieces, pixel = i % pieces / kPieces, part = i % kPieces * kPiece;
    const bool live = row < rows && pixels.live(p, place, pixel);
    const std::int64_t line = live ? (first + row) * p.target.channel + pixels.target(p, place, pixel) : 0;
    ptx::copy_async16(slopes + (row * slope_pitch(p) + pixel) * kBatch + part, grad_y + line * kBatch + part, live);
  }
  ptx::commit_copies();
}

// How the warps of a strip divide its chunks and, where these are few, the tile's pixels. Chunks go round the teams, so
// that none has more than one above another.
struct Teams {
  std::int32_t teams, team, parts, part, sets;  // sets: chunks of this warp

  __device__ Teams(std::int32_t chunks, std::int32_t warps, std::int32_t most) : teams(1) {
    const auto warp = static_cast<std::int32_t>(threadIdx.x / 32) % warps;
    while (teams * most < chunks) teams *= 2;
    parts = warps / teams;
    team = warp % teams;
    part = warp / teams;
    sets = (chunks - team + teams - 1) / teams;
  }
  __device__ __forceinline__ std::int32_t chunk(int set) const { return team + set * teams; }
  __device__ __forceinline__ bool has(int set) const { return set < sets; }
};

// The distances of a lane's lines: 16 bits, of the row that it names to ldmatrix; 32 bits, of rows `group` and `group`
// + 8.
template <bool kWide, int kSets>
struct Distances {
  std::int32_t of[kSets][kWide ? 2 : 1];

  // `line` gives that of a line of a chunk.
  template <typename F>
  __device__ __forceinline__ Distances(const Teams& teams, F&& line) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      if (!teams.has(set)) continue;
      if constexpr (kWide) {
        of[set][0] = line(teams.chunk(set), lane / 4);
        of[set][1] = line(teams.chunk(set), lane / 4 + 8);
      } else {
        of[set][0] = line(teams.chunk(set), lane % 16);
      }
    }
  }
};

// Adds the products of one pair of pixels. A pixel outside the picture takes its lines from the zeros: x may be
// infinite where only other pixels read it.
template <typename A, int kSets, int kTiles>
__device__ __forceinline__ void correlate_pair(float (&sum)[kSets][kTiles][4], const Teams& teams,
                                               const Distances<A::kWide, kSets>& distance,
                                               const typename A::Number* stage, const typename A::Number* slopes,
                                               std::int32_t pitch, std::int32_t zeros, std::int32_t first_pixel,
                                               const Pixels& pixels, const csr16::Problem& problem,
                                               const csr16::Place& place) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  if constexpr (A::kWide) {
    // Depth: member m holds 4 samples of pixel m / 2, two for each of two steps.
    const std::int32_t pixel = first_pixel + lane % 4 / 2, half = lane % 2 * 4;
    const bool live = pixels.live(problem, place, pixel);
    const std::int32_t some = live ? ~0 : 0;  // so that a set has but to add its distances
    const auto* const lines = stage + (live ? pixels.distance(pixel) : zeros) * kBatch + half;
    typename A::Right b[2][kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const auto y = load_words<4>(slopes + ((8 * t + lane / 4) * pitch + pixel) * kBatch + half);
      b[0][t] = A::right(y.word[0], y.word[1]);
      b[1][t] = A::right(y.word[2], y.word[3]);
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      if (!teams.has(set)) continue;
      const auto x = load_words<4>(lines + (distance.of[set][0] & some) * kBatch);
      const auto z = load_words<4>(lines + (distance.of[set][1] & some) * kBatch);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const auto a = A::left({x.word[2 * s], z.word[2 * s], x.word[2 * s + 1], z.word[2 * s + 1]});
#pragma unroll
        for (int t = 0; t < kTiles; ++t) A::multiply_add(sum[set][t], a, b[s][t]);
      }
    }
  } else {
    const std::int32_t pixel = first_pixel + lane / 16;
    const bool live = pixels.live(problem, place, pixel);
    const std::int32_t some = live ? ~0 : 0;  // so that a set has but to add its distances
    const auto* const lines = stage + (live ? pixels.distance(pixel) : zeros) * kBatch;
    typename A::Right b[kTiles];
    if constexpr (kTiles == 1) {
      unsigned y[2];
      ptx::load_matrices(y, slopes + (lane % 8 * pitch + first_pixel + lane / 8 % 2) * kBatch);
      b[0] = A::right(y[0], y[1]);
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        unsigned y[4];
        const std::int32_t row = 8 * (t + lane / 16) + lane % 8;
        ptx::load_matrices(y, slopes + (row * pitch + first_pixel + lane / 8 % 2) * kBatch);
        b[t] = A::right(y[0], y[1]);
        b[t + 1] = A::right(y[2], y[3]);
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      if (!teams.has(set)) continue;
      unsigned a[4];
      ptx::load_matrices(a, lines + (distance.of[set][0] & some) * kBatch);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) A::multiply_add(sum[set][t], A::left(a), b[t]);
    }
  }
}

// Adds the sums of warps that share chunks, in the order of their pixels, to `shared` at place(chunk, line, channel). All
// warps of a block go through as many rounds, as many as the most that share a chunk; ends with a barrier.
template <int kSets, int kTiles, typename F>
__device__ __forceinline__ void add_warps(const float (&sum)[kSets][kTiles][4], const Teams& teams, std::int32_t rounds,
                                          float* shared, F&& place) {
  const auto group = static_cast<std::int32_t>(threadIdx.x % 32 / 4), member = static_cast<std::int32_t>(threadIdx.x % 4);
  for (std::int32_t part = 0; part < rounds; ++part) {
    __syncthreads();  // the tile has been read, the part before been added
    if (part != teams.part) continue;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      if (!teams.has(set)) continue;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& total = shared[place(teams.chunk(set), group + i / 2 * 8, t * 8 + 2 * member + i % 2)];
          total = part == 0 ? sum[set][t][i] : total + sum[set][t][i];
        }
    }
  }
  __syncthreads();
}

}  // namespace fedsparse::block
