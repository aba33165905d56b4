#include "../norm.h"

namespace fedsparse::FEDSPARSE_ISA {
extern const NormKernels norm;
const NormKernels norm = {};
}  // namespace fedsparse::FEDSPARSE_ISA
