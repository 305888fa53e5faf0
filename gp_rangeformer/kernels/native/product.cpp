// Products of a matrix with a block of 32 columns, or a few more: the shape of a training step. The matrix is there, or
// a kernel matrix whose entries are made while they are needed.
//
// Libraries reach two thirds of this speed for blocks so thin (MKL, n = 8000, 33 float columns, AVX-512: 23 ms against
// 16). A dozen rows at once are multiplied with a stretch of the columns, so that the sums stay in registers and a
// stretch of the block in the level-1 cache. The order of a row's sums depends on nothing but n: rows have the same
// bits in every part of the matrix, by any number of threads.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "border.h"
#include "program.h"
#include "registers.h"
#include "threads.h"

namespace {

constexpr int STRETCH = 256;  // numbers of a row that are summed before they join the total, which keeps rounding low
static_assert(STRETCH <= WIDTH, "a stretch of a kernel matrix is made in one go");

// The columns to multiply with: panels of 32, `packed` row by row, and `further` ones, each in one piece.
template <typename T> struct Block {
    const T *packed;
    int panels;
    const T *further;
    int further_count;

    int width() const { return panels * COLUMNS + further_count; }
};

// `rows` x `count` vectors of sums are held in registers; the rest of them hold `count` vectors of the panel and an
// entry. With AVX-512 they take a panel's whole width, else a part of it: six rows of two vectors fill 16 registers.
template <typename T> struct Registers {
    static constexpr int lanes = registers::BYTES / sizeof(T), sums = registers::COUNT >= 32 ? 24 : 12;
    static constexpr int count = registers::BYTES == 64 ? COLUMNS / lanes : 2, rows = sums / count;
    typedef T type __attribute__((vector_size(registers::BYTES), aligned(sizeof(T))));
    static_assert(COLUMNS % (count * lanes) == 0 && BATCH % rows == 0, "panels and batches are whole");
};

// total[r * step] += matrix row r . vector, for ROWS rows, which share what they read of the vector.
template <typename T, int ROWS>
void add_dots(const T *__restrict matrix, int64_t stride, int depth, const T *__restrict vector, T *__restrict total,
              int step) {
    using Vector = typename Registers<T>::type;
    constexpr int lanes = Registers<T>::lanes;
    const int whole = depth / lanes * lanes;
    Vector sums[ROWS] = {};
    for (int j = 0; j < whole; j += lanes) {
        const Vector shared = *reinterpret_cast<const Vector *>(vector + j);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sums[r] += *reinterpret_cast<const Vector *>(matrix + r * stride + j) * shared;
    }
    for (int r = 0; r < ROWS; ++r) {
        T sum = 0;
        for (int lane = 0; lane < lanes; ++lane) sum += sums[r][lane];
        for (int j = whole; j < depth; ++j) sum += matrix[r * stride + j] * vector[j];
        total[r * step] += sum;
    }
}

// total (ROWS rows of `width`, of which some columns) += matrix (ROWS x depth) packed (depth x some of 32 columns).
template <typename T, int ROWS>
void add_stretch(const T *__restrict matrix, int64_t stride, int depth, const T *__restrict packed,
                 T *__restrict total, int width, bool first) {
    using Vector = typename Registers<T>::type;
    constexpr int lanes = Registers<T>::lanes, count = Registers<T>::count;
    Vector sums[ROWS][count] = {};
    for (int j = 0; j < depth; ++j) {
        // The next rows: the hardware does not foresee jumps between so many.
        if (first && j % lanes == 0)
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
        for (int c = 0; c < count; ++c) *reinterpret_cast<Vector *>(total + r * width + c * lanes) += sums[r][c];
}

// Rows of a matrix that is there.
template <typename T> struct Dense {
    const T *matrix;
    int64_t stride;

    const T *stretch(int64_t i, int, int64_t j, int, int64_t &step) {
        step = stride;
        return matrix + i * stride + j;
    }
};

// Rows of a kernel matrix that are made when they are asked for, and forgotten.
template <typename T> struct Made {
    explicit Made(const Program &program) : row(program), made(size_t(STRETCH) * Registers<T>::rows * 2) {}
    Row<T> row;
    std::vector<T> made;  // as long again behind it: the next rows, of which only the addresses are used

    const T *stretch(int64_t i, int rows, int64_t j, int depth, int64_t &step) {
        step = STRETCH;
        for (int r = 0; r < rows; ++r) {
            const T *found = row.values(i + r, j, depth);
            std::copy(found, found + depth, made.data() + r * STRETCH);
        }
        return made.data();
    }
};

// Rows first ... last - 1 of out = those of the matrix, of n columns, times panels of 32 columns, packed, and a few
// further ones. `total` has room for a batch of them.
template <typename T, typename Source>
void multiply(Source &source, int64_t first, int64_t last, int64_t n, const Block<T> &block, std::vector<T> &total,
              T *out) {
    constexpr int ROWS = Registers<T>::rows, AT_ONCE = Registers<T>::count * Registers<T>::lanes;
    const int width = block.width();
    const auto add = [&](auto rows, int64_t start, int64_t i, int64_t j, int depth) {
        int64_t stride;
        const T *matrix = source.stretch(i, rows, j, depth, stride);
        T *own = &total[(i - start) * width];
        for (int panel = 0; panel < block.panels; ++panel)
            for (int column = 0; column < COLUMNS; column += AT_ONCE)
                add_stretch<T, rows>(matrix, stride, depth, block.packed + (panel * n + j) * COLUMNS + column,
                                     own + panel * COLUMNS + column, width, panel + column == 0);
        for (int k = 0; k < block.further_count; ++k)
            add_dots<T, rows>(matrix, stride, depth, block.further + k * n + j, own + block.panels * COLUMNS + k,
                              width);
    };
    for (int64_t start = first; start < last; start += BATCH) {
        const int64_t stop = std::min<int64_t>(last, start + BATCH);
        std::fill(total.begin(), total.end(), T(0));
        for (int64_t j = 0; j < n; j += STRETCH) {
            const int depth = int(std::min<int64_t>(STRETCH, n - j));
            int64_t i = start;
            for (; i + ROWS <= stop; i += ROWS) add(std::integral_constant<int, ROWS>(), start, i, j, depth);
            for (; i < stop; ++i) add(std::integral_constant<int, 1>(), start, i, j, depth);
        }
        std::copy(total.begin(), total.begin() + (stop - start) * width, out + start * width);
    }
}

// This thread's part of the rows start ... stop - 1.
template <typename T> void own_rows(int64_t start, int64_t stop, int64_t &first, int64_t &last) {
    constexpr int ROWS = Registers<T>::rows;
    own_share((stop - start + ROWS - 1) / ROWS, first, last);
    first = start + first * ROWS;
    last = std::min(stop, start + last * ROWS);
}

template <typename T>
void multiply_dense(const T *matrix, int64_t rows, int64_t n, int64_t stride, const Block<T> &block, T *out,
                    int threads) {
    std::vector<std::vector<T>> totals(threads, std::vector<T>(size_t(BATCH) * block.width()));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_rows<T>(0, rows, first, last);
        Dense<T> source{matrix, stride};
        multiply(source, first, last, n, block, totals[omp_get_thread_num()], out);
    }
}

template <typename T>
void multiply_made(const Program &program, int64_t start, int64_t stop, const Block<T> &block, T *out, int threads) {
    std::vector<std::vector<T>> totals(threads, std::vector<T>(size_t(BATCH) * block.width()));
    std::vector<Made<T>> sources(threads, Made<T>(program));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_rows<T>(start, stop, first, last);
        const int thread = omp_get_thread_num();
        multiply(sources[thread], first, last, program.n, block, totals[thread], out);
    }
}

}  // namespace

extern "C" {

int multiply_dense_float(const float *matrix, int64_t rows, int64_t n, int64_t stride, const float *packed, int panels,
                         const float *further, int further_count, float *out, int threads) {
    const Block<float> block{packed, panels, further, further_count};
    return guarded([&] { multiply_dense(matrix, rows, n, stride, block, out, threads); });
}

int multiply_dense_double(const double *matrix, int64_t rows, int64_t n, int64_t stride, const double *packed,
                          int panels, const double *further, int further_count, double *out, int threads) {
    const Block<double> block{packed, panels, further, further_count};
    return guarded([&] { multiply_dense(matrix, rows, n, stride, block, out, threads); });
}

int multiply_made_float(const Program *program, int64_t start, int64_t stop, const float *packed, int panels,
                        const float *further, int further_count, float *out, int threads) {
    const Block<float> block{packed, panels, further, further_count};
    return guarded([&] { multiply_made(*program, start, stop, block, out, threads); });
}

int multiply_made_double(const Program *program, int64_t start, int64_t stop, const double *packed, int panels,
                         const double *further, int further_count, double *out, int threads) {
    const Block<double> block{packed, panels, further, further_count};
    return guarded([&] { multiply_made(*program, start, stop, block, out, threads); });
}
}
