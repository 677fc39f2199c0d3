#include "attention.h"

#include <cstring>

#include "aligned.h"
#include "vector_math.h"

namespace aimass {
namespace {

constexpr size_t kRowsTogether = 4;     // rows whose sums stay in registers
constexpr size_t kVectorsTogether = 4;  // vectors of a head's result likewise
constexpr size_t kPrefetchedTiles = 4;  // of 16 keys, ahead of the one that is read

struct Scratch {
  AlignedArray<float> columns;  // [size, 16]: the keys of 16 positions, turned
  AlignedArray<float> scores;   // [rows, width]
  AlignedArray<float> totals;   // [rows]: what the weights of a row add up to
};

// Each thread has its own.
Scratch& scratch() {
  thread_local Scratch memory;
  return memory;
}

// A group with the positions that its rows see: from `begin`, a multiple of 16, to `end`. Row = token and head.
struct Rows {
  const AttentionGroup& group;
  size_t begin, end, width;

  explicit Rows(const AttentionGroup& group) : group(group) {
    begin = first_seen(0) / kLanes * kLanes;
    end = group.first_position + group.num_tokens;
    width = round_up(end - begin, kLanes);
    if (width / kLanes % 2 == 0) width += kLanes;  // an even stride in cache lines leaves part of the cache unused
  }
  size_t count() const { return group.num_tokens * group.num_heads; }
  size_t token(size_t row) const { return row / group.num_heads; }
  size_t last_seen(size_t row) const { return group.first_position + token(row) + 1; }
  size_t first_seen(size_t row) const {
    const size_t last = last_seen(row);
    return group.window && last > group.window ? last - group.window : 0;
  }
  const float* query(size_t row) const { return group.queries + row * group.head_size; }
  float* result(size_t row) const {
    return group.result + token(row) * group.result_stride + row % group.num_heads * group.head_size;
  }
};

// Turns the keys of 16 positions from `keys` on into columns, [size, 16]; beyond `count` they are zero.
void turn_keys(const float* keys, size_t count, size_t head_size, float* columns) {
  for (size_t first = 0; first < head_size; first += kLanes) {
    const __mmask16 lanes = first_lanes(head_size - first);
    __m512 block[kLanes];
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i)
      block[i] = _mm512_maskz_loadu_ps(i < count ? lanes : 0, keys + i * head_size + first);
    transpose(block);
#pragma GCC unroll 16
    for (size_t i = 0; i < kLanes; ++i) _mm512_store_ps(columns + (first + i) * kLanes, block[i]);
  }
}

// Scores of `kRows` rows against 16 turned keys. Even and odd places add up apart: one chain would wait for itself.
template <size_t kRows>
void score_rows(const float* queries, size_t head_size, const float* columns, float* scores, size_t width) {
  __m512 even[kRows], odd[kRows];
  for (size_t row = 0; row < kRows; ++row) even[row] = odd[row] = _mm512_setzero_ps();
  size_t i = 0;
  for (; i + 1 < head_size; i += 2) {
    const __m512 first = _mm512_load_ps(columns + i * kLanes), second = _mm512_load_ps(columns + (i + 1) * kLanes);
    for (size_t row = 0; row < kRows; ++row) {
      const float* query = queries + row * head_size + i;
      even[row] = _mm512_fmadd_ps(_mm512_set1_ps(query[0]), first, even[row]);
      odd[row] = _mm512_fmadd_ps(_mm512_set1_ps(query[1]), second, odd[row]);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    if (i < head_size)
      even[row] = _mm512_fmadd_ps(_mm512_set1_ps(queries[row * head_size + i]),
                                  _mm512_load_ps(columns + i * kLanes), even[row]);
    _mm512_store_ps(scores + row * width, _mm512_add_ps(even[row], odd[row]));
  }
}

// Fetches 16 positions of a cache.
void prefetch(const float* cache, size_t head_size) {
  const char* first = reinterpret_cast<const char*>(cache);
  for (size_t offset = 0; offset < kLanes * head_size * sizeof(float); offset += kCacheLine)
    _mm_prefetch(first + offset, _MM_HINT_T0);
}

// Fetches what is read soon: keys a few tiles ahead, into the next group's where these end, and values, which are
// read when all scores are known.
void prefetch_ahead(const Rows& rows, size_t position) {
  const AttentionGroup& group = rows.group;
  const size_t ahead = position + kPrefetchedTiles * kLanes;
  if (ahead < rows.end) {
    prefetch(group.keys + ahead * group.head_size, group.head_size);
  } else if (group.next_keys) {
    prefetch(group.next_keys + (ahead - round_up(rows.end, kLanes)) * group.head_size, group.head_size);
  }
  prefetch(group.values + position * group.head_size, group.head_size);
}

void score(const Rows& rows, float* columns, float* scores) {
  const size_t size = rows.group.head_size;
  for (size_t position = rows.begin; position < rows.end; position += kLanes) {
    prefetch_ahead(rows, position);
    turn_keys(rows.group.keys + position * size, rows.end - position, size, columns);
    // Rows of tokens before this position do not see it.
    size_t row = position < rows.last_seen(0) ? 0 : (position - rows.last_seen(0) + 1) * rows.group.num_heads;
    float* target = scores + (position - rows.begin);
    for (; row + kRowsTogether <= rows.count(); row += kRowsTogether)
      score_rows<kRowsTogether>(rows.query(row), size, columns, target + row * rows.width, rows.width);
    for (; row < rows.count(); ++row)
      score_rows<1>(rows.query(row), size, columns, target + row * rows.width, rows.width);
  }
}

// Turns the scores [first, last) of a row into weights, relative to the largest, and all others into zero.
// Returns what they add up to.
float weigh(float* scores, size_t first, size_t last, size_t width) {
  const auto seen = [=](size_t i) {
    return static_cast<__mmask16>(first_lanes(last - i) & ~first_lanes(first > i ? first - i : 0));
  };
  const size_t start = first / kLanes * kLanes;
  const __m512 lowest = _mm512_set1_ps(-__FLT_MAX__);
  __m512 largest = lowest;
  for (size_t i = start; i < last; i += kLanes)
    largest = _mm512_mask_max_ps(largest, seen(i), largest, _mm512_load_ps(scores + i));
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  std::memset(scores, 0, start * sizeof(float));
  size_t i = start;
  for (; i < last; i += kLanes) {
    const __m512 weight = _mm512_maskz_mov_ps(seen(i), exponential(_mm512_sub_ps(_mm512_load_ps(scores + i), peak)));
    total = _mm512_add_ps(total, weight);
    _mm512_store_ps(scores + i, weight);
  }
  std::memset(scores + i, 0, (width - std::min(i, width)) * sizeof(float));
  return _mm512_reduce_add_ps(total);
}

// Adds up the values of positions [begin, end) by the weights of `kRows` rows, for some vectors of a head.
template <size_t kRows, size_t kVectors>
void mix_vectors(const Rows& rows, size_t row, size_t end, const float* weights, const float* totals, size_t first) {
  const size_t size = rows.group.head_size;
  const __mmask16 lanes = first_lanes(size - first - (kVectors - 1) * kLanes);
  const auto mask = [lanes](size_t vector) { return vector + 1 < kVectors ? __mmask16{0xFFFF} : lanes; };
  __m512 sums[kRows][kVectors];
  for (auto& sum : sums)
    for (auto& vector : sum) vector = _mm512_setzero_ps();
  for (size_t position = rows.begin; position < end; ++position) {
    const float* value = rows.group.values + position * size + first;
    const float* weight = weights + row * rows.width + (position - rows.begin);
    __m512 vectors[kVectors];
    for (size_t j = 0; j < kVectors; ++j) vectors[j] = _mm512_maskz_loadu_ps(mask(j), value + j * kLanes);
    for (size_t i = 0; i < kRows; ++i) {
      const __m512 share = _mm512_set1_ps(weight[i * rows.width]);
      for (size_t j = 0; j < kVectors; ++j) sums[i][j] = _mm512_fmadd_ps(share, vectors[j], sums[i][j]);
    }
  }
  for (size_t i = 0; i < kRows; ++i) {
    const __m512 whole = _mm512_set1_ps(1.0f / totals[row + i]);
    float* result = rows.result(row + i) + first;
    for (size_t j = 0; j < kVectors; ++j)
      _mm512_mask_storeu_ps(result + j * kLanes, mask(j), _mm512_mul_ps(sums[i][j], whole));
  }
}

template <size_t kRows>
void mix_rows(const Rows& rows, size_t row, const float* weights, const float* totals) {
  const size_t end = rows.last_seen(row + kRows - 1);
  for (size_t first = 0; first < rows.group.head_size; first += kVectorsTogether * kLanes) {
    const size_t vectors = std::min(kVectorsTogether, divide_up(rows.group.head_size - first, kLanes));
    if (vectors == 1) mix_vectors<kRows, 1>(rows, row, end, weights, totals, first);
    if (vectors == 2) mix_vectors<kRows, 2>(rows, row, end, weights, totals, first);
    if (vectors == 3) mix_vectors<kRows, 3>(rows, row, end, weights, totals, first);
    if (vectors == 4) mix_vectors<kRows, 4>(rows, row, end, weights, totals, first);
  }
}

}  // namespace

void attend(const AttentionGroup& group) {
  const Rows rows(group);
  Scratch& memory = scratch();
  memory.columns.ensure(round_up(group.head_size, kLanes) * kLanes);
  memory.scores.ensure(rows.count() * rows.width);
  memory.totals.ensure(rows.count());
  float* scores = memory.scores.data();
  score(rows, memory.columns.data(), scores);
  for (size_t row = 0; row < rows.count(); ++row)
    memory.totals.data()[row] = weigh(scores + row * rows.width, rows.first_seen(row) - rows.begin,
                                      rows.last_seen(row) - rows.begin, rows.width);
  size_t row = 0;
  for (; row + kRowsTogether <= rows.count(); row += kRowsTogether)
    mix_rows<kRowsTogether>(rows, row, scores, memory.totals.data());
  for (; row < rows.count(); ++row) mix_rows<1>(rows, row, scores, memory.totals.data());
}

void fetch_first_keys(const float* keys, size_t head_size) {
  for (size_t tile = 0; tile < kPrefetchedTiles; ++tile) prefetch(keys + tile * kLanes * head_size, head_size);
}

void rotate(const float* head, const float* cosines, const float* sines, size_t half, size_t head_size, float scale,
            float* target) {
  for (size_t i = 0; i < half; ++i) {
    const float left = head[i], right = head[half + i];
    target[i] = (left * cosines[i] - right * sines[i]) * scale;
    target[half + i] = (left * sines[i] + right * cosines[i]) * scale;
  }
  for (size_t i = 2 * half; i < head_size; ++i) target[i] = head[i] * scale;
}

}  // namespace aimass
