// SPDX-License-Identifier: Apache-2.0
// Softmax attention, forward and backward, bfloat16 in and out, sums in float32:
//   O = softmax(Q K^T / sqrt(d)) V, one (sequence, head) at a time.
//
// The scores of a tile of queries never leave the core's caches. The forward keeps a whole row of
// scores, so no running maximum is needed; the backward recomputes them from the saved logarithm
// of the row sums. Heads are cut among threads by their number alone and no sum crosses heads, so
// a result does not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "platform.h"

#include "attention_heads.h"

namespace {

#ifdef SJEPA_X86_BF16
#include "attention_tiles.h"

constexpr float kLog2e = 1.44269504088896341f;
constexpr int kTile = 24;    // queries at a time in the backward
constexpr int kTileForward = 12;

using Head = HeadOf<bf16>;
using Gradients = GradientsOf<bf16>;

// ---- forward ------------------------------------------------------------------------------------

// 32-bit words of scratch per thread.
int64_t forward_words(const Shape& s) {
  const int64_t padded = padded_to(s.keys, 16);
  return padded * s.width / 2 * 2 + kTileForward * (padded + padded / 2 + s.width) + 64;
}

// Scores of Q rows against all keys, V vectors of keys at a time while they last.
template <int D, int Q, int V>
SJEPA_TILE_INLINE int64_t score_rows(const bf16* q, const uint32_t* columns, int64_t padded,
                                     int64_t n, float* scores) {
  for (; n + 16 * V <= padded; n += 16 * V) {
    __m512 tile[Q][V];
    multiply_columns<D, Q, V>(q, columns, padded, n, tile);
    for (int r = 0; r < Q; ++r) {
      for (int v = 0; v < V; ++v) _mm512_storeu_ps(scores + r * padded + n + 16 * v, tile[r][v]);
    }
  }
  return n;
}

// exp(scores - max) rounded into weights, zero beyond the last key; returns sum and maximum.
SJEPA_TILE_INLINE float soften(float* scores, int64_t keys, int64_t padded, float scale,
                               bf16* weights, float* sum) {
  for (int64_t n = keys; n < padded; ++n) scores[n] = -std::numeric_limits<float>::infinity();
  __m512 top = _mm512_loadu_ps(scores);
  for (int64_t n = 16; n < padded; n += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + n));
  const float peak = _mm512_reduce_max_ps(top) * scale;
  const __m512 shift = _mm512_set1_ps(-peak), factor = _mm512_set1_ps(scale);
  __m512 total = _mm512_setzero_ps();
  for (int64_t n = 0; n < padded; n += 16) {
    const __m512 p = exp2_nonpositive(_mm512_fmadd_ps(_mm512_loadu_ps(scores + n), factor, shift));
    total = _mm512_add_ps(total, p);
    store_rounded(weights + n, p);
  }
  // Padding counted 2^-126 each, which no float32 sum of at least 1 can feel.
  *sum = _mm512_reduce_add_ps(total);
  return peak;
}

