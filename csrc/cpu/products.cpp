// Forward and backward: a geometry, a program, one gather.
#include <algorithm>

#include "fedsparse/api.h"
#include "kernels.h"
#include "program.h"

namespace fedsparse {
namespace {

Gather describe(const Problem& problem, const Geometry& geometry) {
  Gather g;
  g.source = geometry.source;
  g.target = geometry.target;
  g.grids = geometry.grids.data();
  g.source_step_y = geometry.source_step_y;
  g.source_step_x = geometry.source_step_x;
  g.target_step_y = geometry.target_step_y;
  g.target_step_x = geometry.target_step_x;
  g.halo = geometry.halo;
  g.tile_rows = geometry.tile_rows;
  g.half = problem.half;
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
    if (p.origin[i] >= 0) to[p.origin[i]] = sum;
  }
}

std::int64_t conv_forward(const Problem& problem, const Strips& strips, const Term& x, const float* values,
                          const float* bias, void* y, Arena& arena) {
  const GatherKernels& kernels = problem.kernels->gather;
  const Geometry geometry = forward_geometry(problem, strips.shared());
  Gather g = describe(problem, geometry);
  g.program = forward_program(problem, geometry, strips, values, arena);
  g.x = x;
  g.y = y;
  g.bias = bias;
  g.scratch = arena.take<float>(g.threads * kernels.scratch(g));
  if (g.scratch) kernels.run(g);
  return arena.used();
}

// Whether what was saved is expanded first, which only the loops of single targets know how to.
bool expands(const Problem& problem, const Saved& x, bool wants_values) {
  return wants_values && !x.is_term(problem.half);
}

std::int64_t conv_backward(const Problem& problem, const Strips& strips, const void* grad_y, const Saved& x,
                           const float* values, void* grad_x, float* grad_values, Arena& arena) {
  const GatherKernels& kernels = problem.kernels->gather;
  const Geometry geometry = backward_geometry(problem, strips.shared());
  Gather g = describe(problem, geometry);
  g.program = backward_program(problem, geometry, strips, values, arena);
  g.x.data = grad_y;
  g.y = grad_x;
  Saved saved = x;
  saved.image_lines = problem.shape.in_channels * problem.shape.height * problem.shape.width;
  if (grad_values) {
    g.other = x.held.term;
    if (expands(problem, x, true)) g.saved = &saved;
  }
  const std::int64_t stripes = kernels.split(g).stripes;
  if (grad_values) g.slope = arena.take<float>(stripes * g.program.count);
  g.scratch = arena.take<float>(g.threads * kernels.scratch(g));
  if (!g.scratch) return arena.used();
  kernels.run(g);
  if (grad_values) deliver_slopes(g, stripes, grad_values);
  return arena.used();
}

Linear describe(const Problem& problem, const float* values) {
  Linear a;
  a.pattern = problem.pattern;
  a.groups = (problem.shape.batch + problem.kernels->lanes - 1) / problem.kernels->lanes;
  a.half = problem.half;
  a.values = values;
  a.threads = problem.threads;
  return a;
}

std::int64_t packed_floats(const Problem& problem, const Linear& a, std::int64_t features) {
  return features * problem.kernels->linear.packed_width(a.groups) * problem.kernels->lanes;
}

std::int64_t linear_forward(const Problem& problem, const Term& x, const float* values, const float* bias, void* y,
                            Arena& arena) {
  const LinearKernels& kernels = problem.kernels->linear;
  Linear a = describe(problem, values);
  a.x = x;
  a.bias = bias;
  a.y = y;
  a.packed = arena.take<float>(packed_floats(problem, a, problem.pattern.inputs));
  if (a.packed) kernels.forward(a);
  return arena.used();
}

std::int64_t linear_backward(const Problem& problem, const void* grad_y, const Saved& x, const float* values,
                             void* grad_x, float* grad_values, Arena& arena) {
  const LinearKernels& kernels = problem.kernels->linear;
  Linear a = describe(problem, values);
  a.x = x.held.term;
  Saved saved = x;
  saved.image_lines = problem.pattern.inputs;
  if (!x.is_term(problem.half)) a.saved = &saved;
  a.grad_y = grad_y;
  a.grad_x = grad_x;
  a.grad_values = grad_values;
  a.packed = arena.take<float>(packed_floats(problem, a, problem.pattern.rows));
  if (a.packed) kernels.backward(a);
  return arena.used();
}

}  // namespace

ConvShape linear_shape(std::int64_t batch, std::int64_t inputs, std::int64_t outputs) {
  return {batch, inputs, 1, 1, outputs, 1, 1, 1, 1, 0, 0, 1, 1, 1};
}

Strips forward_strips(const Problem& problem) {
  if (problem.linear) return {};
  return row_strips(problem.pattern, problem.shape.groups, problem.kernels->gather.strip_width);
}

Strips backward_strips(const Problem& problem, const Saved& x, bool wants_values) {
  if (problem.linear) return {};
  return input_strips(problem.pattern, expands(problem, x, wants_values) ? 1 : problem.kernels->gather.strip_width);
}

std::int64_t forward(const Problem& problem, const Strips& strips, const Term& x, const float* values,
                     const float* bias, void* y, void* workspace) {
  Arena arena(workspace);
  return problem.linear ? linear_forward(problem, x, values, bias, y, arena)
                        : conv_forward(problem, strips, x, values, bias, y, arena);
}

std::int64_t backward(const Problem& problem, const Strips& strips, const void* grad_y, const Saved& x,
                      const float* values, void* grad_x, float* grad_values, void* workspace) {
  Arena arena(workspace);
  return problem.linear ? linear_backward(problem, grad_y, x, values, grad_x, grad_values, arena)
                        : conv_backward(problem, strips, grad_y, x, values, grad_x, grad_values, arena);
}

void to_blocked(const Kernels& kernels, std::int64_t batch, std::int64_t size, bool half, const void* rows,
                void* blocked, int threads) {
  kernels.layout.to_blocked(batch, size, half, rows, blocked, threads);
}

void from_blocked(const Kernels& kernels, std::int64_t batch, std::int64_t size, bool half, const void* blocked,
                  void* rows, int threads) {
  kernels.layout.from_blocked(batch, size, half, blocked, rows, threads);
}

}  // namespace fedsparse
