// ONNX Runtime as operators see it: attributes and constants when a kernel is made, tensors and threads when it
// runs. Knows no operator.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace aimass {

using Shape = std::vector<int64_t>;

// What the runtime is told instead of a result.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  const ErrorCode code;
};

inline void require(bool condition, ErrorCode code, const std::string& message) {
  if (!condition) throw Error(code, message);
}

inline int64_t num_elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t dimension : shape) count *= dimension;
  return count;
}

std::string to_string(const Shape& shape);

// A tensor of the runtime. It stays the runtime's.
template <typename Element>
struct Tensor {
  Element* data = nullptr;  // null: an optional input that the node does not have
  Shape shape;
};

// The table of functions, each with its types. Every failing call throws Error.
class Api {
 public:
  explicit Api(const OrtApiTable* table) : table_(table) {}

  OrtStatus* status(const Error& error) const;
  OrtCustomOpDomain* create_domain(const char* name) const;
  void add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const;
  void add(OrtSessionOptions* options, OrtCustomOpDomain* domain) const;
  // The value of a session's config entry; `otherwise` when it has none.
  std::string config_entry(const OrtSessionOptions* options, const char* key, const std::string& otherwise) const;
  template <typename Element>
  Tensor<Element> tensor(const OrtValue* value) const {
    if (value == nullptr) return {};
    return {static_cast<Element*>(mutable_data(value)), shape(value)};
  }

 private:
  friend class KernelInfo;
  friend class KernelContext;

  template <typename... Arguments>
  OrtStatus* try_call(ApiFunction function, Arguments... arguments) const {
    auto* raw = table_->functions[static_cast<size_t>(function)];
    return reinterpret_cast<OrtStatus* (*)(Arguments...)>(raw)(arguments...);
  }
  template <typename... Arguments>
  void release(ApiFunction function, Arguments... arguments) const {
    auto* raw = table_->functions[static_cast<size_t>(function)];
    reinterpret_cast<void (*)(Arguments...)>(raw)(arguments...);
  }
  template <typename... Arguments>
  void call(ApiFunction function, Arguments... arguments) const {
    check(try_call(function, arguments...));
  }
  void check(OrtStatus* status) const;
  void* mutable_data(const OrtValue* value) const;
  Shape shape(const OrtValue* value) const;

  const OrtApiTable* table_;
};

// A node when its kernel is made.
class KernelInfo {
 public:
  KernelInfo(Api api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  // An attribute; `otherwise` when the node does not have it.
  int64_t integer(const char* name, int64_t otherwise) const;
  float real(const char* name, float otherwise) const;
  // A constant input, with null data when the node does not have it. Throws when it is not constant.
  template <typename Element>
  Tensor<const Element> constant(size_t index, const char* name) const {
    auto found = api_.tensor<Element>(constant_value(index, name));
    return {found.data, std::move(found.shape)};
  }

 private:
  const OrtValue* constant_value(size_t index, const char* name) const;
  template <typename Value>
  Value attribute(ApiFunction getter, const char* name, Value otherwise) const;

  Api api_;
  const OrtKernelInfo* info_;
};

// A node while it runs.
class KernelContext {
 public:
  KernelContext(Api api, OrtKernelContext* context) : api_(api), context_(context) {}

  template <typename Element>
  Tensor<const Element> input(size_t index) const {
    const OrtValue* value = nullptr;
    api_.call(ApiFunction::kKernelContextGetInput, static_cast<const OrtKernelContext*>(context_), index, &value);
    auto found = api_.tensor<Element>(value);
    return {found.data, std::move(found.shape)};
  }
  template <typename Element>
  Element* output(size_t index, const Shape& shape) const {
    OrtValue* value = nullptr;
    api_.call(ApiFunction::kKernelContextGetOutput, context_, index, shape.data(), shape.size(), &value);
    return static_cast<Element*>(api_.mutable_data(value));
  }
  // Runs work(0) ... work(count - 1) on the threads of the session. `work` must not throw.
  template <typename Work>
  void parallel_for(size_t count, const Work& work) const {
    if (count == 1) return work(size_t{0});
    void (*invoke)(void*, size_t) = [](void* data, size_t index) { (*static_cast<const Work*>(data))(index); };
    api_.call(ApiFunction::kKernelContextParallelFor, static_cast<const OrtKernelContext*>(context_), invoke, count,
              size_t{0}, static_cast<void*>(const_cast<Work*>(&work)));
  }

 private:
  Api api_;
  OrtKernelContext* context_;
};

}  // namespace aimass
