#pragma once
// A function to call during a call: like std::function, but it never allocates and owns nothing.

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

namespace xlstm::text {

template <class Signature>
class FunctionRef;

template <class... Args>
class FunctionRef<void(Args...)> {
 public:
  /// `function` must outlive this: pass it as an argument, do not keep it.
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, FunctionRef> && std::invocable<F&, Args...>)
      FunctionRef(F&& function)  // NOLINT: meant to convert
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
        call_([](void* object, Args... args) {
          (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  void operator()(Args... args) const { call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  void (*call_)(void*, Args...);
};

}  // namespace xlstm::text
