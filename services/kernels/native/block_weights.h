// The weights of a product in blocks of integers, laid out as `block_product` reads them, and shared by every
// session of the process that holds the same ones.
#pragma once

#include <cstdint>
#include <memory>

#include "aligned.h"

namespace aimass {

constexpr size_t kTileColumns = 16;  // one column a lane of 32 bits

// Weights as a node of MatMulNBits holds them.
struct QuantizedMatrix {
  const uint8_t* values;       // [columns, blocks, block_size * bits / 8], low nibble first
  const float* scales;         // [columns, blocks]
  const uint8_t* zero_points;  // [columns, blocks], or of 4 bits [columns, (blocks + 1) / 2]; null: the middle
  size_t num_columns;
  size_t depth;  // rows of the matrix: what a product sums over
  size_t block_size;
  int bits;  // 4 or 8

  size_t num_blocks() const { return divide_up(depth, block_size); }
};

// Tiles of 16 columns. In a block of a tile, vector j holds four values of each column: those at depth 4j ... 4j + 3
// of the block, a byte each. Of 4 bits a byte holds two: low that of vector j, high that of vector j + half.
struct BlockWeights {
  explicit BlockWeights(const QuantizedMatrix& matrix);

  size_t num_tiles() const { return divide_up(num_columns, kTileColumns); }
  size_t block_bytes() const { return kTileColumns * block_size * bits / 8; }

  size_t num_columns, depth, block_size, num_blocks;
  int bits;
  std::shared_ptr<uint8_t> memory;
  uint8_t* values;       // [tiles, blocks, block_bytes]
  float* scales;         // [tiles, blocks, 16]
  uint8_t* zero_points;  // [tiles, blocks, 16]
};

// Packs a matrix, or finds the same one packed by another kernel that is still alive.
std::shared_ptr<const BlockWeights> shared_weights(const QuantizedMatrix& matrix);

}  // namespace aimass
