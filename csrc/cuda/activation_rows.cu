// The largest elements of every row of a tensor, a row being one image or one sample.
//
// A block finds the cut of a row, which it reads once for each digit and, where ties have to be split, once more up to
// the last one that stays: rows are short enough for a cache. A row has but one block, so each thread asks for several
// pieces of 16 bytes before it looks at the first. Then all tiles are marked at once, across rows.
#include "bitmap.cuh"

namespace fedsparse::threshold {
namespace {

// The element that is number `cut.ties`, counted from 1, of those equal to the cut; -1 where none is wanted.
template <typename T>
__device__ __forceinline__ std::int32_t last_tie(const T* row, std::int64_t size, const Cut& cut) {
  FEDSPARSE_SHARED(std::int32_t, answer, 1);
  if (threadIdx.x == 0) *answer = -1;
  const Segments whole = {nullptr, nullptr, 1, size, 0};
  std::uint32_t carried = 0;
  for (std::int64_t number = 0; carried < cut.ties; ++number) {
    const Tile tile(whole, number);
    Counts all;
    const Counts own = count_own<T, true>(row, tile, cut);
    std::uint32_t seen = carried + before_warp(own, all).equal;
    const bool here = seen < cut.ties && cut.ties <= seen + own.equal;
    for (int step = 0; here && step < kSteps; ++step) {
      const std::int64_t i = tile.first + step * 32 + threadIdx.x % 32;
      const bool tie = i < tile.end && key_of<T, true>(row[i]) == cut.key;
      const unsigned equal = __ballot_sync(kEveryLane, tie);
      if (tie && seen + __popc(equal & lanes_before()) + 1 == cut.ties) *answer = static_cast<std::int32_t>(i);
      seen += __popc(equal);
    }
    carried += all.equal;
  }
  __syncthreads();
  const std::int32_t last = *answer;
  __syncthreads();  // it has been read
  return last;
}

constexpr int kAsked = 4;  // pieces under way for a thread

// Calls visit(number) for every number of a row, in any order, by all threads of a block.
template <typename T, typename F>
__device__ __forceinline__ void each_number(const T* row, std::int64_t size, F&& visit) {
  constexpr std::int64_t kPiece = 16 / sizeof(T);
  struct alignas(16) Piece {
    T number[kPiece];
  };
  const auto over = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  const std::int64_t head = min(over > 0 ? kPiece - over : 0, size), pieces = (size - head) / kPiece;
  const auto* const whole = reinterpret_cast<const Piece*>(row + head);
  const auto look = [&](const Piece& piece) {
#pragma unroll
    for (int j = 0; j < kPiece; ++j) visit(piece.number[j]);
  };
  std::int64_t at = threadIdx.x;
  for (; at + (kAsked - 1) * kThreads < pieces; at += kAsked * kThreads) {
    Piece asked[kAsked];
#pragma unroll
    for (int a = 0; a < kAsked; ++a) asked[a] = whole[at + a * kThreads];
#pragma unroll
    for (int a = 0; a < kAsked; ++a) look(asked[a]);
  }
  for (; at < pieces; at += kThreads) look(whole[at]);
  // What stands before the first piece, and behind the last: less than two of them.
  const std::int64_t rest = size - pieces * kPiece, i = threadIdx.x;
  if (i < rest) visit(row[i < head ? i : i + pieces * kPiece]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    cut_rows_kernel(const T* __restrict__ x, std::int64_t size, std::uint32_t k, RowCut* __restrict__ cuts) {
  FEDSPARSE_SHARED(std::uint32_t, bins, kBins);
  const T* row = x + blockIdx.x * size;
  Cut cut = {0, k, 0};
  for (int which = 0; which < digits_of(Stored<T>::kBits); ++which) {
    const Digit digit(Stored<T>::kBits, which);
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) bins[bin] = 0;
    __syncthreads();
    each_number(row, size, [&](T number) {
      const std::uint32_t key = key_of<T, true>(number);
      if (digit.shares_higher(key, cut.key)) atomicAdd(bins + digit.of(key), 1u);
    });
    __syncthreads();
    const Found found = find_bin(bins, cut.ties);
    cut = {cut.key | found.bin << digit.low, cut.ties - found.before, found.inside};
  }
  const std::int32_t last = cut.splits_ties() ? last_tie(row, size, cut) : static_cast<std::int32_t>(size - 1);
  if (threadIdx.x == 0) cuts[blockIdx.x] = {cut.key, last};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    mark_rows_kernel(const T* __restrict__ x, const Segments whole, std::uint32_t size,
                     const RowCut* __restrict__ cuts, const Bitmap map) {
  const Tile tile(whole, blockIdx.x);
  const auto first = static_cast<std::uint32_t>(tile.first), end = static_cast<std::uint32_t>(tile.end);
  std::uint32_t i = first + threadIdx.x % 32, row = i / size, place = i - row * size;
  Marks marks;
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step, i += 32) {
    bool kept = false;
    if (i < end) {
      const T number = x[i];
      const std::uint32_t key = key_of<T, true>(number);
      const RowCut cut = cuts[row];
      const bool first_ties = key == cut.key && static_cast<std::int32_t>(place) <= cut.last;
      kept = (key < cut.key || first_ties) && widen(number) != 0;
    }
    marks.add(step, __ballot_sync(kEveryLane, kept));
    for (place += 32; place >= size; place -= size) ++row;
  }
  marks.store(tile, map);
}

}  // namespace

template <typename T>
int mark_rows(const T* x, std::int64_t rows, std::int64_t size, std::int64_t k, RowCut* cuts, const Bitmap& map,
              void* stream) {
  const Segments whole = {nullptr, nullptr, 1, rows * size, 0};
  int status = FEDSPARSE_LAUNCH(cut_rows_kernel<T>, static_cast<unsigned>(rows), kThreads, 0, stream, x, size,
                                static_cast<std::uint32_t>(k), cuts);
  if (status != cudaSuccess) return status;
  status = FEDSPARSE_LAUNCH(mark_rows_kernel<T>, static_cast<unsigned>(whole.tiles()), kThreads, 0, stream, x, whole,
                            static_cast<std::uint32_t>(size), cuts, map);
  return status == cudaSuccess ? add_up(map, whole.tiles(), stream) : status;
}

template int mark_rows(const float*, std::int64_t, std::int64_t, std::int64_t, RowCut*, const Bitmap&, void*);
template int mark_rows(const __nv_bfloat16*, std::int64_t, std::int64_t, std::int64_t, RowCut*, const Bitmap&, void*);
template int mark_rows(const __half*, std::int64_t, std::int64_t, std::int64_t, RowCut*, const Bitmap&, void*);

}  // namespace fedsparse::threshold
