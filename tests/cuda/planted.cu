// Small kernels for the tests of the shim: what each construct does, and mistakes for it to find.
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "ptx.cuh"

using namespace fedsparse;

namespace {

constexpr unsigned kAll = 0xffffffffu;

// Each thread publishes a number and reads its mirror image's; without the barrier that is a race.
template <bool kBarrier>
__global__ void mirror_kernel(const int* in, int* out) {
  FEDSPARSE_SHARED(int, tile, 128);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// Reads what earlier warps have published: right when warps run in order, barrier or not.
template <bool kBarrier>
__global__ void previous_warp_kernel(const int* in, int* out) {
  FEDSPARSE_SHARED(int, tile, 128);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = threadIdx.x < 32 ? tile[threadIdx.x] : tile[threadIdx.x - 32];
}

// Rounds through one buffer: the barrier at the end of a round keeps fast warps from overwriting what slow ones read.
template <bool kBarrier>
__global__ void rounds_kernel(int rounds, int* out) {
  FEDSPARSE_SHARED(int, number, 1);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) number[0] = round;
    __syncthreads();
    sum += number[0];
    if (kBarrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void some_never_arrive_kernel(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void divergent_collectives_kernel(int* out) {
  if (threadIdx.x < 8)
    out[threadIdx.x] = __any_sync(kAll, 1);
  else
    out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}

__global__ void missing_lane_kernel(int* out) {
  if (threadIdx.x != 5) __syncwarp();
  out[threadIdx.x] = 1;
}

__global__ void foreign_mask_kernel(int* out) {
  __syncwarp(0xffffu);
  out[threadIdx.x] = 1;
}

__global__ void uninitialised_kernel(float* out) {
  FEDSPARSE_SHARED(float, fixed, 32);
  FEDSPARSE_DYNAMIC_SHARED(float, sized);
  out[2 * threadIdx.x] = fixed[threadIdx.x];
  out[2 * threadIdx.x + 1] = sized[threadIdx.x];
  fixed[threadIdx.x] = sized[threadIdx.x] = 0;
}

// Reads `beyond` numbers past the end of its input, or of its shared array.
__global__ void out_of_bounds_kernel(const float* in, int n, int beyond, bool shared, float* out) {
  FEDSPARSE_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) out[0] = shared ? tile[n - 1 + beyond] : in[n - 1 + beyond];
}

__global__ void misaligned_kernel(const float* in, float* out) {
  out[threadIdx.x] = reinterpret_cast<const float4*>(in + 1)->x;
}

// One line of 32 answers for each collective, from one warp.
__global__ void collectives_kernel(const int* in, int* out) {
  const int lane = static_cast<int>(threadIdx.x), x = in[lane];
  int row = 0;
  const auto put = [&](int answer) { out[32 * row++ + lane] = answer; };
  put(__shfl_sync(kAll, x, 31 - lane));
  put(__shfl_sync(kAll, x, 3, 8));
  put(__shfl_xor_sync(kAll, x, 5));
  put(__shfl_up_sync(kAll, x, 3u, 16));
  put(__shfl_down_sync(kAll, x, 5u, 8));
  put(static_cast<int>(__ballot_sync(kAll, x % 3 == 0)));
  put(__any_sync(kAll, x == 7) + 2 * __all_sync(kAll, x >= 0));
  put(static_cast<int>(__match_any_sync(kAll, x % 5)));
  int all = 0;
  put(static_cast<int>(__match_all_sync(kAll, x / 1000, &all)) + all);
  put(__reduce_add_sync(kAll, x));
  put(__reduce_min_sync(kAll, x));
  put(__reduce_max_sync(kAll, x));
  put(static_cast<int>(__reduce_and_sync(kAll, static_cast<unsigned>(x))));
  put(static_cast<int>(__reduce_or_sync(kAll, static_cast<unsigned>(x))));
  put(static_cast<int>(__reduce_xor_sync(kAll, static_cast<unsigned>(x))));
}

// Halves of a warp sum apart, each with a mask of its own, and meet again.
__global__ void halves_kernel(const int* in, int* out) {
  const bool upper = threadIdx.x >= 16;
  int sum;
  if (upper)
    sum = __reduce_add_sync(0xffff0000u, in[threadIdx.x]);
  else
    sum = __reduce_add_sync(0x0000ffffu, in[threadIdx.x]);
  out[threadIdx.x] = sum - __shfl_xor_sync(kAll, sum, 16);
}

// Takes tickets from one counter; the order is the schedule's.
__global__ void tickets_kernel(unsigned* counter, unsigned* tickets) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  tickets[thread] = atomicAdd(counter, 1u);
}

// Every coordinate, as a device numbers it.
__global__ void coordinates_kernel(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      block * 1000000 + threadIdx.x + 100 * threadIdx.y + 10000 * threadIdx.z;
}

// Two groups of copies; kWait false reads before the first has arrived.
template <bool kWait>
__global__ void copies_kernel(const float* in, int live, float* out) {
  FEDSPARSE_SHARED(float, tile, 256);
  const unsigned at = 4 * threadIdx.x;
  ptx::copy_async16(tile + at, in + at, static_cast<int>(threadIdx.x) < live);
  ptx::commit_copies();
  ptx::copy_async16(tile + 128 + at, in + 128 + at, true);
  ptx::commit_copies();
  if (kWait) ptx::wait_copies<1>();
  for (unsigned i = at; i < at + 4; ++i) out[i] = tile[i];
  for (unsigned i = at; i < at + 4; ++i) out[128 + i] = tile[128 + i];  // the second group is still under way
  ptx::wait_copies<0>();
  for (unsigned i = at; i < at + 4; ++i) out[256 + i] = tile[128 + i];
}

// d += a * b of one tile. a is 16 x 16 by rows, b 8 columns of 16, both 16-bit; d is 16 x 8.
template <bool kBf16>
__global__ void multiply_kernel(const std::uint16_t* a, const std::uint16_t* b, float* d) {
  FEDSPARSE_SHARED(std::uint16_t, rows, 256);
  FEDSPARSE_SHARED(std::uint16_t, columns, 128);
  const unsigned lane = threadIdx.x, group = lane / 4, member = lane % 4;
  for (unsigned i = lane; i < 256; i += 32) rows[i] = a[i];
  for (unsigned i = lane; i < 128; i += 32) columns[i] = b[i];
  __syncwarp();
  unsigned left[4], right[2];
  ptx::load_matrices(left, rows + lane % 16 * 16 + lane / 16 * 8);
  ptx::load_matrices(right, columns + lane % 8 * 16 + lane / 8 % 2 * 8);
  float sum[4];
  for (unsigned r = 0; r < 4; ++r) sum[r] = d[(group + r / 2 * 8) * 8 + member * 2 + r % 2];
  if (kBf16)
    ptx::mma_bf16(sum, left, right);
  else
    ptx::mma_fp16(sum, left, right);
  for (unsigned r = 0; r < 4; ++r) d[(group + r / 2 * 8) * 8 + member * 2 + r % 2] = sum[r];
}

// d = a * b with a 16 x 8 by rows and b 8 x 8 by rows, float32 read as TF32.
__global__ void multiply_tf32_kernel(const unsigned* a, const unsigned* b, float* d) {
  const unsigned group = threadIdx.x / 4, member = threadIdx.x % 4;
  const unsigned left[4] = {a[group * 8 + member], a[(group + 8) * 8 + member], a[group * 8 + member + 4],
                            a[(group + 8) * 8 + member + 4]};
  const unsigned right[2] = {b[member * 8 + group], b[(member + 4) * 8 + group]};
  float sum[4] = {};
  ptx::mma_tf32(sum, left, right);
  for (unsigned r = 0; r < 4; ++r) d[(group + r / 2 * 8) * 8 + member * 2 + r % 2] = sum[r];
}

// The registers that each lane gets of four matrices, as they are and transposed.
__global__ void matrices_kernel(const std::uint16_t* in, unsigned* out) {
  FEDSPARSE_SHARED(std::uint16_t, rows, 256);
  for (unsigned i = threadIdx.x; i < 256; i += 32) rows[i] = in[i];
  __syncwarp();
  unsigned plain[4], transposed[4];
  ptx::load_matrices(plain, rows + threadIdx.x * 8);
  ptx::load_matrices_transposed(transposed, rows + threadIdx.x * 8);
  for (unsigned m = 0; m < 4; ++m) {
    out[m * 32 + threadIdx.x] = plain[m];
    out[128 + m * 32 + threadIdx.x] = transposed[m];
  }
}

}  // namespace

extern "C" {

int planted_mirror(bool barrier, const int* in, int* out) {
  return FEDSPARSE_LAUNCH((barrier ? &mirror_kernel<true> : &mirror_kernel<false>), 1, 128, 0, nullptr, in, out);
}

int planted_previous_warp(bool barrier, const int* in, int* out) {
  const auto kernel = barrier ? &previous_warp_kernel<true> : &previous_warp_kernel<false>;
  return FEDSPARSE_LAUNCH(kernel, 1, 128, 0, nullptr, in, out);
}

int planted_rounds(bool barrier, std::int64_t rounds, int* out) {
  const auto kernel = barrier ? &rounds_kernel<true> : &rounds_kernel<false>;
  return FEDSPARSE_LAUNCH(kernel, 1, 128, 0, nullptr, static_cast<int>(rounds), out);
}

int planted_some_never_arrive(int* out) {
  return FEDSPARSE_LAUNCH(some_never_arrive_kernel, dim3(2, 1, 1), 64, 0, nullptr, out);
}

int planted_two_barriers(int* out) { return FEDSPARSE_LAUNCH(two_barriers_kernel, 1, 64, 0, nullptr, out); }

int planted_divergent_collectives(int* out) {
  return FEDSPARSE_LAUNCH(divergent_collectives_kernel, 1, 32, 0, nullptr, out);
}

int planted_missing_lane(int* out) { return FEDSPARSE_LAUNCH(missing_lane_kernel, 1, 32, 0, nullptr, out); }

int planted_foreign_mask(int* out) { return FEDSPARSE_LAUNCH(foreign_mask_kernel, 1, 32, 0, nullptr, out); }

int planted_uninitialised(float* out) {
  return FEDSPARSE_LAUNCH(uninitialised_kernel, 3, 32, 32 * sizeof(float), nullptr, out);
}

int planted_out_of_bounds(const float* in, std::int64_t n, std::int64_t beyond, bool shared, float* out) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  return FEDSPARSE_LAUNCH(out_of_bounds_kernel, 1, static_cast<unsigned>(n), bytes, nullptr, in, static_cast<int>(n),
                         static_cast<int>(beyond), shared, out);
}

int planted_misaligned(const float* in, float* out) {
  return FEDSPARSE_LAUNCH(misaligned_kernel, 1, 1, 0, nullptr, in, out);
}

int planted_collectives(const int* in, int* out) {
  return FEDSPARSE_LAUNCH(collectives_kernel, 1, 32, 0, nullptr, in, out);
}

int planted_halves(const int* in, int* out) { return FEDSPARSE_LAUNCH(halves_kernel, 1, 32, 0, nullptr, in, out); }

int planted_tickets(std::int64_t blocks, unsigned* counter, unsigned* tickets) {
  return FEDSPARSE_LAUNCH(tickets_kernel, static_cast<unsigned>(blocks), 64, 0, nullptr, counter, tickets);
}

int planted_coordinates(unsigned* out) {
  return FEDSPARSE_LAUNCH(coordinates_kernel, dim3(3, 2, 2), dim3(5, 4, 3), 0, nullptr, out);
}

int planted_copies(bool wait, const float* in, std::int64_t live, float* out) {
  const auto kernel = wait ? &copies_kernel<true> : &copies_kernel<false>;
  return FEDSPARSE_LAUNCH(kernel, 1, 32, 0, nullptr, in, static_cast<int>(live), out);
}

int planted_multiply(bool bf16, const std::uint16_t* a, const std::uint16_t* b, float* d) {
  const auto kernel = bf16 ? &multiply_kernel<true> : &multiply_kernel<false>;
  return FEDSPARSE_LAUNCH(kernel, 1, 32, 0, nullptr, a, b, d);
}

int planted_multiply_tf32(const unsigned* a, const unsigned* b, float* d) {
  return FEDSPARSE_LAUNCH(multiply_tf32_kernel, 1, 32, 0, nullptr, a, b, d);
}

int planted_matrices(const std::uint16_t* in, unsigned* out) {
  return FEDSPARSE_LAUNCH(matrices_kernel, 1, 32, 0, nullptr, in, out);
}

// A launch with these sizes; `allowed` bytes of shared memory are asked for first unless negative.
int planted_launch(std::int64_t blocks, std::int64_t threads, std::int64_t shared_bytes, std::int64_t allowed,
                   unsigned* counter, unsigned* tickets) {
  if (allowed >= 0)
    cudaFuncSetAttribute(tickets_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(allowed));
  return FEDSPARSE_LAUNCH(tickets_kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                          static_cast<std::size_t>(shared_bytes), nullptr, counter, tickets);
}
}
