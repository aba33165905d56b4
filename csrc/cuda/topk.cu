// Streaming top-k: the largest gradients of pruned positions, while the dense gradient never exists.
//
// A position's key puts larger magnitudes first and lower positions first among equals, so keys are all different and
// the k smallest are the answer. Steps, each a launch:
//
//   1. a histogram of the keys of one tile in 16 tells a bound that most likely somewhat more than k keys keep to;
//   2. all tiles are computed, and the keys within the bound listed;
//   3. if that were fewer than k or more than fit, histograms of all tiles, digit by digit, find a bound that does not
//      fail, and the keys within it are listed; otherwise these launches end at once;
//   4. the list is sorted, or where it is short each entry counts those before it; its first k are the result, whatever
//      else is in it.
//
// The sums of a weight of few tiles are left in memory once and read in each step, a piece of a tile at a time; tiles
// of a larger one are computed again. Of a small weight the histogram is of all tiles, and there is room for all keys:
// its bound cannot fail. Of the smallest all are listed. What a step has to do is decided on the device, and all are
// launched always.
#include <optional>

#include "../cpu/arena.h"
#include "columns.cuh"
#include "dense_gradient.cuh"
#include "digits.cuh"
#include "sort.cuh"

namespace fedsparse::topk {
namespace {

using dense::Area;
using dense::kWord;
using dense::Shape;

constexpr std::int32_t kSampled = 16;   // of so many tiles, one
constexpr std::int64_t kSlack = 1024;   // entries beyond 4 k: a small sample's bound may be generous
constexpr std::int64_t kSmall = 1 << 16;   // pruned positions that there is room for, all of them
constexpr std::int64_t kRanked = 1 << 14;  // room for entries that are compared with one another sooner than sorted
constexpr std::int64_t kFew = 1 << 12;     // entries of which that takes no longer than to search for a bound

struct Entry {
  float gradient;
  std::uint32_t position;
};

struct Order {
  int position_bits;

  __device__ Key operator()(const Entry& entry) const {
    return Key{kMostMagnitude - magnitude(entry.gradient)} << position_bits | entry.position;
  }
};

// The search as it stands.
struct Search {
  Key bound;            // keys up to this one are listed
  Key known;            // the digits that a repair has found
  std::uint32_t left;   // of the keys that share them, how many are wanted
  std::uint32_t count;  // keys within the bound, listed or not
  std::uint32_t repaired;
};

struct Limits {
  std::uint32_t k, capacity, pruned;
  Order order;
  int bits;  // of a key

  __device__ bool fit(const Search& search) const { return search.count >= k && search.count <= capacity; }
  __device__ bool broken(const Search& search) const { return !search.repaired && !fit(search); }
};

// ---- what tiles are computed for
// The kept positions of the weight.
struct Kept {
  const std::int32_t* row_start;
  Columns column;

  // Bit c: column first + c of the row is kept.
  __device__ std::uint32_t word(std::int64_t row, std::int32_t first) const {
    const std::int64_t end = row_start[row + 1];
    std::uint32_t bits = 0;
    std::int64_t i = first_from(column, row_start[row], end, first);
    for (; i < end && column[i] < first + kWord; ++i) bits |= 1u << (column[i] - first);
    return bits;
  }
};

// Calls visit(live, entry) for the positions of an area; whole warps call it together, and live ones are pruned.
template <typename Sums, typename F>
__device__ __forceinline__ void each_pruned(const Kept& kept, const Shape& s, const Area& area, const Sums& sums,
                                            F&& visit) {
  FEDSPARSE_SHARED(std::uint32_t, words, block::kTargets * dense::kLines / kWord);
  const std::int32_t across = (area.columns + kWord - 1) / kWord, count = area.rows * across;
  const std::int32_t first_row = area.group * s.group_rows + area.row;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count; i += kThreads) {
    const std::int32_t column = i % across * kWord, inside = area.columns - column;
    const std::uint32_t outside = inside < kWord ? ~0u << inside : 0;
    words[i] = kept.word(first_row + i / across, area.column + column) | outside;
  }
  __syncthreads();
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  for (auto i = static_cast<std::int32_t>(threadIdx.x / 32); i < count; i += kThreads / 32) {
    const bool live = !(words[i] >> lane & 1);
    const std::int32_t row = i / across, column = i % across * kWord + lane;
    const std::int32_t position = (first_row + row) * s.columns + area.column + column;
    visit(live, live ? Entry{sums(row, column), static_cast<std::uint32_t>(position)} : Entry{});
  }
}

// Counts a digit of the keys that share the known ones: to begin with, often of a sample, or to repair.
struct Count {
  Kept kept;
  Limits limits;
  const Search* search;
  std::uint32_t* histogram;
  Digit digit;
  bool begins;

