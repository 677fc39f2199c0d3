// Products of float rows with weights in blocks of integers. Each row is rounded to 8 bits, a scale for each block
// of its values; products add up exactly in 32 bits within a block, and block by block in float. A row's result is
// the same to the last bit whatever other rows, however many threads.
#pragma once

#include "block_weights.h"

namespace aimass {

// Rows of 8-bit integers. Behind the depth of a row they are zero.
struct QuantizedRows {
  void reserve(size_t num_rows, const BlockWeights& weights);
  // Rounds rows [first, last) of `rows` [num_rows, depth].
  void quantize(const float* rows, size_t first, size_t last);

  size_t depth, block_size, num_blocks;
  AlignedArray<int8_t> values;     // [rows, blocks * block_size]
  AlignedArray<float> scales;      // [rows, blocks]
  AlignedArray<int32_t> negated;  // [rows, blocks]: minus the sum of a block, in the lower 16 bits
};

struct Product {
  const QuantizedRows& rows;
  const BlockWeights& weights;
  size_t num_rows;
  const float* bias;  // [columns], or null
  float* result;      // [rows, columns]
};

bool has_product(size_t block_size, int bits);

// Computes the columns of tiles [first, last) of all rows.
void multiply(const Product& product, size_t first_tile, size_t last_tile);

}  // namespace aimass
