// Instructions that CUDA C++ has no name for. Kernels write PTX nowhere else: each function here has a twin that runs
// on the CPU (csrc/shim/ptx.h).
#pragma once

#include <cuda_runtime.h>

#ifdef FEDSPARSE_SHIM
#include "ptx.h"
#endif

namespace fedsparse::ptx {

// ---- copies from global to shared memory that nobody waits for until wait_copies

// 16 bytes, both addresses aligned to 16; zeros where `live` is false, and `global` is then not read.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool live) {
#ifdef FEDSPARSE_SHIM
  shim::copy_async(shared, global, 16, live ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(live ? 16 : 0)
               : "memory");
#endif
}

// Closes the group of this thread's copies since the last call.
__device__ __forceinline__ void commit_copies() {
#ifdef FEDSPARSE_SHIM
  shim::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Until at most `groups_left` groups of this thread are under way, the latest ones. Other threads see the data after a
// barrier.
template <int groups_left>
__device__ __forceinline__ void wait_copies() {
#ifdef FEDSPARSE_SHIM
  shim::wait_copies(groups_left);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(groups_left) : "memory");
#endif
}

// ---- 8 x 8 matrices of 16-bit numbers from shared memory; lanes 8 m to 8 m + 7 name the rows of matrix m
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
#ifdef FEDSPARSE_SHIM
  shim::load_matrices<4, false>("ldmatrix.x4", shim::Place::here(), r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices(unsigned (&r)[2], const void* row) {
#ifdef FEDSPARSE_SHIM
  shim::load_matrices<2, false>("ldmatrix.x2", shim::Place::here(), r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
#ifdef FEDSPARSE_SHIM
  shim::load_matrices<4, true>("ldmatrix.x4.trans", shim::Place::here(), r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// ---- d += a * b by a warp: a is 16 x k, b is k x 8, d is 16 x 8 in float32

// k = 16, bfloat16
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef FEDSPARSE_SHIM
  shim::mma<&shim::unpack_k16<shim::Bf16>, 16>("mma.m16n8k16.bf16", shim::Place::here(), d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// k = 16, half
__device__ __forceinline__ void mma_fp16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef FEDSPARSE_SHIM
  shim::mma<&shim::unpack_k16<shim::Fp16>, 16>("mma.m16n8k16.f16", shim::Place::here(), d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// k = 8, float32 bits of which the lower 13 are not read
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef FEDSPARSE_SHIM
  shim::mma<&shim::unpack_tf32, 8>("mma.m16n8k8.tf32", shim::Place::here(), d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace fedsparse::ptx
