// Adds the dense weight gradient and the streaming top-k on blocked activations to the module.
#pragma once

#include <pybind11/pybind11.h>

void bind_topk(pybind11::module_& m);
