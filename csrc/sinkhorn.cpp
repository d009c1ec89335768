// SPDX-License-Identifier: Apache-2.0
// A step of Sinkhorn-Knopp over teacher logits t (rows, width) as scalings of the prototypes,
// float32: the columns' sums of probabilities, which no matrix holds.
//
//   log_sums[k] = log sum_b exp((t[b,k] - c[k]) / temp - l[b])
//
// with l[b] the log-sum-exp of row b over k, or 0 in the first step, where rows have no scale yet
// and `center` holds the columns' maxima.
//
// Rows are cut into blocks by their number alone and the blocks' sums are added in order, so the
// result does not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "platform.h"

namespace {

struct SinkhornTask {
  const float* teacher;
  const float* center;
  int64_t width;
  float scale;  // log2(e) / temperature
  bool first;
};

#define SJEPA_BODY "sinkhorn_rows.h"
#define SJEPA_ENTRY rows_block
#include "each_width.h"

}  // namespace

// Returns 0, or 2 when there is no memory for scratch.
extern "C" SJEPA_EXPORT int sjepa_sinkhorn_step_f32(const float* teacher, const float* center,
                                                    const float* temp, int64_t rows, int64_t width,
                                                    int first, float* log_sums, int threads) {
  constexpr double kLog2e = 1.44269504088896341;
  const SinkhornTask task{teacher, center, width, static_cast<float>(kLog2e / *temp), first != 0};
  const int64_t blocks = std::min<int64_t>(32, (rows + 15) / 16);
  // Each block has a padded row of sums and one of exponentials.
  const int64_t padded = (width / 16 + 1) * 16;
  std::vector<float> scratch;
  try {
    scratch.assign(static_cast<size_t>(2 * blocks * padded), 0.0f);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  const auto rows_block = entry_for_width();
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t block = 0; block < blocks; ++block) {
    float* const own = scratch.data() + 2 * block * padded;
    rows_block(task, rows * block / blocks, rows * (block + 1) / blocks, own + padded, own);
  }
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t k = 0; k < width; ++k) {
    double column = 0;
    for (int64_t block = 0; block < blocks; ++block) column += scratch[2 * block * padded + k];
    log_sums[k] = static_cast<float>(std::log(column));
  }
  return 0;
}
