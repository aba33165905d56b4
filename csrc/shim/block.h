// Runs the blocks of a grid one after another, each CUDA thread as a fibre. A thread runs until it has to wait for
// others; which one continues then is the schedule: the first that can, or a random one of a random warp. Threads of a
// warp are not in step between its collectives, as on devices since Volta.
//
// What a device leaves undefined fails here: a barrier or collective that some of its threads never reach, barriers
// met at different places, memory read before it holds anything (shared memory starts as 0xFF bytes: NaN in every
// floating type). What a missing barrier breaks depends on the schedule, so kernels are run under several.
//
// One launch at a time in a process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>

namespace fedsparse::shim {

struct Size3 {
  unsigned x = 1, y = 1, z = 1;

  Size3() = default;
  Size3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

// Of the running thread; the kernel's names for them are in cuda_runtime.h.
extern Index3 thread_index, block_index;
extern Size3 block_size, grid_size;

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Where in the source something is asked for: as a default argument, where the call stands.
struct Place {
  const char* file;
  int line;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// ---- what a thread asks of the schedule
void block_barrier(const char* name, Place place);

// Waits until every lane of `mask` is here with the same mask and `complete`; the last one to come calls
// `complete(arguments of each lane, mask)`, with null for lanes outside the mask, while the others stand still.
using Complete = void (*)(void* const* arguments, unsigned mask);
void warp_collective(const char* name, Place place, unsigned mask, void* arguments, Complete complete);

// In random schedules another thread may run first: wherever an order is not the program's to choose.
void let_others_run();

unsigned lane();

// The shared array of this block that belongs to `site`, made and poisoned when the first thread comes to it.
void* shared_array(const void* site, std::size_t bytes);
void* dynamic_shared();

// ---- asynchronous copies: the destination is poisoned at once and holds the data after a wait for its group
void copy_async(void* shared, const void* global, std::size_t bytes, std::size_t live_bytes);
void commit_copies();
void wait_copies(std::size_t groups_left);

// Ends the launch with this sentence as its report. Does not return.
[[noreturn]] void fail(const char* sentence);

// ---- launches
struct Shape {
  Size3 grid, block;
  std::size_t shared_bytes;
};

// 0, or the cudaError_t of what a device would refuse or die of.
int run(const void* kernel, const Shape& shape, const std::function<void()>& thread);

// Dynamic shared memory above 48 KiB has to be asked for once, as on a device.
void allow_shared_bytes(const void* kernel, std::size_t bytes);

// Status of the last launch, forgotten by asking.
int last_status();

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), Size3 grid, Size3 block, std::size_t shared_bytes,
           const Arguments&... arguments) {
  const std::tuple<Parameters...> parameters(arguments...);
  return run(reinterpret_cast<const void*>(kernel), {grid, block, shared_bytes},
             [&] { std::apply(kernel, parameters); });
}

}  // namespace fedsparse::shim

extern "C" {
// The schedule of later launches: 0 runs blocks, warps and lanes in order, any other number shuffles them.
void fedsparse_shim_seed(std::uint64_t seed);

// Why the last launch that did not end well did not; empty when there was none since the last call of
// fedsparse_shim_seed.
const char* fedsparse_shim_report();

// Launches so far.
std::int64_t fedsparse_shim_launches();
}