  __device__ bool wanted() const { return begins || limits.broken(*search); }
  template <typename Sums>
  __device__ __forceinline__ void operator()(const Shape& s, const Area& area, const Sums& sums) const {
    const Key known = begins ? 0 : search->known;
    each_pruned(kept, s, area, sums, [&](bool live, const Entry& entry) {
      const Key key = live ? limits.order(entry) : 0;
      fedsparse::count(histogram, live && digit.shares_higher(key, known), digit.of(key));
    });
  }
};

// Lists the keys within the bound, in any order, and counts them.
struct Collect {
  Kept kept;
  Limits limits;
  Search* search;
  Entry* list;
  bool repair;

  __device__ bool wanted() const { return !repair || search->repaired; }
  template <typename Sums>
  __device__ __forceinline__ void operator()(const Shape& s, const Area& area, const Sums& sums) const {
    const Key bound = search->bound;
    each_pruned(kept, s, area, sums, [&](bool live, const Entry& entry) {
      const bool within = live && limits.order(entry) <= bound;
      const unsigned lanes = __ballot_sync(kEveryLane, within);
      if (lanes == 0) return;
      std::uint32_t first = 0;
      if (threadIdx.x % 32 == 0) first = atomicAdd(&search->count, static_cast<std::uint32_t>(__popc(lanes)));
      const std::uint32_t to = __shfl_sync(kEveryLane, first, 0) + __popc(lanes & lanes_before());
      if (within && to < limits.capacity) list[to] = entry;
    });
  }
};

// ---- between them
__global__ void __launch_bounds__(kThreads)
    begin_kernel(Search* search, std::uint32_t k, std::uint32_t* words, std::int64_t n) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    words[i] = 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) *search = {~Key{0}, 0, k, 0, 0};
}

__device__ __forceinline__ void clear(std::uint32_t* histogram) {
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) histogram[bin] = 0;
}

// The bound that the histogram tells: of a sample that of twice as many keys as wanted, and of what chance may add.
__global__ void __launch_bounds__(kThreads)
    bound_kernel(Search* search, const Limits limits, std::uint32_t* histogram, Digit digit) {
  std::uint32_t sum = 0, total;
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) sum += histogram[bin];
  sum_before(sum, total);
  const float share = static_cast<float>(total) / static_cast<float>(limits.pruned);
  const float expected = 2 * share * static_cast<float>(limits.k);
  const float aim = total == limits.pruned ? static_cast<float>(limits.k) : expected + 4 * sqrtf(expected) + 8;
  const bool all = aim >= static_cast<float>(total);
  const Found found = find_bin(histogram, all ? total : static_cast<std::uint32_t>(aim));
  if (threadIdx.x == 0 && !all) search->bound = (Key{found.bin + 1} << digit.low) - 1;
  clear(histogram);
}

// One more digit of the key number k, until what lies within the bound fits.
__global__ void __launch_bounds__(kThreads)
    narrow_kernel(Search* search, const Limits limits, std::uint32_t* histogram, Digit digit) {
  if (!limits.broken(*search)) return;
  const Found found = find_bin(histogram, search->left);
  if (threadIdx.x == 0) {
    search->known |= Key{found.bin} << digit.low;
    search->left -= found.before;
    // Keys before this bin, and all inside it.
    if (limits.k - search->left + found.inside <= limits.capacity) {
      search->bound = search->known | ((Key{1} << digit.low) - 1);
      search->repaired = 1;
      search->count = 0;
    }
  }
  clear(histogram);
}

