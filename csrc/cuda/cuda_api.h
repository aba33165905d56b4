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

namespace fedsparse {

// The rows of a pattern on the device: columns are int32 if `wide` and uint16 otherwise.
struct WeightRows {
  std::int64_t rows, inputs, taps;
  const std::int32_t* row_start;
  const void* column;
  bool wide;
};

// A list that a product reads, to be made of the rows of a pattern: of lines of strips of `width`, or of taps where
// that is 0. Its arrays, on the device, are as large as the functions below say for its kind.
struct NewList {
  ConvShape shape;
  bool backward;
  std::int64_t dtype, width;
  const std::int32_t* row_start;
  const void* column;
  bool wide;
  std::int32_t* start;
  std::uint16_t* offset;
  std::int32_t* value;
};

// Lists that products read, on the device (csr16.h, block.h).
struct TapList {
  const std::int32_t* start;
  const std::uint16_t* offset;
  const std::int32_t* value;  // of a backward list
};
struct StripList {
  std::int64_t width, room;  // channels of a strip, chunks that fit
  const std::int32_t* start;
  const std::uint16_t* offset;
  const std::int32_t* value;
};

// A change of a weight's rows. Numbers of dropped values and grown flat positions rise without repetition; a grown one
// is not kept. row_start (rows + 1) and column (nnz - drops + grows, as wide as before) are the new rows.
struct Exchange {
  WeightRows old;
  const std::int64_t *dropped, *grown;
  std::int64_t drops, grows;
  std::int32_t* row_start;
  void* column;
};

// The list by input of a weight's rows (fedsparse/pattern/pattern.py): column_start (inputs + 1), entry and rank (nnz).
// entry and rank are int32 where they are wide and uint16 otherwise.
struct InputList {
  WeightRows rows;
  std::int32_t* column_start;
  void *entry, *rank;
  bool wide_entry, wide_rank;
};

// Arrays of a weight whose rows were `old` and are `now`: to[a][i] = from[a][p], p being where the position of the new
// value i was among the old ones, or fill[a] where it is grown. places (of the new values), unless null, gets p or -1.
struct Move {
  WeightRows old, now;
  std::int32_t* places;
  std::int64_t arrays;
  const void* const* from;
  void* const* to;
  const std::uint32_t* fill;
};

// Flat positions that are proposed to be grown in a weight.
struct Growth {
  WeightRows rows;
  const std::int64_t* positions;
  std::int64_t count;
};

}  // namespace fedsparse

