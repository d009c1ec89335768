// SPDX-License-Identifier: Apache-2.0
// The version of the C interface, and which vector width runs.

#include "platform.h"

#include <atomic>

namespace {

std::atomic<int> limit{16};

int widest() {
#ifdef SJEPA_X86
  if (__builtin_cpu_supports("avx512f")) return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 1;
}

}  // namespace

int sjepa_lanes() {
  static const int supported = widest();
  const int wanted = limit.load(std::memory_order_relaxed);
  if (supported <= wanted) return supported;
  return wanted >= 8 ? 8 : 1;
}

// Raise when a signature changes: the Python side ignores a library of another version.
extern "C" SJEPA_EXPORT int sjepa_abi_version() { return 11; }

// Use vectors of at most this many floats (16, 8 or 1) and return the width now in use: lets one
// machine test every path.
extern "C" SJEPA_EXPORT int sjepa_limit_lanes(int lanes) {
  limit.store(lanes, std::memory_order_relaxed);
  return sjepa_lanes();
}
