// Exact selection by magnitude inside segments of one flat array, ties to the lowest index: where to cut, and how many
// come before each tile. Every launch serves all segments.
//
// Tiles do not cross segments. Segment s begins with tile start[s] / kTile + s: there are at least as many tiles up to
// the next one as its elements need, and the number of all tiles follows from the number of all elements.
#pragma once

#include "digits.cuh"
#include "number.cuh"

namespace fedsparse::threshold {

constexpr int kWarps = kThreads / 32, kSteps = 32;  // of a warp, 32 elements each
constexpr std::int64_t kTile = std::int64_t{kThreads} * kSteps;

// Segment s holds the elements [start[s], start[s + 1]), of which wanted[s + 1] - wanted[s] are selected. Without the
// arrays there is one segment.
struct Segments {
  const std::int64_t* start;   // (count + 1) on the device, or null
  const std::int64_t* wanted;  // (count + 1)
  std::int64_t count, size, whole_wanted;

  __host__ __device__ std::int64_t tiles() const { return size / kTile + count; }
  __device__ std::int64_t begin(std::int64_t s) const { return start ? start[s] : s * size; }
  __device__ std::int64_t first_tile(std::int64_t s) const { return begin(s) / kTile + s; }
  __device__ std::int64_t first_wanted(std::int64_t s) const { return wanted ? wanted[s] : s * whole_wanted; }
};

// A tile of a segment. A warp owns kSteps * 32 elements in a row, from `first` of the array on.
struct Tile {
  std::int64_t segment, begin, first, end;

  __device__ Tile(const Segments& s, std::int64_t number) {
    std::int64_t low = 0, high = s.count;  // the last segment whose first tile is not behind this one
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      if (s.first_tile(middle) <= number)
        low = middle;
      else
        high = middle;
    }
    segment = low;
    begin = s.begin(low) + (number - s.first_tile(low)) * kTile;
    end = min(begin + kTile, s.begin(low + 1));
    first = begin + threadIdx.x / 32 * (32 * kSteps);
  }
};

// Keys of stored numbers: what comes first has the smaller key. Bits that the type leaves zero are no part of it.
template <typename T>
struct Stored;
template <>
struct Stored<float> {
  static constexpr int kBits = 31;
};
template <>
struct Stored<__nv_bfloat16> {
  static constexpr int kBits = 15;
};
template <>
struct Stored<__half> {
  static constexpr int kBits = 18;
};

template <typename T, bool kLargest>
__device__ __forceinline__ std::uint32_t key_of(T x) {
  constexpr int kUnused = 31 - Stored<T>::kBits;
  const std::uint32_t key = magnitude(widen(x)) >> kUnused;
  return kLargest ? (kMostMagnitude >> kUnused) - key : key;
}

// Selected are the keys below `key`, and of those equal to it the first `ties`.
struct Cut {
  std::uint32_t key, ties, equal;

  __device__ bool splits_ties() const { return ties < equal; }
};

// Keys of a tile or before it: below the cut, and equal to it.
struct Counts {
  std::uint32_t below, equal;
};

static __global__ void __launch_bounds__(kThreads)
    begin_cuts_kernel(const Segments segments, Cut* __restrict__ cuts, std::uint32_t* __restrict__ histograms) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < segments.count * kBins;
       i += stride) {
    histograms[i] = 0;
    if (i >= segments.count) continue;
    cuts[i] = {0, static_cast<std::uint32_t>(segments.first_wanted(i + 1) - segments.first_wanted(i)), 0};
  }
}

// Counts a digit of the keys that share the known ones.
template <typename T, bool kLargest>
__global__ void __launch_bounds__(kThreads)
    count_keys_kernel(const T* __restrict__ x, const Segments segments, const Cut* __restrict__ cuts, Digit digit,
                      std::uint32_t* __restrict__ histograms) {
  FEDSPARSE_SHARED(std::uint32_t, bins, kBins);
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) bins[bin] = 0;
  const Tile tile(segments, blockIdx.x);
  const std::uint32_t known = cuts[tile.segment].key;
  __syncthreads();
#pragma unroll 4
  for (std::int64_t i = tile.begin + threadIdx.x; i < tile.end; i += kThreads) {
    const std::uint32_t key = key_of<T, kLargest>(x[i]);
    if (digit.shares_higher(key, known)) atomicAdd(bins + digit.of(key), 1u);
  }
  __syncthreads();
  std::uint32_t* histogram = histograms + tile.segment * kBins;
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads)
    if (bins[bin] > 0) atomicAdd(histogram + bin, bins[bin]);
}

