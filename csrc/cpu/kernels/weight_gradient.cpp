#include "../weight_gradient.h"

namespace fedsparse::FEDSPARSE_ISA {
extern const WeightGradientKernels weight_gradient;
const WeightGradientKernels weight_gradient = {};
}  // namespace fedsparse::FEDSPARSE_ISA
