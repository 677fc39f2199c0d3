#include "matmul_nbits.h"

#include <algorithm>

namespace aimass {
namespace {

constexpr size_t kRowsRoundedTogether = 8;  // from here on, rounding them is worth waking the other threads

QuantizedMatrix matrix_of(const KernelInfo& info) {
  const auto attribute = [&info](const char* name, int64_t otherwise) {
    return static_cast<size_t>(info.integer(name, otherwise));
  };
  const auto values = info.constant<uint8_t>(1, "B");
  const auto scales = info.constant<float>(2, "scales");
  const auto zero_points = info.constant<uint8_t>(3, "zero_points");
  require(info.constant<int32_t>(4, "g_idx").data == nullptr, ErrorCode::kNotImplemented, "g_idx is not supported");
  QuantizedMatrix matrix{values.data,         scales.data,       zero_points.data,
                         attribute("N", 0),   attribute("K", 0), attribute("block_size", 0),
                         static_cast<int>(attribute("bits", 4))};
  require(has_product(matrix.block_size, matrix.bits), ErrorCode::kNotImplemented,
          "expected blocks of 32, 64 or 128 values of 4 or 8 bits, got " + std::to_string(matrix.block_size) +
              " of " + std::to_string(matrix.bits));
  const size_t blocks = matrix.num_columns * matrix.num_blocks();
  require(static_cast<size_t>(num_elements(values.shape)) == blocks * matrix.block_size * matrix.bits / 8,
          ErrorCode::kInvalidArgument, "B has the shape " + to_string(values.shape) + ", not that of N, K and bits");
  require(static_cast<size_t>(num_elements(scales.shape)) == blocks, ErrorCode::kInvalidArgument,
          "scales has the shape " + to_string(scales.shape) + ", not that of N and K");
  return matrix;
}

// Each thread has its own: kernels run one after the other.
QuantizedRows& scratch() {
  thread_local QuantizedRows rows;
  return rows;
}

}  // namespace

MatMulNBits::MatMulNBits(const KernelInfo& info, Threads threads)
    : weights_(shared_weights(matrix_of(info))), bias_(info.constant<float>(5, "bias")), threads_(threads) {}

void MatMulNBits::compute(const KernelContext& context) const {
  const auto rows = context.input<float>(0);
  require(!rows.shape.empty() && rows.shape.back() == static_cast<int64_t>(weights_->depth),
          ErrorCode::kInvalidArgument,
          "A: expected rows of " + std::to_string(weights_->depth) + ", got the shape " + to_string(rows.shape));
  Shape shape = rows.shape;
  shape.back() = static_cast<int64_t>(weights_->num_columns);
  float* result = context.output<float>(0, shape);
  const size_t num_rows = static_cast<size_t>(num_elements(rows.shape)) / weights_->depth;
  if (num_rows == 0) return;

  QuantizedRows& quantized = scratch();
  quantized.reserve(num_rows, *weights_);
  const size_t rounding = num_rows < kRowsRoundedTogether ? 1 : threads_.count;
  context.parallel_for(rounding, [&](size_t index) {
    const auto [first, last] = share(num_rows, index, rounding);
    quantized.quantize(rows.data, first, last);
  });
  const Product product{quantized, *weights_, num_rows, bias_.data, result};
  const size_t workers = std::min(threads_.count, weights_->num_tiles());
  context.parallel_for(workers, [&](size_t index) {
    const auto [first, last] = share(weights_->num_tiles(), index, workers);
    multiply(product, first, last);
  });
}

}  // namespace aimass
