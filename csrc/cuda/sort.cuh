// A stable sort of entries whose number the device alone knows: a radix sort by digits of 8 bits, the lowest first. A
// launch counts the digits of each tile, the next one puts every entry where the counts say; nothing waits for a block
// of the same launch, and no order is left to chance.
#pragma once

#include "collective.cuh"

namespace fedsparse::sort {

constexpr int kBits = 8, kBins = 1 << kBits;
constexpr int kWarps = kThreads / 32, kSteps = 16;       // of a warp, 32 entries each
constexpr std::int64_t kTile = kThreads * kSteps;
static_assert(kBins == kThreads, "a thread owns a bin");

inline std::int64_t tiles_of(std::int64_t capacity) { return (capacity + kTile - 1) / kTile; }
inline std::int64_t table_size(std::int64_t capacity) { return tiles_of(capacity) * kBins; }
constexpr int passes_of(int bits) { return (bits + kBits - 1) / kBits; }

// The entries: as many as `count` says, where there is one, but no more than there is room for.
template <typename Entry>
struct List {
  const Entry* entry;
  const std::uint32_t* count;
  std::uint32_t capacity;

  __device__ std::uint32_t size() const { return count ? min(*count, capacity) : capacity; }
};

// How often each warp's entries have each digit; ends with a barrier.
template <typename Entry, typename Order>
__device__ __forceinline__ void count_digits(const List<Entry>& list, const Order& order, int shift,
                                             std::uint32_t* counts) {
  for (int bin = static_cast<int>(threadIdx.x % 32); bin < kBins; bin += 32) counts[bin] = 0;
  __syncwarp();
  const std::uint32_t first = blockIdx.x * kTile + threadIdx.x / 32 * 32 * kSteps + threadIdx.x % 32;
  for (int step = 0; step < kSteps; ++step) {
    const std::uint32_t at = first + step * 32;
    const bool live = at < list.size();
    count(counts, live, live ? order(list.entry[at]) >> shift & (kBins - 1) : 0);
    __syncwarp();
  }
  __syncthreads();
}

template <typename Entry, typename Order>
__global__ void __launch_bounds__(kThreads)
    count_tiles_kernel(const List<Entry> list, Order order, int shift, std::uint32_t* __restrict__ table) {
  FEDSPARSE_SHARED(std::uint32_t, counts, kWarps * kBins);
  count_digits(list, order, shift, counts + threadIdx.x / 32 * kBins);
  std::uint32_t sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp * kBins + threadIdx.x];
  table[blockIdx.x * kBins + threadIdx.x] = sum;
}

template <typename Entry, typename Order>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const List<Entry> list, Order order, int shift, const std::uint32_t* __restrict__ table,
                   Entry* __restrict__ out) {
  FEDSPARSE_SHARED(std::uint32_t, counts, kWarps * kBins);
  std::uint32_t* const own = counts + threadIdx.x / 32 * kBins;
  count_digits(list, order, shift, own);
  std::uint32_t place = 0, sum = 0;  // of this thread's digit: entries of tiles before, of all tiles
  for (unsigned tile = 0; tile < gridDim.x; ++tile) {
    const std::uint32_t here = table[tile * kBins + threadIdx.x];
    if (tile < blockIdx.x) place += here;
    sum += here;
  }
  std::uint32_t total;
  place += sum_before(sum, total);
  for (int warp = 0; warp < kWarps; ++warp) {
    const std::uint32_t here = counts[warp * kBins + threadIdx.x];
    counts[warp * kBins + threadIdx.x] = place;
    place += here;
  }
  __syncthreads();
  const std::uint32_t first = blockIdx.x * kTile + threadIdx.x / 32 * 32 * kSteps + threadIdx.x % 32;
  for (int step = 0; step < kSteps; ++step) {
    const std::uint32_t at = first + step * 32;
    const bool live = at < list.size();
    const Entry entry = live ? list.entry[at] : Entry{};
    const auto digit = static_cast<std::uint32_t>(live ? order(entry) >> shift & (kBins - 1) : 0);
    const unsigned equal = __match_any_sync(kEveryLane, live ? digit : ~0u);
    const std::uint32_t to = own[digit] + __popc(equal & lanes_before());
    __syncwarp();  // the places have been read
    if (live && (equal & lanes_before()) == 0) own[digit] += __popc(equal);
    __syncwarp();
    if (live) out[to] = entry;
  }
}

// Sorts by order(entry), a whole number below 2^bits, between the two buffers; `sorted` is the one that ends up so.
template <typename Entry, typename Order>
int run(Entry* from, Entry* to, const std::uint32_t* count, std::int64_t capacity, int bits, Order order,
        std::uint32_t* table, void* stream, Entry*& sorted) {
  const auto blocks = static_cast<unsigned>(tiles_of(capacity));
  for (int pass = 0; pass < passes_of(bits); ++pass) {
    const List<Entry> list = {from, count, static_cast<std::uint32_t>(capacity)};
    const auto tally = &count_tiles_kernel<Entry, Order>;
    int status = FEDSPARSE_LAUNCH(tally, blocks, kThreads, 0, stream, list, order, pass * kBits, table);
    if (status != cudaSuccess) return status;
    const auto scatter = &scatter_kernel<Entry, Order>;
    status = FEDSPARSE_LAUNCH(scatter, blocks, kThreads, 0, stream, list, order, pass * kBits, table, to);
    if (status != cudaSuccess) return status;
    std::swap(from, to);
  }
  sorted = from;
  return cudaSuccess;
}

}  // namespace fedsparse::sort
