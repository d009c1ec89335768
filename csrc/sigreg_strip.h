// SPDX-License-Identifier: Apache-2.0
// A strip of projections for the vector width simd.h was included with: the sums of cosines and
// sines at all knots, or the gradient. A vector holds columns of one row; four rows go together,
// because each knot needs the one before it.

// Cosine and sine of 3/16 x: less whole periods, two polynomials (those of losses/sigreg.py).
template <int N>
SJEPA_TARGET static inline void first_wave(const Vec (&x)[N], Vec (&cosine)[N], Vec (&sine)[N]) {
  constexpr float kRound = 1.5f * (1 << 23), kMost = 3.3f;
  constexpr float kSine[6] = {1.3289633282731472e-10f, -2.463194981316974e-08f,
                              2.7524961296876427e-06f, -0.0001983997062779963f,
                              0.00833330862224102f,    -0.1666666567325592f};
  constexpr float kCosine[7] = {-9.576043950854096e-12f, 2.0555481761164174e-09f,
                                -2.752868795141694e-07f, 2.4800177925499156e-05f,
                                -0.0013888851972296834f, 0.0416666604578495f, -0.5f};
  Vec a[N], u[N];
  for (int i = 0; i < N; ++i) {
    const Vec near = fma(x[i], fill(0.02984155182973038f), fill(kRound));
    const Vec periods = sub(near, fill(kRound));
    a[i] = fma(periods, fill(-33.51032257080078f), x[i]);
    a[i] = mul(fill(0.1875f), fma(periods, fill(9.325096357315488e-07f), a[i]));
    // Kept finite above 5e7, where a float has no phase left; in this order NaN stays NaN.
    a[i] = larger(fill(-kMost), sub(fill(0.0f), larger(fill(-kMost), a[i])));
    u[i] = mul(a[i], a[i]);
    sine[i] = fill(kSine[0]);
    cosine[i] = fill(kCosine[0]);
  }
  for (int j = 1; j < 6; ++j) {
    for (int i = 0; i < N; ++i) sine[i] = fma(sine[i], u[i], fill(kSine[j]));
  }
  for (int j = 1; j < 7; ++j) {
    for (int i = 0; i < N; ++i) cosine[i] = fma(cosine[i], u[i], fill(kCosine[j]));
  }
  // The angle was turned about on the way.
  for (int i = 0; i < N; ++i) {
    sine[i] = sub(fill(0.0f), fma(mul(a[i], u[i]), sine[i], a[i]));
    cosine[i] = fma(cosine[i], u[i], fill(1.0f));
  }
}

// The rows [row, row + N) at a vector of columns, all of it or its first `part` ones.
template <int N>
SJEPA_TARGET static inline void load_rows(const Strip& of, int64_t row, int64_t column,
                                          int64_t part, Vec (&x)[N]) {
  for (int i = 0; i < N; ++i) {
    const float* from = of.x + (row + i) * of.stride + column;
    x[i] = part == SJEPA_LANES ? load(from) : load_part(from, part, 0.0f);
  }
}

template <int N>
SJEPA_TARGET static void add_waves(const Strip& of, int64_t row, int64_t column, int64_t part,
                                   float* sums) {
  Vec x[N], cos1[N], sin1[N], cosine[N], sine[N];
  load_rows(of, row, column, part, x);
  first_wave(x, cos1, sin1);
  for (int i = 0; i < N; ++i) cosine[i] = cos1[i], sine[i] = sin1[i];
  for (int64_t j = 0; j < kKnots; ++j, sums += SJEPA_LANES) {
    Vec cosines = cosine[0], sines = sine[0];
    for (int i = 1; i < N; ++i) cosines = add(cosines, cosine[i]), sines = add(sines, sine[i]);
    store(sums, add(load(sums), cosines));
    float* const of_sines = sums + kKnots * SJEPA_LANES;
    store(of_sines, add(load(of_sines), sines));
    for (int i = 0; i < N; ++i) {
      const Vec both = mul(sine[i], sin1[i]);
      sine[i] = fma(sine[i], cos1[i], mul(cosine[i], sin1[i]));
      cosine[i] = sub(mul(cosine[i], cos1[i]), both);
    }
  }
}

template <int N>
SJEPA_TARGET static void write_gradient(const Strip& of, int64_t row, int64_t column,
                                        int64_t part) {
  Vec x[N], cos1[N], sin1[N], real[N], imag[N];
  load_rows(of, row, column, part, x);
  first_wave(x, cos1, sin1);
  for (int i = 0; i < N; ++i) real[i] = imag[i] = fill(0.0f);
  for (int64_t j = kKnots - 1; j >= 0; --j) {
    const float* const from = of.slopes + j * of.stride + column;
    const float* const above = from + kKnots * of.stride;
    const bool whole = part == SJEPA_LANES;
    const Vec a = whole ? load(from) : load_part(from, part, 0.0f);
    const Vec b = whole ? load(above) : load_part(above, part, 0.0f);
    for (int i = 0; i < N; ++i) {
      const Vec p = add(real[i], a), q = add(imag[i], b);
      real[i] = sub(mul(p, cos1[i]), mul(q, sin1[i]));
      imag[i] = fma(q, cos1[i], mul(p, sin1[i]));
    }
  }
  for (int i = 0; i < N; ++i) {
    float* const to = of.out + (row + i) * of.stride + column;
    const Vec g = mul(real[i], fill(of.scale));
    if (part == SJEPA_LANES) {
      store(to, g);
    } else {
      store_part(to, part, g);
    }
  }
}

// With `out` the gradient, else the sums, which go to double every few rows.
SJEPA_TARGET static void run_strip(const Strip& of) {
  constexpr int64_t kBlock = 64, kNumbers = 2 * kKnots * SJEPA_LANES;
  const WithoutDenormals guard;
  alignas(64) float few[kNumbers];
  for (int64_t begin = 0; begin < of.rows; begin += kBlock) {
    const int64_t end = std::min(of.rows, begin + kBlock), fours = begin + (end - begin) / 4 * 4;
    for (int64_t column = 0; column < of.columns; column += SJEPA_LANES) {
      const int64_t part = std::min<int64_t>(SJEPA_LANES, of.columns - column);
      if (of.out) {
        for (int64_t row = begin; row < fours; row += 4) write_gradient<4>(of, row, column, part);
        for (int64_t row = fours; row < end; ++row) write_gradient<1>(of, row, column, part);
        continue;
      }
      std::fill(few, few + kNumbers, 0.0f);
      for (int64_t row = begin; row < fours; row += 4) add_waves<4>(of, row, column, part, few);
      for (int64_t row = fours; row < end; ++row) add_waves<1>(of, row, column, part, few);
      for (int64_t j = 0; j < 2 * kKnots; ++j) {
        double* const to = of.sums + j * of.stride + column;
        for (int64_t i = 0; i < part; ++i) to[i] += static_cast<double>(few[j * SJEPA_LANES + i]);
      }
    }
  }
}
