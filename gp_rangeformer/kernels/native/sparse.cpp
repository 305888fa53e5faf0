// Products of a sparse matrix with a thin block, and the solution of a triangular one.

#include <algorithm>
#include <cstdint>

#include "border.h"
#include "registers.h"
#include "threads.h"

namespace {

template <typename T> struct Wide {
    typedef T type __attribute__((vector_size(registers::BYTES), aligned(sizeof(T))));
};

// The rows' numbers and columns follow each other; starts has one place more than there are rows.
template <typename T> struct Sparse {
    const int64_t *starts;
    const int32_t *columns;
    const T *numbers;
    int64_t rows;
};

// COUNT vectors of a row of the result.
template <typename T, int COUNT>
inline void add_row(const Sparse<T> &sparse, int64_t i, const T *vectors, int width, T *out) {
    using Vector = typename Wide<T>::type;
    constexpr int lanes = registers::BYTES / sizeof(T);
    Vector sums[COUNT] = {};
    for (int64_t q = sparse.starts[i]; q < sparse.starts[i + 1]; ++q) {
        const T *from = vectors + int64_t(sparse.columns[q]) * width;
        for (int c = 0; c < COUNT; ++c)
            sums[c] += sparse.numbers[q] * *reinterpret_cast<const Vector *>(from + c * lanes);
    }
    for (int c = 0; c < COUNT; ++c) *reinterpret_cast<Vector *>(out + c * lanes) = sums[c];
}

template <typename T> void multiply(const Sparse<T> &sparse, const T *vectors, int width, T *out, int threads) {
    constexpr int lanes = registers::BYTES / sizeof(T), count = 128 / registers::BYTES;
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
    for (int64_t i = 0; i < sparse.rows; ++i) {
        T *own = out + i * width;
        int c = 0;
        for (; c + count * lanes <= width; c += count * lanes)
            add_row<T, count>(sparse, i, vectors + c, width, own + c);
        for (; c + lanes <= width; c += lanes) add_row<T, 1>(sparse, i, vectors + c, width, own + c);
        for (; c < width; ++c) {
            T sum = 0;
            for (int64_t q = sparse.starts[i]; q < sparse.starts[i + 1]; ++q)
                sum += sparse.numbers[q] * vectors[int64_t(sparse.columns[q]) * width + c];
            own[c] = sum;
        }
    }
}

// vectors <- G^-1 vectors for a lower triangular G whose rows end with their diagonal number. Row after row, so that
// threads share out the columns.
template <typename T> void solve(const Sparse<T> &sparse, T *vectors, int width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(width, first, last);
        for (int64_t i = 0; i < sparse.rows; ++i) {
            T *__restrict own = vectors + i * width;
            const int64_t diagonal = sparse.starts[i + 1] - 1;
            for (int64_t q = sparse.starts[i]; q < diagonal; ++q) {
                const T *__restrict from = vectors + int64_t(sparse.columns[q]) * width;
                const T number = sparse.numbers[q];
                for (int64_t c = first; c < last; ++c) own[c] -= number * from[c];
            }
            for (int64_t c = first; c < last; ++c) own[c] /= sparse.numbers[diagonal];
        }
    }
}

}  // namespace

extern "C" {

int sparse_solve_float(const int64_t *starts, const int32_t *columns, const float *numbers, int64_t rows,
                       float *vectors, int width, int threads) {
    return guarded([&] { solve(Sparse<float>{starts, columns, numbers, rows}, vectors, width, threads); });
}

int sparse_solve_double(const int64_t *starts, const int32_t *columns, const double *numbers, int64_t rows,
                        double *vectors, int width, int threads) {
    return guarded([&] { solve(Sparse<double>{starts, columns, numbers, rows}, vectors, width, threads); });
}

int sparse_float(const int64_t *starts, const int32_t *columns, const float *numbers, int64_t rows,
                 const float *vectors, int width, float *out, int threads) {
    return guarded([&] { multiply(Sparse<float>{starts, columns, numbers, rows}, vectors, width, out, threads); });
}

int sparse_double(const int64_t *starts, const int32_t *columns, const double *numbers, int64_t rows,
                  const double *vectors, int width, double *out, int threads) {
    return guarded([&] { multiply(Sparse<double>{starts, columns, numbers, rows}, vectors, width, out, threads); });
}
}
