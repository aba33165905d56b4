// What the CPU engine is told about a problem: plain structs, no Python, no torch.
#pragma once

#include <cstdint>

namespace fedsparse {

// An index array that is as narrow as its largest entry allows.
struct Index {
  const void* data = nullptr;
  bool wide = false;  // int32 when true, uint16 otherwise

  std::int64_t operator[](std::int64_t i) const {
    return wide ? static_cast<const std::int32_t*>(data)[i] : static_cast<const std::uint16_t*>(data)[i];
  }
};

// The kept positions of a weight (rows, inputs, taps), twice: by row and by input.
// values[i] is the i-th kept position in row order. A column is input * taps + tap.
struct PatternView {
  std::int64_t rows = 0;    // output channels or features
  std::int64_t inputs = 0;  // input channels per group, or features
  std::int64_t taps = 1;    // kernel height * kernel width
  std::int64_t nnz = 0;
  const std::int32_t* row_start = nullptr;     // (rows + 1)
  Index column;                                // (nnz) column of each value
  const std::int32_t* column_start = nullptr;  // (inputs + 1) into the two lists below
  Index entry;                                 // (nnz) tap * rows + row, sorted, for each input in turn
  Index rank;                                  // (nnz) place within its row: value = row_start[row] + rank
};

struct ConvShape {
  std::int64_t batch, in_channels, height, width, out_channels;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;

  std::int64_t out_height() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  std::int64_t out_width() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
  std::int64_t taps() const { return kernel_h * kernel_w; }
};

}  // namespace fedsparse
