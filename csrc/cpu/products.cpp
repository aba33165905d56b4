// Forward and backward: a geometry, a program, one gather.
#include <algorithm>

#include "fedsparse/api.h"
#include "kernels.h"
#include "program.h"

namespace fedsparse {
namespace {

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

}  // namespace fedsparse
