// A block of rows of the centered cross-entropy, for the vector width simd.h was included with.
//
// A row is read for its maxima and, from the first-level cache, again for its exponentials, which
// wait in `exps` for their sums. Exponents are kept in units of ln 2: a temperature's scale holds
// log2(e), so that 2^x serves.

// Sums of 2^x, 2^y and 2^y x.
struct Sums {
  Vec student, target, gap;
};

SJEPA_TARGET static inline void add_exps(Vec x, Vec y, float* exps, int64_t padded, Sums& sums) {
  Vec both[2] = {x, y};
  exp2_below_zero(both);
  sums.student = add(sums.student, both[0]);
  sums.target = add(sums.target, both[1]);
  sums.gap = fma(both[1], x, sums.gap);
  store(exps, both[0]);
  store(exps + padded, both[1]);
}

// Loss of row r times its weight; writes its gradient and adds its teacher to the column sums.
template <bool kStream>
SJEPA_TARGET static double add_row(const CeTask& task, int64_t r, float* exps, float* center_sum) {
  const int64_t width = task.width, rest = width % SJEPA_LANES, whole = width - rest;
  const int64_t padded = whole + SJEPA_LANES;
  const float* student = task.student + r * width;
  const float* teacher = task.teacher_row(r);
  const float* center = task.center;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Vec s_max = fill(kLowest), y_max = fill(kLowest);
  for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
    const Vec t = load(teacher + d);
    store(center_sum + d, add(load(center_sum + d), t));
    s_max = larger(load(student + d), s_max);
    y_max = larger(sub(t, load(center + d)), y_max);
  }
  Vec s_rest = fill(kLowest), y_rest = fill(kLowest);
  if (rest > 0) {
    s_rest = load_part(student + whole, rest, kLowest);
    y_rest = sub(load_part(teacher + whole, rest, kLowest), load_part(center + whole, rest, 0.0f));
    for (int64_t d = whole; d < width; ++d) center_sum[d] += teacher[d];
  }
  const float s_top = maximum(larger(s_rest, s_max)), y_top = maximum(larger(y_rest, y_max));
  const Vec scale_s = fill(task.scale_student), scale_t = fill(task.scale_target);
  // The student's largest exponent is 0 exactly, as the loss of a sure row is; the target's, whose
  // rounding cancels, need not be.
  const Vec s_most = fill(s_top), y_shift = fill(-y_top * task.scale_target);
  Sums sums{fill(0.0f), fill(0.0f), fill(0.0f)};
  for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
    const Vec x = mul(sub(load(student + d), s_most), scale_s);
    const Vec y = fma(sub(load(teacher + d), load(center + d)), scale_t, y_shift);
    add_exps(x, y, exps + d, padded, sums);
  }
  if (rest > 0) {
    // Lifted to a finite bound, so that 0 times the padding is 0.
    const Vec x = larger(fill(-1e30f), mul(sub(s_rest, s_most), scale_s));
    add_exps(x, fma(y_rest, scale_t, y_shift), exps + whole, padded, sums);
  }
  const float s_total = sum(sums.student), y_total = sum(sums.target);
  const float weight = task.weights ? task.weights[r] : 1.0f;
  if (task.grad) {
    float* grad = task.grad + r * width;
    const float share = weight * task.gradient_scale;
    const Vec a = fill(share / s_total), b = fill(-share / y_total);
    for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
      const Vec g = fma(load(exps + d), a, mul(load(exps + padded + d), b));
      if (kStream) {
        stream(grad + d, g);
      } else {
        store(grad + d, g);
      }
    }
    if (rest > 0) {
      const Vec target = mul(load(exps + padded + whole), b);
      store_part(grad + whole, rest, fma(load(exps + whole), a, target));
    }
  }
  // Both terms are non-negative, so nothing cancels.
  constexpr double kLn2 = 0.693147180559945309;
  const double gap = -kLn2 * static_cast<double>(sum(sums.gap)) / y_total;
  return weight * (std::log(static_cast<double>(s_total)) + gap);
}

SJEPA_TARGET static double rows_block(const CeTask& task, int64_t begin, int64_t end, float* exps,
                                      float* center_sum) {
  const WithoutDenormals guard;
  double loss = 0;
  if (task.streams) {
    for (int64_t r = begin; r < end; ++r) loss += add_row<true>(task, r, exps, center_sum);
  } else {
    for (int64_t r = begin; r < end; ++r) loss += add_row<false>(task, r, exps, center_sum);
  }
  return loss;
}
