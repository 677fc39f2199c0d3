// Causal attention of some new tokens over the keys and values of a sequence, in float32. Every row is computed in
// one fixed order: its bits are the same whatever other rows or threads there are, in one chunk or token by token.
#pragma once

#include <cstddef>

namespace aimass {

// The heads of one sequence that share one head of keys and values, and its new tokens.
struct AttentionGroup {
  const float* queries;   // [tokens, heads, size]: rotated and scaled
  const float* keys;      // [positions, size]
  const float* values;    // [positions, size]
  float* result;          // [tokens, heads, size] with `result_stride` between tokens
  size_t result_stride;
  size_t num_tokens;
  size_t num_heads;
  size_t head_size;
  size_t first_position;  // of the first token, which sees positions up to its own
  size_t window;          // how many positions a token sees, itself included; 0: all
  const float* next_keys; // of the group that this thread attends next, which are fetched meanwhile; or null
};


void attend(const AttentionGroup& group);

// Fetches the keys that `attend` reads first, while there is something else to do.
void fetch_first_keys(const float* keys, size_t head_size);

// Rotates the first `2 * half` values of a head by the angles of its position, halves against each other (RoFormer,
// https://arxiv.org/abs/2104.09864, as GPT-NeoX lays it out), multiplies all by `scale`, and writes them to `target`.
void rotate(const float* head, const float* cosines, const float* sines, size_t half, size_t head_size, float scale,
            float* target);

}  // namespace aimass
