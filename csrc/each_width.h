// SPDX-License-Identifier: Apache-2.0
// One algorithm compiled once per vector width, and the choice among the widths when it runs.
//
// Include once in a source file, inside its unnamed namespace, after platform.h, the standard
// headers, the types the algorithm takes and
//   SJEPA_BODY   the header that holds the algorithm, in the names of simd.h
//   SJEPA_ENTRY  the function in it that entry_for_width returns

#ifdef SJEPA_X86
namespace wide16 {
#define SJEPA_LANES 16
#define SJEPA_TARGET __attribute__((target("avx512f")))
#include "simd.h"
#include SJEPA_BODY
#undef SJEPA_LANES
#undef SJEPA_TARGET
}  // namespace wide16

namespace wide8 {
#define SJEPA_LANES 8
#define SJEPA_TARGET __attribute__((target("avx2,fma")))
#include "simd.h"
#include SJEPA_BODY
#undef SJEPA_LANES
#undef SJEPA_TARGET
}  // namespace wide8
#endif

namespace wide1 {
#define SJEPA_LANES 1
#define SJEPA_TARGET
#include "simd.h"
#include SJEPA_BODY
#undef SJEPA_LANES
#undef SJEPA_TARGET
}  // namespace wide1

// SJEPA_ENTRY for the width that runs now (see sjepa_lanes).
auto entry_for_width() {
#ifdef SJEPA_X86
  const int lanes = sjepa_lanes();
  if (lanes == 16) return wide16::SJEPA_ENTRY;
  if (lanes == 8) return wide8::SJEPA_ENTRY;
#endif
  return wide1::SJEPA_ENTRY;
}
