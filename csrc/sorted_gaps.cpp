// SPDX-License-Identifier: Apache-2.0
// What VISReg asks of projections, float32: each row's numbers in rising order, less the quantiles
// of the normal at those ranks, and the sum of their squares.
//
// A row is sorted by its bits, a byte at a time (a radix sort, stable: equal numbers keep their
// order). Its sum is made in double in the order of the ranks, so nothing depends on the threads.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "platform.h"

namespace {

constexpr int kBytes = 4, kBins = 256;

// The number's bits, made to rise with it, above its place in the row. Both zeros are equal.
uint64_t key_of(float x, int64_t place) {
  if (x == 0.0f) x = 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
  return uint64_t{bits} << 32 | static_cast<uint64_t>(place);
}

// Sorts `keys` by their upper halves and returns where they end up: there, or in `other`.
uint64_t* sort_keys(uint64_t* keys, uint64_t* other, int64_t count) {
  int64_t places[kBytes][kBins] = {};
  for (int64_t i = 0; i < count; ++i)
    for (int byte = 0; byte < kBytes; ++byte) ++places[byte][keys[i] >> (32 + 8 * byte) & 255];
  for (int byte = 0; byte < kBytes; ++byte) {
    int64_t next = 0;
    bool moves = true;
    for (int64_t& place : places[byte]) {
      moves = moves && place != count;
      const int64_t here = place;
      place = next;
      next += here;
    }
    if (!moves) continue;
    for (int64_t i = 0; i < count; ++i)
      other[places[byte][keys[i] >> (32 + 8 * byte) & 255]++] = keys[i];
    std::swap(keys, other);
  }
  return keys;
}

}  // namespace

// x (rows, samples) -> losses (rows), sums of squares, and, unless null, gaps (rows, samples), each
// at the place of its number. `scratch` has room for 2 * samples numbers of 64 bits a thread.
extern "C" SJEPA_EXPORT void sjepa_sorted_gaps_f32(const float* x, const float* quantiles,
                                                   int64_t rows, int64_t samples, double* losses,
                                                   float* gaps, uint64_t* scratch, int threads) {
  SJEPA_PARALLEL_FOR(threads)
  for (int part = 0; part < threads; ++part) {
    uint64_t* const keys = scratch + 2 * samples * part;
    for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row) {
      const float* const numbers = x + row * samples;
      for (int64_t i = 0; i < samples; ++i) keys[i] = key_of(numbers[i], i);
      const uint64_t* const sorted = sort_keys(keys, keys + samples, samples);
      double loss = 0;
      for (int64_t rank = 0; rank < samples; ++rank) {
        const int64_t place = static_cast<int64_t>(sorted[rank] & 0xFFFFFFFFu);
        const float gap = numbers[place] - quantiles[rank];
        loss += static_cast<double>(gap) * gap;
        if (gaps) gaps[row * samples + place] = gap;
      }
      losses[row] = loss;
    }
  }
}
