// SPDX-License-Identifier: Apache-2.0
// Centered softmax cross-entropy, forward and gradient in one pass over the rows, float32.
//
//   p_t = softmax((t - c) / temp_target), p_s = softmax(s / temp_student)
//   loss = sum_r w_r (-sum_d p_t log p_s) / sum_r w_r,  d loss / d s = (p_s - p_t) w_r / (temp W)
//
// Without a center and its temperature the teacher holds probabilities p_t of any sum P_t: the loss
// is as above and the gradient (P_t p_s - p_t) w_r / (temp W).
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

// Gradients of this many numbers and more would push out of the caches what comes next.
constexpr int64_t kStreamed = 1 << 21;

struct CeTask {
  const float* student;
  const float* teacher;
  const float* center;
  const int64_t* index;
  const float* weights;
  float* grad;
  int64_t width;
  float scale_student;   // log2(e) / temperature
  float scale_target;
  float gradient_scale;  // 1 / (temperature of the student, sum of the weights)
  bool streams;          // write the gradient past the caches

  const float* teacher_row(int64_t r) const { return teacher + (index ? index[r] : r) * width; }
};

#define SJEPA_BODY "centered_ce_rows.h"
#define SJEPA_ENTRY rows_block
#include "each_width.h"

}  // namespace

// Returns 0, 1 when an index lies outside the teacher, 2 when there is no memory for scratch.
// `index`, `weights` and `grad` may be null; so may `center`, and with it `temp_target`, of which
// there are no column sums then.
extern "C" SJEPA_EXPORT int sjepa_centered_ce_f32(
    const float* student, const float* teacher, const float* center, const int64_t* index,
    const float* weights, int64_t rows, int64_t teacher_rows, int64_t width,
    const float* temp_student, const float* temp_target, float* loss, float* center_sum,
    float* grad, int threads) {
  for (int64_t r = 0; index && r < rows; ++r) {
    if (index[r] < 0 || index[r] >= teacher_rows) return 1;
  }
  double total = static_cast<double>(rows);
  if (weights) {
    total = 0;
    for (int64_t r = 0; r < rows; ++r) total += weights[r];
  }
  constexpr double kLog2e = 1.44269504088896341;
  const CeTask task{student,
                    teacher,
                    center,
                    index,
                    weights,
                    grad,
                    width,
                    static_cast<float>(kLog2e / *temp_student),
                    static_cast<float>(center ? kLog2e / *temp_target : 0.0),
                    static_cast<float>(1.0 / (*temp_student * total)),
                    width % 16 == 0 && reinterpret_cast<uintptr_t>(grad) % 64 == 0 &&
                        rows * width >= kStreamed};
  const int64_t blocks = std::min<int64_t>(64, (rows + 63) / 64);
  // Each block has two padded rows of exponentials and one of column sums, all on cache lines.
  const int64_t padded = (width / 16 + 1) * 16, share = 3 * padded;
  std::vector<float> scratch;
  std::vector<double> losses;
  try {
    scratch.assign(static_cast<size_t>(blocks * share + 16), 0.0f);
    losses.assign(static_cast<size_t>(blocks), 0.0);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  float* const sums = scratch.data() + (64 - address % 64) % 64 / sizeof(float);
  const auto rows_block = entry_for_width();
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t block = 0; block < blocks; ++block) {
    float* const own = sums + block * share;
    losses[static_cast<size_t>(block)] = rows_block(
        task, rows * block / blocks, rows * (block + 1) / blocks, own + padded, own);
  }
  double loss_sum = 0;
  for (double part : losses) loss_sum += part;
  *loss = static_cast<float>(loss_sum / total);
  for (int64_t d = 0; center && d < width; ++d) {
    double column = 0;
    for (int64_t block = 0; block < blocks; ++block) column += sums[block * share + d];
    center_sum[d] = static_cast<float>(column);
  }
  return 0;
}
