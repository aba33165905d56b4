// Lists of the lines that strips keep, made on the device from the rows of a pattern, and which strips it has.
//
// A block of threads makes the list of one strip and slab. The lines that any channel of the strip keeps are marked at
// their distance; their order follows from how many marks of each colour come before. One launch counts the chunks, the
// next adds the counts up, the third fills the list: nothing is sorted, and nothing depends on timing.
#include "block.h"
#include "collective.cuh"
#include "cuda_api.h"
#include "kept.cuh"

namespace fedsparse::block {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kLines = kStageBytes / (csr16::kBatch * 2);  // distances of a slab, at most
constexpr int kWords = kLines / 32;
constexpr int kColours = 8;  // distances modulo 8: the banks that a matrix of 8 lines should not share
constexpr int kOfColour = kLines / kColours;
constexpr std::int64_t kMostEntries = 1 << 30;
constexpr std::int32_t kMostBlocks = 1 << 20;  // each makes several lists where there are more
static_assert(kWarps == kColours, "a warp orders the lines of a colour");

struct Lister {
  csr16::KeptRows kept;
  std::int32_t groups, strips, slabs, width, entries;
  bool wide;

  Lister(const csr16::Plan& plan, const ConvShape& s, bool backward, std::int64_t width_, bool wide_,
         const std::int32_t* row_start, const Columns& column)
      : kept(plan, s, backward, row_start, column), groups(plan.groups),
        strips(block::strips(plan.group_targets(), static_cast<std::int32_t>(width_))), slabs(plan.slabs),
        width(static_cast<std::int32_t>(width_)),
        entries(static_cast<std::int32_t>(plan.grids.size()) * groups * strips * slabs), wide(wide_) {}
};

// The weights of one entry of `start`: of some rows those of a grid in the columns [first_column, last_column).
struct Part {
  std::int32_t grid, first_row, rows, first_column, last_column;

  __device__ __forceinline__ Part(const Lister& l, std::int32_t entry) {
    const csr16::KeptRows& k = l.kept;
    const std::int32_t sources = k.backward ? k.outputs : k.inputs, targets = k.backward ? k.inputs : k.outputs;
    const std::int32_t slab = entry % l.slabs, strip = entry / l.slabs % l.strips;
    const std::int32_t group = entry / l.slabs / l.strips % l.groups;
    const std::int32_t source = slab * k.slab_channels, source_end = min(source + k.slab_channels, sources);
    const std::int32_t target = strip * l.width, target_end = min(target + l.width, targets);
    grid = entry / l.slabs / l.strips / l.groups;
    first_row = group * k.outputs + (k.backward ? source : target);
    rows = k.backward ? source_end - source : target_end - target;
    first_column = (k.backward ? target : source) * k.taps;
    last_column = (k.backward ? target_end : source_end) * k.taps;
  }
};

// Calls visit(number of the value, channel of the strip, row, column) for every weight of an entry, a warp a row.
template <typename F>
__device__ __forceinline__ void each_weight(const Lister& l, const Part& part, F&& visit) {
  const csr16::KeptRows& k = l.kept;
  for (auto r = static_cast<std::int32_t>(threadIdx.x / 32); r < part.rows; r += kWarps) {
    const std::int32_t row = part.first_row + r, end = k.row_start[row + 1];
    const std::int64_t first = first_from(k.column, k.row_start[row], end, part.first_column);
    for (std::int32_t i = static_cast<std::int32_t>(first) + threadIdx.x % 32; i < end; i += 32) {
      const std::int32_t at = k.column[i];
      if (at >= part.last_column) break;
      if (k.grid(at) == part.grid) visit(i, k.backward ? (at - part.first_column) / k.taps : r, row, at);
    }
  }
}

__device__ __forceinline__ bool is_marked(const std::uint32_t* marks, std::int32_t distance) {
  return marks[distance / 32] >> distance % 32 & 1;
}

// Sets a bit for every line of an entry. Ends with a barrier.
__device__ __forceinline__ void mark_lines(const Lister& l, const Part& part, std::uint32_t* marks) {
  for (int word = static_cast<int>(threadIdx.x); word < kWords; word += kThreads) marks[word] = 0;
  __syncthreads();
  each_weight(l, part, [&](std::int32_t, std::int32_t, std::int32_t row, std::int32_t at) {
    const std::int32_t distance = l.kept.distance(row, at);
    atomicOr(marks + distance / 32, 1u << distance % 32);
  });
  __syncthreads();
}

// start[e]: chunks of entry e.
__global__ void __launch_bounds__(kThreads) count_lines_kernel(const Lister l, std::int32_t* __restrict__ start) {
  FEDSPARSE_SHARED(std::uint32_t, marks, kWords);
  for (auto entry = static_cast<std::int32_t>(blockIdx.x); entry < l.entries; entry += gridDim.x) {
    mark_lines(l, Part(l, entry), marks);
    std::uint32_t own = 0, lines;
    for (int word = static_cast<int>(threadIdx.x); word < kWords; word += kThreads) own += __popc(marks[word]);
    sum_before(own, lines);
    if (threadIdx.x == 0) start[entry] = static_cast<std::int32_t>((lines + kChunk - 1) / kChunk);
  }
}

// start[e]: chunks of all entries before e, in one block.
__global__ void __launch_bounds__(kThreads) add_counts_kernel(std::int32_t* __restrict__ start, std::int32_t entries) {
  constexpr int kRun = 8;  // of a thread
  std::uint32_t before = 0;
  for (std::int64_t tile = 0; tile <= entries; tile += kThreads * kRun) {
    const std::int64_t first = tile + threadIdx.x * kRun;
    std::uint32_t own[kRun], sum = 0, total;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      own[i] = first + i < entries ? static_cast<std::uint32_t>(start[first + i]) : 0;
      sum += own[i];
    }
    std::uint32_t place = before + sum_before(sum, total);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (first + i <= entries) start[first + i] = static_cast<std::int32_t>(place);
      place += own[i];
    }
    before += total;
  }
}

