// An operator of the runtime made from a C++ class: what the class states about its inputs and outputs, kernels
// that are its objects, and exceptions turned into statuses.
#pragma once

#include <new>

#include "runtime.h"

namespace aimass {

struct Port {
  ElementType type;
  Presence presence;
};

// Where a kernel's threads come from.
struct Threads {
  size_t count;
};

// The part [first, last) of `count` things that one of several workers does.
inline std::pair<size_t, size_t> share(size_t count, size_t worker, size_t num_workers) {
  return {count * worker / num_workers, count * (worker + 1) / num_workers};
}

// `Kernel` gives: kName, kInputs and kOutputs (arrays of Port), a constructor (const KernelInfo&, Threads), and
// `void compute(const KernelContext&) const`. One object a session: it holds what the session's kernels share.
template <typename Kernel>
class Operator : public OrtCustomOp {
 public:
  explicit Operator(Threads threads) : OrtCustomOp{}, threads_(threads) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return Kernel::kInputs[index].type; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kInputs); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Kernel::kInputs[index].presence; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    GetOutputType = [](const OrtCustomOp*, size_t index) { return Kernel::kOutputs[index].type; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputs); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) { return Kernel::kOutputs[index].presence; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1000; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApiTable* table, const OrtKernelInfo* info, void** kernel) {
      const Api api(table);
      return guarded(api, [&] {
        const Threads threads = static_cast<const Operator*>(op)->threads_;
        *kernel = new Bound{api, Kernel(KernelInfo(api, info), threads)};
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const auto* bound = static_cast<const Bound*>(kernel);
      return guarded(bound->api, [&] { bound->kernel.compute(KernelContext(bound->api, context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Bound*>(kernel); };
  }

 private:
  struct Bound {
    Api api;
    Kernel kernel;
  };

  template <typename Work>
  static OrtStatus* guarded(const Api& api, const Work& work) {
    try {
      work();
      return nullptr;
    } catch (const Error& error) {
      return api.status(error);
    } catch (const std::exception& error) {
      return api.status(Error(ErrorCode::kFail, error.what()));
    }
  }

  Threads threads_;
};

}  // namespace aimass
