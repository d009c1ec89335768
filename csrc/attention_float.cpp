// SPDX-License-Identifier: Apache-2.0
// Softmax attention in float32, forward and backward, for processors with AVX-512 or AVX2:
//   O = softmax(Q K^T / sqrt(d)) V, one (sequence, head) at a time.
//
// As in attention.cpp, the scores of a tile of queries stay in the core's caches, the backward
// computes them again from the logarithm of the row sums, and no sum crosses heads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "platform.h"

#include "attention_heads.h"

namespace {

constexpr float kLog2e = 1.44269504088896341f;

using Matrix = MatrixOf<float>;
using Head = HeadOf<float>;
using Gradients = GradientsOf<float>;

// The code for one vector width, by the width of a head: 16, 32, 48, 64.
struct HeadCode {
  void (*forward[4])(const Head&, float* out, int64_t out_stride, float* lse, float* scratch);
  void (*backward[4])(const Head&, Matrix out, Matrix grad, const float* lse, const Gradients&,
                      float* scratch);
  int keys, queries;  // at a time
};

#define SJEPA_BODY "attention_float_tiles.h"
#define SJEPA_ENTRY kCode
#include "each_width.h"

}  // namespace

// Whether this processor has vectors; without, the code is correct and slow.
extern "C" SJEPA_EXPORT int sjepa_has_float_attention() { return sjepa_lanes() > 1; }

// Both return 0, 1 when the width is not 16, 32, 48 or 64, 2 without memory for scratch; there must
// be a query and a key. Arguments are those of attention.cpp, in float32.
extern "C" SJEPA_EXPORT int sjepa_attention_float_forward(const Shape* shape,
                                                          const Strides* strides, const float* q,
                                                          const float* k, const float* v,
                                                          float* out, float* lse, int threads) {
  const Shape s = *shape;
  const HeadCode code = entry_for_width();
  const int64_t padded = padded_to(s.keys, code.keys);
  const auto run = [&](const Head& head, int64_t b, int64_t h, float* scratch) {
    code.forward[s.width / 16 - 1](head, out + strides[3].at(b, h), strides[3].token,
                                   lse + (b * s.heads + h) * s.queries, scratch);
  };
  const int64_t words = padded * (2 * s.width + code.queries) + 64;
  return each_head<float>(s, strides, q, k, v, words, threads, run);
}

extern "C" SJEPA_EXPORT int sjepa_attention_float_backward(
    const Shape* shape, const Strides* strides, const float* q, const float* k, const float* v,
    const float* out, const float* grad, float* dq, float* dk, float* dv, const float* lse,
    int threads) {
  const Shape s = *shape;
  const HeadCode code = entry_for_width();
  const auto run = [&](const Head& head, int64_t b, int64_t h, float* scratch) {
    const Gradients to{dq + strides[5].at(b, h), dk + strides[6].at(b, h),
                       dv + strides[7].at(b, h), strides[5].token,
                       strides[6].token,         strides[7].token};
    code.backward[s.width / 16 - 1](head, {out + strides[3].at(b, h), strides[3].token},
                                    {grad + strides[4].at(b, h), strides[4].token},
                                    lse + (b * s.heads + h) * s.queries, to, scratch);
  };
  const int64_t words = padded_to(s.keys, code.keys) * 5 * s.width + 64;
  return each_head<float>(s, strides, q, k, v, words, threads, run);
}
