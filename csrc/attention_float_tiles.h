// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one head in float32, for the vector width simd.h was included with.
//
// Keys are taken kKeys at a time, so that a panel of them stays in the first-level cache while all
// queries of a tile pass. W is a head's width.

constexpr int kKeys = 32;
constexpr int kTile = 24;  // queries at a time
// How many rows of queries, or of keys, have their sums in registers, two vectors of each.
#if SJEPA_LANES == 16
constexpr int kDown = 12, kDownKeys = 8;
#else
constexpr int kDown = 6, kDownKeys = 4;
#endif
constexpr int kAcross = 2;

// columns[n / kKeys][j][n % kKeys] = x[n][j] for n < count, zero up to `padded`.
template <int W>
SJEPA_TARGET static void pack_columns(Matrix x, int64_t count, int64_t padded, float* columns) {
  std::memset(columns, 0, sizeof(float) * static_cast<size_t>(padded * W));
  for (int64_t n = 0; n < count; ++n) {
    float* place = columns + n / kKeys * kKeys * W + n % kKeys;
    const float* row = x.row(n);
    for (int j = 0; j < W; ++j) place[j * kKeys] = row[j];
  }
}

// The first `count` of `padded` rows side by side, the rest zero.
template <int W>
SJEPA_TARGET static void copy_rows(Matrix x, int64_t count, int64_t padded, float* out) {
  for (int64_t n = 0; n < count; ++n) std::memcpy(out + n * W, x.row(n), sizeof(float) * W);
  std::memset(out + count * W, 0, sizeof(float) * static_cast<size_t>((padded - count) * W));
}

// out[r][n] = a[r] . columns[.][n] for kDown rows, `stride` apart in `out`, and the keys of a panel.
// Nothing else is done with the sums here: the compiler would not keep them in registers.
template <int W>
SJEPA_INLINE void multiply_columns(const float* a, const float* columns, float* out,
                                   int64_t stride) {
  for (int across = 0; across < kKeys; across += kAcross * SJEPA_LANES) {
    Vec sums[kDown][kAcross];
    for (int r = 0; r < kDown; ++r) {
      for (int v = 0; v < kAcross; ++v) sums[r][v] = fill(0.0f);
    }
    for (int j = 0; j < W; ++j) {
      Vec right[kAcross];
      for (int v = 0; v < kAcross; ++v) {
        right[v] = load(columns + j * kKeys + across + v * SJEPA_LANES);
      }
      for (int r = 0; r < kDown; ++r) {
        const Vec left = fill(a[r * W + j]);
        for (int v = 0; v < kAcross; ++v) sums[r][v] = fma(left, right[v], sums[r][v]);
      }
    }
    for (int r = 0; r < kDown; ++r) {
      for (int v = 0; v < kAcross; ++v) {
        store(out + r * stride + across + v * SJEPA_LANES, sums[r][v]);
      }
    }
  }
}

// sums[r] += sum over n of w[r * row + n * step] x[n] for kRows rows; x and sums are W wide.
template <int W, int kRows>
SJEPA_INLINE void add_rows(const float* w, int64_t row, int64_t step, const float* x,
                           int64_t count, float* sums) {
  constexpr int kVectors = W % (2 * SJEPA_LANES) == 0 ? 2 : 1;
  for (int first = 0; first < W; first += kVectors * SJEPA_LANES) {
    const float* from = x + first;
    float* to = sums + first;
    Vec sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sum[r][v] = load(to + r * W + v * SJEPA_LANES);
    }
    for (int64_t n = 0; n < count; ++n) {
      Vec right[kVectors];
      for (int v = 0; v < kVectors; ++v) right[v] = load(from + n * W + v * SJEPA_LANES);
      for (int r = 0; r < kRows; ++r) {
        const Vec left = fill(w[r * row + n * step]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) store(to + r * W + v * SJEPA_LANES, sum[r][v]);
    }
  }
}

template <int W>
SJEPA_TARGET static void write_scaled(const float* x, int64_t count, float factor, float* out,
                                      int64_t stride) {
  for (int64_t n = 0; n < count; ++n) {
    for (int j = 0; j < W; j += SJEPA_LANES) {
      store(out + n * stride + j, mul(load(x + n * W + j), fill(factor)));
    }
  }
}

