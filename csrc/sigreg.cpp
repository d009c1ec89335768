// SPDX-License-Identifier: Apache-2.0
// SIGReg of LeJEPA, float32: random unit directions, the sums of cosines and sines of projections
// at 16 knots, the statistic, and the gradient of the projections.
//
// Work is cut by sizes alone and partial sums are added in order, in double, so the result does not
// depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "platform.h"

namespace {

constexpr int64_t kKnots = 16;
constexpr double kStep = 3.0 / 16.0;
// A task: rows and columns of one view. Four vectors of columns share the rows' cache lines.
constexpr int64_t kRows = 512, kColumns = 64;

struct Strip {
  const float* x;       // the first number of the task
  int64_t rows, columns, stride;
  const float* slopes;  // of its first column; knots are `stride` apart
  float scale;
  float* out;
  double* sums;         // of its first column; knots are `stride` apart
};

#define SJEPA_BODY "sigreg_strip.h"
#define SJEPA_ENTRY run_strip
#include "each_width.h"

struct Grid {
  int64_t views, samples, count;
  int64_t tall() const { return (samples + kRows - 1) / kRows; }
  int64_t wide() const { return (count + kColumns - 1) / kColumns; }
  int64_t tasks() const { return views * tall() * wide(); }
};

struct Place {
  int64_t view, tile, row, column, rows, columns;
};

Place place_of(const Grid& grid, int64_t task) {
  const int64_t part = task / grid.wide();
  Place at{part / grid.tall(), part % grid.tall(), 0, task % grid.wide() * kColumns, 0, 0};
  at.row = at.tile * kRows;
  at.rows = std::min(kRows, grid.samples - at.row);
  at.columns = std::min(kColumns, grid.count - at.column);
  return at;
}

void philox(const uint32_t (&key)[2], uint32_t (&c)[4]) {
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0,
                              static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1,
                              static_cast<uint32_t>(p0)};
    std::memcpy(c, next, sizeof next);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace

// Row k of `out` (count, width): Box and Muller's normals of the Philox words at the counters
// (d / 4, k, step, 1 << 17), divided by their norm.
extern "C" SJEPA_EXPORT void sjepa_unit_directions_f32(const int64_t* seed, const int64_t* step,
                                                       int64_t count, int64_t width, float* out,
                                                       int threads) {
  const uint64_t bits = static_cast<uint64_t>(*seed);
  const uint32_t key[2] = {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
  const uint32_t when = static_cast<uint32_t>(static_cast<uint64_t>(*step));
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t k = 0; k < count; ++k) {
    float* const row = out + k * width;
    double squares = 0;
    for (int64_t d = 0; d < width; d += 4) {
      uint32_t c[4] = {static_cast<uint32_t>(d / 4), static_cast<uint32_t>(k), when, 1u << 17};
      philox(key, c);
      float normals[4];
      for (int pair = 0; pair < 4; pair += 2) {
        const float near = static_cast<float>((c[pair] >> 8) | 1u) * 0x1p-24f;
        const float turn = static_cast<float>(c[pair + 1] >> 8) * 3.7450702829239e-07f;
        const float radius = std::sqrt(-2.0f * std::log(near));
        normals[pair] = radius * std::cos(turn);
        normals[pair + 1] = radius * std::sin(turn);
      }
      for (int64_t i = 0; i < std::min<int64_t>(4, width - d); ++i) {
        row[d + i] = normals[i];
        squares += static_cast<double>(normals[i]) * normals[i];
      }
    }
    const float share = static_cast<float>(1.0 / std::sqrt(squares));
    for (int64_t d = 0; d < width; ++d) row[d] *= share;
  }
}

// sums (views, 32, count): of cosines of j 3/16 x for j = 1..16, then of sines. Returns 0, or 2
// when there is no memory for the partial sums.
extern "C" SJEPA_EXPORT int sjepa_sigreg_sums_f32(const float* x, int64_t views, int64_t samples,
                                                  int64_t count, double* sums, int threads) {
  const Grid grid{views, samples, count};
  const int64_t numbers = 2 * kKnots * count;
  std::vector<double> parts;
  try {
    parts.assign(static_cast<size_t>(views * grid.tall() * numbers), 0.0);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  const auto run_strip = entry_for_width();
  const int64_t tasks = grid.tasks();
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const Place at = place_of(grid, task);
    const float* const first = x + (at.view * samples + at.row) * count + at.column;
    double* const to = parts.data() + (at.view * grid.tall() + at.tile) * numbers + at.column;
    run_strip(Strip{first, at.rows, at.columns, count, nullptr, 0.0f, nullptr, to});
  }
  for (int64_t v = 0; v < views; ++v) {
    double* const to = sums + v * numbers;
    const double* from = parts.data() + v * grid.tall() * numbers;
    std::copy(from, from + numbers, to);
    for (int64_t tile = 1; tile < grid.tall(); ++tile) {
      from += numbers;
      for (int64_t i = 0; i < numbers; ++i) to[i] += from[i];
    }
  }
  return 0;
}

// Each view's share of the loss, and, unless null, the slopes (views, 32, count) of its gradient:
// of a projection x it is the real part of sum_j (slope_j + i slope_(16 + j)) e^(i j 3/16 x).
extern "C" SJEPA_EXPORT void sjepa_sigreg_finish(const double* sums, int64_t views, int64_t count,
                                                 double samples, double processes, double* losses,
                                                 float* slopes) {
  const double share = 1.0 / static_cast<double>(views * count), each = 1.0 / samples;
  for (int64_t v = 0; v < views; ++v) {
    double loss = 0;
    for (int64_t j = 0; j < kKnots; ++j) {
      const double* const cosines = sums + (v * 2 * kKnots + j) * count;
      const double* const sines = cosines + kKnots * count;
      const double t = kStep * static_cast<double>(j + 1), phi = std::exp(-0.5 * t * t);
      const double weight = phi * (j + 1 < kKnots ? 2 * kStep : kStep);
      double squares = 0;
      for (int64_t k = 0; k < count; ++k) {
        const double gap = cosines[k] * each - phi, sine = sines[k] * each;
        squares += gap * gap + sine * sine;
      }
      loss += weight * squares;
      if (slopes) {
        float* const real = slopes + (v * 2 * kKnots + j) * count;
        float* const imaginary = real + kKnots * count;
        const double slope = 2 * weight * t * share * processes;
        for (int64_t k = 0; k < count; ++k) {
          real[k] = static_cast<float>(slope * sines[k] * each);
          imaginary[k] = static_cast<float>(slope * (cosines[k] * each - phi));
        }
      }
    }
    losses[v] = loss * samples * share;
  }
}

extern "C" SJEPA_EXPORT void sjepa_sigreg_gradient_f32(const float* x, const float* slopes,
                                                       float grad_loss, int64_t views,
                                                       int64_t samples, int64_t count, float* out,
                                                       int threads) {
  const Grid grid{views, samples, count};
  const auto run_strip = entry_for_width();
  const int64_t tasks = grid.tasks();
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const Place at = place_of(grid, task);
    const int64_t first = (at.view * samples + at.row) * count + at.column;
    const float* const of = slopes + at.view * 2 * kKnots * count + at.column;
    run_strip(Strip{x + first, at.rows, at.columns, count, of, grad_loss, out + first, nullptr});
  }
}