template <int D>
SJEPA_TILE void forward_head(const Head& head, bf16* out, int64_t out_stride, float* lse,
                             uint32_t* scratch) {
  const int64_t padded = padded_to(head.keys, 16);
  uint32_t* columns = scratch;
  uint32_t* rows = columns + padded * 8 * D;
  float* scores = reinterpret_cast<float*>(rows + padded * 8 * D);
  bf16* weights = reinterpret_cast<bf16*>(scores + kTileForward * padded);
  float* mixed = reinterpret_cast<float*>(weights + kTileForward * padded);
  alignas(64) bf16 q[kTileForward * 16 * D];
  pack_columns<D>(head.k, head.keys, padded, columns);
  pack_rows<D>(head.v, head.keys, padded, rows);
  for (int64_t first = 0; first < head.queries; first += kTileForward) {
    const int64_t here = std::min<int64_t>(kTileForward, head.queries - first);
    copy_rows<D>({head.q.row(first), head.q.stride}, here, kTileForward, q);
    for (int64_t r = 0; r < here; r += 6) {
      float* place = scores + r * padded;
      int64_t n = score_rows<D, 6, 4>(q + r * 16 * D, columns, padded, 0, place);
      n = score_rows<D, 6, 2>(q + r * 16 * D, columns, padded, n, place);
      score_rows<D, 6, 1>(q + r * 16 * D, columns, padded, n, place);
    }
    float sums[kTileForward];
    for (int64_t r = 0; r < here; ++r) {
      const float peak = soften(scores + r * padded, head.keys, padded, head.scale * kLog2e,
                                weights + r * padded, &sums[r]);
      lse[first + r] = peak + std::log2(sums[r]);
    }
    std::memset(mixed, 0, sizeof(float) * kTileForward * 16 * D);
    const uint32_t* pairs_of_keys = reinterpret_cast<const uint32_t*>(weights);
    constexpr int kRows = D <= 2 ? kTileForward : kTileForward / 2;
    for (int64_t r = 0; r < here; r += kRows) {
      multiply_rows<D, kRows>(pairs_of_keys + r * padded / 2, padded / 2, rows, padded / 2,
                              mixed + r * 16 * D);
    }
    for (int64_t r = 0; r < here; ++r) {
      const __m512 share = _mm512_set1_ps(1.0f / sums[r]);
      for (int v = 0; v < D; ++v) {
        const __m512 x = _mm512_loadu_ps(mixed + (r * D + v) * 16);
        store_rounded(out + (first + r) * out_stride + 16 * v, _mm512_mul_ps(x, share));
      }
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------

constexpr int kKeys = 32;  // keys at a time in the backward

int64_t backward_words(const Shape& s) {
  const int64_t padded = padded_to(s.keys, kKeys);
  return padded * s.width / 2 * 3 + 2 * padded * s.width + 64;
}

// Gradients of one tile of queries against 32 keys, in float32; P and dS in three layouts.
struct Block {
  alignas(64) uint32_t p[kTile / 2][kKeys];   // pairs of queries
  alignas(64) uint32_t ds[kTile / 2][kKeys];  // pairs of queries
  alignas(64) bf16 ds_rows[kTile][kKeys];
};

// Queries and upstream gradients of one tile, in the layouts the products need.
template <int D>
struct Queries {
  alignas(64) bf16 q[kTile * 16 * D], grad[kTile * 16 * D];
  alignas(64) uint32_t q_pairs[kTile / 2 * 16 * D], grad_pairs[kTile / 2 * 16 * D];
  alignas(64) float dq[kTile * 16 * D];
  float lse[kTile], delta[kTile];
};

template <int D>
SJEPA_TILE void load_queries(const Head& head, Matrix out, Matrix grad, const float* lse,
                             int64_t first, Queries<D>& tile) {
  const int64_t here = std::min<int64_t>(kTile, head.queries - first);
  const Matrix q{head.q.row(first), head.q.stride}, g{grad.row(first), grad.stride};
  copy_rows<D>(q, here, kTile, tile.q);
  copy_rows<D>(g, here, kTile, tile.grad);
  pack_rows<D>(q, here, kTile, tile.q_pairs);
  pack_rows<D>(g, here, kTile, tile.grad_pairs);
  std::memset(tile.dq, 0, sizeof tile.dq);
  for (int r = 0; r < kTile; ++r) {
    // An infinite row sum makes every weight of a padding row vanish.
    tile.lse[r] = r < here ? lse[first + r] : std::numeric_limits<float>::infinity();
    __m512 sum = _mm512_setzero_ps();
    for (int v = 0; r < here && v < D; ++v) {
      sum = _mm512_fmadd_ps(widened(g.row(r) + 16 * v), widened(out.row(first + r) + 16 * v), sum);
    }
    tile.delta[r] = _mm512_reduce_add_ps(sum);
  }
}

// P = exp(S - lse) and dS = P (dP - delta) of the tile at keys n .. n + 31.
template <int D>
SJEPA_TILE_INLINE void soften_block(const Queries<D>& tile, const uint32_t* k_columns,
                                    const uint32_t* v_columns, int64_t padded, int64_t n,
                                    int64_t keys, float scale, Block& block) {
  const __m512 factor = _mm512_set1_ps(scale);
  const auto inside = [&](int v) {
    const int64_t left = keys - n - 16 * v;
    return static_cast<__mmask16>(left >= 16 ? 0xffff : (left <= 0 ? 0 : (1 << left) - 1));
  };
  for (int r = 0; r < kTile; r += 4) {
    __m512 p[4][2], ds[4][2];
    multiply_columns<D, 4, 2>(tile.q + r * 16 * D, k_columns, padded, n, p);
    multiply_columns<D, 4, 2>(tile.grad + r * 16 * D, v_columns, padded, n, ds);
    for (int i = 0; i < 4; ++i) {
      const __m512 shift = _mm512_set1_ps(-tile.lse[r + i]);
      const __m512 delta = _mm512_set1_ps(tile.delta[r + i]);
      for (int v = 0; v < 2; ++v) {
        const __m512 x = exp2_nonpositive(_mm512_fmadd_ps(p[i][v], factor, shift));
        p[i][v] = _mm512_maskz_mov_ps(inside(v), x);
        ds[i][v] = _mm512_mul_ps(p[i][v], _mm512_sub_ps(ds[i][v], delta));
        store_rounded(&block.ds_rows[r + i][16 * v], ds[i][v]);
      }
    }
    for (int i = 0; i < 4; i += 2) {
      for (int v = 0; v < 2; ++v) {
        _mm512_store_si512(&block.p[(r + i) / 2][16 * v], rounded_pair(p[i][v], p[i + 1][v]));
        _mm512_store_si512(&block.ds[(r + i) / 2][16 * v], rounded_pair(ds[i][v], ds[i + 1][v]));
      }
    }
  }
}

// sums[key] += sum over pairs of queries of w[pair][key] rows[pair], K keys at a time.
template <int D, int K>
SJEPA_TILE_INLINE void multiply_transposed(const uint32_t (&w)[kTile / 2][kKeys],
                                           const uint32_t* rows, float* sums) {
  for (int key = 0; key < kKeys; key += K) {
    __m512 sum[K][D];
    for (int i = 0; i < K; ++i) {
      for (int v = 0; v < D; ++v) sum[i][v] = _mm512_loadu_ps(sums + ((key + i) * D + v) * 16);
    }
    for (int p = 0; p < kTile / 2; ++p) {
      __m512i right[D];
      for (int v = 0; v < D; ++v) right[v] = load_pairs(rows + (p * D + v) * 16);
      for (int i = 0; i < K; ++i) {
        const __m512i left = _mm512_set1_epi32(static_cast<int32_t>(w[p][key + i]));
        for (int v = 0; v < D; ++v) sum[i][v] = dot(sum[i][v], left, right[v]);
      }
    }
    for (int i = 0; i < K; ++i) {
      for (int v = 0; v < D; ++v) _mm512_storeu_ps(sums + ((key + i) * D + v) * 16, sum[i][v]);
    }
  }
}

template <int D>
SJEPA_TILE void write_scaled(const float* sums, int64_t count, float scale, bf16* out,
                             int64_t stride) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t n = 0; n < count; ++n) {
    for (int v = 0; v < D; ++v) {
      const __m512 x = _mm512_loadu_ps(sums + (n * D + v) * 16);
      store_rounded(out + n * stride + 16 * v, _mm512_mul_ps(x, factor));
    }
  }
}

template <int D>
SJEPA_TILE void backward_head(const Head& head, Matrix out, Matrix grad, const float* lse,
                              const Gradients& to, uint32_t* scratch) {
  const int64_t padded = padded_to(head.keys, kKeys);
  uint32_t* k_columns = scratch;
  uint32_t* v_columns = k_columns + padded * 8 * D;
  uint32_t* k_rows = v_columns + padded * 8 * D;
  float* dk = reinterpret_cast<float*>(k_rows + padded * 8 * D);
  float* dv = dk + padded * 16 * D;
  pack_columns<D>(head.k, head.keys, padded, k_columns);
  pack_columns<D>(head.v, head.keys, padded, v_columns);
  pack_rows<D>(head.k, head.keys, padded, k_rows);
  std::memset(dk, 0, sizeof(float) * 2 * padded * 16 * D);
  Queries<D> tile;
  Block block;
  constexpr int kRows = D <= 2 ? 12 : 6;
  constexpr int kAtOnce = D <= 2 ? 8 : 4;
  for (int64_t first = 0; first < head.queries; first += kTile) {
    load_queries<D>(head, out, grad, lse, first, tile);
    for (int64_t n = 0; n < padded; n += kKeys) {
      soften_block<D>(tile, k_columns, v_columns, padded, n, head.keys, head.scale * kLog2e, block);
      multiply_transposed<D, kAtOnce>(block.p, tile.grad_pairs, dv + n * 16 * D);
      multiply_transposed<D, kAtOnce>(block.ds, tile.q_pairs, dk + n * 16 * D);
      for (int r = 0; r < kTile; r += kRows) {
        const uint32_t* w = reinterpret_cast<const uint32_t*>(block.ds_rows[r]);
        multiply_rows<D, kRows>(w, kKeys / 2, k_rows + n / 2 * 16 * D, kKeys / 2,
                                tile.dq + r * 16 * D);
      }
    }
    const int64_t here = std::min<int64_t>(kTile, head.queries - first);
    write_scaled<D>(tile.dq, here, head.scale, to.q + first * to.q_stride, to.q_stride);
  }
  write_scaled<D>(dk, head.keys, head.scale, to.k, to.k_stride);
  write_scaled<D>(dv, head.keys, 1.0f, to.v, to.v_stride);
}
#endif

}  // namespace

