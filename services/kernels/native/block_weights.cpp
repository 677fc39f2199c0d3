#include "block_weights.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>

namespace aimass {
namespace {

size_t value_bytes(const QuantizedMatrix& matrix) {
  return matrix.num_columns * matrix.num_blocks() * matrix.block_size * matrix.bits / 8;
}

size_t zero_point_bytes(const QuantizedMatrix& matrix) {
  if (matrix.zero_points == nullptr) return 0;
  return matrix.num_columns * divide_up(matrix.num_blocks() * matrix.bits, 8);
}

uint8_t value_at(const QuantizedMatrix& matrix, size_t column, size_t block, size_t index) {
  const uint8_t* bytes = matrix.values + (column * matrix.num_blocks() + block) * matrix.block_size * matrix.bits / 8;
  if (matrix.bits == 8) return bytes[index];
  return bytes[index / 2] >> (index % 2 * 4) & 15;
}

uint8_t zero_point_at(const QuantizedMatrix& matrix, size_t column, size_t block) {
  if (matrix.zero_points == nullptr) return matrix.bits == 8 ? 128 : 8;
  if (matrix.bits == 8) return matrix.zero_points[column * matrix.num_blocks() + block];
  const size_t row_bytes = divide_up(matrix.num_blocks(), 2);
  return matrix.zero_points[column * row_bytes + block / 2] >> (block % 2 * 4) & 15;
}

// Writes the values of one column in one block to the lanes of the block's vectors.
void pack_column(const QuantizedMatrix& matrix, size_t column, size_t block, uint8_t* lane) {
  constexpr size_t kVectorBytes = kTileColumns * 4;
  const size_t half = matrix.block_size / 2;
  for (size_t index = 0; index < matrix.block_size; ++index) {
    const uint8_t value = value_at(matrix, column, block, index);
    if (matrix.bits == 8) {
      lane[index / 4 * kVectorBytes + index % 4] = value;
    } else {
      const size_t place = index % half;
      uint8_t& both = lane[place / 4 * kVectorBytes + place % 4];
      both = index < half ? value : both | value << 4;
    }
  }
}

// Two hashes of 64 bits over whole words: equal weights are found, and others meet by no accident.
struct Digest {
  uint64_t first = 0x9E3779B97F4A7C15, second = 0xC2B2AE3D27D4EB4F;

  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t start = 0; start < size; start += 8) {
      uint64_t word = size;
      std::memcpy(&word, bytes + start, std::min<size_t>(8, size - start));
      first = (first ^ word) * 0xFF51AFD7ED558CCD;
      first ^= first >> 32;
      second = (second + word) * 0xC4CEB9FE1A85EC53;
      second ^= second >> 29;
    }
  }
};

using Key = std::tuple<uint64_t, uint64_t, size_t, size_t, size_t, int>;

Key key_of(const QuantizedMatrix& matrix) {
  Digest digest;
  digest.add(matrix.values, value_bytes(matrix));
  digest.add(matrix.scales, matrix.num_columns * matrix.num_blocks() * sizeof(float));
  digest.add(matrix.zero_points, zero_point_bytes(matrix));
  return {digest.first, digest.second, matrix.num_columns, matrix.depth, matrix.block_size, matrix.bits};
}

}  // namespace

BlockWeights::BlockWeights(const QuantizedMatrix& matrix)
    : num_columns(matrix.num_columns),
      depth(matrix.depth),
      block_size(matrix.block_size),
      num_blocks(matrix.num_blocks()),
      bits(matrix.bits) {
  const size_t num_vectors = num_tiles() * num_blocks, lanes = num_vectors * kTileColumns;
  const size_t num_bytes = num_vectors * block_bytes() + lanes * (sizeof(float) + 1);
  memory = on_large_pages(num_bytes);
  std::memset(memory.get(), 0, num_bytes);  // the columns behind the last one stay zero
  values = memory.get();
  scales = reinterpret_cast<float*>(values + num_vectors * block_bytes());
  zero_points = reinterpret_cast<uint8_t*>(scales + lanes);
  for (size_t column = 0; column < num_columns; ++column) {
    const size_t tile = column / kTileColumns, lane = column % kTileColumns;
    for (size_t block = 0; block < num_blocks; ++block) {
      const size_t place = tile * num_blocks + block;
      pack_column(matrix, column, block, values + place * block_bytes() + lane * 4);
      scales[place * kTileColumns + lane] = matrix.scales[column * num_blocks + block];
      zero_points[place * kTileColumns + lane] = zero_point_at(matrix, column, block);
    }
  }
}

std::shared_ptr<const BlockWeights> shared_weights(const QuantizedMatrix& matrix) {
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<const BlockWeights>> packed;
  const Key key = key_of(matrix);
  const std::lock_guard lock(mutex);
  if (auto found = packed[key].lock()) return found;
  auto made = std::make_shared<const BlockWeights>(matrix);
  packed[key] = made;
  return made;
}

}  // namespace aimass
