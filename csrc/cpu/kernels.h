// The kernels of one instruction set, and which sets this processor runs.
#pragma once

#include "activation.h"
#include "gather.h"
#include "layout.h"
#include "linear.h"
#include "norm.h"
#include "peak.h"
#include "pool.h"
#include "weight_gradient.h"

namespace fedsparse {

struct Kernels {
  const char* name;
  int lanes;
  GatherKernels gather;
  LinearKernels linear;
  LayoutKernels layout;
  NormKernels norm;
  GroupNormKernels group_norm;
  PoolKernels pool;
  WeightGradientKernels weight_gradient;
  PeakKernels peak;
  ActivationKernels activation;
};

// Best first. Never empty; an entry is present only where the processor can run it.
const Kernels* const* instruction_sets(int* count);
const Kernels& kernels_named(const char* name);  // throws std::invalid_argument naming the choices

}  // namespace fedsparse
