// SPDX-License-Identifier: Apache-2.0
// One step of AdamW of a stretch of memory, for the vector width simd.h was included with.

struct Moved {
  Vec p, m, v;
};

SJEPA_TARGET static inline Moved adamw(const Factors& f, Vec p, Vec g, Vec m, Vec v) {
  g = mul(g, fill(f.clip));
  m = fma(fill(f.share1), sub(g, m), m);
  v = fma(fill(f.share2), mul(g, g), mul(fill(f.beta2), v));
  const Vec under = fma(root(v), fill(f.root), fill(f.eps));
  p = sub(mul(p, fill(f.decay)), divide(mul(fill(f.rate), m), under));
  return {p, m, v};
}

template <bool kLearns, bool kFollows>
SJEPA_TARGET static void step_of(const Span& span) {
  const Row& at = span.at;
  const Factors& f = span.factors;
  const bool small = f.weight < 0.5f;
  const Vec w = fill(f.weight), rest = fill(f.weight - 1.0f);
  const int64_t part = span.count % SJEPA_LANES, whole = span.count - part;
  for (int64_t i = 0; i < whole; i += SJEPA_LANES) {
    Vec p = load(at.param + i);
    if (kLearns) {
      const Moved moved = adamw(f, p, load(at.grad + i), load(at.exp_avg + i),
                                load(at.exp_avg_sq + i));
      p = moved.p;
      store(at.param + i, p);
      store(at.exp_avg + i, moved.m);
      store(at.exp_avg_sq + i, moved.v);
    }
    if (at.shadow) store_bfloat16(at.shadow + i, p);
    if (kFollows) {
      const Vec t = lerp(load(at.target + i), p, w, rest, small);
      store(at.target + i, t);
      if (at.target_shadow) store_bfloat16(at.target_shadow + i, t);
    }
  }
  if (part == 0) return;
  Vec p = load_part(at.param + whole, part, 0.0f);
  if (kLearns) {
    const Moved moved =
        adamw(f, p, load_part(at.grad + whole, part, 0.0f),
              load_part(at.exp_avg + whole, part, 0.0f),
              load_part(at.exp_avg_sq + whole, part, 0.0f));
    p = moved.p;
    store_part(at.param + whole, part, p);
    store_part(at.exp_avg + whole, part, moved.m);
    store_part(at.exp_avg_sq + whole, part, moved.v);
  }
  if (at.shadow) store_bfloat16_part(at.shadow + whole, part, p);
  if (kFollows) {
    const Vec t = lerp(load_part(at.target + whole, part, 0.0f), p, w, rest, small);
    store_part(at.target + whole, part, t);
    if (at.target_shadow) store_bfloat16_part(at.target_shadow + whole, part, t);
  }
}

SJEPA_TARGET static void step_span(const Span& span) {
  if (span.at.grad) {
    span.at.target ? step_of<true, true>(span) : step_of<true, false>(span);
  } else {
    span.at.target ? step_of<false, true>(span) : step_of<false, false>(span);
  }
}
