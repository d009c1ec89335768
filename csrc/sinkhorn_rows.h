// SPDX-License-Identifier: Apache-2.0
// A block of rows of a Sinkhorn step, for the vector width simd.h was included with.
//
// A row is read for its maximum and, from a cache, again for its exponentials, which wait in `exps`
// for their sum. Exponents are kept in units of ln 2, as in centered_ce_rows.h.

// Adds the probabilities of a row to the columns' sums.
SJEPA_TARGET static inline void add_row(const SinkhornTask& task, const float* row, float* exps,
                                        float* sums) {
  const int64_t rest = task.width % SJEPA_LANES, whole = task.width - rest;
  const float* center = task.center;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const Vec scale = fill(task.scale);
  Vec top = fill(kLowest), last = fill(kLowest);
  for (int64_t k = 0; k < whole; k += SJEPA_LANES) {
    top = larger(sub(load(row + k), load(center + k)), top);
  }
  if (rest > 0) {
    last = sub(load_part(row + whole, rest, kLowest), load_part(center + whole, rest, 0.0f));
    top = larger(last, top);
  }
  const Vec shift = fill(-maximum(top) * task.scale);
  Vec total = fill(0.0f);
  for (int64_t k = 0; k < whole; k += SJEPA_LANES) {
    Vec x[1] = {fma(sub(load(row + k), load(center + k)), scale, shift)};
    exp2_below_zero(x);
    total = add(total, x[0]);
    store(exps + k, x[0]);
  }
  if (rest > 0) {
    Vec x[1] = {fma(last, scale, shift)};
    exp2_below_zero(x);
    total = add(total, x[0]);
    store(exps + whole, x[0]);
  }
  const Vec share = fill(1.0f / sum(total));
  for (int64_t k = 0; k < task.width; k += SJEPA_LANES) {
    store(sums + k, fma(load(exps + k), share, load(sums + k)));
  }
}

// The same in the first step: exponentials below the columns' maxima, as they are.
SJEPA_TARGET static inline void add_first_row(const SinkhornTask& task, const float* row,
                                              float* sums) {
  const int64_t rest = task.width % SJEPA_LANES, whole = task.width - rest;
  const float* center = task.center;
  const Vec scale = fill(task.scale);
  for (int64_t k = 0; k < whole; k += SJEPA_LANES) {
    Vec x[1] = {mul(sub(load(row + k), load(center + k)), scale)};
    exp2_below_zero(x);
    store(sums + k, add(load(sums + k), x[0]));
  }
  if (rest > 0) {
    const Vec last = sub(load_part(row + whole, rest, 0.0f), load_part(center + whole, rest, 0.0f));
    Vec x[1] = {mul(last, scale)};
    exp2_below_zero(x);
    store(sums + whole, add(load(sums + whole), x[0]));
  }
}

SJEPA_TARGET static void rows_block(const SinkhornTask& task, int64_t begin, int64_t end,
                                    float* exps, float* sums) {
  const WithoutDenormals guard;
  for (int64_t b = begin; b < end; ++b) {
    const float* row = task.teacher + b * task.width;
    if (task.first) {
      add_first_row(task, row, sums);
    } else {
      add_row(task, row, exps, sums);
    }
  }
}