// The order in which 8 neighbours, a matrix of one load, lie in different banks as far as they can: a line of each
// colour in turn; where colours have run out, more of the fullest.
struct Order {
  const std::uint32_t* counts;  // lines of each colour
  std::uint16_t* late;          // (kColours, kOfColour): the place of those that come once a colour has run out
  std::uint32_t even;           // of each colour that come before

  __device__ __forceinline__ Order(const std::uint32_t* counts_, std::uint16_t* late_)
      : counts(counts_), late(late_), even(~0u) {
    for (int colour = 0; colour < kColours; ++colour) even = min(even, counts[colour]);
  }
  __device__ __forceinline__ std::uint32_t lines() const {
    std::uint32_t sum = 0;
    for (int colour = 0; colour < kColours; ++colour) sum += counts[colour];
    return sum;
  }
  // Place of the line of this rank within its colour.
  __device__ __forceinline__ std::uint32_t place(std::uint32_t colour, std::uint32_t rank) const {
    return rank < even ? rank * kColours + colour : late[colour * kOfColour + rank];
  }

  // Fills `late`, in one warp: a lane has the lines of a colour, and four of them the same.
  __device__ __forceinline__ void deal() const {
    const std::uint32_t colour = threadIdx.x % kColours, all = lines();
    std::uint32_t left = counts[colour] - even, place = even * kColours;
    const auto put = [&](std::uint32_t to) {
      std::uint16_t* const mine = late + colour * kOfColour + counts[colour] - left;
      if (threadIdx.x % 32 < kColours) *mine = static_cast<std::uint16_t>(to);
      --left;
    };
    while (place < all) {
      const std::uint32_t end = min(place + kColours, all);
      const unsigned some = __ballot_sync(kEveryLane, left > 0) & ((1u << kColours) - 1);
      if (left > 0) put(place + __popc(some & ((1u << colour) - 1)));
      for (place += __popc(some); place < end; ++place) {
        std::uint32_t fullest = left * kColours + kColours - 1 - colour;  // ties to the first
        for (int step = kColours / 2; step > 0; step /= 2)
          fullest = max(fullest, __shfl_xor_sync(kEveryLane, fullest, step));
        if (fullest % kColours == kColours - 1 - colour) put(place);
      }
    }
  }
};

