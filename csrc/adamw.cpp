// SPDX-License-Identifier: Apache-2.0
// AdamW of many float32 tensors, and in the same pass the moving average of the new weights and
// bfloat16 copies of both:
//   m <- m + (1 - beta1)(g - m),  v <- beta2 v + (1 - beta2) g^2,
//   p <- (1 - lr decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "platform.h"

namespace {

constexpr int64_t kChunk = 1 << 13;  // 32 KiB of each array

// The same in Python: optim/adamw_cpu.py. A weight without a gradient has no moments and no step;
// whatever else it lacks is null too.
struct Row {
  float* param;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* step;
  float* target;
  uint16_t* shadow;
  uint16_t* target_shadow;
  int64_t count;
  int64_t group;
};

struct Group {
  double lr, beta1, beta2, eps, weight_decay;
};

// Of one tensor in this step.
struct Factors {
  float share1, beta2, share2, decay, rate, root, eps, clip, weight;
};

struct Span {
  Row at;
  int64_t count;
  Factors factors;
};

Factors factors_of(const Row& row, const Group& group, double momentum, double clip) {
  const double t = row.grad ? *row.step + 1.0 : 1.0;
  const double rate = group.lr / (1 - std::pow(group.beta1, t));
  const double root = 1 / std::sqrt(1 - std::pow(group.beta2, t));
  const double all[] = {1 - group.beta1, group.beta2, 1 - group.beta2,
                        1 - group.lr * group.weight_decay, rate, root, group.eps, clip,
                        1 - momentum};
  Factors found;
  float* to[] = {&found.share1, &found.beta2, &found.share2, &found.decay, &found.rate,
                 &found.root,   &found.eps,   &found.clip,   &found.weight};
  for (int i = 0; i < 9; ++i) *to[i] = static_cast<float>(all[i]);
  return found;
}

template <typename T>
T* moved(T* pointer, int64_t by) {
  return pointer ? pointer + by : nullptr;
}

Row from(const Row& row, int64_t start) {
  return {moved(row.param, start),      moved(row.grad, start),   moved(row.exp_avg, start),
          moved(row.exp_avg_sq, start), row.step,                 moved(row.target, start),
          moved(row.shadow, start),     moved(row.target_shadow, start),
          row.count,                    row.group};
}

#define SJEPA_BODY "adamw_span.h"
#define SJEPA_ENTRY step_span
#include "each_width.h"

}  // namespace

// Moves `count` dense tensors by one step and counts it.
// Returns 0, or 2 when there is no memory for the table of chunks.
extern "C" SJEPA_EXPORT int sjepa_adamw_f32(const Row* rows, int64_t count, const Group* groups,
                                            double momentum, double clip, int threads) {
  std::vector<Span> spans;
  try {
    for (int64_t k = 0; k < count; ++k) {
      const Row& row = rows[k];
      const Factors factors = factors_of(row, groups[row.group], momentum, clip);
      for (int64_t start = 0; start < row.count; start += kChunk) {
        spans.push_back({from(row, start), std::min(kChunk, row.count - start), factors});
      }
    }
  } catch (const std::bad_alloc&) {
    return 2;
  }
  const auto step_span = entry_for_width();
  const int64_t total = static_cast<int64_t>(spans.size());
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t i = 0; i < total; ++i) step_span(spans[static_cast<size_t>(i)]);
  for (int64_t k = 0; k < count; ++k) {
    if (rows[k].grad) *rows[k].step += 1;
  }
  return 0;
}
