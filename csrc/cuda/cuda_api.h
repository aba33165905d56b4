// The CUDA engine behind one header. Pointers to device memory in, a status out: 0 or a cudaError_t.
// Nothing here needs CUDA's own headers, and the library loads on a machine without a driver.
//
// `stream` is a cudaStream_t, null for the default stream. Calls only queue work: they neither synchronise nor
// allocate, so they may be captured in a graph. The stream's device must be the current one.
#pragma once

#include <cstdint>

#include "fedsparse/shapes.h"

// How numbers are stored.
enum : std::int64_t { FEDSPARSE_FLOAT32 = 0, FEDSPARSE_BFLOAT16 = 1, FEDSPARSE_FLOAT16 = 2 };

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

// ---- activations between rows and lines of 8 samples
// (batch, size), a batch of contiguous pictures say, and (ceil(batch / 8), size, 8). Samples that fill the last lines
// up are written as zeros and not read back.
int fedsparse_cuda_to_lines(const void* rows, void* lines, std::int64_t batch, std::int64_t size, std::int64_t dtype,
                            void* stream);
int fedsparse_cuda_from_lines(const void* lines, void* rows, std::int64_t batch, std::int64_t size,
                              std::int64_t dtype, void* stream);

// ---- products with unstructured weights (csr16.h)
// A linear layer is a 1x1 convolution of one-pixel pictures. Activations are lines of 8 samples, aligned to 16 bytes;
// in gradients, samples beyond the batch are zero. All arrays of a call have the same dtype, sums are float32. For
// equal arguments the results are equal to the bit.

// Entries of `start` in the forward (backward: false) or backward list; 0 where these kernels cannot compute the
// product, because the kernel's reach on one channel does not fit in shared memory.
std::int64_t fedsparse_csr16_start_size(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype);

// Fills a list on the host from the rows of the pattern: start (fedsparse_csr16_start_size), offset (nnz) and, in the
// backward list, value (nnz). `value` may be null in the forward list, which has the order of the values. The batch of
// `shape` does not matter: a list serves batches of every size.
int fedsparse_csr16_list(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                         const fedsparse::PatternView* pattern, std::int32_t* start, std::uint16_t* offset,
                         std::int32_t* value);

// y of x with the forward list; bias (out_channels) may be null.
int fedsparse_cuda_csr16_forward(const fedsparse::ConvShape* shape, std::int64_t dtype, const std::int32_t* start,
                                 const std::uint16_t* offset, const void* values, const void* x, const void* bias,
                                 void* y, void* stream);

// The gradient of x with the backward list.
int fedsparse_cuda_csr16_grad_x(const fedsparse::ConvShape* shape, std::int64_t dtype, const std::int32_t* start,
                                const std::uint16_t* offset, const std::int32_t* value, const void* values,
                                const void* grad_y, void* grad_x, void* stream);

// Floats of scratch that the next function wants.
std::int64_t fedsparse_csr16_partial_size(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t nnz);

// The gradient of the kept values, (nnz), with the forward list.
int fedsparse_cuda_csr16_grad_values(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t nnz,
                                     const std::int32_t* start, const std::uint16_t* offset, const void* grad_y,
                                     const void* x, float* partial, void* grad_values, void* stream);

// ---- products with structured weights on tensor cores (block.h)
// Operands and determinism as above. float32 operands are multiplied in three TF32 products each, which keeps float32's
// accuracy, or with `tf32` in one, which rounds them to 11 bits; `tf32` changes nothing for other dtypes. Devices must
// offer 122 KiB of shared memory to a block.

// The widest strip (32, 16 or 8) of the pattern's structure: forward, the output channels that keep the same columns;
// backward, the input channels whose list costs least. 0 where the pattern has no such structure, or the kernels cannot
// compute the product.
std::int64_t fedsparse_block_width(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                                   const fedsparse::PatternView* pattern);

// Entries of `start` for strips of `width`; 0 where there is no list.
std::int64_t fedsparse_block_start_size(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                                        std::int64_t width);

// Fills `start` on the host; its last entry is the number of chunks of 16 lines. Fails in the forward direction where
// rows of a strip keep different columns. As with csr16, the batch of `shape` does not matter.
int fedsparse_block_start(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                          const fedsparse::PatternView* pattern, std::int32_t* start);

// Fills the list on the host: offset (chunks * 16) and value (chunks * 16 * width).
int fedsparse_block_list(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                         const fedsparse::PatternView* pattern, const std::int32_t* start, std::uint16_t* offset,
                         std::int32_t* value);

// The values in the order of a list, (count) like its `value`, zeros where that is -1.
int fedsparse_cuda_block_pack(std::int64_t dtype, std::int64_t count, const std::int32_t* value, const void* values,
                              void* packed, void* stream);

// y of x with the forward list; bias (out_channels) may be null.
int fedsparse_cuda_block_forward(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t width, bool tf32,
                                 const std::int32_t* start, const std::uint16_t* offset, const void* packed,
                                 const void* x, const void* bias, void* y, void* stream);

// The gradient of x with the backward list.
int fedsparse_cuda_block_grad_x(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t width, bool tf32,
                                const std::int32_t* start, const std::uint16_t* offset, const void* packed,
                                const void* grad_y, void* grad_x, void* stream);

// Floats of scratch that the next function wants.
std::int64_t fedsparse_block_partial_size(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t width,
                                          std::int64_t chunks);

// The gradient of the kept values, (nnz), with the forward list.
int fedsparse_cuda_block_grad_values(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t width,
                                     bool tf32, std::int64_t chunks, const std::int32_t* start,
                                     const std::uint16_t* offset, const std::int32_t* value, const void* grad_y,
                                     const void* x, float* partial, void* grad_values, void* stream);
}
