// The moving average of one stretch of memory, for the vector width simd.h was included with.

// The better rounded of two equal forms: t + w (s - t) for small w, s - (1 - w)(s - t) otherwise.
SJEPA_TARGET static inline Vec lerp(Vec t, Vec s, Vec weight, Vec rest, bool small) {
  const Vec gap = sub(s, t);
  return small ? fma(weight, gap, t) : fma(gap, rest, s);
}

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
    uint16_t all[SJEPA_LANES];
    store_bfloat16(all, moved);
    for (int64_t i = 0; kShadow && i < part; ++i) span.shadow[whole + i] = all[i];
  }
}

SJEPA_TARGET static void move_span(const Span& span, float weight) {
  if (span.shadow) {
    move<true>(span, weight);
  } else {
    move<false>(span, weight);
  }
}
