#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fibre.h"

namespace fedsparse::shim {

Index3 thread_index, block_index;
Size3 block_size, grid_size;

namespace {

// As in driver_types.h.
constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;
constexpr std::size_t kPlainShared = 48 << 10, kMostShared = 227 << 10;
constexpr unsigned kMostThreads = 1024;
constexpr unsigned char kPoison = 0xff;

enum class State { ready, waiting, returned };

struct Wait {
  const char* name = "";
  Place place = {"", 0};
  unsigned mask = 0;  // 0: the whole block
  void* arguments = nullptr;
  Complete complete = nullptr;

  bool same(const Wait& other) const {
    return mask == other.mask && place.line == other.place.line && !std::strcmp(name, other.name) &&
           !std::strcmp(place.file, other.place.file);
  }
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, live_bytes;
};

struct Thread {
  Fibre fibre;
  unsigned number = 0;
  Index3 index;
  State state = State::returned;
  Wait wait;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> committed_copies;
};

struct SharedArray {
  const void* site;
  std::size_t bytes;
  std::unique_ptr<unsigned char[]> data;  // an allocation each, so that AddressSanitizer sees where it ends
};

struct Machine {
  Fibre outside;
  std::vector<std::unique_ptr<Thread>> threads;  // kept from block to block for their stacks
  unsigned count = 0;                            // threads of the block
  std::vector<std::uint32_t> ready;              // lanes that can run, for each warp
  Thread* current = nullptr;
  unsigned arrived = 0;  // at the barrier of the block
  Wait barrier;          // as the first of them met it

  std::vector<SharedArray> shared;
  std::size_t dynamic_bytes = 0;
  const std::function<void()>* body = nullptr;

  std::uint64_t seed = 0;
  std::mt19937 random;
  unsigned warp = 0;  // that ran last

