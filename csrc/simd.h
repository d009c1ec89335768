// One set of names for 16, 8 or 1 floats: include after defining SJEPA_LANES and SJEPA_TARGET.
// Included once per width, inside a namespace of its own, so that one algorithm serves AVX-512,
// AVX2 and every other processor.

#if SJEPA_LANES == 16

using Vec = __m512;
SJEPA_TARGET static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
SJEPA_TARGET static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
SJEPA_TARGET static inline Vec fill(float a) { return _mm512_set1_ps(a); }
SJEPA_TARGET static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
SJEPA_TARGET static inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
SJEPA_TARGET static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
SJEPA_TARGET static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
SJEPA_TARGET static inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
SJEPA_TARGET static inline Vec nearest(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SJEPA_TARGET static inline Vec times_power_of_two(Vec a, Vec whole) {
  return _mm512_scalef_ps(a, whole);
}
SJEPA_TARGET static inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
SJEPA_TARGET static inline float maximum(Vec a) { return _mm512_reduce_max_ps(a); }

#elif SJEPA_LANES == 8

using Vec = __m256;
SJEPA_TARGET static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
SJEPA_TARGET static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
SJEPA_TARGET static inline Vec fill(float a) { return _mm256_set1_ps(a); }
SJEPA_TARGET static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
SJEPA_TARGET static inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
SJEPA_TARGET static inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
SJEPA_TARGET static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
SJEPA_TARGET static inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
SJEPA_TARGET static inline Vec nearest(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SJEPA_TARGET static inline Vec times_power_of_two(Vec a, Vec whole) {
  __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
SJEPA_TARGET static inline Vec zero_below(Vec a, Vec x, float limit) {
  return _mm256_andnot_ps(_mm256_cmp_ps(x, fill(limit), _CMP_LT_OQ), a);
}
SJEPA_TARGET static inline float sum(Vec a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
SJEPA_TARGET static inline float maximum(Vec a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

#else

using Vec = float;
static inline Vec load(const float* p) { return *p; }
static inline void store(float* p, Vec a) { *p = a; }
static inline Vec fill(float a) { return a; }
static inline Vec add(Vec a, Vec b) { return a + b; }
static inline Vec sub(Vec a, Vec b) { return a - b; }
static inline Vec mul(Vec a, Vec b) { return a * b; }
static inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline Vec nearest(Vec a) { return std::nearbyint(a); }
static inline Vec times_power_of_two(Vec a, Vec whole) {
  return std::ldexp(a, static_cast<int>(whole));
}
static inline Vec zero_below(Vec a, Vec x, float limit) { return x < limit ? 0.0f : a; }
static inline float sum(Vec a) { return a; }
static inline float maximum(Vec a) { return a; }

#endif

// 2^x for x <= 0, to 1e-8 relative before rounding; arguments below -126 give 0 or a number too
// small to matter. x = n + r with |r| <= 1/2, then a minimax polynomial of degree 6 in r, times 2^n.
SJEPA_TARGET static inline Vec exp2_nonpositive(Vec x) {
#if SJEPA_LANES == 16
  // The scaling instruction underflows by itself.
  const Vec bounded = x;
#else
  const Vec bounded = larger(x, fill(-126.0f));
#endif
  const Vec n = nearest(bounded);
  const Vec r = sub(bounded, n);
  Vec p = fill(1.5345811e-4f);
  p = fma(p, r, fill(1.3399931e-3f));
  p = fma(p, r, fill(9.618489e-3f));
  p = fma(p, r, fill(5.5503286e-2f));
  p = fma(p, r, fill(2.4022646e-1f));
  p = fma(p, r, fill(6.931472e-1f));
  p = fma(p, r, fill(1.0f));
#if SJEPA_LANES == 16
  return times_power_of_two(p, n);
#else
  return zero_below(times_power_of_two(p, n), x, -126.0f);
#endif
}