// Whether this processor has what the two functions below need.
extern "C" SJEPA_EXPORT int sjepa_has_bf16_attention() {
#ifdef SJEPA_X86_BF16
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
#else
  return 0;
#endif
}

// Both return 0, 1 when the width is not 16, 32, 48 or 64 or the processor cannot, 2 without memory
// for scratch; there must be a query and a key. `strides` holds (batch, head, token) of each tensor
// in the order of the arguments; the width's stride is 1. `lse` is (batch, heads, queries): log2 of
// the sum of 2^(log2(e) score).
extern "C" SJEPA_EXPORT int sjepa_attention_forward(const Shape* shape, const Strides* strides,
                                                    const uint16_t* q, const uint16_t* k,
                                                    const uint16_t* v, uint16_t* out, float* lse,
                                                    int threads) {
#ifdef SJEPA_X86_BF16
  constexpr decltype(&forward_head<1>) by_width[] = {forward_head<1>, forward_head<2>,
                                                     forward_head<3>, forward_head<4>};
  const Shape s = *shape;
  const auto run = [&](const Head& head, int64_t b, int64_t h, uint32_t* scratch) {
    by_width[s.width / 16 - 1](head, out + strides[3].at(b, h), strides[3].token,
                               lse + (b * s.heads + h) * s.queries, scratch);
  };
  if (!sjepa_has_bf16_attention()) return 1;
  return each_head<uint32_t>(s, strides, q, k, v, forward_words(s), threads, run);
#else
  (void)shape, (void)strides, (void)q, (void)k, (void)v, (void)out, (void)lse, (void)threads;
  return 1;
#endif
}