// places[d]: how many lines of the same colour as d are marked before it; counts[c]: all of colour c. A warp takes a
// colour.
__device__ __forceinline__ void rank_colours(const std::uint32_t* marks, std::uint16_t* places, std::uint32_t* counts) {
  const std::uint32_t colour = threadIdx.x / 32;
  std::uint32_t before = 0;
  for (std::uint32_t first = 0; first < kOfColour; first += 32) {
    const std::uint32_t distance = (first + threadIdx.x % 32) * kColours + colour;
    const unsigned marked = __ballot_sync(kEveryLane, is_marked(marks, static_cast<std::int32_t>(distance)));
    places[distance] = static_cast<std::uint16_t>(before + __popc(marked & lanes_before()));
    before += __popc(marked);
  }
  if (threadIdx.x % 32 == 0) counts[colour] = before;
}

// Distance of the zeros behind a slab of a grid, which fill a chunk up; 0 where no tap belongs to it.
__device__ __forceinline__ std::uint16_t zeros(const Lister& l, const Part& part) {
  for (std::int32_t tap = 0; tap < l.kept.taps; ++tap)
    if (l.kept.grid(tap) == part.grid) return static_cast<std::uint16_t>(l.kept.slab_channels * l.kept.pitch(tap));
  return 0;
}

struct Listed {
  const std::int32_t* start;
  std::uint16_t* offset;
  std::int32_t* value;
};

// Chunks [first, last) without a line.
__device__ __forceinline__ void clear(const Lister& l, const Listed& out, std::int64_t first, std::int64_t last,
                                      std::uint16_t distance) {
  for (std::int64_t i = first * kChunk + threadIdx.x; i < last * kChunk; i += kThreads) out.offset[i] = distance;
  const std::int64_t of_chunk = kChunk * l.width;
  for (std::int64_t i = first * of_chunk + threadIdx.x; i < last * of_chunk; i += kThreads) out.value[i] = -1;
}

__global__ void __launch_bounds__(kThreads) list_lines_kernel(const Lister l, const Listed out) {
  FEDSPARSE_SHARED(std::uint32_t, marks, kWords);
  FEDSPARSE_SHARED(std::uint16_t, places, kLines);
  FEDSPARSE_SHARED(std::uint16_t, late, kLines);
  FEDSPARSE_SHARED(std::uint32_t, counts, kColours);
  for (auto entry = static_cast<std::int32_t>(blockIdx.x); entry < l.entries; entry += gridDim.x) {
    const std::int64_t first = out.start[entry], last = out.start[entry + 1];
    if (first == last) continue;  // the whole block
    const Part part(l, entry);
    mark_lines(l, part, marks);
    clear(l, out, first, last, zeros(l, part));
    rank_colours(marks, places, counts);
    __syncthreads();
    const Order order(counts, late);
    if (threadIdx.x < 32) order.deal();
    __syncthreads();
    for (auto distance = static_cast<std::int32_t>(threadIdx.x); distance < kLines; distance += kThreads) {
      if (!is_marked(marks, distance)) continue;
      const std::uint32_t place = order.place(distance % kColours, places[distance]);
      places[distance] = static_cast<std::uint16_t>(place);
      const int line = place_of_line(static_cast<int>(place % kChunk), l.wide);
      out.offset[(first + place / kChunk) * kChunk + line] = static_cast<std::uint16_t>(distance);
    }
    __syncthreads();
    each_weight(l, part, [&](std::int32_t i, std::int32_t channel, std::int32_t row, std::int32_t at) {
      const std::uint32_t place = places[l.kept.distance(row, at)];
      const int number = place_in_chunk(static_cast<int>(place % kChunk), channel, l.width, l.wide);
      out.value[(first + place / kChunk) * kChunk * l.width + number] = i;
    });
    __syncthreads();  // the places have been read
  }
}

// ---- structure
struct Rows {
  std::int32_t rows, inputs, taps;
  const std::int32_t* start;
  Columns column;

  __device__ __forceinline__ bool keeps(std::int32_t row, std::int32_t at) const {
    const std::int32_t end = start[row + 1];
    const std::int64_t i = first_from(column, start[row], end, at);
    return i < end && column[i] == at;
  }
};

constexpr std::int32_t kNarrowest = 8;

