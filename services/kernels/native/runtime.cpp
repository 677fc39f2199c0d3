#include "runtime.h"

namespace aimass {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

OrtStatus* Api::status(const Error& error) const {
  return try_call(ApiFunction::kCreateStatus, static_cast<int>(error.code), error.what());
}

OrtCustomOpDomain* Api::create_domain(const char* name) const {
  OrtCustomOpDomain* domain = nullptr;
  call(ApiFunction::kCreateCustomOpDomain, name, &domain);
  return domain;
}

void Api::add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
  call(ApiFunction::kCustomOpDomainAdd, domain, op);
}

void Api::add(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
  call(ApiFunction::kAddCustomOpDomain, options, domain);
}

std::string Api::config_entry(const OrtSessionOptions* options, const char* key, const std::string& otherwise) const {
  size_t size = 0;
  OrtStatus* missing = try_call(ApiFunction::kGetSessionConfigEntry, options, key, static_cast<char*>(nullptr), &size);
  if (missing != nullptr) {
    release(ApiFunction::kReleaseStatus, missing);
    return otherwise;
  }
  std::string value(size, '\0');
  call(ApiFunction::kGetSessionConfigEntry, options, key, value.data(), &size);
  value.resize(size - 1);  // the size counts the closing zero
  return value;
}

void Api::check(OrtStatus* status) const {
  if (status == nullptr) return;
  auto* raw = table_->functions[static_cast<size_t>(ApiFunction::kGetErrorMessage)];
  const std::string message = reinterpret_cast<const char* (*)(const OrtStatus*)>(raw)(status);
  release(ApiFunction::kReleaseStatus, status);
  throw Error(ErrorCode::kFail, message);
}

void* Api::mutable_data(const OrtValue* value) const {
  void* data = nullptr;
  call(ApiFunction::kGetTensorMutableData, const_cast<OrtValue*>(value), &data);
  return data;
}

Shape Api::shape(const OrtValue* value) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  call(ApiFunction::kGetTensorTypeAndShape, value, &info);
  size_t rank = 0;
  call(ApiFunction::kGetDimensionsCount, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  Shape shape(rank);
  call(ApiFunction::kGetDimensions, static_cast<const OrtTensorTypeAndShapeInfo*>(info), shape.data(), rank);
  release(ApiFunction::kReleaseTensorTypeAndShapeInfo, info);
  return shape;
}

template <typename Value>
Value KernelInfo::attribute(ApiFunction getter, const char* name, Value otherwise) const {
  Value value{};
  OrtStatus* missing = api_.try_call(getter, info_, name, &value);
  if (missing == nullptr) return value;
  api_.release(ApiFunction::kReleaseStatus, missing);
  return otherwise;
}

int64_t KernelInfo::integer(const char* name, int64_t otherwise) const {
  return attribute(ApiFunction::kKernelInfoGetAttributeInt64, name, otherwise);
}

float KernelInfo::real(const char* name, float otherwise) const {
  return attribute(ApiFunction::kKernelInfoGetAttributeFloat, name, otherwise);
}

const OrtValue* KernelInfo::constant_value(size_t index, const char* name) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  api_.call(ApiFunction::kKernelInfoGetConstantInputTensor, info_, index, &is_constant, &value);
  require(value == nullptr || is_constant, ErrorCode::kNotImplemented, std::string(name) + " is not a constant");
  return value;
}

}  // namespace aimass
