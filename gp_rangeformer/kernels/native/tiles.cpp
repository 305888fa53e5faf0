// Tiles of a kernel matrix, and the gradient through them: the rows of a tile are shared out among the threads.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "border.h"
#include "program.h"
#include "streaming.h"
#include "threads.h"

namespace {

// From here on a matrix is written past the caches, which would not hold it until its first product.
constexpr int64_t STREAMED_BYTES = 1 << 25;

template <typename T>
void value(const Program &program, int64_t row, int64_t rows, int64_t column, int64_t columns, T *out, int64_t stride,
           int threads) {
    const bool streams = rows * columns * int64_t(sizeof(T)) >= STREAMED_BYTES;
    std::vector<Row<T>> works(threads, Row<T>(program));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(rows, first, last);
        Row<T> &work = works[omp_get_thread_num()];
        for (int64_t i = first; i < last; ++i)
            for (int64_t start = 0; start < columns; start += WIDTH) {
                const int count = int(std::min<int64_t>(WIDTH, columns - start));
                const T *found = work.values(row + i, column + start, count);
                if (streams)
                    streaming::copy(found, count, out + i * stride + start);
                else
                    std::copy(found, found + count, out + i * stride + start);
            }
        if (streams) streaming::finish();
    }
}

template <typename T>
void pull(const Program &program, int64_t row, int64_t rows, int64_t column, int64_t columns, const T *weight,
          int64_t stride, int threads) {
    const int coordinates = Row<T>(program).coordinates();
    std::vector<double *> gradients;  // of every coordinate
    for (int number = 0; number < program.node_count; ++number)
        if (program.nodes[number].operation == STATIONARY)
            for (int c = 0; c < program.nodes[number].dimensions; ++c)
                gradients.push_back(program.nodes[number].gradient + c * program.n);
    // One part per thread, added up in their order: the same bits every time.
    std::vector<std::vector<T>> parts(threads, std::vector<T>(size_t(coordinates) * columns));
    std::vector<std::vector<double>> scalars(threads, std::vector<double>(program.node_count));
    std::vector<std::vector<double>> owns(threads, std::vector<double>(coordinates));
    std::vector<Row<T>> works(threads, Row<T>(program));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(rows, first, last);
        const int number = omp_get_thread_num();
        Row<T> &work = works[number];
        std::vector<T> &others = parts[number];
        std::vector<double> &own = owns[number];
        for (int64_t start = 0; start < columns; start += WIDTH) {
            const int count = int(std::min<int64_t>(WIDTH, columns - start));
            for (int64_t i = first; i < last; ++i) {
                std::fill(own.begin(), own.end(), 0.0);
                work.pull(row + i, column + start, count, weight + i * stride + start, own.data(),
                          others.data() + start, columns, scalars[number].data());
                for (int c = 0; c < coordinates; ++c) gradients[c][row + i] += own[c];
            }
        }
        // On the diagonal the columns are rows of other threads.
#pragma omp barrier
        own_share(columns, first, last);
        for (int c = 0; c < coordinates; ++c)
            for (int thread = 0; thread < omp_get_num_threads(); ++thread) {
                const T *part = &parts[thread][size_t(c) * columns];
                for (int64_t j = first; j < last; ++j) gradients[c][column + j] += part[j];
            }
    }
    for (int number = 0; number < program.node_count; ++number)
        if (program.nodes[number].parameter_gradient != nullptr)
            for (int thread = 0; thread < threads; ++thread)
                *program.nodes[number].parameter_gradient += scalars[thread][number];
}

}  // namespace

extern "C" {

int value_float(const Program *program, int64_t row, int64_t rows, int64_t column, int64_t columns, float *out,
                int64_t stride, int threads) {
    return guarded([&] { value(*program, row, rows, column, columns, out, stride, threads); });
}

int value_double(const Program *program, int64_t row, int64_t rows, int64_t column, int64_t columns, double *out,
                  int64_t stride, int threads) {
    return guarded([&] { value(*program, row, rows, column, columns, out, stride, threads); });
}

int pull_float(const Program *program, int64_t row, int64_t rows, int64_t column, int64_t columns,
                const float *weight, int64_t stride, int threads) {
    return guarded([&] { pull(*program, row, rows, column, columns, weight, stride, threads); });
}

int pull_double(const Program *program, int64_t row, int64_t rows, int64_t column, int64_t columns,
                 const double *weight, int64_t stride, int threads) {
    return guarded([&] { pull(*program, row, rows, column, columns, weight, stride, threads); });
}
}
