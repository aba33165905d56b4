// Functions of fedsparse._C beside those of module.cpp.
#pragma once

#include <pybind11/pybind11.h>

void bind_blocked(pybind11::module_& m);  // norms and pooling on blocked activations
