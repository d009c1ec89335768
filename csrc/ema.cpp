// Exponential moving average over tables of pointers, float32, with optional bfloat16 shadows:
// t <- t + weight (s - t), weight = 1 - momentum.

#include <algorithm>
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

#define SJEPA_LERP_BODY                                                                    \
  for (int64_t i = 0; i < span.count; ++i) {                                               \
    const float t = span.target[i], s = span.source[i];                                    \
    span.target[i] = weight < 0.5f ? t + weight * (s - t) : s - (s - t) * (1.0f - weight); \
  }

inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void round_shadow(const Span& span) {
  for (int64_t i = 0; i < span.count; ++i) span.shadow[i] = to_bfloat16(span.target[i]);
}

void lerp_any(const Span& span, float weight) { SJEPA_LERP_BODY }

#ifdef SJEPA_X86
__attribute__((target("avx512f"))) void lerp_16(const Span& span, float weight) {
  const __m512 w = _mm512_set1_ps(weight), rest = _mm512_set1_ps(1.0f - weight);
  const int64_t whole = span.count - span.count % 16;
  for (int64_t i = 0; i < whole; i += 16) {
    const __m512 t = _mm512_loadu_ps(span.target + i), s = _mm512_loadu_ps(span.source + i);
    const __m512 gap = _mm512_sub_ps(s, t);
    _mm512_storeu_ps(span.target + i, weight < 0.5f ? _mm512_fmadd_ps(w, gap, t)
                                                    : _mm512_fnmadd_ps(gap, rest, s));
  }
  lerp_any({span.target + whole, span.source + whole, nullptr, span.count - whole}, weight);
}

__attribute__((target("avx2,fma"))) void lerp_8(const Span& span, float weight) {
  const __m256 w = _mm256_set1_ps(weight), rest = _mm256_set1_ps(1.0f - weight);
  const int64_t whole = span.count - span.count % 8;
  for (int64_t i = 0; i < whole; i += 8) {
    const __m256 t = _mm256_loadu_ps(span.target + i), s = _mm256_loadu_ps(span.source + i);
    const __m256 gap = _mm256_sub_ps(s, t);
    _mm256_storeu_ps(span.target + i, weight < 0.5f ? _mm256_fmadd_ps(w, gap, t)
                                                    : _mm256_fnmadd_ps(gap, rest, s));
  }
  lerp_any({span.target + whole, span.source + whole, nullptr, span.count - whole}, weight);
}
#endif

using Lerp = void (*)(const Span&, float);

Lerp lerp_for(int lanes) {
#ifdef SJEPA_X86
  if (lanes == 16) return lerp_16;
  if (lanes == 8) return lerp_8;
#endif
  (void)lanes;
  return lerp_any;
}

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
  const Lerp lerp = lerp_for(sjepa_lanes());
  const int64_t total = static_cast<int64_t>(spans.size());
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t i = 0; i < total; ++i) {
    const Span& span = spans[static_cast<size_t>(i)];
    lerp(span, *weight);
    if (span.shadow) round_shadow(span);
  }
  return 0;
}
