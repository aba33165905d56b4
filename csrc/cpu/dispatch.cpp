// Which instruction sets this build holds and this processor runs.
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace fedsparse::baseline {
extern const Kernels kernels;
}
#ifdef FEDSPARSE_X86
namespace fedsparse::avx2 {
extern const Kernels kernels;
}
namespace fedsparse::avx512 {
extern const Kernels kernels;
}
#endif

namespace fedsparse {

namespace {

struct Available {
  const Kernels* list[3];
  int count = 0;

  Available() {
#ifdef FEDSPARSE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      list[count++] = &avx512::kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) list[count++] = &avx2::kernels;
#endif
    list[count++] = &baseline::kernels;
  }
};

}  // namespace

const Kernels* const* instruction_sets(int* count) {
  static const Available available;
  *count = available.count;
  return available.list;
}

const Kernels& kernels_named(const char* name) {
  int count = 0;
  const Kernels* const* list = instruction_sets(&count);
  std::string known;
  for (int i = 0; i < count; ++i) {
    if (std::string(list[i]->name) == name) return *list[i];
    known += std::string(i ? ", " : "") + list[i]->name;
  }
  throw std::invalid_argument("instruction set '" + std::string(name) + "' does not run here; this processor has: " + known);
}

}  // namespace fedsparse
