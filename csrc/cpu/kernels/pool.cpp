#include "../pool.h"

namespace fedsparse::FEDSPARSE_ISA {
extern const PoolKernels pool;
const PoolKernels pool = {};
}  // namespace fedsparse::FEDSPARSE_ISA