// ---- forward ------------------------------------------------------------------------------------

// exp(scores - max) in place, zero beyond the last key; returns log2 of the sum, and its inverse.
SJEPA_INLINE float soften(float* scores, int64_t keys, int64_t padded, float scale,
                          float* inverse) {
  for (int64_t n = keys; n < padded; ++n) scores[n] = -std::numeric_limits<float>::infinity();
  Vec top = load(scores);
  for (int64_t n = SJEPA_LANES; n < padded; n += SJEPA_LANES) top = larger(load(scores + n), top);
  const float peak = maximum(top) * scale;
  const Vec shift = fill(-peak), factor = fill(scale);
  Vec total = fill(0.0f);
  for (int64_t n = 0; n < padded; n += kAcross * SJEPA_LANES) {
    Vec x[kAcross];
    for (int v = 0; v < kAcross; ++v) x[v] = fma(load(scores + n + v * SJEPA_LANES), factor, shift);
    exp2_below_zero(x);
    for (int v = 0; v < kAcross; ++v) total = add(total, x[v]);
    for (int v = 0; v < kAcross; ++v) store(scores + n + v * SJEPA_LANES, x[v]);
  }
  // Padding counts 2^-126 each at most, which no float32 sum of at least 1 can feel.
  const float all = sum(total);
  *inverse = 1.0f / all;
  return peak + std::log2(all);
}

template <int W>
SJEPA_TARGET static void forward_head(const Head& head, float* out, int64_t out_stride, float* lse,
                                      float* scratch) {
  const WithoutDenormals guard;
  const int64_t padded = padded_to(head.keys, kKeys);
  float *columns = scratch, *rows = columns + padded * W, *scores = rows + padded * W;
  alignas(64) float q[kTile * W], mixed[kTile * W];
  pack_columns<W>(head.k, head.keys, padded, columns);
  copy_rows<W>(head.v, head.keys, padded, rows);
  for (int64_t first = 0; first < head.queries; first += kTile) {
    const int64_t here = std::min<int64_t>(kTile, head.queries - first);
    copy_rows<W>({head.q.row(first), head.q.stride}, here, kTile, q);
    for (int64_t n = 0; n < padded; n += kKeys) {
      for (int64_t r = 0; r < here; r += kDown) {
        multiply_columns<W>(q + r * W, columns + n * W, scores + r * padded + n, padded);
      }
    }
    float inverses[kTile];
    for (int64_t r = 0; r < here; ++r) {
      lse[first + r] = soften(scores + r * padded, head.keys, padded, head.scale * kLog2e,
                              inverses + r);
    }
    std::memset(mixed, 0, sizeof mixed);
    for (int64_t r = 0; r < here; r += kDown) {
      add_rows<W, kDown>(scores + r * padded, padded, 1, rows, head.keys, mixed + r * W);
    }
    for (int64_t r = 0; r < here; ++r) {
      write_scaled<W>(mixed + r * W, 1, inverses[r], out + (first + r) * out_stride, out_stride);
    }
  }
}

// ---- backward -----------------------------------------------------------------------------------

// A tile of queries with their upstream gradients; P and dS of the tile against a panel of keys.
template <int W>
struct Tile {
  alignas(64) float q[kTile * W], grad[kTile * W], dq[kTile * W];
  alignas(64) float p[kTile * kKeys], ds[kTile * kKeys];
  float lse[kTile], delta[kTile];
};

template <int W>
SJEPA_TARGET static void load_tile(const Head& head, Matrix out, Matrix grad, const float* lse,
                                   int64_t first, int64_t here, Tile<W>& tile) {
  copy_rows<W>({head.q.row(first), head.q.stride}, here, kTile, tile.q);
  copy_rows<W>({grad.row(first), grad.stride}, here, kTile, tile.grad);
  std::memset(tile.dq, 0, sizeof tile.dq);
  for (int64_t r = 0; r < kTile; ++r) {
    // An infinite row sum makes every weight of a padding row vanish.
    tile.lse[r] = r < here ? lse[first + r] : std::numeric_limits<float>::infinity();
    Vec dot = fill(0.0f);
    for (int j = 0; r < here && j < W; j += SJEPA_LANES) {
      dot = fma(load(tile.grad + r * W + j), load(out.row(first + r) + j), dot);
    }
    tile.delta[r] = sum(dot);
  }
}