// Counts for every entry those before it, which is its place in the result. A block takes 32 entries, which each of its
// warps compares with a share of all.
__global__ void __launch_bounds__(kThreads)
    rank_kernel(const Entry* __restrict__ list, const Search* __restrict__ search, const Limits limits,
                std::int64_t* __restrict__ positions, float* __restrict__ gradients) {
  FEDSPARSE_SHARED(Key, keys, kThreads);
  FEDSPARSE_SHARED(std::uint32_t, counts, kThreads);
  const std::uint32_t count = min(search->count, limits.capacity), lane = threadIdx.x % 32;
  const std::uint32_t at = blockIdx.x * 32 + lane, others = threadIdx.x - lane;
  if (blockIdx.x * 32 >= count) return;
  const Entry own = at < count ? list[at] : Entry{};
  const Key key = limits.order(own);
  std::uint32_t before = 0;
  for (std::uint32_t first = others; first < count; first += kThreads) {
    __syncwarp();  // the keys before have been read
    keys[threadIdx.x] = first + lane < count ? limits.order(list[first + lane]) : ~Key{0};
    __syncwarp();
#pragma unroll
    for (std::uint32_t i = 0; i < 32; ++i) before += keys[others + i] < key;
    if (__all_sync(kEveryLane, before >= limits.k)) break;  // none of them is in the result
  }
  counts[threadIdx.x] = before;
  __syncthreads();
  if (threadIdx.x >= 32 || at >= count) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) before += counts[warp * 32 + lane];
  if (before >= limits.k) return;
  positions[before] = own.position;
  gradients[before] = own.gradient;
}

__global__ void __launch_bounds__(kThreads)
    write_kernel(const Entry* __restrict__ sorted, std::uint32_t k, std::int64_t* __restrict__ positions,
                 float* __restrict__ gradients) {
  for (std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < k; i += gridDim.x * blockDim.x) {
    positions[i] = sorted[i].position;
    gradients[i] = sorted[i].gradient;
  }
}

// ---- on the host
int bits_of(std::int64_t n) {
  int bits = 0;
  for (; n > 0; n >>= 1) ++bits;
  return bits;
}

struct Plan {
  Shape shape;
  Limits limits;
  Arena arena;
  float* sums;  // where they are left
  std::uint32_t* histogram;
  Search* search;
  Entry *list, *other = nullptr;  // other and table: where a sort follows
  std::uint32_t* table = nullptr;

  Plan(const Shape& s, std::int64_t nnz, std::int64_t k, void* workspace) : shape(s), arena(workspace) {
    const std::int64_t size = std::int64_t{shape.problem.target.channels} * shape.columns, pruned = size - nnz;
    const std::int64_t capacity = pruned <= kSmall ? pruned : std::min(pruned, std::max(4 * k + kSlack, kRanked));
    const int position_bits = bits_of(size - 1);
    limits = {static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(capacity), static_cast<std::uint32_t>(pruned),
              {position_bits}, 31 + position_bits};
    sums = arena.take<float>(shape.left_floats());
    histogram = arena.take<std::uint32_t>(kBins);
    search = arena.take<Search>(1);
    list = arena.take<Entry>(capacity);
    if (ranked()) return;
    other = arena.take<Entry>(capacity);
    table = arena.take<std::uint32_t>(sort::table_size(capacity));
  }

  bool all_fit() const { return limits.capacity == limits.pruned; }
  bool ranked() const { return 4 * std::int64_t{limits.k} + kSlack <= kRanked; }
};

// The operands of the gradient.
struct Operands {
  std::int64_t dtype;
  bool tf32;
  const void *grad_y, *x;
};

// Hands the sums of all tiles, or of one in `every`, to `end`.
template <typename End>
int visit(const Plan& p, const Operands& o, std::int32_t every, const End& end, void* stream) {
  if (p.shape.left()) return dense::join(p.shape, p.sums, every, end, stream);
  return dense::compute(p.shape, o.dtype, o.tf32, o.grad_y, o.x, every, end, stream);
}

