// SPDX-License-Identifier: Apache-2.0
// Exponential moving average over tables of pointers, float32, with optional bfloat16 shadows:
// t <- t + weight (s - t), weight = 1 - momentum.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "platform.h"

namespace {

constexpr int64_t kChunk = 1 << 14;  // 64 KiB of each array: inside a core's second-level cache

struct Span {
  float* target;
  const float* source;
  uint16_t* shadow;
  int64_t count;
};

#define SJEPA_BODY "ema_span.h"
#define SJEPA_ENTRY move_span
#include "each_width.h"

}  // namespace

// Updates `tensors` dense arrays. `shadows` may be null, and so may each of its entries.
// Returns 0, or 2 when there is no memory for the table of chunks.
extern "C" SJEPA_EXPORT int sjepa_ema_f32(float* const* targets, const float* const* sources,
                                          uint16_t* const* shadows, const int64_t* counts,
                                          int64_t tensors, const float* weight, int threads) {
  std::vector<Span> spans;
  try {
    for (int64_t k = 0; k < tensors; ++k) {
      for (int64_t start = 0; start < counts[k]; start += kChunk) {
        uint16_t* shadow = shadows && shadows[k] ? shadows[k] + start : nullptr;
        spans.push_back({targets[k] + start, sources[k] + start, shadow,
                         std::min(kChunk, counts[k] - start)});
      }
    }
  } catch (const std::bad_alloc&) {
    return 2;
  }
  const auto move_span = entry_for_width();
  const int64_t total = static_cast<int64_t>(spans.size());
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t i = 0; i < total; ++i) {
    move_span(spans[static_cast<size_t>(i)], *weight);
  }
  return 0;
}
