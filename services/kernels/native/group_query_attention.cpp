#include "group_query_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "aligned.h"
#include "attention.h"

namespace aimass {

constexpr size_t kRowsTogether = 48;  // tokens x heads of one job: the keys it turns serve them all

// What stands where in the inputs of one run. [batch, tokens, heads, size] within rows of `*_stride` values.
struct GroupQueryAttention::Call {
  const float *queries, *keys, *values;
  size_t query_stride, kv_stride;
  Tensor<const float> past_keys, past_values;
  const int32_t* last_indices;
  const float *cosines, *sines;
  size_t num_angles = 0, half = 0;
  float *present_keys, *present_values, *result;
  size_t batch, num_tokens, num_heads, num_kv_heads, head_size, total_length, past_capacity, capacity;
  float scale;
  size_t window;

  size_t heads_per_group() const { return num_heads / num_kv_heads; }
  // The position of a sequence's first new token. A first prompt starts at 0, also where it is padded behind.
  size_t first_position(size_t row) const {
    return num_tokens == total_length ? 0 : static_cast<size_t>(last_indices[row]) + 1 - num_tokens;
  }
  const float* cached_keys(size_t group) const { return present_keys + group * capacity * head_size; }
  bool is_in_place() const { return past_keys.data == present_keys && past_values.data == present_values; }
};

namespace {

using Call = GroupQueryAttention::Call;

// Reads query, key and value, apart or packed into one. Throws on shapes that do not fit.
void read_new_tokens(const KernelContext& context, Call& call) {
  const auto query = context.input<float>(0), key = context.input<float>(1), value = context.input<float>(2);
  require(query.shape.size() == 3, ErrorCode::kInvalidArgument,
          "query: expected [batch, tokens, width], got the shape " + to_string(query.shape));
  call.batch = query.shape[0];
  call.num_tokens = query.shape[1];
  const size_t width = query.shape[2];
  const size_t heads = key.data ? call.num_heads : call.num_heads + 2 * call.num_kv_heads;
  require(width % heads == 0, ErrorCode::kInvalidArgument,
          "query: expected a width of " + std::to_string(heads) + " heads, got " + std::to_string(width));
  call.head_size = width / heads;
  call.query_stride = width;
  call.queries = query.data;
  if (key.data) {
    call.kv_stride = call.num_kv_heads * call.head_size;
    const Shape expected{query.shape[0], query.shape[1], static_cast<int64_t>(call.kv_stride)};
    require(key.shape == expected && value.shape == expected, ErrorCode::kInvalidArgument,
            "key and value: expected the shape " + to_string(expected) + ", got " + to_string(key.shape) + " and " +
                to_string(value.shape));
    call.keys = key.data;
    call.values = value.data;
  } else {
    call.kv_stride = width;
    call.keys = query.data + call.num_heads * call.head_size;
    call.values = call.keys + call.num_kv_heads * call.head_size;
  }
}

void read_past(const KernelContext& context, Call& call) {
  call.past_keys = context.input<float>(3);
  call.past_values = context.input<float>(4);
  call.past_capacity = call.past_keys.data ? call.past_keys.shape[2] : 0;
  if (call.past_keys.data == nullptr) return;
  const Shape expected{static_cast<int64_t>(call.batch), static_cast<int64_t>(call.num_kv_heads),
                       static_cast<int64_t>(call.past_capacity), static_cast<int64_t>(call.head_size)};
  require(call.past_keys.shape == expected && call.past_values.shape == expected, ErrorCode::kInvalidArgument,
          "past_key and past_value: expected the shape " + to_string(expected) + ", got " +
              to_string(call.past_keys.shape) + " and " + to_string(call.past_values.shape));
}

void read_lengths(const KernelContext& context, Call& call) {
  const auto last = context.input<int32_t>(5), total = context.input<int32_t>(6);
  require(num_elements(last.shape) == static_cast<int64_t>(call.batch) && num_elements(total.shape) == 1,
          ErrorCode::kInvalidArgument, "seqlens_k and total_sequence_length: expected one a row, and one");
  call.last_indices = last.data;
  call.total_length = total.data[0];
  for (size_t row = 0; row < call.batch; ++row) {
    const int64_t length = int64_t{last.data[row]} + 1;
    const bool starts = call.num_tokens == call.total_length;
    require(length <= static_cast<int64_t>(call.total_length) &&
                (starts || length >= static_cast<int64_t>(call.num_tokens)),
            ErrorCode::kInvalidArgument,
            "seqlens_k: expected " + std::to_string(call.num_tokens) + " to " + std::to_string(call.total_length) +
                " tokens, got " + std::to_string(length));
  }
}

void read_angles(const KernelContext& context, Call& call) {
  const auto cosines = context.input<float>(7), sines = context.input<float>(8);
  require(cosines.data && cosines.shape.size() == 2 && cosines.shape == sines.shape, ErrorCode::kInvalidArgument,
          "cos_cache and sin_cache: expected two tables of one shape");
  call.cosines = cosines.data;
  call.sines = sines.data;
  call.half = cosines.shape[1];
  require(call.total_length <= static_cast<size_t>(cosines.shape[0]) && 2 * call.half <= call.head_size,
          ErrorCode::kInvalidArgument, "cos_cache: no angles for " + std::to_string(call.total_length) +
                                           " tokens of heads of " + std::to_string(call.head_size) + " in the shape " +
                                           to_string(cosines.shape));
}

// Copies one head's past where the present lies elsewhere; behind it the present is zero, as the runtime's.
void copy_past(const Call& call, size_t head, size_t num_past, const float* past, float* present) {
  const size_t row = call.head_size;
  const float* source = past + head * call.past_capacity * row;
  float* target = present + head * call.capacity * row;
  if (num_past) std::memcpy(target, source, num_past * row * sizeof(float));
  std::memset(target + num_past * row, 0, (call.capacity - num_past) * row * sizeof(float));
}

// Writes the new keys and values of one head of one sequence to the cache.
void write_cache(const Call& call, size_t row, size_t kv_head) {
  const size_t head = row * call.num_kv_heads + kv_head, first = call.first_position(row), size = call.head_size;
  if (!call.is_in_place()) {
    copy_past(call, head, first, call.past_keys.data, call.present_keys);
    copy_past(call, head, first, call.past_values.data, call.present_values);
  }
  for (size_t token = 0; token < call.num_tokens; ++token) {
    const size_t source = (row * call.num_tokens + token) * call.kv_stride + kv_head * size;
    const size_t position = first + token, target = (head * call.capacity + position) * size;
    rotate(call.keys + source, call.cosines + position * call.half, call.sines + position * call.half, call.half,
           size, 1.0f, call.present_keys + target);
    std::memcpy(call.present_values + target, call.values + source, size * sizeof(float));
  }
}

// Attends with the tokens [begin, end) of one sequence and the heads that share one of keys and values.
void attend_group(const Call& call, size_t row, size_t kv_head, size_t begin, size_t end, const float* next_keys) {
  thread_local AlignedArray<float> rotated;
  const size_t heads = call.heads_per_group(), size = call.head_size, first = call.first_position(row);
  rotated.ensure((end - begin) * heads * size);
  for (size_t token = begin; token < end; ++token) {
    const float* query = call.queries + (row * call.num_tokens + token) * call.query_stride + kv_head * heads * size;
    const size_t angle = (first + token) * call.half;
    for (size_t head = 0; head < heads; ++head)
      rotate(query + head * size, call.cosines + angle, call.sines + angle, call.half, size, call.scale,
             rotated.data() + ((token - begin) * heads + head) * size);
  }
  const size_t cache = (row * call.num_kv_heads + kv_head) * call.capacity * size;
  const size_t width = call.num_heads * size;
  attend({rotated.data(), call.present_keys + cache, call.present_values + cache,
          call.result + (row * call.num_tokens + begin) * width + kv_head * heads * size, width, end - begin, heads,
          size, first + begin, call.window, next_keys});
}

}  // namespace

GroupQueryAttention::GroupQueryAttention(const KernelInfo& info, Threads threads)
    : num_heads_(info.integer("num_heads", 0)),
      num_kv_heads_(info.integer("kv_num_heads", 0)),
      window_(std::max<int64_t>(info.integer("local_window_size", -1), 0)),
      scale_(info.real("scale", 0)),
      rotates_(info.integer("do_rotary", 0) != 0),
      threads_(threads) {
  require(num_kv_heads_ > 0 && num_heads_ % num_kv_heads_ == 0, ErrorCode::kInvalidArgument,
          "num_heads: expected a multiple of kv_num_heads, got " + std::to_string(num_heads_) + " and " +
              std::to_string(num_kv_heads_));
  require(info.real("softcap", 0) == 0, ErrorCode::kNotImplemented, "softcap is not supported");
  for (const char* name : {"rotary_interleaved", "smooth_softmax", "qk_output", "kv_cache_bit_width"})
    require(info.integer(name, 0) <= 0, ErrorCode::kNotImplemented, std::string(name) + " is not supported");
}

void GroupQueryAttention::compute(const KernelContext& context) const {
  Call call{};
  call.window = window_;
  call.num_heads = num_heads_;
  call.num_kv_heads = num_kv_heads_;
  read_new_tokens(context, call);
  read_past(context, call);
  read_lengths(context, call);
  if (rotates_) read_angles(context, call);
  call.scale = scale_ != 0 ? scale_ : 1.0f / std::sqrt(static_cast<float>(call.head_size));
  call.capacity = std::max(call.past_capacity, call.total_length);
  const auto of = [](size_t count) { return static_cast<int64_t>(count); };
  const Shape present{of(call.batch), of(num_kv_heads_), of(call.capacity), of(call.head_size)};
  call.result = context.output<float>(0, {of(call.batch), of(call.num_tokens), of(num_heads_ * call.head_size)});
  call.present_keys = context.output<float>(1, present);
  call.present_values = context.output<float>(2, present);

  const size_t tokens_together = std::max<size_t>(1, kRowsTogether / call.heads_per_group());
  if (call.num_tokens <= tokens_together) {
    attend_steps(context, call);
  } else {
    attend_prompts(context, call, tokens_together);
  }
}

// A few tokens of each sequence: what takes time is to read the cache, so each worker reads it in one go.
void GroupQueryAttention::attend_steps(const KernelContext& context, const Call& call) const {
  const size_t num_groups = call.batch * num_kv_heads_, workers = std::min(num_groups, threads_.count);
  context.parallel_for(workers, [&](size_t worker) {
    const auto [begin, end] = share(num_groups, worker, workers);
    fetch_first_keys(call.cached_keys(begin), call.head_size);
    for (size_t group = begin; group < end; ++group) {
      const size_t row = group / num_kv_heads_, kv_head = group % num_kv_heads_;
      write_cache(call, row, kv_head);
      attend_group(call, row, kv_head, 0, call.num_tokens, group + 1 < end ? call.cached_keys(group + 1) : nullptr);
    }
  });
}

void GroupQueryAttention::attend_prompts(const KernelContext& context, const Call& call, size_t tokens_together) const {
  const size_t num_groups = call.batch * num_kv_heads_, pieces = divide_up(call.num_tokens, tokens_together);
  context.parallel_for(num_groups,
                       [&](size_t group) { write_cache(call, group / num_kv_heads_, group % num_kv_heads_); });
  context.parallel_for(num_groups * pieces, [&](size_t job) {
    const size_t group = job / pieces, begin = (pieces - 1 - job % pieces) * tokens_together;  // the longest first
    attend_group(call, group / num_kv_heads_, group % num_kv_heads_, begin,
                 std::min(begin + tokens_together, call.num_tokens), nullptr);
  });
}

}  // namespace aimass
