#include "block_product.h"

#include <cstring>

#include "vector_math.h"

namespace aimass {
namespace {

constexpr size_t kChunkRows = 256;         // their sums, 16 KiB, stay in the nearest cache
constexpr size_t kPrefetchedBytes = 4096;  // ahead of one row's pass over the weights: its speed is the memory's

// Rounds one block of at most `block_size` values to the nearest of 127 steps; ties go to the even one.
void quantize_block(const float* values, size_t count, size_t block_size, int8_t* rounded, float* scale,
                    int32_t* negated) {
  __m512 largest = _mm512_setzero_ps();
  for (size_t i = 0; i < count; i += kLanes)
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(first_lanes(count - i), values + i)));
  const float step = _mm512_reduce_max_ps(largest) / 127.0f;
  const __m512 steps = _mm512_set1_ps(step > 0 ? 1 / step : 0);
  __m512i sum = _mm512_setzero_si512();
  for (size_t i = 0; i < block_size; i += kLanes) {
    const __mmask16 lanes = i < count ? first_lanes(count - i) : 0;
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, values + i), steps));
    sum = _mm512_add_epi32(sum, whole);
    _mm_store_si128(reinterpret_cast<__m128i*>(rounded + i), _mm512_cvtsepi32_epi8(whole));
  }
  *scale = step;
  *negated = -_mm512_reduce_add_epi32(sum) & 0xFFFF;
}

// The vectors of one block of a tile, four values of 16 columns each, as many as a row's block has groups of four.
template <int kBits, size_t kBlockSize>
struct WeightBlock {
  static constexpr size_t kVectors = kBlockSize / 4;
  __m512i vectors[kVectors];

  explicit WeightBlock(const uint8_t* block) {
    if constexpr (kBits == 8) {
      for (size_t j = 0; j < kVectors; ++j) vectors[j] = _mm512_load_si512(block + j * 64);
    } else {
      const __m512i low = _mm512_set1_epi8(15);
      for (size_t j = 0; j < kVectors / 2; ++j) {
        const __m512i both = _mm512_load_si512(block + j * 64);
        vectors[j] = _mm512_and_si512(both, low);
        vectors[j + kVectors / 2] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
    }
  }

  // Adds the products with one row's block to `start`. Two chains of sums: one alone would wait for itself.
  __m512i times(const int8_t* row, __m512i start) const {
    const auto four = [row](size_t j) {
      int32_t group;
      std::memcpy(&group, row + j * 4, 4);
      return _mm512_set1_epi32(group);
    };
    __m512i even = start, odd = _mm512_setzero_si512();
    for (size_t j = 0; j < kVectors; j += 2) {
      even = _mm512_dpbusd_epi32(even, vectors[j], four(j));
      odd = _mm512_dpbusd_epi32(odd, vectors[j + 1], four(j + 1));
    }
    return _mm512_add_epi32(even, odd);
  }
};

void prefetch(const uint8_t* block, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += kCacheLine)
    _mm_prefetch(reinterpret_cast<const char*>(block + kPrefetchedBytes + offset), _MM_HINT_T1);
}

// Adds the products of some rows with one tile to `sums`, [rows, 16].
template <int kBits, size_t kBlockSize>
void add_tile(const Product& product, size_t tile, size_t first_row, size_t num_rows, float* sums) {
  const BlockWeights& weights = product.weights;
  const QuantizedRows& rows = product.rows;
  constexpr size_t kBlockBytes = kTileColumns * kBlockSize * kBits / 8;
  for (size_t block = 0; block < weights.num_blocks; ++block) {
    const size_t place = tile * weights.num_blocks + block;
    const uint8_t* values = weights.values + place * kBlockBytes;
    prefetch(values, kBlockBytes);
    const WeightBlock<kBits, kBlockSize> columns(values);
    const __m512 scales = _mm512_load_ps(weights.scales + place * kTileColumns);
    const __m512i zero_points = _mm512_cvtepu8_epi32(
        _mm_load_si128(reinterpret_cast<const __m128i*>(weights.zero_points + place * kTileColumns)));
    for (size_t row = 0; row < num_rows; ++row) {
      const size_t source = (first_row + row) * weights.num_blocks + block;
      const __m512i negated = _mm512_set1_epi32(rows.negated.data()[source]);
      const __m512i start = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero_points, negated);
      const __m512i whole = columns.times(rows.values.data() + source * kBlockSize, start);
      const __m512 step = _mm512_mul_ps(scales, _mm512_set1_ps(rows.scales.data()[source]));
      float* sum = sums + row * kLanes;
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), step, _mm512_load_ps(sum)));
    }
  }
}

template <int kBits, size_t kBlockSize>
void multiply_blocks(const Product& product, size_t first_tile, size_t last_tile) {
  alignas(kCacheLine) float sums[kChunkRows * kLanes];
  const size_t num_columns = product.weights.num_columns;
  for (size_t first_row = 0; first_row < product.num_rows; first_row += kChunkRows) {
    const size_t num_rows = std::min(kChunkRows, product.num_rows - first_row);
    for (size_t tile = first_tile; tile < last_tile; ++tile) {
      const size_t column = tile * kTileColumns;
      const __mmask16 lanes = first_lanes(num_columns - column);
      const __m512 bias =
          product.bias ? _mm512_maskz_loadu_ps(lanes, product.bias + column) : _mm512_setzero_ps();
      for (size_t row = 0; row < num_rows; ++row) _mm512_store_ps(sums + row * kLanes, bias);
      add_tile<kBits, kBlockSize>(product, tile, first_row, num_rows, sums);
      float* result = product.result + first_row * num_columns + column;
      for (size_t row = 0; row < num_rows; ++row)
        _mm512_mask_storeu_ps(result + row * num_columns, lanes, _mm512_load_ps(sums + row * kLanes));
    }
  }
}

using Multiply = void (*)(const Product&, size_t, size_t);

Multiply multiply_for(size_t block_size, int bits) {
  if (bits == 8 && block_size == 32) return multiply_blocks<8, 32>;
  if (bits == 8 && block_size == 64) return multiply_blocks<8, 64>;
  if (bits == 8 && block_size == 128) return multiply_blocks<8, 128>;
  if (bits == 4 && block_size == 32) return multiply_blocks<4, 32>;
  if (bits == 4 && block_size == 64) return multiply_blocks<4, 64>;
  if (bits == 4 && block_size == 128) return multiply_blocks<4, 128>;
  return nullptr;
}

}  // namespace

void QuantizedRows::reserve(size_t num_rows, const BlockWeights& weights) {
  depth = weights.depth;
  block_size = weights.block_size;
  num_blocks = weights.num_blocks;
  values.ensure(num_rows * num_blocks * block_size);
  scales.ensure(num_rows * num_blocks);
  negated.ensure(num_rows * num_blocks);
}

void QuantizedRows::quantize(const float* rows, size_t first, size_t last) {
  for (size_t row = first; row < last; ++row) {
    for (size_t block = 0; block < num_blocks; ++block) {
      const size_t place = row * num_blocks + block, start = block * block_size;
      quantize_block(rows + row * depth + start, std::min(block_size, depth - start), block_size,
                     values.data() + place * block_size, scales.data() + place, negated.data() + place);
    }
  }
}

bool has_product(size_t block_size, int bits) { return multiply_for(block_size, bits) != nullptr; }

void multiply(const Product& product, size_t first_tile, size_t last_tile) {
  multiply_for(product.weights.block_size, product.weights.bits)(product, first_tile, last_tile);
}

}  // namespace aimass