extern "C" {

// CUDA devices of this machine, 0 without a driver. Asked once, at the first call.
int fedsparse_cuda_device_count();

// Bytes of shared memory that a block of the current device may have when it asks for them; 0 without a device.
std::int64_t fedsparse_cuda_shared_limit();

// The sentence for a status; the text is static.
const char* fedsparse_cuda_status_text(int status);

// ---- optimiser steps over the values of `count` parameters, in place and in one pass
// Entry i of each table is an array of parameter i, of sizes[i] floats; they do not overlap. Tables lie in main memory
// and are read before the function returns: a captured graph holds the addresses. One launch serves 100 parameters with
// SGD, 70 with AdamW.

// A step of torch.optim.SGD:
//     d = grad + weight_decay * values
//     momentum = first_step ? d : mu * momentum + (1 - dampening) * d
//     values -= lr * (nesterov ? d + mu * momentum : momentum)
// On the first step momentum is written without being read. With mu == 0 there is no momentum: its arrays are not
// touched and may be null.
int fedsparse_cuda_sgd_momentum(std::int64_t count, float* const* values, const float* const* grad,
                                float* const* momentum, const std::int64_t* sizes, float lr, float mu,
                                float weight_decay, float dampening, bool nesterov, bool first_step, void* stream);

// A step of torch.optim.AdamW, g being *grad_scale * grad:
//     mean = beta1 * mean + (1 - beta1) * g
//     square = beta2 * square + (1 - beta2) * g^2
//     values *= 1 - lr * weight_decay
//     values -= lr / (1 - beta1^step) * mean / (sqrt(square / (1 - beta2^step)) + eps)
// mean and square start as zeros. grad_scale, a float on the device, is what clipping or unscaling makes of the
// gradient; null: 1. Steps count from 1. Their numbers are steps[i], or, where `steps` is null, *counters[i], a float
// on the device for each parameter that is increased by 1 before, in a small launch of its own.
int fedsparse_cuda_adamw(std::int64_t count, float* const* values, const float* const* grad, float* const* mean,
                         float* const* square, const std::int64_t* sizes, float* const* counters,
                         const std::int64_t* steps, const float* grad_scale, double lr, double beta1, double beta2,
                         double eps, double weight_decay, void* stream);

// ---- activations, from the order of torch to that of the products and back
// A batch of a multiple of 8 lies innermost, (size, batch), of contiguous (batch, size): out (columns, rows) of in
// (rows, columns), which serves both ways.
int fedsparse_cuda_transpose(const void* in, void* out, std::int64_t rows, std::int64_t columns, std::int64_t dtype,
                             void* stream);

// Any other batch lies in lines of 8 samples.
// (batch, size), a batch of contiguous pictures say, and (ceil(batch / 8), size, 8). Samples that fill the last lines
// up are written as zeros and not read back.
int fedsparse_cuda_to_lines(const void* rows, void* lines, std::int64_t batch, std::int64_t size, std::int64_t dtype,
                            void* stream);
int fedsparse_cuda_from_lines(const void* lines, void* rows, std::int64_t batch, std::int64_t size,
                              std::int64_t dtype, void* stream);

// ---- products with unstructured weights (csr16.h)
// A linear layer is a 1x1 convolution of one-pixel pictures. Activations are aligned to 16 bytes: (channels, height,
// width, batch) where 8 divides the batch, else lines of 8 samples, (ceil(batch / 8), channels, height, width, 8), in
// which gradients are zero beyond the batch. All arrays of a call have the same dtype, sums are float32. For
// equal arguments the results are equal to the bit.

// Bytes of shared memory that a block of these kernels asks for, whatever the product.
std::int64_t fedsparse_csr16_shared_bytes();

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
int fedsparse_cuda_csr16_forward(const fedsparse::ConvShape* shape, std::int64_t dtype,
                                 const fedsparse::TapList* forward, const void* values, const void* x, const void* bias,
                                 void* y, void* stream);

// Floats of scratch that the next function wants for gradients of values.
std::int64_t fedsparse_csr16_partial_size(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t nnz);

// The gradient of x with the backward list, and that of the kept values, (nnz), with the forward list. Either may be
// null, and then what only the other one reads. Both together are two launches.
int fedsparse_cuda_csr16_backward(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t nnz,
                                  const fedsparse::TapList* forward, const fedsparse::TapList* backward,
                                  const void* values, const void* grad_y, const void* x, float* partial, void* grad_x,
                                  void* grad_values, void* stream);

// ---- the dense gradient of a weight, on tensor cores
// Operands, `tf32` and determinism are those of products with structured weights, below, and a block asks for as much
// shared memory; sums are float32. Workspaces are aligned to 64 bytes; a size of 0 says that the shape is refused,
// because it has 2^31 positions or more, a batch of 2^27, or a kernel whose reach on one channel does not fit in shared
// memory.
std::int64_t fedsparse_cuda_dense_gradient_size(const fedsparse::ConvShape* shape, std::int64_t dtype);

// All of it: gradient (out_channels, in_channels / groups, kernel_h, kernel_w).
int fedsparse_cuda_dense_gradient(const fedsparse::ConvShape* shape, std::int64_t dtype, bool tf32, const void* grad_y,
                                  const void* x, float* gradient, void* workspace, void* stream);

// The k pruned positions with the largest of these gradients, larger first, ties to the lower flat position, NaN (all
// alike) before all: flat positions and signed gradients (k each). row_start and column, int32 if `wide` and uint16
// otherwise, list the nnz kept positions. Memory grows with k: 16.25 bytes for each of min(4 k + 1024, pruned) entries,
// and a constant part below 24 MB.
std::int64_t fedsparse_cuda_topk_pruned_size(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t nnz,
                                             std::int64_t k);
int fedsparse_cuda_topk_pruned(const fedsparse::ConvShape* shape, std::int64_t dtype, bool tf32, std::int64_t nnz,
                               const std::int32_t* row_start, const void* column, bool wide, const void* grad_y,
                               const void* x, std::int64_t k, std::int64_t* positions, float* gradients,
                               void* workspace, void* stream);

// ---- the smallest values of every layer
// Layer l holds values [layer_start[l], layer_start[l + 1]), of which the number_start[l + 1] - number_start[l] of
// smallest magnitude are listed, by rising number within the layer, from numbers[number_start[l]] on. Ties go to the
// lowest number; NaN comes last. layer_start and number_start (layers + 1) lie on the device and begin with 0;
// layer_start ends with n, number_start with the size of `numbers`. A size of 0: 2^31 values, or 2^20 layers, or more.
std::int64_t fedsparse_cuda_smallest_size(std::int64_t layers, std::int64_t n);
int fedsparse_cuda_smallest(const float* values, std::int64_t layers, std::int64_t n, const std::int64_t* layer_start,
                            const std::int64_t* number_start, std::int64_t* numbers, void* workspace, void* stream);

// ---- pruned activations, as in csrc/cpu/activation.h but in the order of the ordinary tensor
// Marks the k elements of each row of x (rows, size) with the largest magnitudes, ties to the lowest index, NaN above
// all; of these, exact zeros are left out, so k == size marks what is not zero. Bit i of word w of `bits` (16 * groups)
// is element 32 w + i of the n = rows * size; `starts` (groups + 1) counts the marked elements before each group of
// 512. groups = ceil(n / 512), n < 2^31. One row is spread over the device, of several each is found by one block.
std::int64_t fedsparse_cuda_mark_largest_size(std::int64_t rows, std::int64_t size);
int fedsparse_cuda_mark_largest(const void* x, std::int64_t rows, std::int64_t size, std::int64_t dtype, std::int64_t k,
                                std::uint32_t* bits, std::int32_t* starts, void* workspace, void* stream);

// The marked elements in order, starts[groups] of them; and all n, zeros where nothing is marked.
int fedsparse_cuda_pack(const void* x, std::int64_t n, std::int64_t dtype, const std::uint32_t* bits,
                        const std::int32_t* starts, void* values, std::int64_t value_dtype, void* stream);
int fedsparse_cuda_unpack(const void* values, std::int64_t value_dtype, std::int64_t n, const std::uint32_t* bits,
                          const std::int32_t* starts, void* x, std::int64_t dtype, void* stream);

// ---- patterns of any number of weights changed on the device
// All weights share their launches: one for each 40 of them, 26 where arrays are moved. What describes a weight lies in
// main memory and may go when the call returns; a captured graph holds it.

// The rows of each weight without the values number `dropped` and with the flat positions `grown`.
int fedsparse_cuda_exchange(std::int64_t count, const fedsparse::Exchange* changes, void* stream);

// The list by input of each weight's rows.
int fedsparse_cuda_list_by_input(std::int64_t count, const fedsparse::InputList* lists, void* stream);

// Values, states of their optimiser and other arrays of 4-byte words, moved along with their positions.
int fedsparse_cuda_carry_words(std::int64_t count, const fedsparse::Move* moves, void* stream);

// faults[i], which is 0 before, gets the sum of what is wrong with the positions proposed for weight i to be grown:
// 1 one is not in the weight, 2 they do not rise (one may be repeated), 4 one is kept.
int fedsparse_cuda_check_growth(std::int64_t count, const fedsparse::Growth* growths, std::int32_t* faults,
                                void* stream);

// ---- lists for products, of many patterns at once: as many launches for one as for any number
// A table says which: it is written in main memory, aligned to 8 bytes, and the caller then copies it to `device`. Lists
// of taps (width 0) are those that fedsparse_csr16_list makes; `value` may be null in a forward one. Of strips (block.h)
// start is filled, whose last entry is the number of chunks, and of offset and value so many chunks; what is behind them
// is not read. In the forward direction rows of a strip have to keep the same columns. The batch of a shape does not
// matter. A list for products that the kernels refuse is refused.
std::int64_t fedsparse_lists_table_size(std::int64_t count, const fedsparse::NewList* wanted);
int fedsparse_lists_table(std::int64_t count, const fedsparse::NewList* wanted, void* table, const void* device);
int fedsparse_cuda_lists(const void* table, const void* device, void* stream);

// ---- products with structured weights on tensor cores (block.h)
// Operands and determinism as above. float32 operands are multiplied in three TF32 products each, which keeps float32's
// accuracy, or with `tf32` in one, which rounds them to 11 bits; `tf32` changes nothing for other dtypes.

// Bytes of shared memory that a block of these kernels asks for, whatever the product.
std::int64_t fedsparse_block_shared_bytes();

// Which strips patterns have, with a table as of lists above; what is found lies where the one on the device begins,
// two int32 for each: so many neighbouring rows (32, 16 or 8; less: no strips) keep the same columns, and of so many
// neighbouring inputs every row keeps all or none at each position of the kernel. The last strips may be shorter.
std::int64_t fedsparse_block_strips_table_size(std::int64_t count);
void fedsparse_block_strips_table(std::int64_t count, const fedsparse::WeightRows* weights, void* table);
int fedsparse_cuda_block_strips(std::int64_t count, const void* table, void* device, void* stream);

// The width of strips (32, 16 or 8) for such a pattern: forward, the output channels that keep the same columns;
// backward, the input channels whose list costs least. 0 where the pattern has no such structure, or the kernels cannot
// compute the product.
std::int64_t fedsparse_block_width(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                                   std::int64_t rows_alike, std::int64_t inputs_alike);

// Entries of `start` for strips of `width`; 0 where there is no list.
std::int64_t fedsparse_block_start_size(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                                        std::int64_t width);

// Chunks of 16 lines that no list of nnz weights exceeds in a pattern that is so alike (0, 8, 16 or 32): the same after
// weights have changed places. In the forward direction rows are alike in strips of `width`.
std::int64_t fedsparse_block_room(const fedsparse::ConvShape* shape, bool backward, std::int64_t dtype,
                                  std::int64_t width, std::int64_t nnz, std::int64_t rows_alike,
                                  std::int64_t inputs_alike);

// y of x with the forward list; bias (out_channels) may be null. `packed`, like the list's `value`, is scratch for the
// values in the order of the list. Two launches.
int fedsparse_cuda_block_forward(const fedsparse::ConvShape* shape, std::int64_t dtype, bool tf32,
                                 const fedsparse::StripList* forward, const void* values, void* packed, const void* x,
                                 const void* bias, void* y, void* stream);

// Floats of scratch that the next function wants for gradients of values.
std::int64_t fedsparse_block_partial_size(const fedsparse::ConvShape* shape, std::int64_t dtype, std::int64_t width,
                                          std::int64_t room);

// The gradient of x with the backward list, `packed` being scratch as above for that one, and the gradient of the kept
// values with the forward list. Either may be null, and then what only the other one reads. Both together are two
// launches.
int fedsparse_cuda_block_backward(const fedsparse::ConvShape* shape, std::int64_t dtype, bool tf32,
                                  const fedsparse::StripList* forward, const fedsparse::StripList* backward,
                                  const void* values, void* packed, const void* grad_y, const void* x, float* partial,
                                  void* grad_x, void* grad_values, void* stream);
}
