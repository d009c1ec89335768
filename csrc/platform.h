// SPDX-License-Identifier: Apache-2.0
// What differs between compilers and processors: exported symbols, threads, vector width.

#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SJEPA_X86 1
#include <immintrin.h>
#endif

// Compilers that know the bfloat16 products of AVX-512.
#if defined(SJEPA_X86) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define SJEPA_X86_BF16 1
#endif

// For a piece of code that must keep a tile in registers, in the vector width of SJEPA_TARGET.
#if defined(__GNUC__) || defined(__clang__)
#define SJEPA_INLINE SJEPA_TARGET static inline __attribute__((always_inline))
#else
#define SJEPA_INLINE SJEPA_TARGET static inline
#endif

#ifdef _WIN32
#define SJEPA_EXPORT __declspec(dllexport)
#else
#define SJEPA_EXPORT __attribute__((visibility("default")))
#endif

#ifdef _OPENMP
#define SJEPA_PRAGMA(text) _Pragma(#text)
#define SJEPA_PARALLEL_FOR(count) SJEPA_PRAGMA(omp parallel for num_threads(count) schedule(static))
#else
#define SJEPA_PARALLEL_FOR(count) (void)(count);
#endif

// Takes denormals for zero while it lives: they say nothing here and cost many cycles each.
class WithoutDenormals {
#ifdef SJEPA_X86
 public:
  WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Floats in a vector here: 16 (AVX-512), 8 (AVX2 with FMA) or 1. See sjepa_limit_lanes.
int sjepa_lanes();
