// For functions of the C library that the shim stands before: QEMU calls ours, which calls the real one.
#pragma once
#include <dlfcn.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

// `real`, what stands behind ours. Several threads may find out at once: they find the same.
#define REAL(name) \
  static typeof(name) *real; \
  if (real == NULL) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)