// widest[0]: of how many neighbouring rows all keep the same columns; widest[1]: of how many inputs every row keeps all
// or none at each kernel position. Every row is compared with the first one of its strip of 8, that with the first of
// 16 and so on; an input is kept where the next one of its strip of 8 is, and where the other half of a wider strip is.
__global__ void __launch_bounds__(kThreads) find_strips_kernel(const Rows rows, std::int32_t* __restrict__ widest) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * kWarps);
  std::int32_t rows_alike = kWidest, inputs_alike = kWidest;
  for (auto row = static_cast<std::int32_t>(blockIdx.x * kWarps + threadIdx.x / 32); row < rows.rows; row += stride) {
    const std::int32_t begin = rows.start[row], count = rows.start[row + 1] - begin;
    std::int32_t like = row / kNarrowest * kNarrowest, without = 0;  // width of strips that a difference leaves
    for (std::int32_t width = kNarrowest; like == row && width < kWidest; width *= 2) {
      like = row / (2 * width) * (2 * width);
      without = width;
    }
    const std::int32_t twin = rows.start[like];
    if (rows.start[like + 1] - twin != count) rows_alike = min(rows_alike, without);
    for (auto i = static_cast<std::int32_t>(threadIdx.x % 32); i < count; i += 32) {
      const std::int32_t at = rows.column[begin + i], input = at / rows.taps, tap = at % rows.taps;
      if (like != row && rows_alike > without && i < rows.start[like + 1] - twin && rows.column[twin + i] != at)
        rows_alike = without;
      const std::int32_t first = input / kNarrowest * kNarrowest, end = min(first + kNarrowest, rows.inputs);
      const std::int32_t next = input + 1 < end ? input + 1 : first;
      if (inputs_alike > 0 && !rows.keeps(row, next * rows.taps + tap)) inputs_alike = 0;
      for (std::int32_t width = kNarrowest; width < kWidest; width *= 2) {
        const std::int32_t other = input / width * width ^ width;
        if (inputs_alike > width && other < rows.inputs && !rows.keeps(row, other * rows.taps + tap))
          inputs_alike = width;
      }
    }
  }
  rows_alike = __reduce_min_sync(kEveryLane, rows_alike);
  inputs_alike = __reduce_min_sync(kEveryLane, inputs_alike);
  if (threadIdx.x % 32 == 0 && rows_alike < kWidest) atomicMin(widest, rows_alike);
  if (threadIdx.x % 32 == 0 && inputs_alike < kWidest) atomicMin(widest + 1, inputs_alike);
}

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;

int fedsparse_cuda_block_strips(std::int64_t rows, std::int64_t inputs, std::int64_t taps,
                                const std::int32_t* row_start, const void* column, bool wide, std::int32_t* widest,
                                void* stream) {
  const block::Rows given = {static_cast<std::int32_t>(rows), static_cast<std::int32_t>(inputs),
                             static_cast<std::int32_t>(taps), row_start, {column, wide}};
  return FEDSPARSE_LAUNCH(block::find_strips_kernel, blocks_for(rows * 32), kThreads, 0, stream, given, widest);
}

int fedsparse_cuda_block_list(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                              const std::int32_t* row_start, const void* column, bool wide, std::int32_t* start,
                              std::uint16_t* offset, std::int32_t* value, void* stream) {
  csr16::Plan plan;
  const std::int64_t size = fedsparse_block_start_size(shape, backward, dtype, width);
  if (size == 0 || size > block::kMostEntries || !csr16::KeptRows::fit(*shape) ||
      !block::make_plan(*shape, backward, block::is_wide(dtype), plan))
    return cudaErrorInvalidValue;
  const block::Lister lister(plan, *shape, backward, width, block::is_wide(dtype), row_start, {column, wide});
  const auto blocks = static_cast<unsigned>(std::min(lister.entries, block::kMostBlocks));
  int status = FEDSPARSE_LAUNCH(block::count_lines_kernel, blocks, kThreads, 0, stream, lister, start);
  if (status != cudaSuccess) return status;
  status = FEDSPARSE_LAUNCH(block::add_counts_kernel, 1, kThreads, 0, stream, start, lister.entries);
  if (status != cudaSuccess) return status;
  const block::Listed listed = {start, offset, value};
  return FEDSPARSE_LAUNCH(block::list_lines_kernel, blocks, kThreads, 0, stream, lister, listed);
}
