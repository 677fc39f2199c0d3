// com.microsoft.GroupQueryAttention: rotates new queries and keys, writes new keys and values to the cache, attends.
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
#pragma once

#include "operator.h"

namespace aimass {

class GroupQueryAttention {
 public:
  static constexpr const char* kName = "GroupQueryAttention";
  static constexpr Port kInputs[] = {
      {ElementType::kFloat, Presence::kRequired},  // query, or packed queries, keys and values
      {ElementType::kFloat, Presence::kOptional},  // key
      {ElementType::kFloat, Presence::kOptional},  // value
      {ElementType::kFloat, Presence::kOptional},  // past_key [batch, kv heads, capacity, size]
      {ElementType::kFloat, Presence::kOptional},  // past_value
      {ElementType::kInt32, Presence::kRequired},  // seqlens_k [batch]: length - 1
      {ElementType::kInt32, Presence::kRequired},  // total_sequence_length
      {ElementType::kFloat, Presence::kOptional},  // cos_cache [positions, half]
      {ElementType::kFloat, Presence::kOptional},  // sin_cache
  };
  static constexpr Port kOutputs[] = {
      {ElementType::kFloat, Presence::kRequired},  // [batch, tokens, heads * size]
      {ElementType::kFloat, Presence::kRequired},  // present_key
      {ElementType::kFloat, Presence::kRequired},  // present_value
  };

  GroupQueryAttention(const KernelInfo& info, Threads threads);
  void compute(const KernelContext& context) const;

  struct Call;

 private:
  void attend_steps(const KernelContext& context, const Call& call) const;
  void attend_prompts(const KernelContext& context, const Call& call, size_t tokens_together) const;

  size_t num_heads_, num_kv_heads_;
  size_t window_;  // 0: none
  float scale_;    // 0: one over the root of the size
  bool rotates_;
  Threads threads_;
};

}  // namespace aimass