// One more digit of each segment's cut; leaves the histograms empty. A block for each segment.
static __global__ void __launch_bounds__(kThreads)
    find_digit_kernel(Cut* __restrict__ cuts, Digit digit, std::uint32_t* __restrict__ histograms) {
  std::uint32_t* histogram = histograms + std::int64_t{blockIdx.x} * kBins;
  Cut& cut = cuts[blockIdx.x];
  const Found found = find_bin(histogram, cut.ties);
  if (threadIdx.x == 0) cut = {cut.key | found.bin << digit.low, cut.ties - found.before, found.inside};
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) histogram[bin] = 0;
}

// What the warp's elements are to the cut.
template <typename T, bool kLargest>
__device__ __forceinline__ Counts count_own(const T* x, const Tile& tile, const Cut& cut) {
  Counts counts = {};
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t i = tile.first + step * 32 + threadIdx.x % 32;
    const std::uint32_t key = i < tile.end ? key_of<T, kLargest>(x[i]) : ~0u;
    counts.below += __popc(__ballot_sync(kEveryLane, key < cut.key));
    counts.equal += __popc(__ballot_sync(kEveryLane, key == cut.key));
  }
  return counts;
}

// Turns a warp's counts into those of the warps before it; `all`: of the whole tile. Begins and ends with a barrier.
__device__ __forceinline__ Counts before_warp(const Counts& own, Counts& all) {
  FEDSPARSE_SHARED(Counts, warps, kWarps);
  __syncthreads();  // earlier ones have been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  Counts before = {};
  all = {};
  for (unsigned warp = 0; warp < kWarps; ++warp) {
    const Counts here = warps[warp];
    all = {all.below + here.below, all.equal + here.equal};
    if (warp < threadIdx.x / 32) before = {before.below + here.below, before.equal + here.equal};
  }
  return before;
}

// Counts of every tile. With kTiesOnly a segment that takes all its ties is left out.
template <typename T, bool kLargest, bool kTiesOnly>
__global__ void __launch_bounds__(kThreads)
    count_cut_kernel(const T* __restrict__ x, const Segments segments, const Cut* __restrict__ cuts,
                     Counts* __restrict__ counts) {
  const Tile tile(segments, blockIdx.x);
  const Cut cut = cuts[tile.segment];
  if (kTiesOnly && !cut.splits_ties()) return;
  Counts all;
  before_warp(count_own<T, kLargest>(x, tile, cut), all);
  if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

// Counts of each tile become those of the tiles of its segment before it. A block for each segment.
template <bool kTiesOnly>
__global__ void __launch_bounds__(kThreads)
    sum_counts_kernel(const Segments segments, const Cut* __restrict__ cuts, const Counts* __restrict__ counts,
                      Counts* __restrict__ before) {
  if (kTiesOnly && !cuts[blockIdx.x].splits_ties()) return;
  const std::int64_t end = segments.first_tile(blockIdx.x + 1);
  Counts carried = {};
  for (std::int64_t base = segments.first_tile(blockIdx.x); base < end; base += kThreads) {
    const std::int64_t at = base + threadIdx.x;
    const Counts own = at < end ? counts[at] : Counts{};
    Counts total;
    const std::uint32_t below = sum_before(own.below, total.below), equal = sum_before(own.equal, total.equal);
    if (at < end) before[at] = {carried.below + below, carried.equal + equal};
    carried = {carried.below + total.below, carried.equal + total.equal};
  }
}

// Finds the cuts: one digit after the other.
template <typename T, bool kLargest>
int find_cuts(const T* x, const Segments& segments, Cut* cuts, std::uint32_t* histograms, void* stream) {
  int status = FEDSPARSE_LAUNCH(begin_cuts_kernel, blocks_for(segments.count * kBins), kThreads, 0, stream, segments,
                                cuts, histograms);
  for (int which = 0; which < digits_of(Stored<T>::kBits) && status == cudaSuccess; ++which) {
    const Digit digit(Stored<T>::kBits, which);
    const auto count = &count_keys_kernel<T, kLargest>;
    status = FEDSPARSE_LAUNCH(count, static_cast<unsigned>(segments.tiles()), kThreads, 0, stream, x, segments, cuts,
                              digit, histograms);
    if (status != cudaSuccess) break;
    status = FEDSPARSE_LAUNCH(find_digit_kernel, static_cast<unsigned>(segments.count), kThreads, 0, stream, cuts,
                              digit, histograms);
  }
  return status;
}

// Counts of keys in the tiles before each tile, after find_cuts.
template <typename T, bool kLargest, bool kTiesOnly>
int count_before(const T* x, const Segments& segments, const Cut* cuts, Counts* counts, Counts* before, void* stream) {
  const auto count = &count_cut_kernel<T, kLargest, kTiesOnly>;
  const int status = FEDSPARSE_LAUNCH(count, static_cast<unsigned>(segments.tiles()), kThreads, 0, stream, x, segments,
                                      cuts, counts);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(sum_counts_kernel<kTiesOnly>, static_cast<unsigned>(segments.count), kThreads, 0, stream,
                          segments, cuts, counts, before);
}

}  // namespace fedsparse::threshold
