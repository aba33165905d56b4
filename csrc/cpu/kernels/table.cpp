// Collects the kernels of one instruction set; compiled once for each, like everything in this folder.
#include "../kernels.h"
#include "simd.h"

namespace fedsparse::FEDSPARSE_ISA {

extern const GatherKernels gather;
extern const LinearKernels linear;
extern const LayoutKernels layout;
extern const NormKernels norm;
extern const GroupNormKernels group_norm;
extern const PoolKernels pool;
extern const WeightGradientKernels weight_gradient;
extern const PeakKernels peak;
extern const ActivationKernels activation;

#define FEDSPARSE_STRING2(x) #x
#define FEDSPARSE_STRING(x) FEDSPARSE_STRING2(x)
extern const Kernels kernels;
const Kernels kernels = {FEDSPARSE_STRING(FEDSPARSE_ISA), kLanes, gather, linear, layout, norm, group_norm, pool,
                         weight_gradient, peak, activation};

}  // namespace fedsparse::FEDSPARSE_ISA
