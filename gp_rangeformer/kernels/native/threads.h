// OpenMP's threads, or the one that there is without it.

#pragma once

#include <cstdint>

#ifdef _OPENMP
// omp.h comes with some compilers only, the functions with every library of OpenMP.
extern "C" {
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

// The part of 0 ... size - 1 that is this thread's, as a half-open range.
inline void own_share(int64_t size, int64_t &first, int64_t &last) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    first = size * thread / threads;
    last = size * (thread + 1) / threads;
}
