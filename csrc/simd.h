// SPDX-License-Identifier: Apache-2.0
// One set of names for 16, 8 or 1 floats: include after defining SJEPA_LANES and SJEPA_TARGET.
// Included once per width, inside a namespace of its own, so that one algorithm serves AVX-512,
// AVX2 and every other processor.

#if SJEPA_LANES == 16

using Vec = __m512;
using Bits = __m512i;
#define SJEPA_WIDE(name) _mm512_##name
#define SJEPA_WIDE_BITS(name) _mm512_##name##_si512
SJEPA_TARGET static inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
SJEPA_TARGET static inline float maximum(Vec a) { return _mm512_reduce_max_ps(a); }
SJEPA_TARGET static inline Bits where_nan(Vec a, Bits yes, Bits no) {
  return _mm512_mask_mov_epi32(no, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), yes);
}
SJEPA_TARGET static inline void store_low_halves(uint16_t* p, Bits a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}

#elif SJEPA_LANES == 8

using Vec = __m256;
using Bits = __m256i;
#define SJEPA_WIDE(name) _mm256_##name
#define SJEPA_WIDE_BITS(name) _mm256_##name##_si256
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
SJEPA_TARGET static inline Bits where_nan(Vec a, Bits yes, Bits no) {
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(nan));
}
// Of numbers below 2^16: this packing saturates.
SJEPA_TARGET static inline void store_low_halves(uint16_t* p, Bits a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(
      _mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

#else

using Vec = float;
static inline Vec load(const float* p) { return *p; }
static inline void store(float* p, Vec a) { *p = a; }
static inline void stream(float* p, Vec a) { *p = a; }
static inline Vec fill(float a) { return a; }
static inline Vec add(Vec a, Vec b) { return a + b; }
static inline Vec sub(Vec a, Vec b) { return a - b; }
static inline Vec mul(Vec a, Vec b) { return a * b; }
static inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec divide(Vec a, Vec b) { return a / b; }
static inline Vec root(Vec a) { return std::sqrt(a); }
static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline void store_bfloat16(uint16_t* p, Vec a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  const uint32_t up = bits + 0x7fffu + ((bits >> 16) & 1u);
  *p = static_cast<uint16_t>((std::isnan(a) ? bits | (1u << 22) : up) >> 16);
}
static inline float sum(Vec a) { return a; }
static inline float maximum(Vec a) { return a; }

#endif

#if SJEPA_LANES > 1

// Both wide forms: their intrinsics differ in the prefix alone.
SJEPA_TARGET static inline Vec load(const float* p) { return SJEPA_WIDE(loadu_ps)(p); }
SJEPA_TARGET static inline void store(float* p, Vec a) { SJEPA_WIDE(storeu_ps)(p, a); }
SJEPA_TARGET static inline void stream(float* p, Vec a) { SJEPA_WIDE(stream_ps)(p, a); }
SJEPA_TARGET static inline Vec fill(float a) { return SJEPA_WIDE(set1_ps)(a); }
SJEPA_TARGET static inline Vec add(Vec a, Vec b) { return SJEPA_WIDE(add_ps)(a, b); }
SJEPA_TARGET static inline Vec sub(Vec a, Vec b) { return SJEPA_WIDE(sub_ps)(a, b); }
SJEPA_TARGET static inline Vec mul(Vec a, Vec b) { return SJEPA_WIDE(mul_ps)(a, b); }
SJEPA_TARGET static inline Vec fma(Vec a, Vec b, Vec c) { return SJEPA_WIDE(fmadd_ps)(a, b, c); }
SJEPA_TARGET static inline Vec divide(Vec a, Vec b) { return SJEPA_WIDE(div_ps)(a, b); }
SJEPA_TARGET static inline Vec root(Vec a) { return SJEPA_WIDE(sqrt_ps)(a); }
SJEPA_TARGET static inline Vec larger(Vec a, Vec b) { return SJEPA_WIDE(max_ps)(a, b); }
// Rounded to nearest, ties to even; NaN stays NaN.
SJEPA_TARGET static inline void store_bfloat16(uint16_t* p, Vec a) {
  const Bits bits = SJEPA_WIDE_BITS(castps)(a), one = SJEPA_WIDE(set1_epi32)(1);
  const Bits odd = SJEPA_WIDE_BITS(and)(SJEPA_WIDE(srli_epi32)(bits, 16), one);
  const Bits half = SJEPA_WIDE(add_epi32)(odd, SJEPA_WIDE(set1_epi32)(0x7fff));
  const Bits quiet = SJEPA_WIDE_BITS(or)(bits, SJEPA_WIDE(set1_epi32)(1 << 22));
  const Bits rounded = where_nan(a, quiet, SJEPA_WIDE(add_epi32)(bits, half));
  store_low_halves(p, SJEPA_WIDE(srli_epi32)(rounded, 16));
}
#undef SJEPA_WIDE
#undef SJEPA_WIDE_BITS

#endif

// The first `count` numbers at p, followed by `rest`.
SJEPA_TARGET static inline Vec load_part(const float* p, int64_t count, float rest) {
  alignas(64) float all[SJEPA_LANES];
  for (int64_t i = 0; i < SJEPA_LANES; ++i) all[i] = i < count ? p[i] : rest;
  return load(all);
}
SJEPA_TARGET static inline void store_part(float* p, int64_t count, Vec a) {
  alignas(64) float all[SJEPA_LANES];
  store(all, a);
  for (int64_t i = 0; i < count; ++i) p[i] = all[i];
}
SJEPA_TARGET static inline void store_bfloat16_part(uint16_t* p, int64_t count, Vec a) {
  uint16_t all[SJEPA_LANES];
  store_bfloat16(all, a);
  for (int64_t i = 0; i < count; ++i) p[i] = all[i];
}

// The better rounded of two equal forms: t + w (s - t) for small w, s - (1 - w)(s - t) otherwise,
// where `rest` is w - 1.
SJEPA_TARGET static inline Vec lerp(Vec t, Vec s, Vec weight, Vec rest, bool small) {
  const Vec gap = sub(s, t);
  return small ? fma(weight, gap, t) : fma(gap, rest, s);
}

#if SJEPA_LANES == 16
// The bits of 2^(i / 16) less i << 19, so that adding k << 19 for k = 16 n + i gives 2^(k / 16);
// and the polynomial 1 + r (kRoot1 + r (kRoot2 + r kRoot3)) for 2^r, |r| <= 1 / 32.
alignas(64) static const uint32_t kRoots[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
constexpr float kRoot1 = 0.69314718267f, kRoot2 = 0.24023428801f, kRoot3 = 0.055502136492f;
SJEPA_TARGET static inline Vec power_of_two(Vec shifted) {
  const __m512i k = _mm512_castps_si512(shifted);
  const __m512i root = _mm512_permutexvar_epi32(k, _mm512_load_si512(kRoots));
  return _mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32(k, 19)));
}
#elif SJEPA_LANES == 8
// As above with i / 8 and 20; |r| <= 1 / 16.
alignas(64) static const uint32_t kRoots[8] = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
constexpr float kRoot1 = 0.69314721426f, kRoot2 = 0.24025762979f, kRoot3 = 0.055496221788f;
SJEPA_TARGET static inline Vec power_of_two(Vec shifted) {
  const __m256i k = _mm256_castps_si256(shifted);
  const __m256i root = _mm256_permutevar8x32_epi32(
      _mm256_load_si256(reinterpret_cast<const __m256i*>(kRoots)), k);
  return _mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32(k, 20)));
}
#endif

