// Lists of the lines that strips keep, made on the device from the rows of patterns.
//
// A block of threads makes the list of one strip and slab. The lines that any channel of the strip keeps are marked at
// their distance; their order follows from how many marks of each colour come before. One launch counts the chunks, the
// next adds the counts up, the third fills the list: nothing is sorted, and nothing depends on timing.
#include "lists.cuh"

namespace fedsparse::block {
namespace {

using lists::Batch;
using lists::Part;
using lists::Task;
using lists::Weights;

constexpr int kWarps = kThreads / 32;
constexpr int kLines = kStageBytes / (csr16::kBatch * 2);  // distances of a slab, at most
constexpr int kWords = kLines / 32;
constexpr int kColours = 8;  // distances modulo 8: the banks that a matrix of 8 lines should not share
constexpr int kOfColour = kLines / kColours;
static_assert(kWarps == kColours, "a warp orders the lines of a colour");

__device__ __forceinline__ bool is_marked(const std::uint32_t* marks, std::int32_t distance) {
  return marks[distance / 32] >> distance % 32 & 1;
}

// Sets a bit for every line of a part. Ends with a barrier.
__device__ __forceinline__ void mark_lines(const Task& l, const Part& part, const Weights& weights,
                                           std::uint32_t* marks) {
  for (int word = static_cast<int>(threadIdx.x); word < kWords; word += kThreads) marks[word] = 0;
  __syncthreads();
  weights.each(l.kept, part, [&](std::int32_t, std::int32_t r, std::int32_t at) {
    const std::int32_t distance = l.kept.distance(part.first_row + r, at);
    atomicOr(marks + distance / 32, 1u << distance % 32);
  });
  __syncthreads();
}

// An entry of `start` is a part of the list.
__global__ void __launch_bounds__(kThreads) count_lines_kernel(const Task* __restrict__ tasks, std::int32_t count) {
  FEDSPARSE_SHARED(std::uint32_t, marks, kWords);
  const Task& l = lists::share_of(tasks, count, &Task::first_part);
  const Part part(l, blockIdx.x);
  mark_lines(l, part, Weights(l.kept, part), marks);
  std::uint32_t own = 0, lines;
  for (int word = static_cast<int>(threadIdx.x); word < kWords; word += kThreads) own += __popc(marks[word]);
  sum_before(own, lines);
  if (threadIdx.x == 0) l.start[blockIdx.x - l.first_part] = static_cast<std::int32_t>((lines + kChunk - 1) / kChunk);
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
__device__ __forceinline__ std::uint16_t zeros(const Task& l, const Part& part) {
  for (std::int32_t tap = 0; tap < l.kept.taps; ++tap)
    if (l.kept.grid(tap) == part.grid) return static_cast<std::uint16_t>(l.kept.slab_channels * l.kept.pitch(tap));
  return 0;
}

// Chunks [first, last) without a line.
__device__ __forceinline__ void clear(const Task& l, std::int64_t first, std::int64_t last, std::uint16_t distance) {
  for (std::int64_t i = first * kChunk + threadIdx.x; i < last * kChunk; i += kThreads) l.offset[i] = distance;
  const std::int64_t of_chunk = kChunk * l.width;
  for (std::int64_t i = first * of_chunk + threadIdx.x; i < last * of_chunk; i += kThreads) l.value[i] = -1;
}

__global__ void __launch_bounds__(kThreads) list_lines_kernel(const Task* __restrict__ tasks, std::int32_t count) {
  FEDSPARSE_SHARED(std::uint32_t, marks, kWords);
  FEDSPARSE_SHARED(std::uint16_t, places, kLines);
  FEDSPARSE_SHARED(std::uint16_t, late, kLines);
  FEDSPARSE_SHARED(std::uint32_t, counts, kColours);
  const Task& l = lists::share_of(tasks, count, &Task::first_part);
  const std::int64_t first = l.start[blockIdx.x - l.first_part], last = l.start[blockIdx.x - l.first_part + 1];
  if (first == last) return;  // the whole block
  const Part part(l, blockIdx.x);
  const Weights weights(l.kept, part);
  mark_lines(l, part, weights, marks);
  clear(l, first, last, zeros(l, part));
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
    l.offset[(first + place / kChunk) * kChunk + line] = static_cast<std::uint16_t>(distance);
  }
  __syncthreads();
  weights.each(l.kept, part, [&](std::int32_t i, std::int32_t r, std::int32_t at) {
    const std::uint32_t place = places[l.kept.distance(part.first_row + r, at)];
    const int number = place_in_chunk(static_cast<int>(place % kChunk), part.channel(l.kept, r, at), l.width, l.wide);
    l.value[(first + place / kChunk) * kChunk * l.width + number] = i;
  });
}

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;

int lists::count_lines(const Batch& batch, void* stream) {
  if (batch.parts == 0) return cudaSuccess;
  return FEDSPARSE_LAUNCH(block::count_lines_kernel, batch.parts, kThreads, 0, stream, batch.tasks, batch.count);
}

int lists::list_lines(const Batch& batch, void* stream) {
  if (batch.parts == 0) return cudaSuccess;
  return FEDSPARSE_LAUNCH(block::list_lines_kernel, batch.parts, kThreads, 0, stream, batch.tasks, batch.count);
}
