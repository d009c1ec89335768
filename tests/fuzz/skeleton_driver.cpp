// Reads `.skeleton` files named on stdin, one a line, by csrc/skeleton_text.cpp under sanitizers, and
// answers a line for each: status, rows, bodies, frames and the sum of all coordinates.
//
// Text and outputs lie in heap memory of exactly their size, so that one byte too far is seen.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

extern "C" void sjepa_read_skeletons(const char* const* texts, const int64_t* sizes, int64_t files,
                                     int64_t joint_count, const int64_t* first_rows, double* joints,
                                     int32_t* body, int32_t* start, int64_t* counts,
                                     int32_t* status, int threads);

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    // JOINTS ROWS PATH
    char* end = nullptr;
    const int64_t joints = std::strtoll(line.c_str(), &end, 10);
    const int64_t rows = std::strtoll(end, &end, 10);
    std::ifstream file(end + 1, std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(file)), {});
    const size_t size = content.size();
    // As a bytes object: the text, and a zero byte that is its last.
    std::unique_ptr<char[]> text(new char[size + 1]);
    std::memcpy(text.get(), content.data(), size);
    text[size] = 0;
    std::unique_ptr<double[]> xyz(new double[rows * joints * 3]());
    std::unique_ptr<int32_t[]> body(new int32_t[rows]()), start(new int32_t[rows]());
    const char* const texts[1] = {text.get()};
    const int64_t sizes[1] = {static_cast<int64_t>(size)}, first_rows[2] = {0, rows};
    int64_t counts[3] = {0, 0, 0};
    int32_t status = -1;
    sjepa_read_skeletons(texts, sizes, 1, joints, first_rows, xyz.get(), body.get(), start.get(),
                         counts, &status, 1);
    double sum = 0;
    if (status == 0) {
      for (int64_t i = 0; i < counts[0] * joints * 3; ++i) sum += xyz[i];
    }
    std::printf("%d %lld %lld %lld %.17g\n", status, static_cast<long long>(counts[0]),
                static_cast<long long>(counts[1]), static_cast<long long>(counts[2]), sum);
    std::fflush(stdout);
  }
}
