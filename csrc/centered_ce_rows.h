// SPDX-License-Identifier: Apache-2.0
// A block of rows of the cross-entropies, for the vector width simd.h was included with.
//
// A row is read for its maxima and, from the first-level cache, again for its exponentials, which
// wait in `exps` for their sums; probabilities that are given (kGiven) are read again instead. Exponents are kept in units of ln 2: a temperature's scale holds
// log2(e), so that 2^x serves.

// Sums of 2^x, of the target (2^y, or y where it is given), and of the target times x.
struct Sums {
  Vec student, target, gap;
};

template <bool kGiven>
SJEPA_TARGET static inline void add_exps(Vec x, Vec y, float* exps, int64_t padded, Sums& sums) {
  if (kGiven) {
    Vec one[1] = {x};
    exp2_below_zero(one);
    store(exps, one[0]);
    sums.student = add(sums.student, one[0]);
  } else {
    Vec both[2] = {x, y};
    exp2_below_zero(both);
    store(exps, both[0]);
    store(exps + padded, both[1]);
    sums.student = add(sums.student, both[0]);
    y = both[1];
  }
  sums.target = add(sums.target, y);
  sums.gap = fma(y, x, sums.gap);
}

// Loss of row r times its weight; writes its gradient and adds its teacher to the column sums.
template <bool kStream, bool kGiven>
SJEPA_TARGET static double add_row(const CeTask& task, int64_t r, float* exps, float* center_sum) {
  const int64_t width = task.width, rest = width % SJEPA_LANES, whole = width - rest;
  const int64_t padded = whole + SJEPA_LANES;
  const float* student = task.student + r * width;
  const float* teacher = task.teacher_row(r);
  const float* center = task.center;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Vec s_max = fill(kLowest), y_max = fill(kLowest);
  for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
    s_max = larger(load(student + d), s_max);
    if (kGiven) continue;
    const Vec t = load(teacher + d);
    store(center_sum + d, add(load(center_sum + d), t));
    y_max = larger(sub(t, load(center + d)), y_max);
  }
  Vec s_rest = fill(kLowest), y_rest = fill(kLowest);
  if (rest > 0) {
    s_rest = load_part(student + whole, rest, kLowest);
    y_rest = load_part(teacher + whole, rest, kGiven ? 0.0f : kLowest);
    if (!kGiven) y_rest = sub(y_rest, load_part(center + whole, rest, 0.0f));
    for (int64_t d = whole; !kGiven && d < width; ++d) center_sum[d] += teacher[d];
  }
  const float s_top = maximum(larger(s_rest, s_max)), y_top = maximum(larger(y_rest, y_max));
  const Vec scale_s = fill(task.scale_student), scale_t = fill(task.scale_target);
  // The student's largest exponent is 0 exactly, as the loss of a sure row is; the target's, whose
  // rounding cancels, need not be.
  const Vec s_most = fill(s_top), y_shift = fill(-y_top * task.scale_target);
  Sums sums{fill(0.0f), fill(0.0f), fill(0.0f)};
  for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
    const Vec x = mul(sub(load(student + d), s_most), scale_s);
    const Vec t = load(teacher + d);
    const Vec y = kGiven ? t : fma(sub(t, load(center + d)), scale_t, y_shift);
    add_exps<kGiven>(x, y, exps + d, padded, sums);
  }
  if (rest > 0) {
    // Lifted to a finite bound, so that 0 times the padding is 0.
    const Vec x = larger(fill(-1e30f), mul(sub(s_rest, s_most), scale_s));
    const Vec y = kGiven ? y_rest : fma(y_rest, scale_t, y_shift);
    add_exps<kGiven>(x, y, exps + whole, padded, sums);
  }
  const float s_total = sum(sums.student), y_total = sum(sums.target);
  const float weight = task.weights ? task.weights[r] : 1.0f;
  if (task.grad) {
    float* grad = task.grad + r * width;
    const float share = weight * task.gradient_scale;
    const float mass = kGiven ? y_total : 1.0f;
    const Vec a = fill(share * mass / s_total), b = fill(kGiven ? -share : -share / y_total);
    const float* const target = kGiven ? teacher : exps + padded;
    for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
      const Vec g = fma(load(exps + d), a, mul(load(target + d), b));
      if (kStream) {
        stream(grad + d, g);
      } else {
        store(grad + d, g);
      }
    }
    if (rest > 0) {
      const Vec t = kGiven ? y_rest : load(exps + padded + whole);
      store_part(grad + whole, rest, fma(load(exps + whole), a, mul(t, b)));
    }
  }
  // Both terms are non-negative, so nothing cancels.
  constexpr double kLn2 = 0.693147180559945309;
  const double gap = -kLn2 * static_cast<double>(sum(sums.gap));
  const double log_sum = std::log(static_cast<double>(s_total));
  return weight * (kGiven ? y_total * log_sum + gap : log_sum + gap / y_total);
}

template <bool kStream, bool kGiven>
SJEPA_TARGET static double add_rows(const CeTask& task, int64_t begin, int64_t end, float* exps,
                                    float* center_sum) {
  double loss = 0;
  for (int64_t r = begin; r < end; ++r) loss += add_row<kStream, kGiven>(task, r, exps, center_sum);
  return loss;
}

SJEPA_TARGET static double rows_block(const CeTask& task, int64_t begin, int64_t end, float* exps,
                                      float* center_sum) {
  const WithoutDenormals guard;
  const auto rows = task.center ? task.streams ? add_rows<true, false> : add_rows<false, false>
                                : task.streams ? add_rows<true, true> : add_rows<false, true>;
  return rows(task, begin, end, exps, center_sum);
}
