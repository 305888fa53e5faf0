// Stores that go to memory without first reading, and without displacing, what the caches hold.

#pragma once

#include <algorithm>
#include <cstdint>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace streaming {

#ifdef __AVX512F__
constexpr int BYTES = 64;
inline void store(void *to, const void *from) {
    _mm512_stream_si512(static_cast<__m512i *>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
constexpr int BYTES = 32;
inline void store(void *to, const void *from) {
    _mm256_stream_si256(static_cast<__m256i *>(to), _mm256_loadu_si256(static_cast<const __m256i *>(from)));
}
#endif

// to[j] = from[j] for j = 0 ... count - 1. Other threads see it after finish().
template <typename T> void copy(const T *from, int count, T *to) {
    int j = 0;
#ifdef __AVX__
    constexpr int LANES = BYTES / sizeof(T);
    for (; j < count && reinterpret_cast<uintptr_t>(to + j) % BYTES != 0; ++j) to[j] = from[j];
    for (; j + LANES <= count; j += LANES) store(to + j, from + j);
#endif
    std::copy(from + j, from + count, to + j);
}

inline void finish() {
#ifdef __AVX__
    _mm_sfence();
#endif
}

}  // namespace streaming
