// SPDX-License-Identifier: Apache-2.0
// Building blocks of attention.cpp: bfloat16 packing, products of tiles and the exponential, for
// processors with AVX-512 and its bfloat16 dot product. D is a head's width in vectors of 16.
//
// A dot product instruction multiplies pairs of bfloat16 and adds both products to a float, so one
// operand of every product is stored with its pairs side by side:
//   columns[j][n]  the pair (x[n][2j], x[n][2j+1]) of row n: products along the width
//   rows[p][i]     the pair (x[2p][i], x[2p+1][i]): products along the rows

#pragma once

#define SJEPA_TILE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define SJEPA_TILE_INLINE SJEPA_TILE static inline __attribute__((always_inline))

using bf16 = uint16_t;

SJEPA_TILE_INLINE __m512bh pairs(__m512i x) { return (__m512bh)x; }
SJEPA_TILE_INLINE __m512i load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
SJEPA_TILE_INLINE __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, pairs(a), pairs(b));
}
SJEPA_TILE_INLINE __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
// Lane i holds (low[i], high[i]) as bfloat16.
SJEPA_TILE_INLINE __m512i rounded_pair(__m512 low, __m512 high) {
  const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(high)), 16);
  return _mm512_or_si512(_mm512_cvtepu16_epi32(rounded(low)), upper);
}
SJEPA_TILE_INLINE __m512 widened(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
SJEPA_TILE_INLINE void store_rounded(bf16* p, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(x));
}

// 2^x for x <= 0 to 3e-6 relative: Taylor's polynomial of degree 5 about the nearest whole number.
// What would be denormal is 2^-126: it vanishes beside the row's largest term, which is 1.
SJEPA_TILE_INLINE __m512 exp2_nonpositive(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.3333558e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

using Matrix = MatrixOf<bf16>;

// columns[j][n] for n < count, zeros up to `padded`.
template <int D>
SJEPA_TILE static void pack_columns(Matrix x, int64_t count, int64_t padded, uint32_t* columns) {
  for (int64_t n = 0; n < count; ++n) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(x.row(n));
    for (int j = 0; j < 8 * D; ++j) std::memcpy(&columns[j * padded + n], &words[j], 4);
  }
  for (int j = 0; j < 8 * D; ++j) {
    for (int64_t n = count; n < padded; ++n) columns[j * padded + n] = 0;
  }
}

// rows[p][i] for 2p < count, zeros up to `padded` rows.
template <int D>
SJEPA_TILE static void pack_rows(Matrix x, int64_t count, int64_t padded, uint32_t* rows) {
  for (int64_t n = 0; n < padded; n += 2) {
    for (int v = 0; v < D; ++v) {
      const auto half = [&](int64_t row) SJEPA_TILE {
        if (row >= count) return _mm512_setzero_si512();
        const void* place = x.row(row) + 16 * v;
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(place)));
      };
      const __m512i both = _mm512_or_si512(half(n), _mm512_slli_epi32(half(n + 1), 16));
      _mm512_storeu_si512(rows + (n / 2 * D + v) * 16, both);
    }
  }
}

// The first `count` of `padded` rows side by side, the rest zero.
template <int D>
SJEPA_TILE static void copy_rows(Matrix x, int64_t count, int64_t padded, bf16* out) {
  for (int64_t n = 0; n < padded; ++n) {
    if (n < count) std::memcpy(out + n * 16 * D, x.row(n), 32 * D);
    else std::memset(out + n * 16 * D, 0, 32 * D);
  }
}

// out[q][v] = a[q] . columns[., n + 16 v + lane] for Q rows and V vectors of columns.
template <int D, int Q, int V>
SJEPA_TILE_INLINE void multiply_columns(const bf16* a, const uint32_t* columns, int64_t padded,
                                        int64_t n, __m512 (&out)[Q][V]) {
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) out[q][v] = _mm512_setzero_ps();
  }
  for (int j = 0; j < 8 * D; ++j) {
    __m512i right[V];
    for (int v = 0; v < V; ++v) right[v] = load_pairs(columns + j * padded + n + 16 * v);
    for (int q = 0; q < Q; ++q) {
      int32_t pair;
      std::memcpy(&pair, a + q * 16 * D + 2 * j, 4);
      const __m512i left = _mm512_set1_epi32(pair);
      for (int v = 0; v < V; ++v) out[q][v] = dot(out[q][v], left, right[v]);
    }
  }
}

// sums[q] += sum over pairs of w[q][pair] rows[pair], for Q rows of pairs that lie `stride` apart.
template <int D, int Q>
SJEPA_TILE_INLINE void multiply_rows(const uint32_t* w, int64_t stride, const uint32_t* rows,
                                     int64_t count, float* sums) {
  __m512 sum[Q][D];
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < D; ++v) sum[q][v] = _mm512_loadu_ps(sums + (q * D + v) * 16);
  }
  for (int64_t p = 0; p < count; ++p) {
    __m512i right[D];
    for (int v = 0; v < D; ++v) right[v] = load_pairs(rows + (p * D + v) * 16);
    for (int q = 0; q < Q; ++q) {
      const __m512i left = _mm512_set1_epi32(static_cast<int32_t>(w[q * stride + p]));
      for (int v = 0; v < D; ++v) sum[q][v] = dot(sum[q][v], left, right[v]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < D; ++v) _mm512_storeu_ps(sums + (q * D + v) * 16, sum[q][v]);
  }
}
