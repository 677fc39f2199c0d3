// com.microsoft.MatMulNBits: a product with weights in blocks of 4 or 8 bits, computed in integers.
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
#pragma once

#include "block_product.h"
#include "operator.h"

namespace aimass {

class MatMulNBits {
 public:
  static constexpr const char* kName = "MatMulNBits";
  static constexpr Port kInputs[] = {
      {ElementType::kFloat, Presence::kRequired},  // A [..., depth]
      {ElementType::kUint8, Presence::kRequired},  // B, constant
      {ElementType::kFloat, Presence::kRequired},  // scales, constant
      {ElementType::kUint8, Presence::kOptional},  // zero_points, constant
      {ElementType::kInt32, Presence::kOptional},  // g_idx: refused
      {ElementType::kFloat, Presence::kOptional},  // bias, constant
  };
  static constexpr Port kOutputs[] = {{ElementType::kFloat, Presence::kRequired}};

  MatMulNBits(const KernelInfo& info, Threads threads);
  void compute(const KernelContext& context) const;

 private:
  std::shared_ptr<const BlockWeights> weights_;
  Tensor<const float> bias_;
  Threads threads_;
};

}  // namespace aimass
