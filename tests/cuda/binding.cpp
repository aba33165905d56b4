// The CUDA part of fedsparse._C by itself, over kernels that run on the CPU. PatternView is registered by _C, which has
// to be imported first.
#include "bind.h"

#include "block.h"

PYBIND11_MODULE(fedsparse_shim, m) {
  bind_cuda(m);
  m.def("shim_seed", &fedsparse_shim_seed);
  m.def("shim_launches", &fedsparse_shim_launches);
}