// Steps 1 to 3; the first status that is not a success.
int collect(const Plan& p, const Operands& operands, const Kept& kept, void* stream) {
  int status = cudaSuccess;
  const auto queue = [&](auto&& launch) { status = status == cudaSuccess ? launch() : status; };
  const auto tiles = [&](std::int32_t every, const auto& end) {
    queue([&] { return visit(p, operands, every, end, stream); });
  };
  const auto search = [&](auto kernel, const Digit& digit) {
    queue([&] { return FEDSPARSE_LAUNCH(kernel, 1, kThreads, 0, stream, p.search, p.limits, p.histogram, digit); });
  };
  const auto count = [&](const Digit& digit, bool begins) {
    return Count{kept, p.limits, p.search, p.histogram, digit, begins};
  };
  const auto list = [&](bool repair) { return Collect{kept, p.limits, p.search, p.list, repair}; };

  queue([&] {
    return FEDSPARSE_LAUNCH(begin_kernel, blocks_for(kBins), kThreads, 0, stream, p.search, p.limits.k, p.histogram,
                            std::int64_t{kBins});
  });
  if (p.shape.left())
    queue([&] {
      return dense::leave(p.shape, operands.dtype, operands.tf32, operands.grad_y, operands.x, p.sums, stream);
    });
  if (p.limits.pruned > kFew) {
    const Digit first(p.limits.bits, 0);
    tiles(p.all_fit() ? 1 : kSampled, count(first, true));
    search(&bound_kernel, first);
  }
  tiles(1, list(false));
  if (p.all_fit()) return status;
  for (int which = 0; which < digits_of(p.limits.bits); ++which) {
    const Digit digit(p.limits.bits, which);
    tiles(1, count(digit, false));
    search(&narrow_kernel, digit);
  }
  tiles(1, list(true));
  return status;
}

int run(const Plan& p, const Operands& operands, const Kept& kept, std::int64_t* positions, float* gradients,
        void* stream) {
  int status = collect(p, operands, kept, stream);
  if (status != cudaSuccess) return status;
  if (p.ranked())
    return FEDSPARSE_LAUNCH(rank_kernel, (p.limits.capacity + 31) / 32, kThreads, 0, stream, p.list, p.search, p.limits,
                            positions, gradients);
  Entry* sorted = nullptr;
  status = sort::run(p.list, p.other, &p.search->count, p.limits.capacity, p.limits.bits, p.limits.order, p.table,
                     stream, sorted);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(write_kernel, blocks_for(p.limits.k), kThreads, 0, stream, sorted, p.limits.k, positions,
                          gradients);
}

std::optional<Shape> possible(const ConvShape& s, std::int64_t dtype, std::int64_t nnz, std::int64_t k) {
  const std::optional<Shape> shape = dense::cut(s, dtype);
  if (!shape) return {};
  const std::int64_t size = s.out_channels * (s.in_channels / s.groups) * s.taps();
  if (nnz < 0 || nnz > size || k < 0 || k > size - nnz) return {};
  return shape;
}

}  // namespace
}  // namespace fedsparse::topk

using namespace fedsparse;

std::int64_t fedsparse_cuda_topk_pruned_size(const ConvShape* shape, std::int64_t dtype, std::int64_t nnz,
                                             std::int64_t k) {
  const auto s = topk::possible(*shape, dtype, nnz, k);
  return s ? topk::Plan(*s, nnz, k, nullptr).arena.used() : 0;
}

int fedsparse_cuda_topk_pruned(const ConvShape* shape, std::int64_t dtype, bool tf32, std::int64_t nnz,
                               const std::int32_t* row_start, const void* column, bool wide, const void* grad_y,
                               const void* x, std::int64_t k, std::int64_t* positions, float* gradients,
                               void* workspace, void* stream) {
  const auto s = topk::possible(*shape, dtype, nnz, k);
  if (!s) return cudaErrorInvalidValue;
  if (k == 0) return cudaSuccess;
  const topk::Plan plan(*s, nnz, k, workspace);
  return topk::run(plan, {dtype, tf32, grad_y, x}, {row_start, {column, wide}}, positions, gradients, stream);
}