// N times 2^x for x <= 0 to 1e-7 relative, exactly 1 at 0, nothing below 2^-126 (denormals must be
// off). Step by step for all N, because a processor looks only so far ahead for work.
template <int N>
SJEPA_TARGET static inline void exp2_below_zero(Vec (&x)[N]) {
#if SJEPA_LANES > 1
  // x = k / lanes + r: a root of two from a table, its exponent added as a whole number, and the
  // polynomial of degree 3 closest to 2^r that is 1 at 0. Adding kShift leaves k in low bits.
  constexpr float kShift = 1.5f * (1 << 23) / SJEPA_LANES;
  Vec scale[N], p[N];
  for (int i = 0; i < N; ++i) x[i] = larger(fill(-127.0f), x[i]);  // in this order NaN stays NaN
  for (int i = 0; i < N; ++i) scale[i] = add(x[i], fill(kShift));
  for (int i = 0; i < N; ++i) p[i] = sub(scale[i], fill(kShift));
  for (int i = 0; i < N; ++i) x[i] = sub(x[i], p[i]);
  for (int i = 0; i < N; ++i) scale[i] = power_of_two(scale[i]);
  for (int i = 0; i < N; ++i) p[i] = fma(fill(kRoot3), x[i], fill(kRoot2));
  for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], fill(kRoot1));
  for (int i = 0; i < N; ++i) p[i] = mul(p[i], x[i]);
  for (int i = 0; i < N; ++i) x[i] = fma(p[i], scale[i], scale[i]);
#else
  for (Vec& v : x) v = v < -126.0f ? 0.0f : std::exp2(v);
#endif
}
