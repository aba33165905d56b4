// Forward, backward and streaming top-k: a geometry, a program, one gather.
#include <algorithm>
#include <cstring>

#include "fedsparse/api.h"
#include "kernels.h"
#include "program.h"

namespace fedsparse {
namespace {

// Pruned positions whose gradients are computed at a time: enough to amortise packing the activations.
constexpr std::int64_t kTopkChunk = 64 * 1024;

void take_planes(Arena& arena, Planes& planes, int lanes) {
  planes.data = arena.take<float>(planes.channels * planes.lines * lanes);
}

Gather describe(const Problem& problem, const Geometry& geometry) {
  Gather g;
  g.storage = problem.linear ? Storage::rows : Storage::images;
  g.batch = problem.shape.batch;
  g.source = geometry.source;
  g.target = g.other = geometry.target;
  g.grids = geometry.grids.data();
  g.source_step_y = geometry.source_step_y;
  g.source_step_x = geometry.source_step_x;
  g.target_step_y = geometry.target_step_y;
  g.target_step_x = geometry.target_step_x;
  g.source_total = geometry.source.channels;
  g.threads = problem.threads;
  return g;
}

// Sums the stripes' slopes and puts each where it came from.
void deliver_slopes(const Gather& g, std::int64_t stripes, float* to) {
  const Program& p = g.program;
#pragma omp parallel for num_threads(g.threads) schedule(static)
  for (std::int64_t i = 0; i < p.count; ++i) {
    float sum = g.slope[i];
    for (std::int64_t s = 1; s < stripes; ++s) sum += g.slope[s * p.count + i];
    to[p.origin[i]] = sum;
  }
}

// A position and the magnitude bits of its gradient: the order of the bits is that of the magnitudes, NaN first.
struct Candidate {
  std::uint32_t magnitude;
  float gradient;
  std::int64_t position;

  Candidate() = default;
  Candidate(float g, std::int64_t at) : gradient(g), position(at) {
    std::memcpy(&magnitude, &g, sizeof g);
    magnitude &= 0x7fffffffu;
  }
  bool operator<(const Candidate& b) const {  // "comes before"
    return magnitude != b.magnitude ? magnitude > b.magnitude : position < b.position;
  }
};

// Keeps the best k seen, in room for one more chunk.
struct BestK {
  Candidate* const held;
  const std::int64_t k;
  std::int64_t count = 0;

  BestK(Candidate* room, std::int64_t wanted) : held(room), k(wanted) {}

  void offer(const Candidate& c) {
    if (count < k || c.magnitude >= floor) held[count++] = c;
  }
  void shrink() {
    if (k == 0) count = 0;
    if (count <= k) return;
    std::nth_element(held, held + k - 1, held + count);
    count = k;
    floor = held[k - 1].magnitude;
  }

 private:
  std::uint32_t floor = 0;  // magnitude of the k-th best
};

}  // namespace

ConvShape linear_shape(std::int64_t batch, std::int64_t inputs, std::int64_t outputs, int lanes) {
  const std::int64_t lines = (batch + lanes - 1) / lanes;
  const std::int64_t width = std::min<std::int64_t>(lines, 4);
  const std::int64_t height = std::clamp<std::int64_t>(lines / 4, 1, 4);
  return {batch, inputs, height, width, outputs, 1, 1, 1, 1, 0, 0, 1, 1, 1};
}

std::int64_t forward(const Problem& problem, const float* x, const float* values, const float* bias, float* y,
                     void* workspace) {
  Arena arena(workspace);
  const Geometry geometry = forward_geometry(problem.shape);
  Gather g = describe(problem, geometry);
  take_planes(arena, g.source, problem.kernels->lanes);
  take_planes(arena, g.target, problem.kernels->lanes);
  g.program = forward_program(*problem.kernels, problem.shape, geometry, problem.pattern, values, problem.threads, arena);
  if (!workspace) return arena.used();
  g.source_tensor = x;
  g.target_tensor = y;
  g.bias = bias;
  problem.kernels->gather.run(g);
  return arena.used();
}

std::int64_t backward(const Problem& problem, const float* grad_y, const float* x, const float* values, float* grad_x,
                      float* grad_values, void* workspace) {
  Arena arena(workspace);
  const Geometry geometry = backward_geometry(problem.shape);
  Gather g = describe(problem, geometry);
  const std::int64_t stripes = gather_stripes(g.target.channels, problem.threads);
  take_planes(arena, g.source, problem.kernels->lanes);
  take_planes(arena, g.target, problem.kernels->lanes);
  take_planes(arena, g.other, problem.kernels->lanes);
  g.program = backward_program(*problem.kernels, problem.shape, geometry, problem.pattern, values, problem.threads, arena);
  g.slope = arena.take<float>(stripes * g.program.count);
  if (!workspace) return arena.used();
  g.source_tensor = grad_y;
  g.target_tensor = grad_x;
  g.other_tensor = grad_values ? x : nullptr;
  if (!grad_values) g.slope = nullptr;
  problem.kernels->gather.run(g);
  if (grad_values) deliver_slopes(g, stripes, grad_values);
  return arena.used();
}

std::int64_t topk_pruned(const Problem& problem, const float* grad_y, const float* x, std::int64_t k,
                         std::int64_t* positions, float* gradients, void* workspace) {
  Arena arena(workspace);
  const Geometry geometry = backward_geometry(problem.shape);
  const PatternView& pattern = problem.pattern;
  const std::int64_t columns = pattern.inputs * pattern.taps;
  const std::int64_t chunk_rows = std::clamp<std::int64_t>(std::max(kTopkChunk, k) / columns, 1, pattern.rows);
  const std::int64_t stripes = gather_stripes(geometry.target.channels, problem.threads);

  Gather g = describe(problem, geometry);
  g.source.channels = chunk_rows;
  take_planes(arena, g.source, problem.kernels->lanes);
  take_planes(arena, g.other, problem.kernels->lanes);
  g.slope = arena.take<float>(stripes * chunk_rows * columns);
  BestK best(arena.take<Candidate>(k + chunk_rows * columns), k);
  const Arena before_chunks = arena;
  if (!workspace) {
    pruned_program(*problem.kernels, problem.shape, geometry, pattern, 0, chunk_rows, chunk_rows * columns, arena);
    return arena.used();
  }
  g.source_tensor = grad_y;
  g.other_tensor = x;
  for (std::int64_t first = 0; first < pattern.rows; first += chunk_rows) {
    const std::int64_t last = std::min(first + chunk_rows, pattern.rows);
    Arena chunk = before_chunks;
    g.program = pruned_program(*problem.kernels, problem.shape, geometry, pattern, first, last, chunk_rows * columns, chunk);
    g.source_first = first;
    g.source.channels = last - first;
    problem.kernels->gather.run(g);
    for (std::int64_t i = 0; i < g.program.count; ++i) {
      float sum = g.slope[i];
      for (std::int64_t s = 1; s < stripes; ++s) sum += g.slope[s * g.program.count + i];
      best.offer({sum, first * columns + g.program.origin[i]});
    }
    best.shrink();
  }
  std::sort(best.held, best.held + best.count);
  for (std::int64_t i = 0; i < best.count; ++i) {
    positions[i] = best.held[i].position;
    gradients[i] = best.held[i].gradient;
  }
  return arena.used();
}

}  // namespace fedsparse