  bool failed = false;
  std::string report;
  int status = 0;
  std::int64_t launches = 0;
  std::map<const void*, std::size_t> allowed_shared;
};

Machine& machine() {
  static Machine m;
  return m;
}

// ---- what went wrong
std::string ranges(const std::vector<unsigned>& numbers) {
  std::ostringstream text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text << (i ? ", " : "") << numbers[i];
    if (last > i) text << "-" << numbers[last];
    i = last + 1;
  }
  return text.str();
}

std::string block_name() {
  std::ostringstream text;
  text << "block (" << block_index.x << ", " << block_index.y << ", " << block_index.z << ")";
  return text.str();
}

std::string describe(const Wait& wait) {
  std::ostringstream text;
  text << wait.name << " at " << wait.place.file << ":" << wait.place.line;
  if (wait.mask) text << " (lanes 0x" << std::hex << wait.mask << ")";
  return text.str();
}

// Where every thread of the block stands, one line for each place.
std::string standing() {
  Machine& m = machine();
  std::ostringstream text;
  std::vector<bool> told(m.count, false);
  std::vector<unsigned> returned;
  for (unsigned i = 0; i < m.count; ++i) {
    const Thread& thread = *m.threads[i];
    if (thread.state == State::returned) returned.push_back(i);
    if (thread.state != State::waiting || told[i]) continue;
    std::vector<unsigned> here;
    for (unsigned j = i; j < m.count; ++j) {
      const Thread& other = *m.threads[j];
      if (other.state != State::waiting || !other.wait.same(thread.wait)) continue;
      here.push_back(j);
      told[j] = true;
    }
    text << "\n  " << describe(thread.wait) << ": arrived threads " << ranges(here);
  }
  if (!returned.empty()) text << "\n  returned: threads " << ranges(returned);
  return text.str();
}

[[noreturn]] void stop(const std::string& report) {
  Machine& m = machine();
  m.failed = true;
  m.report = report;
  Fibre::change(m.current->fibre, m.outside);
  std::abort();  // a failed thread is never continued
}

// ---- the schedule
unsigned nth_lane(std::uint32_t lanes, unsigned n) {
  for (; n > 0; --n) lanes &= lanes - 1;
  return static_cast<unsigned>(__builtin_ctz(lanes));
}

unsigned draw(unsigned below) { return static_cast<unsigned>(machine().random() % below); }

// A warp with lanes that can run, or as many as there are. A warp that runs is often left running, so that it gets far
// ahead of the others.
unsigned choose_warp() {
  Machine& m = machine();
  const auto warps = static_cast<unsigned>(m.ready.size());
  if (m.seed != 0 && m.ready[m.warp] && draw(4) != 0) return m.warp;
  const unsigned first = m.seed == 0 ? 0 : draw(warps);
  for (unsigned i = 0; i < warps; ++i)
    if (m.ready[(first + i) % warps]) return (first + i) % warps;
  return warps;
}

Thread* choose_thread() {
  Machine& m = machine();
  const unsigned warp = choose_warp();
  if (warp == m.ready.size()) return nullptr;
  m.warp = warp;
  const std::uint32_t lanes = m.ready[warp];
  const unsigned lane = m.seed == 0 ? 0 : draw(static_cast<unsigned>(__builtin_popcount(lanes)));
  return m.threads[warp * kWarp + nth_lane(lanes, lane)].get();
}

void set_ready(Thread& thread, bool ready) {
  std::uint32_t& lanes = machine().ready[thread.number / kWarp];
  const std::uint32_t bit = 1u << (thread.number % kWarp);
  lanes = ready ? lanes | bit : lanes & ~bit;
}

void enter(Thread& thread) {
  machine().current = &thread;
  thread_index = thread.index;
}

// Gives the processor to the next thread; without any, to the launch.
void give_way() {
  Machine& m = machine();
  Thread* self = m.current;
  Thread* next = choose_thread();
  if (next == self) return;
  if (next) enter(*next);
  Fibre::change(self->fibre, next ? next->fibre : m.outside);
}

void sleep(const Wait& wait) {
  Thread& self = *machine().current;
  self.wait = wait;
  self.state = State::waiting;
  set_ready(self, false);
}

void wake(Thread& thread) {
  thread.state = State::ready;
  set_ready(thread, true);
}

void thread_main() {
  Machine& m = machine();
  (*m.body)();
  m.current->state = State::returned;
  set_ready(*m.current, false);
  give_way();
}

// ---- blocks
void start_threads() {
  Machine& m = machine();
  m.ready.assign((m.count + kWarp - 1) / kWarp, 0);
  m.warp = 0;
  m.arrived = 0;
  for (unsigned i = 0; i < m.count; ++i) {
    if (i == m.threads.size()) m.threads.push_back(std::make_unique<Thread>());
    Thread& thread = *m.threads[i];
    thread.number = i;
    thread.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    thread.open_copies.clear();
    thread.committed_copies.clear();
    thread.fibre.start(&thread_main);
    wake(thread);
  }
}

void poison(SharedArray& array) { std::memset(array.data.get(), kPoison, array.bytes); }

// True unless the launch failed.
bool run_block() {
  Machine& m = machine();
  for (SharedArray& array : m.shared) poison(array);
  start_threads();
  Thread* first = choose_thread();
  enter(*first);
  Fibre::change(m.outside, first->fibre);
  if (m.failed) return false;
  for (unsigned i = 0; i < m.count; ++i)
    if (m.threads[i]->state != State::returned) {
      m.report = "deadlock in " + block_name() + ":" + standing();
      return false;
    }
  return true;
}

int refusal(const void* kernel, const Shape& shape) {
  if (shape.grid.count() == 0 || shape.block.count() == 0 || shape.block.count() > kMostThreads || shape.block.z > 64 ||
      shape.grid.x > 0x7fffffffu || shape.grid.y > 65535 || shape.grid.z > 65535)
    return kInvalidConfiguration;
  const auto& allowed = machine().allowed_shared;
  const auto found = allowed.find(kernel);
  return shape.shared_bytes > (found == allowed.end() ? kPlainShared : found->second) ? kInvalidValue : 0;
}

// Blocks of a grid run in any order on a device.
std::vector<std::uint64_t> block_order(std::uint64_t blocks) {
  std::vector<std::uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (machine().seed != 0) std::shuffle(order.begin(), order.end(), machine().random);
  return order;
}

int run_grid(const Shape& shape) {
  Machine& m = machine();
  m.random.seed(static_cast<std::mt19937::result_type>(m.seed));
  m.failed = false;
  m.shared.clear();
  m.dynamic_bytes = shape.shared_bytes;
  m.count = static_cast<unsigned>(shape.block.count());
  block_size = shape.block;
  grid_size = shape.grid;
  for (const std::uint64_t block : block_order(shape.grid.count())) {
    const std::uint64_t row = block / shape.grid.x;
    block_index = {static_cast<unsigned>(block % shape.grid.x), static_cast<unsigned>(row % shape.grid.y),
                   static_cast<unsigned>(row / shape.grid.y)};
    if (!run_block()) return kLaunchFailure;
  }
  return 0;
}

void carry_out(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.live_bytes);
  std::memset(static_cast<char*>(copy.to) + copy.live_bytes, 0, copy.bytes - copy.live_bytes);
}

