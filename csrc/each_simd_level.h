// Compiles the file named by MS_KERNEL once for every SIMD level, in the namespaces portable, avx2, avx512
// and avx512_bf16. Included by the .cpp of an operator inside an unnamed namespace, after the standard
// headers, so that no function of the standard library is ever compiled for an instruction set that the
// machine may lack.

#define MS_SIMD 0
namespace portable {
#include "lanes.h"
#include MS_KERNEL
}  // namespace portable
#undef MS_SIMD

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define MS_SIMD 1
namespace avx2 {
#include "lanes.h"
#include MS_KERNEL
}  // namespace avx2
#undef MS_SIMD
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define MS_SIMD 2
namespace avx512 {
#include "lanes.h"
#include MS_KERNEL
}  // namespace avx512
#undef MS_SIMD
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define MS_SIMD 3
namespace avx512_bf16 {
#include "lanes.h"
#include MS_KERNEL
}  // namespace avx512_bf16
#undef MS_SIMD
#pragma GCC pop_options

#define MS_PICK(function)                              \
  (simd() == Simd::avx512_bf16 ? avx512_bf16::function \
   : simd() == Simd::avx512    ? avx512::function      \
   : simd() == Simd::avx2      ? avx2::function        \
                               : portable::function)

#else

#define MS_PICK(function) (portable::function)

#endif
