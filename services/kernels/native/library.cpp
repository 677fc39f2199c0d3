// What ONNX Runtime calls when a session registers this library: operators of our own take the place of its own of
// the same names. A graph needs no change, and runs without the library as well.
#include <memory>
#include <mutex>
#include <vector>

#include "group_query_attention.h"
#include "matmul_nbits.h"

namespace aimass {
namespace {

constexpr const char* kDomain = "com.microsoft";
constexpr const char* kThreadsEntry = "aimass.num_threads";  // a config entry of the session

// The runtime keeps pointers to what is registered for as long as a session lives, and tells nobody when it ends.
template <typename Object>
Object* kept(std::unique_ptr<Object> object) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Object>> objects;
  const std::lock_guard lock(mutex);
  objects.push_back(std::move(object));
  return objects.back().get();
}

template <typename Kernel>
const OrtCustomOp* operator_of(Threads threads) {
  return kept(std::make_unique<Operator<Kernel>>(threads));
}

void register_operators(const Api& api, OrtSessionOptions* options) {
  const Threads threads{std::stoul(api.config_entry(options, kThreadsEntry, "1"))};
  OrtCustomOpDomain* domain = api.create_domain(kDomain);
  api.add(domain, operator_of<MatMulNBits>(threads));
  api.add(domain, operator_of<GroupQueryAttention>(threads));
  api.add(options, domain);
}

}  // namespace
}  // namespace aimass

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                              const OrtApiBase* base) {
  const OrtApiTable* table = base->get_api(aimass::kApiVersion);
  if (table == nullptr) return nullptr;  // a runtime older than this library: it runs the graph by itself
  const aimass::Api api(table);
  try {
    aimass::register_operators(api, options);
    return nullptr;
  } catch (const std::exception& error) {
    return api.status(aimass::Error(aimass::ErrorCode::kFail, error.what()));
  }
}
