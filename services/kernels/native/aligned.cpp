#include "aligned.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>

namespace aimass {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kChunkBytes = 16 * kLargePage;

struct Chunk {
  explicit Chunk(size_t wanted) : num_bytes(round_up(wanted, kLargePage)) {
    memory = static_cast<uint8_t*>(std::aligned_alloc(kLargePage, num_bytes));
    if (memory == nullptr) throw std::bad_alloc();
    madvise(memory, num_bytes, MADV_HUGEPAGE);  // a wish: without them it is slower
  }
  ~Chunk() { std::free(memory); }
  Chunk(const Chunk&) = delete;

  uint8_t* memory;
  size_t num_bytes, used = 0;
};

}  // namespace

std::shared_ptr<uint8_t> on_large_pages(size_t num_bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Chunk> current;
  const std::lock_guard lock(mutex);
  auto chunk = current.lock();
  const size_t rounded = round_up(num_bytes, kCacheLine);
  if (!chunk || chunk->num_bytes - chunk->used < rounded) {
    chunk = std::make_shared<Chunk>(std::max(kChunkBytes, rounded));
    current = chunk;
  }
  uint8_t* start = chunk->memory + chunk->used;
  chunk->used += rounded;
  return {std::move(chunk), start};
}

}  // namespace aimass
