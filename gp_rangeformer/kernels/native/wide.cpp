// Products with a few float64 columns, every product and sum in float64 whatever the matrix is held in, and the squared
// norms of the matrix's rows from the same read: what a residual and the bound of its own rounding take.
//
// Four rows at once share what they read of the columns. The order of a row's sums depends on nothing but n: rows have
// the same bits in every part of the matrix, by any number of threads, made on the way or not.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "border.h"
#include "program.h"
#include "registers.h"
#include "threads.h"

namespace {

constexpr int ROWS = 4;
// Columns: their sums, and those of the squares, stay in registers.
constexpr int AT_ONCE = registers::COUNT >= 32 ? 4 : 2;
constexpr int LANES = registers::BYTES / sizeof(double);
constexpr int STRETCH = 8 * WIDTH;  // of a matrix that is there: four rows of it stay in the level-1 cache
constexpr int AHEAD = 1024;  // bytes

typedef double Vector __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double))));
template <typename T> struct Entries {
    typedef T type __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T))));
};

// k columns of n numbers, each in one piece.
struct Columns {
    const double *numbers;
    int64_t n;
    int count;
};

// sums[c] += LANES entries times column c, squares += entries^2, for ROWS_NOW rows.
template <typename T, int ROWS_NOW, int COUNT, bool SQUARES>
inline void add_lanes(const T *matrix, int64_t stride, const double *columns, int64_t n, Vector (&sums)[ROWS][AT_ONCE],
                      Vector (&squares)[ROWS]) {
    Vector others[AT_ONCE];
    for (int c = 0; c < COUNT; ++c) others[c] = *reinterpret_cast<const Vector *>(columns + c * n);
    for (int r = 0; r < ROWS_NOW; ++r) {
        using Narrow = typename Entries<T>::type;
        const Vector entries = __builtin_convertvector(*reinterpret_cast<const Narrow *>(matrix + r * stride), Vector);
        if constexpr (SQUARES) squares[r] += entries * entries;
        for (int c = 0; c < COUNT; ++c) sums[r][c] += entries * others[c];
    }
}

inline Vector &at(double *total, int number) { return *reinterpret_cast<Vector *>(total + number * LANES); }

// The same for a stretch of `depth` entries; total: rows of `width` vectors, the squares' in front.
template <typename T, int ROWS_NOW, int COUNT, bool SQUARES>
void add_stretch(const T *matrix, int64_t stride, int depth, const double *columns, int64_t n, double *total,
                 int width, int first) {
    Vector sums[ROWS][AT_ONCE], squares[ROWS];
    for (int r = 0; r < ROWS_NOW; ++r) {
        squares[r] = at(total, r * width);
        for (int c = 0; c < COUNT; ++c) sums[r][c] = at(total, r * width + 1 + first + c);
    }
    int j = 0;
    for (; j + LANES <= depth; j += LANES) {
        // The hardware does not foresee enough of four rows at a time: 256 MB take 17 ms with, 20 without (n = 8000).
        for (int r = 0; r < ROWS_NOW; ++r) __builtin_prefetch(matrix + r * stride + j + AHEAD / sizeof(T));
        add_lanes<T, ROWS_NOW, COUNT, SQUARES>(matrix + j, stride, columns + j, n, sums, squares);
    }
    if (j < depth) {  // filled up with zeros
        T entries[ROWS * LANES] = {};
        double others[AT_ONCE * LANES] = {};
        for (int r = 0; r < ROWS_NOW; ++r)
            std::copy(matrix + r * stride + j, matrix + r * stride + depth, entries + r * LANES);
        for (int c = 0; c < COUNT; ++c) std::copy(columns + c * n + j, columns + c * n + depth, others + c * LANES);
        add_lanes<T, ROWS_NOW, COUNT, SQUARES>(entries, LANES, others, LANES, sums, squares);
    }
    for (int r = 0; r < ROWS_NOW; ++r) {
        if constexpr (SQUARES) at(total, r * width) = squares[r];
        for (int c = 0; c < COUNT; ++c) at(total, r * width + 1 + first + c) = sums[r][c];
    }
}

template <typename T, int ROWS_NOW, int COUNT>
void add_columns(const T *matrix, int64_t stride, int depth, const double *columns, int64_t n, double *total,
                 int width, int first) {
    if (first == 0)
        add_stretch<T, ROWS_NOW, COUNT, true>(matrix, stride, depth, columns, n, total, width, first);
    else
        add_stretch<T, ROWS_NOW, COUNT, false>(matrix, stride, depth, columns, n, total, width, first);
}

// All columns, a few at once.
template <typename T, int ROWS_NOW>
void add_all(const T *matrix, int64_t stride, int64_t start, int depth, const Columns &columns, double *total) {
    int first = 0;
    do {
        const int count = std::min(AT_ONCE, columns.count - first);
        const double *numbers = columns.numbers + first * columns.n + start;
        const auto add = [&](auto function) {
            function(matrix, stride, depth, numbers, columns.n, total, 1 + columns.count, first);
        };
        if (count == 0) add(add_columns<T, ROWS_NOW, 0>);
        if (count == 1) add(add_columns<T, ROWS_NOW, 1>);
        if (count == 2) add(add_columns<T, ROWS_NOW, 2>);
        if constexpr (AT_ONCE > 2) {
            if (count == 3) add(add_columns<T, ROWS_NOW, 3>);
            if (count == 4) add(add_columns<T, ROWS_NOW, 4>);
        }
        first += AT_ONCE;
    } while (first < columns.count);
}