// Whether every lane of the mask waits in this collective. A lane that waits with the same mask in another one never
// will.
bool all_here(const Wait& wait) {
  Machine& m = machine();
  const unsigned first = m.current->number / kWarp * kWarp;
  bool all = true;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(wait.mask >> i & 1)) continue;
    if (first + i >= m.count) stop(describe(wait) + " in " + block_name() + ": the mask names lanes that do not exist");
    const Thread& other = *m.threads[first + i];
    const bool here = other.state == State::waiting && other.wait.mask == wait.mask;
    if (here && other.wait.complete != wait.complete)
      stop("divergent warp collectives in " + block_name() + ":" + standing());
    all = all && here;
  }
  return all;
}

}  // namespace

unsigned lane() { return machine().current->number % kWarp; }

void block_barrier(const char* name, Place place) {
  Machine& m = machine();
  sleep({name, place, 0, nullptr, nullptr});
  if (m.arrived == 0) m.barrier = m.current->wait;
  if (!m.barrier.same(m.current->wait)) stop("divergent barriers in " + block_name() + ":" + standing());
  if (++m.arrived == m.count) {
    m.arrived = 0;
    for (unsigned i = 0; i < m.count; ++i) wake(*m.threads[i]);
  }
  give_way();
}

void warp_collective(const char* name, Place place, unsigned mask, void* arguments, Complete complete) {
  Machine& m = machine();
  const Wait wait = {name, place, mask, arguments, complete};
  if (!(mask >> lane() & 1)) stop(describe(wait) + " in " + block_name() + ": the calling lane is not in the mask");
  sleep(wait);
  if (all_here(wait)) {
    const unsigned first = m.current->number / kWarp * kWarp;
    void* everyones[kWarp] = {};
    for (unsigned i = 0; i < kWarp; ++i)
      if (mask >> i & 1) everyones[i] = m.threads[first + i]->wait.arguments;
    complete(everyones, mask);
    for (unsigned i = 0; i < kWarp; ++i)
      if (mask >> i & 1) wake(*m.threads[first + i]);
  }
  give_way();
}

void let_others_run() {
  if (machine().seed != 0) give_way();
}

void* shared_array(const void* site, std::size_t bytes) {
  Machine& m = machine();
  for (SharedArray& array : m.shared)
    if (array.site == site) return array.data.get();
  m.shared.push_back({site, bytes, std::make_unique<unsigned char[]>(bytes)});
  poison(m.shared.back());
  return m.shared.back().data.get();
}

void* dynamic_shared() { return shared_array(&machine().dynamic_bytes, machine().dynamic_bytes); }

void copy_async(void* shared, const void* global, std::size_t bytes, std::size_t live_bytes) {
  const auto misaligned = [bytes](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % bytes != 0; };
  if (misaligned(shared) || misaligned(global)) fail("cp.async to or from an address that its size does not divide");
  std::memset(shared, kPoison, bytes);
  machine().current->open_copies.push_back({shared, global, bytes, live_bytes});
}

void commit_copies() {
  Thread& self = *machine().current;
  self.committed_copies.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void wait_copies(std::size_t groups_left) {
  auto& groups = machine().current->committed_copies;
  for (; groups.size() > groups_left; groups.pop_front())
    for (const Copy& copy : groups.front()) carry_out(copy);
}

void fail(const char* sentence) { stop(std::string(sentence) + ", in " + block_name()); }

void allow_shared_bytes(const void* kernel, std::size_t bytes) {
  machine().allowed_shared[kernel] = std::min(bytes, kMostShared);
}

int last_status() { return std::exchange(machine().status, 0); }

int run(const void* kernel, const Shape& shape, const std::function<void()>& thread) {
  Machine& m = machine();
  m.body = &thread;
  ++m.launches;
  m.status = refusal(kernel, shape);
  if (m.status == 0) m.status = run_grid(shape);
  return m.status;
}

}  // namespace fedsparse::shim

void fedsparse_shim_seed(std::uint64_t seed) {
  fedsparse::shim::machine().seed = seed;
  fedsparse::shim::machine().report.clear();
}

const char* fedsparse_shim_report() { return fedsparse::shim::machine().report.c_str(); }

std::int64_t fedsparse_shim_launches() { return fedsparse::shim::machine().launches; }
