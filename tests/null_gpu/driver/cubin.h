// What machine code says about its kernels.
#pragma once

#include <string>

namespace null_gpu {

struct Needs {
  int registers = 0;      // per thread
  int stack = 0;          // bytes of local memory per thread: spills, and arrays that are indexed
  int shared = 0;         // bytes of static shared memory per block
  int max_threads = 1024; // per block
};

// Read what `kernel` needs from a cubin, the ELF file that ptxas writes; zeros if it is none.
Needs read_needs(const void *cubin, const std::string &kernel);

}  // namespace null_gpu
