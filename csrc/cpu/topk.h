// The pruned positions with the largest gradients, without ever holding the dense gradient.
#pragma once

#include <cstdint>

#include "blocked.h"
#include "fedsparse/api.h"

namespace fedsparse {

// topk_pruned of api.h for activations that are already blocked (blocked.h). Memory grows with k, not with the weight.
std::int64_t topk_pruned_blocked(const Problem& problem, const float* grad_y, const Term& x, std::int64_t k,
                                 std::int64_t* positions, float* gradients, void* workspace);

}  // namespace fedsparse
