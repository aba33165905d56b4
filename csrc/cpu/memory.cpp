// Counts the bytes that torch's libraries hold from the C allocator, so that peak memory is measured, not estimated.
//
// Torch offers no count of CPU memory short of its profiler, which slows small steps and logs. So the calls of malloc
// and its family in torch's own libraries are led through counting versions here, by rewriting those libraries' tables of
// imported functions (the ELF global offset table). That catches tensors and the scratch of oneDNN and MKL alike, costs
// some nanoseconds a call, and leaves every other library alone.
#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__linux__) && defined(__GLIBC__) && defined(__LP64__) && (defined(__x86_64__) || defined(__aarch64__))
#define FEDSPARSE_COUNTS_MEMORY 1
#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fedsparse {
namespace {

std::atomic<std::int64_t> g_level{0}, g_peak{0};

void raise_peak(std::int64_t level) {
  std::int64_t seen = g_peak.load(std::memory_order_relaxed);
  while (level > seen && !g_peak.compare_exchange_weak(seen, level, std::memory_order_relaxed)) {
  }
}

#ifdef FEDSPARSE_COUNTS_MEMORY

void count(void* block, int sign) {
  if (!block) return;
  const std::int64_t bytes = sign * static_cast<std::int64_t>(malloc_usable_size(block));
  const std::int64_t level = g_level.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (sign > 0) raise_peak(level);
}

void* counted(void* block) {
  count(block, 1);
  return block;
}

void* counting_malloc(std::size_t size) { return counted(std::malloc(size)); }
void* counting_calloc(std::size_t n, std::size_t size) { return counted(std::calloc(n, size)); }
void* counting_memalign(std::size_t align, std::size_t size) { return counted(memalign(align, size)); }
void* counting_aligned_alloc(std::size_t align, std::size_t size) { return counted(aligned_alloc(align, size)); }
int counting_posix_memalign(void** block, std::size_t align, std::size_t size) {
  const int status = posix_memalign(block, align, size);
  if (status == 0) count(*block, 1);
  return status;
}
void counting_free(void* block) {
  count(block, -1);
  std::free(block);
}
void* counting_realloc(void* block, std::size_t size) {
  const std::int64_t before = block ? static_cast<std::int64_t>(malloc_usable_size(block)) : 0;
  void* moved = std::realloc(block, size);
  if (moved || size == 0) {
    g_level.fetch_sub(before, std::memory_order_relaxed);
    count(moved, 1);
  }
  return moved;
}

struct Replacement {
  const char* name;
  void* function;
};

const Replacement kReplacements[] = {
    {"malloc", reinterpret_cast<void*>(counting_malloc)},
    {"calloc", reinterpret_cast<void*>(counting_calloc)},
    {"realloc", reinterpret_cast<void*>(counting_realloc)},
    {"memalign", reinterpret_cast<void*>(counting_memalign)},
    {"aligned_alloc", reinterpret_cast<void*>(counting_aligned_alloc)},
    {"posix_memalign", reinterpret_cast<void*>(counting_posix_memalign)},
    {"free", reinterpret_cast<void*>(counting_free)},
};

#if defined(__x86_64__)
bool is_import(std::uint64_t type) { return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT; }
#else
bool is_import(std::uint64_t type) { return type == R_AARCH64_JUMP_SLOT || type == R_AARCH64_GLOB_DAT; }
#endif

struct Imports {
  const Elf64_Sym* symbols = nullptr;
  const char* names = nullptr;
  const Elf64_Rela* tables[2] = {nullptr, nullptr};
  std::size_t sizes[2] = {0, 0};  // bytes
};

Imports read_imports(const dl_phdr_info& library) {
  Imports found;
  for (int i = 0; i < library.dlpi_phnum; ++i) {
    if (library.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* entry = reinterpret_cast<const Elf64_Dyn*>(library.dlpi_addr + library.dlpi_phdr[i].p_vaddr);
    for (; entry->d_tag != DT_NULL; ++entry) {
      // The loader has usually turned addresses in this table into absolute ones.
      const std::uintptr_t value = entry->d_un.d_ptr;
      const std::uintptr_t address = value < library.dlpi_addr ? library.dlpi_addr + value : value;
      switch (entry->d_tag) {
        case DT_SYMTAB: found.symbols = reinterpret_cast<const Elf64_Sym*>(address); break;
        case DT_STRTAB: found.names = reinterpret_cast<const char*>(address); break;
        case DT_JMPREL: found.tables[0] = reinterpret_cast<const Elf64_Rela*>(address); break;
        case DT_PLTRELSZ: found.sizes[0] = value; break;
        case DT_RELA: found.tables[1] = reinterpret_cast<const Elf64_Rela*>(address); break;
        case DT_RELASZ: found.sizes[1] = value; break;
        default: break;
      }
    }
  }
  return found;
}

bool write_slot(void** slot, void* function) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  void* start = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(slot) / page * page);
  if (mprotect(start, page, PROT_READ | PROT_WRITE) != 0) return false;
  *slot = function;
  return true;
}

bool is_torch(const char* path) {
  const char* slash = std::strrchr(path, '/');
  const char* file = slash ? slash + 1 : path;
  return std::strncmp(file, "libc10.so", 9) == 0 || std::strncmp(file, "libtorch_cpu.so", 15) == 0;
}

int redirect(dl_phdr_info* library, std::size_t, void* result) {
  if (!is_torch(library->dlpi_name)) return 0;
  const Imports imports = read_imports(*library);
  if (!imports.symbols || !imports.names) return 0;
  for (int t = 0; t < 2; ++t)
    for (std::size_t i = 0; imports.tables[t] && i < imports.sizes[t] / sizeof(Elf64_Rela); ++i) {
      const Elf64_Rela& entry = imports.tables[t][i];
      if (!is_import(ELF64_R_TYPE(entry.r_info))) continue;
      const char* name = imports.names + imports.symbols[ELF64_R_SYM(entry.r_info)].st_name;
      for (const Replacement& r : kReplacements)
        if (std::strcmp(name, r.name) == 0 &&
            write_slot(reinterpret_cast<void**>(library->dlpi_addr + entry.r_offset), r.function))
          ++*static_cast<int*>(result);
    }
  return 0;
}

bool install() {
  int redirected = 0;
  dl_iterate_phdr(redirect, &redirected);
  return redirected > 0;
}

#else

bool install() { return false; }

#endif

}  // namespace

bool memory_counted() {
  static const bool installed = install();
  return installed;
}

std::int64_t memory_level() { return g_level.load(std::memory_order_relaxed); }

std::int64_t memory_peak() { return g_peak.load(std::memory_order_relaxed); }

void memory_set_peak(std::int64_t peak) { g_peak.store(std::max(peak, memory_level()), std::memory_order_relaxed); }

}  // namespace fedsparse