extern "C" SJEPA_EXPORT int sjepa_attention_backward(
    const Shape* shape, const Strides* strides, const uint16_t* q, const uint16_t* k,
    const uint16_t* v, const uint16_t* out, const uint16_t* grad, uint16_t* dq, uint16_t* dk,
    uint16_t* dv, const float* lse, int threads) {
#ifdef SJEPA_X86_BF16
  constexpr decltype(&backward_head<1>) by_width[] = {backward_head<1>, backward_head<2>,
                                                      backward_head<3>, backward_head<4>};
  const Shape s = *shape;
  const auto run = [&](const Head& head, int64_t b, int64_t h, uint32_t* scratch) {
    const Gradients to{dq + strides[5].at(b, h), dk + strides[6].at(b, h),
                       dv + strides[7].at(b, h), strides[5].token,
                       strides[6].token,         strides[7].token};
    by_width[s.width / 16 - 1](head, {out + strides[3].at(b, h), strides[3].token},
                               {grad + strides[4].at(b, h), strides[4].token},
                               lse + (b * s.heads + h) * s.queries, to, scratch);
  };
  if (!sjepa_has_bf16_attention()) return 1;
  return each_head<uint32_t>(s, strides, q, k, v, backward_words(s), threads, run);
#else
  (void)shape, (void)strides, (void)q, (void)k, (void)v, (void)out, (void)grad, (void)dq, (void)dk;
  (void)dv, (void)lse, (void)threads;
  return 1;
#endif
}
