// A reader of cubins: ELF files of 64 bit whose `.nv.info` sections hold attributes of kernels.
//
// An attribute is a format, a number and a length (1, 1 and 2 bytes), followed, in the format
// "sized value", by as many bytes. The numbers are what `cuobjdump -elf` prints by name.
#include "cubin.h"

#include <cstdint>
#include <cstring>
#include <elf.h>

namespace null_gpu {

namespace {

constexpr int SIZED_VALUE = 4;
constexpr int MAX_THREADS = 0x05, REQUIRED_THREADS = 0x10, FRAME_SIZE = 0x11, REGISTERS = 0x2f;

class Cubin {
 public:
  explicit Cubin(const void *image) : start(static_cast<const char *>(image)) {
    std::memcpy(&header, start, sizeof header);
  }

  bool valid() const {
    return std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
           header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_shoff != 0;
  }

  int sections() const { return header.e_shnum; }

  Elf64_Shdr section(int number) const {
    Elf64_Shdr found;
    std::memcpy(&found, start + header.e_shoff + static_cast<size_t>(number) * header.e_shentsize,
                sizeof found);
    return found;
  }

  const char *data(const Elf64_Shdr &part) const { return start + part.sh_offset; }

  std::string name(const Elf64_Shdr &part) const {
    return data(section(header.e_shstrndx)) + part.sh_name;
  }

  // Name of symbol `number`.
  std::string symbol(std::uint32_t number) const {
    for (int i = 0; i < sections(); ++i) {
      const Elf64_Shdr part = section(i);
      if (part.sh_type != SHT_SYMTAB || number >= part.sh_size / sizeof(Elf64_Sym)) continue;
      Elf64_Sym found;
      std::memcpy(&found, data(part) + number * sizeof found, sizeof found);
      return data(section(static_cast<int>(part.sh_link))) + found.st_name;
    }
    return "";
  }

 private:
  const char *start;
  Elf64_Ehdr header;
};

void read_attributes(const Cubin &cubin, const Elf64_Shdr &part, const std::string &kernel,
                     Needs &needs) {
  const char *at = cubin.data(part), *end = at + part.sh_size;
  while (at + 4 <= end) {
    const int format = static_cast<unsigned char>(at[0]), number = static_cast<unsigned char>(at[1]);
    std::uint16_t length;
    std::memcpy(&length, at + 2, sizeof length);
    at += 4;
    if (format != SIZED_VALUE) continue;
    std::uint32_t words[3] = {};
    std::memcpy(words, at, std::min<size_t>(length, sizeof words));
    at += length;
    const bool ours = (number == FRAME_SIZE || number == REGISTERS) &&
                      cubin.symbol(words[0]) == kernel;
    if (ours) (number == REGISTERS ? needs.registers : needs.stack) = static_cast<int>(words[1]);
    if (number == MAX_THREADS || number == REQUIRED_THREADS)
      needs.max_threads = static_cast<int>(words[0] * words[1] * words[2]);
  }
}

}  // namespace

Needs read_needs(const void *image, const std::string &kernel) {
  Needs needs;
  const Cubin cubin(image);
  if (!cubin.valid()) return needs;
  for (int i = 0; i < cubin.sections(); ++i) {
    const Elf64_Shdr part = cubin.section(i);
    const std::string name = cubin.name(part);
    if (name == ".nv.shared." + kernel) needs.shared = static_cast<int>(part.sh_size);
    if (name == ".nv.info" || name == ".nv.info." + kernel)
      read_attributes(cubin, part, kernel, needs);
  }
  return needs;
}

}  // namespace null_gpu
