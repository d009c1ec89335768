// SPDX-License-Identifier: Apache-2.0
// Crops of resident clips, and views of the crops, as tokens: what `augment_clips` does on a CPU
// once the few numbers of each clip (bounds, matrix, pivot, shift) are drawn. float32.
//
// A body's tokens are [segment][joint][frame of the segment][x, y, z].

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "platform.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

// The allocator may hand out pages that the kernel has yet to fill, 4 KiB at a time: more time than
// the crops take. Ask for 2 MiB at a time; this is advice, and may change nothing.
void want_huge_pages(float* out, int64_t numbers) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (begin + static_cast<uintptr_t>(numbers) * sizeof(float)) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)out, (void)numbers;
#endif
}

struct Sizes {
  int64_t bodies, frames, joints, length;

  int64_t numbers() const { return frames * joints * 3; }
  // First number of frame t of joint 0; joints are `length * 3` apart.
  int64_t at(int64_t t) const { return (t / length * joints * length + t % length) * 3; }
};

// `bend` holds a and b of a time warp, or is null: share s of the way through the crop becomes
// s + s (1 - s) (a + b (1 - 2 s)).
void crop_body(const float* rows, int64_t valid, const float* bend, const Sizes& size,
               float* out) {
  const int64_t row = size.joints * 3, apart = size.length * 3;
  const float last = static_cast<float>(valid - 1);
  const float scale = static_cast<float>(valid) / static_cast<float>(size.frames);
  for (int64_t t = 0; t < size.frames; ++t) {
    float source = (static_cast<float>(t) + 0.5f) * scale - 0.5f;
    if (bend) {
      const float s = (static_cast<float>(t) + 0.5f) / static_cast<float>(size.frames);
      source += static_cast<float>(valid) * s * (1 - s) * (bend[0] + bend[1] * (1 - 2 * s));
    }
    source = std::min(std::max(source, 0.0f), last);
    const float lower = std::floor(source), weight = source - lower;
    const float* low = rows + static_cast<int64_t>(lower) * row;
    const float* high = rows + static_cast<int64_t>(std::min(lower + 1.0f, last)) * row;
    float* to = out + size.at(t);
    for (int64_t v = 0; v < size.joints; ++v, to += apart, low += 3, high += 3) {
      for (int c = 0; c < 3; ++c) to[c] = low[c] + (high[c] - low[c]) * weight;
    }
  }
}

// view[v] = F A (clip[u] - pivot) + pivot + shift, with u = flip[v] and F = diag(-1, 1, 1) where
// the clip is mirrored, else u = v and F = 1.
void view_body(const float* clip, const float* a, const float* pivot, const float* shift,
               const int64_t* flip, const Sizes& size, float* out) {
  const int64_t apart = size.length * 3, segments = size.frames / size.length;
  float base[3], matrix[9];
  for (int r = 0; r < 3; ++r) {
    const float sign = flip && r == 0 ? -1.0f : 1.0f;
    for (int c = 0; c < 3; ++c) matrix[3 * r + c] = sign * a[3 * r + c];
    base[r] = pivot[r] + shift[r];
  }
  for (int64_t s = 0; s < segments; ++s) {
    for (int64_t v = 0; v < size.joints; ++v) {
      const float* from = clip + (s * size.joints + (flip ? flip[v] : v)) * apart;
      float* to = out + (s * size.joints + v) * apart;
      for (int64_t f = 0; f < size.length; ++f, from += 3, to += 3) {
        const float x = from[0] - pivot[0], y = from[1] - pivot[1], z = from[2] - pivot[2];
        for (int r = 0; r < 3; ++r) {
          to[r] = matrix[3 * r] * x + matrix[3 * r + 1] * y + matrix[3 * r + 2] * z + base[r];
        }
      }
    }
  }
}

}  // namespace

// `first` (batch x bodies) holds the first row of each body's crop, -1 for an absent one, `bend`
// (batch x 2) the time warps, or is null. `ends` gets the two joints `spine` of the first bodies,
// (batch, frames, 2, 3).
extern "C" SJEPA_EXPORT void sjepa_crop_tokens_f32(const float* rows, const int64_t* first,
                                                   const int64_t* valid, const float* bend,
                                                   int64_t batch, int64_t bodies, int64_t frames,
                                                   int64_t joints, int64_t length,
                                                   const int64_t* spine, float* out, float* ends,
                                                   int threads) {
  const Sizes size{bodies, frames, joints, length};
  const int64_t total = batch * bodies;
  want_huge_pages(out, total * size.numbers());
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t i = 0; i < total; ++i) {
    float* to = out + i * size.numbers();
    if (first[i] < 0) {
      std::fill(to, to + size.numbers(), 0.0f);
    } else {
      const int64_t b = i / bodies;
      crop_body(rows + first[i] * joints * 3, valid[b], bend ? bend + 2 * b : nullptr, size, to);
    }
    if (i % bodies != 0) continue;
    float* end = ends + i / bodies * frames * 6;
    for (int64_t t = 0; t < frames; ++t) {
      for (int j = 0; j < 2; ++j, end += 3) {
        std::copy_n(to + size.at(t) + spine[j] * length * 3, 3, end);
      }
    }
  }
}

// Bodies that are absent (`first` is negative) or zero throughout stay zero.
extern "C" SJEPA_EXPORT void sjepa_view_tokens_f32(const float* clip, const int64_t* first,
                                                   const float* matrix, const float* pivot,
                                                   const float* shift, const uint8_t* mirrored,
                                                   const int64_t* flip, int64_t batch,
                                                   int64_t bodies, int64_t frames, int64_t joints,
                                                   int64_t length, float* out, int threads) {
  const Sizes size{bodies, frames, joints, length};
  const int64_t total = batch * bodies;
  want_huge_pages(out, total * size.numbers());
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t i = 0; i < total; ++i) {
    const float* from = clip + i * size.numbers();
    float* to = out + i * size.numbers();
    const int64_t b = i / bodies;
    const auto zero = [](float x) { return x == 0.0f; };
    if (first[i] < 0 || std::all_of(from, from + size.numbers(), zero)) {
      std::fill(to, to + size.numbers(), 0.0f);
    } else {
      view_body(from, matrix + 9 * b, pivot + 3 * b, shift + 3 * b, mirrored[b] ? flip : nullptr,
                size, to);
    }
  }
}
