// SPDX-License-Identifier: Apache-2.0
// The moving average of one stretch of memory, for the vector width simd.h was included with.

template <bool kShadow>
SJEPA_TARGET static void move(const Span& span, float weight) {
  const bool small = weight < 0.5f;
  const Vec w = fill(weight), rest = fill(weight - 1.0f);
  const int64_t part = span.count % SJEPA_LANES, whole = span.count - part;
  for (int64_t i = 0; i < whole; i += SJEPA_LANES) {
    const Vec moved = lerp(load(span.target + i), load(span.source + i), w, rest, small);
    store(span.target + i, moved);
    if (kShadow) store_bfloat16(span.shadow + i, moved);
  }
  if (part > 0) {
    const Vec t = load_part(span.target + whole, part, 0.0f);
    const Vec moved = lerp(t, load_part(span.source + whole, part, 0.0f), w, rest, small);
    store_part(span.target + whole, part, moved);
    if (kShadow) store_bfloat16_part(span.shadow + whole, part, moved);
  }
}

SJEPA_TARGET static void move_span(const Span& span, float weight) {
  if (span.shadow) {
    move<true>(span, weight);
  } else {
    move<false>(span, weight);
  }
}
