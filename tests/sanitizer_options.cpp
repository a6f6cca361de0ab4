// Defaults of the sanitizers for the test program; ASAN_OPTIONS and TSAN_OPTIONS override them.

extern "C" {

const char* __asan_default_options();
const char* __tsan_default_options();
const char* __ubsan_default_options();
const char* __lsan_default_suppressions();

// Tests ask for memory that cannot be had: that must reach our own check.
const char* __asan_default_options() { return "allocator_may_return_null=1"; }

// libomp itself is not instrumented; what it synchronises is reported by its tool, archer.
const char* __tsan_default_options() {
  return "allocator_may_return_null=1:ignore_noninstrumented_modules=1";
}

// libomp keeps the descriptors of its threads until the process ends.
const char* __lsan_default_suppressions() { return "leak:libomp.so"; }

const char* __ubsan_default_options() { return "print_stacktrace=1"; }

}  // extern "C"
