// Memory on whole cache lines, as the kernels read and write it, and on large pages where it is read once a run.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace aimass {

constexpr size_t kCacheLine = 64;

constexpr size_t round_up(size_t count, size_t step) { return (count + step - 1) / step * step; }
constexpr size_t divide_up(size_t count, size_t step) { return (count + step - 1) / step; }

// Memory for weights, on pages of 2 MiB where the system has them: with those of 4 KiB one thread reads 12 to 18 GB/s
// here, with large ones 27 to 31. It lives as long as some weights of its chunk.
std::shared_ptr<uint8_t> on_large_pages(size_t num_bytes);

// An array of plain elements. It grows, and what it held is then lost.
template <typename Element>
class AlignedArray {
  static_assert(std::is_trivial_v<Element>);

 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size) { ensure(size); }

  void ensure(size_t size) {
    if (size <= size_) return;
    void* memory = std::aligned_alloc(kCacheLine, round_up(size * sizeof(Element), kCacheLine));
    if (memory == nullptr) throw std::bad_alloc();
    memory_.reset(static_cast<Element*>(memory));
    size_ = size;
  }
  Element* data() { return memory_.get(); }
  const Element* data() const { return memory_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(Element* memory) const { std::free(memory); }
  };
  std::unique_ptr<Element, Free> memory_;
  size_t size_ = 0;
};

}  // namespace aimass