// Rows of a matrix that is there.
template <typename T> struct Dense {
    static constexpr int DEPTH = STRETCH;
    const T *matrix;
    int64_t stride;

    const T *stretch(int64_t i, int, int64_t j, int, int64_t &step) {
        step = stride;
        return matrix + i * stride + j;
    }
};

// Rows of a kernel matrix that are made when they are asked for, and forgotten.
template <typename T> struct Made {
    static constexpr int DEPTH = WIDTH;
    explicit Made(const Program &program) : row(program), made(size_t(ROWS) * WIDTH) {}
    Row<T> row;
    std::vector<T> made;

    const T *stretch(int64_t i, int rows, int64_t j, int depth, int64_t &step) {
        step = WIDTH;
        for (int r = 0; r < rows; ++r) {
            const T *found = row.values(i + r, j, depth);
            std::copy(found, found + depth, made.data() + r * WIDTH);
        }
        return made.data();
    }
};

inline double sum(const double *lanes) {
    double total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += lanes[lane];
    return total;
}

// For every thread, the sums of a few rows.
std::vector<std::vector<double>> sums_of_threads(int threads, const Columns &columns) {
    return {size_t(threads), std::vector<double>(size_t(ROWS) * (1 + columns.count) * LANES)};
}

// Rows first ... last - 1 of out (rows of k) and squares. `total` has room for the sums of a few.
template <typename T, typename Source>
void multiply_wide(Source &source, int64_t first, int64_t last, const Columns &columns, std::vector<double> &total,
                   double *out, double *squares) {
    static_assert(Source::DEPTH % LANES == 0, "only the last stretch is filled up");
    const int width = 1 + columns.count;
    for (int64_t i = first; i < last; i += ROWS) {
        const int rows = int(std::min<int64_t>(ROWS, last - i));
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t j = 0; j < columns.n; j += Source::DEPTH) {
            const int depth = int(std::min<int64_t>(Source::DEPTH, columns.n - j));
            int64_t stride;
            const T *matrix = source.stretch(i, rows, j, depth, stride);
            if (rows == ROWS)
                add_all<T, ROWS>(matrix, stride, j, depth, columns, total.data());
            else
                for (int r = 0; r < rows; ++r)
                    add_all<T, 1>(matrix + r * stride, stride, j, depth, columns, &total[size_t(r) * width * LANES]);
        }
        for (int r = 0; r < rows; ++r) {
            const double *own = &total[size_t(r) * width * LANES];
            squares[i + r] = sum(own);
            for (int c = 0; c < columns.count; ++c) out[(i + r) * columns.count + c] = sum(own + (1 + c) * LANES);
        }
    }
}

template <typename T>
void multiply_wide_dense(const T *matrix, int64_t rows, int64_t stride, const Columns &columns, double *out,
                         double *squares, int threads) {
    auto sums = sums_of_threads(threads, columns);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(rows, first, last);
        Dense<T> source{matrix, stride};
        multiply_wide<T>(source, first, last, columns, sums[omp_get_thread_num()], out, squares);
    }
}

template <typename T>
void multiply_wide_made(const Program &program, int64_t start, int64_t stop, const Columns &columns, double *out,
                        double *squares, int threads) {
    auto sums = sums_of_threads(threads, columns);
    std::vector<Made<T>> sources(threads, Made<T>(program));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(stop - start, first, last);
        const int thread = omp_get_thread_num();
        multiply_wide<T>(sources[thread], start + first, start + last, columns, sums[thread], out, squares);
    }
}

}  // namespace

extern "C" {

int multiply_wide_dense_float(const float *matrix, int64_t rows, int64_t n, int64_t stride, const double *vectors,
                              int k, double *out, double *squares, int threads) {
    const Columns columns{vectors, n, k};
    return guarded([&] { multiply_wide_dense(matrix, rows, stride, columns, out, squares, threads); });
}

int multiply_wide_dense_double(const double *matrix, int64_t rows, int64_t n, int64_t stride, const double *vectors,
                               int k, double *out, double *squares, int threads) {
    const Columns columns{vectors, n, k};
    return guarded([&] { multiply_wide_dense(matrix, rows, stride, columns, out, squares, threads); });
}

int multiply_wide_made_float(const Program *program, int64_t start, int64_t stop, const double *vectors, int k,
                             double *out, double *squares, int threads) {
    const Columns columns{vectors, program->n, k};
    return guarded([&] { multiply_wide_made<float>(*program, start, stop, columns, out, squares, threads); });
}

int multiply_wide_made_double(const Program *program, int64_t start, int64_t stop, const double *vectors, int k,
                              double *out, double *squares, int threads) {
    const Columns columns{vectors, program->n, k};
    return guarded([&] { multiply_wide_made<double>(*program, start, stop, columns, out, squares, threads); });
}
}
