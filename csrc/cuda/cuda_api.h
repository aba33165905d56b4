// The CUDA engine behind one header. Pointers to device memory in, a status out: 0 or a cudaError_t.
// Nothing here needs CUDA's own headers, and the library loads on a machine without a driver.
//
// `stream` is a cudaStream_t, null for the default stream. Calls only queue work: they neither synchronise nor
// allocate, so they may be captured in a graph. The stream's device must be the current one.
#pragma once

#include <cstdint>

extern "C" {

// CUDA devices of this machine, 0 without a driver. Asked once, at the first call.
int fedsparse_cuda_device_count();

// The sentence for a status; the text is static.
const char* fedsparse_cuda_status_text(int status);

// One step of torch.optim.SGD over flat values, in place and in one pass:
//     d = grad + weight_decay * values
//     momentum = first_step ? d : mu * momentum + (1 - dampening) * d
//     values -= lr * (nesterov ? d + mu * momentum : momentum)
// values, grad and momentum hold n floats and do not overlap. On the first step momentum is written without being
// read. With mu == 0 there is no momentum: the pointer is not touched and may be null.
int fedsparse_cuda_sgd_momentum(float* values, const float* grad, float* momentum, std::int64_t n, float lr, float mu,
                                float weight_decay, float dampening, bool nesterov, bool first_step, void* stream);
}