// P = exp(S - lse) and dS = P (dP - delta) of the tile against one panel of keys. What is no key
// has a score of 0, which may lie far above the others; nobody reads its columns or its sums.
template <int W>
SJEPA_INLINE void soften_panel(const float* k_columns, const float* v_columns, float scale,
                               Tile<W>& tile) {
  const Vec factor = fill(scale);
  for (int r = 0; r < kTile; r += kDown) {
    multiply_columns<W>(tile.q + r * W, k_columns, tile.p + r * kKeys, kKeys);
    multiply_columns<W>(tile.grad + r * W, v_columns, tile.ds + r * kKeys, kKeys);
  }
  for (int r = 0; r < kTile; ++r) {
    float *p = tile.p + r * kKeys, *ds = tile.ds + r * kKeys;
    const Vec shift = fill(-tile.lse[r]), delta = fill(tile.delta[r]);
    for (int n = 0; n < kKeys; n += kAcross * SJEPA_LANES) {
      Vec x[kAcross];
      for (int v = 0; v < kAcross; ++v) x[v] = fma(load(p + n + v * SJEPA_LANES), factor, shift);
      exp2_below_zero(x);
      for (int v = 0; v < kAcross; ++v) {
        const Vec gap = sub(load(ds + n + v * SJEPA_LANES), delta);
        store(p + n + v * SJEPA_LANES, x[v]);
        store(ds + n + v * SJEPA_LANES, mul(x[v], gap));
      }
    }
  }
}

template <int W>
SJEPA_TARGET static void backward_head(const Head& head, Matrix out, Matrix grad, const float* lse,
                                       const Gradients& to, float* scratch) {
  const WithoutDenormals guard;
  const int64_t padded = padded_to(head.keys, kKeys), size = padded * W;
  float *k_columns = scratch, *v_columns = k_columns + size, *k_rows = v_columns + size;
  float *dk = k_rows + size, *dv = dk + size;
  pack_columns<W>(head.k, head.keys, padded, k_columns);
  pack_columns<W>(head.v, head.keys, padded, v_columns);
  copy_rows<W>(head.k, head.keys, padded, k_rows);
  std::memset(dk, 0, sizeof(float) * 2 * static_cast<size_t>(size));
  Tile<W> tile;
  for (int64_t first = 0; first < head.queries; first += kTile) {
    const int64_t here = std::min<int64_t>(kTile, head.queries - first);
    load_tile<W>(head, out, grad, lse, first, here, tile);
    for (int64_t n = 0; n < padded; n += kKeys) {
      const int64_t left = std::min<int64_t>(kKeys, head.keys - n);
      soften_panel<W>(k_columns + n * W, v_columns + n * W, head.scale * kLog2e, tile);
      for (int key = 0; key < kKeys; key += kDownKeys) {
        add_rows<W, kDownKeys>(tile.p + key, 1, kKeys, tile.grad, here, dv + (n + key) * W);
        add_rows<W, kDownKeys>(tile.ds + key, 1, kKeys, tile.q, here, dk + (n + key) * W);
      }
      for (int64_t r = 0; r < here; r += kDown) {
        add_rows<W, kDown>(tile.ds + r * kKeys, kKeys, 1, k_rows + n * W, left, tile.dq + r * W);
      }
    }
    write_scaled<W>(tile.dq, here, head.scale, to.q + first * to.q_stride, to.q_stride);
  }
  write_scaled<W>(dk, head.keys, head.scale, to.k, to.k_stride);
  write_scaled<W>(dv, head.keys, 1.0f, to.v, to.v_stride);
}

constexpr HeadCode kCode{{forward_head<16>, forward_head<32>, forward_head<48>, forward_head<64>},
                         {backward_head<16>, backward_head<32>, backward_head<48>,
                          backward_head<64>},
                         kKeys,
                         kTile};
