// SPDX-License-Identifier: Apache-2.0
// Reads NTU RGB+D `.skeleton` text: frame count; per frame a body count; per body a header line
// whose first field is the body's id, a joint count, and one line per joint that begins with x y z.
//
// Only text that needs no judgement is read here. Whatever looks odd (a short file, a field that is
// no plain decimal number, another joint count, no room) makes the call say so, and the Python
// reader, which is the definition of the format, reads that file instead. So the two cannot disagree,
// and messages about bad files are written once.

#include <charconv>
#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>
#include <vector>

#include "platform.h"

namespace {

enum Status : int32_t { kRead = 0, kAskPython = 1 };

constexpr int64_t kMaxDigits = 19;        // fit 64 bits
constexpr uint64_t kExact = 1ull << 53;   // integers up to here are doubles
constexpr int kMaxPower = 22;             // powers of ten up to here are doubles
constexpr double kPowers[kMaxPower + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                           1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                           1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// A zero byte follows the text, as it does in every bytes object of Python: it is no digit and no
// blank, so most loops need not look for the end.
class Text {
 public:
  Text(const char* begin, const char* end) : at_(begin), end_(end) {}

  // A line that holds one whole number without a sign.
  bool count_line(int64_t* value) {
    skip_blanks();
    if (!is_digit(*at_)) return false;
    *value = 0;
    for (; is_digit(*at_); ++at_) {
      if (*value > 100000000) return false;
      *value = *value * 10 + (*at_ - '0');
    }
    skip_blanks();
    return next_line();
  }

  // The first field of a line; the rest of the line is passed over.
  bool first_field(std::string_view* field) {
    skip_blanks();
    const char* begin = at_;
    while (*at_ > ' ') ++at_;
    *field = std::string_view(begin, static_cast<size_t>(at_ - begin));
    return !field->empty() && field_ends() && skip_line();
  }

  // The first three fields of a line, as doubles.
  bool joint_line(double* xyz) {
    for (int axis = 0; axis < 3; ++axis) {
      skip_blanks();
      if (!number(xyz + axis)) return false;
    }
    return skip_line();
  }

 private:
  void skip_blanks() {
    while (is_blank(*at_)) ++at_;
  }

  bool next_line() {
    if (at_ != end_ && *at_ != '\n') return false;
    return skip_line();
  }

  bool skip_line() {
    const void* found = at_ == end_ ? nullptr : std::memchr(at_, '\n', size_t(end_ - at_));
    at_ = found ? static_cast<const char*>(found) + 1 : end_;
    return true;
  }

  bool field_ends() const { return at_ == end_ || *at_ == '\n' || is_blank(*at_); }

  // Digits, point, exponent. With up to 2^53 as digits and up to 10^22 as scale both are exact, so
  // one multiplication or division rounds correctly (Clinger's fast path); the rest is left to the
  // standard library, which rounds correctly too.
  bool number(double* value) {
    const char* begin = at_;
    const char* p = at_;
    const bool negative = *p == '-';
    if (negative) ++p;
    const char* whole = p;
    uint64_t digits = 0;
    for (; is_digit(*p); ++p) digits = digits * 10 + static_cast<uint64_t>(*p - '0');
    int64_t seen = p - whole, power = 0;
    if (*p == '.') {
      const char* point = ++p;
      for (; is_digit(*p); ++p) digits = digits * 10 + static_cast<uint64_t>(*p - '0');
      power = point - p;
      seen -= power;
    }
    if (seen == 0) return false;
    if (*p == 'e' || *p == 'E') {
      ++p;
      const bool below = *p == '-';
      if (*p == '-' || *p == '+') ++p;
      if (!is_digit(*p)) return false;
      int64_t exponent = 0;
      for (; is_digit(*p); ++p) {
        if (exponent > 10000) return false;
        exponent = exponent * 10 + (*p - '0');
      }
      power += below ? -exponent : exponent;
    }
    at_ = p;
    if (!field_ends()) return false;
    if (seen <= kMaxDigits && digits <= kExact && power >= -kMaxPower && power <= kMaxPower) {
      const double exact = static_cast<double>(digits);
      const double size = power < 0 ? exact / kPowers[-power] : exact * kPowers[power];
      *value = negative ? -size : size;
      return true;
    }
#ifdef __cpp_lib_to_chars
    const std::from_chars_result done = std::from_chars(begin, p, *value);
    return done.ec == std::errc() && done.ptr == p;
#else
    (void)begin;
    return false;
#endif
  }

  const char* at_;
  const char* end_;
};

struct Output {
  double* joints;     // (rows, joint count, 3): one row for each appearance of a body, in file order
  int32_t* body;      // (rows,): which body a row shows, counted in order of first appearance
  int32_t* start;     // (rows,): entry b is the valid-frame index of body b's first appearance
  int64_t capacity;   // rows
};

int32_t read_text(const char* text, int64_t size, int64_t joint_count, const Output& out,
                  int64_t* counts) {
  Text source(text, text + size);
  std::vector<std::string_view> ids;
  int64_t frames = 0, valid = 0, rows = 0;
  if (!source.count_line(&frames)) return kAskPython;
  for (int64_t frame = 0; frame < frames; ++frame) {
    int64_t bodies = 0;
    if (!source.count_line(&bodies)) return kAskPython;
    for (int64_t k = 0; k < bodies; ++k) {
      std::string_view id;
      int64_t joints = 0;
      if (!source.first_field(&id) || !source.count_line(&joints)) return kAskPython;
      if (joints != joint_count || rows == out.capacity) return kAskPython;
      size_t body = 0;
      while (body < ids.size() && ids[body] != id) ++body;
      if (body == ids.size()) {
        out.start[body] = static_cast<int32_t>(valid);
        ids.push_back(id);
      }
      double* row = out.joints + rows * joint_count * 3;
      for (int64_t j = 0; j < joint_count; ++j) {
        if (!source.joint_line(row + j * 3)) return kAskPython;
      }
      out.body[rows++] = static_cast<int32_t>(body);
    }
    valid += bodies > 0;
  }
  counts[0] = rows;
  counts[1] = static_cast<int64_t>(ids.size());
  counts[2] = valid;
  return kRead;
}

}  // namespace

// Raise when the signature changes: the Python side ignores a library of another version.
extern "C" SJEPA_EXPORT int sjepa_skeleton_version() { return 1; }

// Reads `files` texts, each followed by a zero byte. The rows of file f begin at `first_rows[f]` of the outputs and there is room
// up to `first_rows[f + 1]`. `counts` gets rows, bodies and valid frames of each file and `status`
// 0, or 1 where the Python reader is to read it.
extern "C" SJEPA_EXPORT void sjepa_read_skeletons(const char* const* texts, const int64_t* sizes,
                                                  int64_t files, int64_t joint_count,
                                                  const int64_t* first_rows, double* joints,
                                                  int32_t* body, int32_t* start, int64_t* counts,
                                                  int32_t* status, int threads) {
  SJEPA_PARALLEL_FOR(threads)
  for (int64_t f = 0; f < files; ++f) {
    const int64_t row = first_rows[f];
    const Output out = {joints + row * joint_count * 3, body + row, start + row,
                        first_rows[f + 1] - row};
    try {
      status[f] = read_text(texts[f], sizes[f], joint_count, out, counts + f * 3);
    } catch (const std::bad_alloc&) {
      status[f] = kAskPython;
    }
  }
}
