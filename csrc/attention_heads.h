// SPDX-License-Identifier: Apache-2.0
// What the two attentions share: sizes, strides, and the cut of the heads among threads.

#pragma once

// Sizes and strides, in elements; the order is sjepa_kernels/attention/cpu.py's.
struct Shape {
  int64_t batch, heads, queries, keys, width;
};

struct Strides {
  int64_t batch, head, token;
  int64_t at(int64_t b, int64_t h) const { return b * batch + h * head; }
};

inline int64_t padded_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A (rows, width) matrix whose rows lie `stride` elements apart.
template <typename T>
struct MatrixOf {
  const T* data;
  int64_t stride;
  const T* row(int64_t n) const { return data + n * stride; }
};

template <typename T>
struct HeadOf {
  MatrixOf<T> q, k, v;
  int64_t queries, keys;
  float scale;  // of the scores
};

// Where the gradients of a head go.
template <typename T>
struct GradientsOf {
  T *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
};

// Calls run(head, b, h, scratch) for every head, with `words` of scratch for each thread. Returns
// 0, 1 when the width is not 16, 32, 48 or 64, 2 without memory for scratch.
template <typename Word, typename T, typename Run>
int each_head(const Shape& s, const Strides* strides, const T* q, const T* k, const T* v,
              int64_t words, int threads, const Run& run) {
  if (s.width % 16 != 0 || s.width < 16 || s.width > 64) return 1;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
  const int64_t tasks = s.batch * s.heads, workers = std::min<int64_t>(threads, tasks);
  std::vector<Word> scratch;
  try {
    scratch.resize(static_cast<size_t>(workers * words));
  } catch (const std::bad_alloc&) {
    return 2;
  }
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t worker = 0; worker < workers; ++worker) {
    for (int64_t t = tasks * worker / workers; t < tasks * (worker + 1) / workers; ++t) {
      const int64_t b = t / s.heads, h = t % s.heads;
      const HeadOf<T> head{{q + strides[0].at(b, h), strides[0].token},
                           {k + strides[1].at(b, h), strides[1].token},
                           {v + strides[2].at(b, h), strides[2].token},
                           s.queries,
                           s.keys,
                           scale};
      run(head, b, h, scratch.data() + worker * words);
    }
  }
  return 0;
}
