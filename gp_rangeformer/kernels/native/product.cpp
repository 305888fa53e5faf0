// A product of a dense matrix with a block of 32 columns, or a few more: the shape of a training step.
//
// Libraries reach two thirds of this speed for blocks so thin (MKL, n = 8000, 33 float columns, AVX-512: 23 ms against
// 16). A dozen rows at once are multiplied with a stretch of all columns, so that the sums stay in registers and a
// stretch of the block in the level-1 cache.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace {

constexpr int COLUMNS = 32;   // in registers; gp_rangeformer/kernels/native_product.py packs them
constexpr int STRETCH = 256;  // numbers of a row that are summed before they join the total, which keeps rounding low

template <typename T> struct Registers {
    static constexpr int lanes = 64 / sizeof(T), count = COLUMNS / lanes, rows = 24 / count;
    typedef T type __attribute__((vector_size(64), aligned(sizeof(T))));
};

// total[r * step] += matrix row r . vector, for ROWS rows: three at a time share what they read of the vector.
template <typename T, int ROWS>
void add_dots(const T *__restrict matrix, int64_t stride, int depth, const T *__restrict vector, T *__restrict total,
              int step) {
    constexpr int SHARING = ROWS % 3 == 0 ? 3 : 1;
    for (int r = 0; r < ROWS; r += SHARING) {
        const T *__restrict one = matrix + r * stride;
        const T *__restrict two = one + (SHARING > 1 ? stride : 0), *__restrict three = two + (SHARING > 1 ? stride : 0);
        T first = 0, second = 0, third = 0;
#pragma omp simd reduction(+ : first, second, third)
        for (int j = 0; j < depth; ++j) {
            first += one[j] * vector[j];
            if constexpr (SHARING > 1) second += two[j] * vector[j], third += three[j] * vector[j];
        }
        total[r * step] += first;
        if constexpr (SHARING > 1) total[(r + 1) * step] += second, total[(r + 2) * step] += third;
    }
}

// total (ROWS x COLUMNS) += matrix (ROWS x depth) packed (depth x COLUMNS); the same of the further columns by dot
// products.
template <typename T, int ROWS>
void add_stretch(const T *__restrict matrix, int64_t stride, int depth, const T *__restrict packed, const T *further,
                 int64_t n, int further_count, T *__restrict total, T *further_total) {
    using Vector = typename Registers<T>::type;
    constexpr int lanes = Registers<T>::lanes, count = Registers<T>::count;
    Vector sums[ROWS][count] = {};
    for (int j = 0; j < depth; ++j) {
        // The next rows: the hardware does not foresee jumps between so many.
        if (j % lanes == 0)
            for (int r = 0; r < ROWS; ++r) __builtin_prefetch(matrix + (r + ROWS) * stride + j);
        Vector block[count];
        for (int c = 0; c < count; ++c)
            block[c] = *reinterpret_cast<const Vector *>(packed + int64_t(j) * COLUMNS + c * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const T entry = matrix[r * stride + j];
            for (int c = 0; c < count; ++c) sums[r][c] += entry * block[c];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < count; ++c) *reinterpret_cast<Vector *>(total + r * COLUMNS + c * lanes) += sums[r][c];
    for (int k = 0; k < further_count; ++k)
        add_dots<T, ROWS>(matrix, stride, depth, further + k * n, further_total + k, further_count);
}

template <typename T>
void multiply(const T *matrix, int64_t n, int64_t stride, const T *packed, const T *further, int further_count, T *out,
              int threads) {
    constexpr int ROWS = Registers<T>::rows, BATCH = 8 * ROWS;  // a stretch of the block serves a batch of rows
    const int width = COLUMNS + further_count;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share((n + ROWS - 1) / ROWS, first, last);
        first *= ROWS;
        last = std::min(n, last * ROWS);
        std::vector<T> total(BATCH * COLUMNS), further_total(BATCH * further_count);
        for (int64_t start = first; start < last; start += BATCH) {
            const int64_t stop = std::min<int64_t>(last, start + BATCH);
            std::fill(total.begin(), total.end(), T(0));
            std::fill(further_total.begin(), further_total.end(), T(0));
            for (int64_t j = 0; j < n; j += STRETCH) {
                const int depth = int(std::min<int64_t>(STRETCH, n - j));
                int64_t i = start;
                for (; i + ROWS <= stop; i += ROWS)
                    add_stretch<T, ROWS>(matrix + i * stride + j, stride, depth, packed + j * COLUMNS, further + j, n,
                                         further_count, &total[(i - start) * COLUMNS],
                                         further_total.data() + (i - start) * further_count);
                for (; i < stop; ++i)
                    add_stretch<T, 1>(matrix + i * stride + j, stride, depth, packed + j * COLUMNS, further + j, n,
                                      further_count, &total[(i - start) * COLUMNS],
                                      further_total.data() + (i - start) * further_count);
            }
            for (int64_t i = start; i < stop; ++i) {
                const T *own = &total[(i - start) * COLUMNS];
                std::copy(own, own + COLUMNS, out + i * width);
                const T *rest = further_total.data() + (i - start) * further_count;
                std::copy(rest, rest + further_count, out + i * width + COLUMNS);
            }
        }
    }
}

}  // namespace

extern "C" {

void multiply_float(const float *matrix, int64_t n, int64_t stride, const float *packed, const float *further,
                    int further_count, float *out, int threads) {
    multiply(matrix, n, stride, packed, further, further_count, out, threads);
}

void multiply_double(const double *matrix, int64_t n, int64_t stride, const double *packed, const double *further,
                     int further_count, double *out, int threads) {
    multiply(matrix, n, stride, packed, further, further_count, out, threads);
}
}
