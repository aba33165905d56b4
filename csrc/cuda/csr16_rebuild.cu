// Lists of taps made on the device from the rows of a pattern: equal to those that fedsparse_csr16_list makes.
//
// Each value learns its list entry; a stable sort by entry keeps the values of one entry in their order. The forward
// list has the order of the values already.
#include "../cpu/arena.h"
#include "cuda_api.h"
#include "kept.cuh"
#include "sort.cuh"

namespace fedsparse::csr16 {
namespace {

constexpr int kWarps = fedsparse::kThreads / 32;

struct Lister {
  KeptRows kept;
  std::int32_t nnz, targets, slabs, entries;

  Lister(const Plan& plan, const ConvShape& s, bool backward, const std::int32_t* row_start, const Columns& column,
         std::int64_t nnz_)
      : kept(plan, s, backward, row_start, column), nnz(static_cast<std::int32_t>(nnz_)), targets(plan.target.channels),
        slabs(plan.slabs), entries(static_cast<std::int32_t>(plan.grids.size()) * targets * slabs) {}

  // Of the value in this row and column.
  __device__ __forceinline__ std::int32_t entry(std::int32_t row, std::int32_t at) const {
    return (kept.grid(at) * targets + kept.target(row, at)) * slabs + kept.source(row, at) / kept.slab_channels;
  }
};

struct Listed {
  std::uint32_t entry;
  std::int32_t value;
};

struct ByEntry {
  __device__ std::uint32_t operator()(const Listed& listed) const { return listed.entry; }
};

__global__ void __launch_bounds__(fedsparse::kThreads) list_entries_kernel(const Lister l, Listed* __restrict__ out) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * kWarps);
  for (auto row = static_cast<std::int32_t>(blockIdx.x * kWarps + threadIdx.x / 32); row < l.kept.rows; row += stride)
    for (std::int64_t i = l.kept.row_start[row] + threadIdx.x % 32; i < l.kept.row_start[row + 1]; i += 32)
      out[i] = {static_cast<std::uint32_t>(l.entry(row, l.kept.column[i])), static_cast<std::int32_t>(i)};
}

// The entries of a list by number.
struct Entries {
  const Listed* listed;

  __device__ std::uint32_t operator[](std::int64_t i) const { return listed[i].entry; }
};

__global__ void __launch_bounds__(fedsparse::kThreads)
    list_taps_kernel(const Lister l, const Listed* __restrict__ sorted, std::int32_t* __restrict__ start,
                     std::uint16_t* __restrict__ offset, std::int32_t* __restrict__ value) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t e = first; e <= l.entries; e += stride)
    start[e] = static_cast<std::int32_t>(first_from(Entries{sorted}, 0, l.nnz, e));
  for (std::int64_t at = first; at < l.nnz; at += stride) {
    const std::int32_t i = sorted[at].value;
    const std::int64_t row = first_from(l.kept.row_start, 0, l.kept.rows + 1, std::int64_t{i} + 1) - 1;
    offset[at] = l.kept.distance(static_cast<std::int32_t>(row), l.kept.column[i]);
    if (value) value[at] = i;
  }
}

struct Room {
  Listed *list, *other;
  std::uint32_t* table;

  Room(std::int64_t nnz, Arena& arena)
      : list(arena.take<Listed>(nnz)), other(arena.take<Listed>(nnz)),
        table(arena.take<std::uint32_t>(sort::table_size(nnz))) {}
};

int bits_below(std::int64_t count) {
  int bits = 0;
  for (; (std::int64_t{1} << bits) < count; ++bits) {
  }
  return bits;
}

// What the numbers here have room for.
bool listable(const ConvShape& s, std::int64_t nnz) {
  return nnz >= 0 && nnz < std::int64_t{1} << 31 && KeptRows::fit(s);
}

}  // namespace
}  // namespace fedsparse::csr16

using namespace fedsparse;

std::int64_t fedsparse_cuda_csr16_list_size(std::int64_t nnz) {
  Arena arena;
  csr16::Room(nnz, arena);
  return std::max<std::int64_t>(arena.used(), Arena::kAlign);
}

int fedsparse_cuda_csr16_list(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t nnz,
                              const std::int32_t* row_start, const void* column, bool wide, std::int32_t* start,
                              std::uint16_t* offset, std::int32_t* value, void* workspace, void* stream) {
  csr16::Plan plan;
  const int bytes = dtype == FEDSPARSE_FLOAT32 ? 4 : 2;
  if (!csr16::make_plan(*shape, backward, bytes, plan) || !csr16::listable(*shape, nnz)) return cudaErrorInvalidValue;
  const csr16::Lister lister(plan, *shape, backward, row_start, {column, wide}, nnz);
  Arena arena(workspace);
  const csr16::Room room(nnz, arena);
  csr16::Listed* sorted = room.list;
  int status = FEDSPARSE_LAUNCH(csr16::list_entries_kernel, blocks_for(std::int64_t{lister.kept.rows} * 32),
                                fedsparse::kThreads, 0, stream, lister, room.list);
  if (status == cudaSuccess && backward && nnz > 0)
    status = sort::run(room.list, room.other, static_cast<const std::uint32_t*>(nullptr), nnz,
                       csr16::bits_below(lister.entries), csr16::ByEntry{}, room.table, stream, sorted);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(csr16::list_taps_kernel, blocks_for(std::max<std::int64_t>(lister.entries + 1, nnz)),
                          fedsparse::kThreads, 0, stream, lister, sorted, start, offset, value);
}
