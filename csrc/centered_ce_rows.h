// A block of rows of the centred cross-entropy, for the vector width simd.h was included with.
//
// Scores are kept in base 2, so that the exponential needs no change of base. Rows are copied into
// scratch padded to whole vectors with a score so low that its probability is zero.

SJEPA_TARGET static double rows_block(const CeTask& task, int64_t begin, int64_t end,
                                      float* scratch, float* center_sum) {
  const int64_t width = task.width;
  const int64_t whole = width - width % SJEPA_LANES;
  const int64_t padded = (width + SJEPA_LANES - 1) / SJEPA_LANES * SJEPA_LANES;
  float* x = scratch;
  float* y = scratch + padded;
  constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
  const float to_x = task.scale_student * kLog2e, to_y = task.scale_target * kLog2e;
  const Vec scale_s = fill(to_x), scale_t = fill(to_y);
  double loss = 0;
  for (int64_t r = begin; r < end; ++r) {
    const float* student = task.student + r * width;
    const float* teacher = task.teacher + (task.index ? task.index[r] : r) * width;
    const float lowest = -1e30f;
    Vec x_max = fill(lowest), y_max = fill(lowest);
    for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
      Vec t = load(teacher + d);
      Vec xs = mul(load(student + d), scale_s);
      Vec ys = mul(sub(t, load(task.center + d)), scale_t);
      store(center_sum + d, add(load(center_sum + d), t));
      store(x + d, xs);
      store(y + d, ys);
      x_max = larger(xs, x_max);
      y_max = larger(ys, y_max);
    }
    if (whole < padded) {
      for (int64_t d = whole; d < padded; ++d) {
        const bool inside = d < width;
        x[d] = inside ? student[d] * to_x : lowest;
        y[d] = inside ? (teacher[d] - task.center[d]) * to_y : lowest;
        if (inside) center_sum[d] += teacher[d];
      }
      x_max = larger(load(x + whole), x_max);
      y_max = larger(load(y + whole), y_max);
    }
    const Vec x_top = fill(maximum(x_max)), y_top = fill(maximum(y_max));
    Vec x_sum = fill(0.0f), y_sum = fill(0.0f), gap = fill(0.0f);
    for (int64_t d = 0; d < padded; d += SJEPA_LANES) {
      Vec below = sub(load(x + d), x_top);
      Vec x_exp = exp2_nonpositive(below);
      Vec y_exp = exp2_nonpositive(sub(load(y + d), y_top));
      x_sum = add(x_sum, x_exp);
      y_sum = add(y_sum, y_exp);
      gap = fma(y_exp, below, gap);
      store(x + d, x_exp);
      store(y + d, y_exp);
    }
    const float x_total = sum(x_sum), y_total = sum(y_sum);
    const float weight = task.weights ? task.weights[r] : 1.0f;
    // Both terms are non-negative, so nothing cancels.
    loss += static_cast<double>(weight) *
            (std::log(static_cast<double>(x_total)) -
             kLn2 * static_cast<double>(sum(gap)) / y_total);
    if (!task.grad) continue;
    float* grad = task.grad + r * width;
    const float share = weight * task.scale_student * task.inverse_total;
    const Vec a = fill(share / x_total), b = fill(-share / y_total);
    for (int64_t d = 0; d < whole; d += SJEPA_LANES) {
      store(grad + d, fma(load(x + d), a, mul(load(y + d), b)));
    }
    for (int64_t d = whole; d < width; ++d) {
      grad[d] = x[d] * (share / x_total) - y[d] * (share / y_total);
    }
  }
  return loss;
}
