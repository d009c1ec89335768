// Stands in for the headers of half precision, which need a part of CUDA that no wheel brings.
// Prototypes name these two types; nothing here looks into them.
#pragma once

#define __CUDA_FP16_H__
#define __CUDA_BF16_H__

struct __half;
struct __nv_bfloat16;
