// Products of a vector with derivatives of a kernel matrix: all that one pass over pairs of points can give.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "border.h"
#include "program.h"
#include "threads.h"

namespace {

template <typename T>
void derive(const Program &program, const int32_t *nodes, const int32_t *coordinates, const int32_t *partners,
            int count, const T *moved_with, const T *vector, double *out, int threads) {
    std::vector<Moved<T>> moved;
    for (int which = 0; which < count; ++which)
        moved.push_back({nodes[which], coordinates[which],
                         partners[which] < 0 ? nullptr : moved_with + partners[which] * program.n});
    const int width = count + program.node_count;
    std::vector<std::vector<double>> sums(threads, std::vector<double>(width));
    std::vector<Row<T>> works(threads, Row<T>(program));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        own_share(program.n, first, last);
        Row<T> &work = works[omp_get_thread_num()];
        std::vector<double> &own = sums[omp_get_thread_num()];
        for (int64_t i = first; i < last; ++i) {
            std::fill(own.begin(), own.end(), 0.0);
            for (int64_t start = 0; start < program.n; start += WIDTH) {
                const int stretch = int(std::min<int64_t>(WIDTH, program.n - start));
                work.derive(i, start, stretch, vector + start, moved, own.data(), own.data() + count);
            }
            for (int which = 0; which < width; ++which) out[which * program.n + i] = own[which];
        }
    }
}

}  // namespace

extern "C" {

int derive_float(const Program *program, const int32_t *nodes, const int32_t *coordinates, const int32_t *partners,
                 int count, const float *moved_with, const float *vector, double *out, int threads) {
    return guarded([&] { derive(*program, nodes, coordinates, partners, count, moved_with, vector, out, threads); });
}

int derive_double(const Program *program, const int32_t *nodes, const int32_t *coordinates, const int32_t *partners,
                  int count, const double *moved_with, const double *vector, double *out, int threads) {
    return guarded([&] { derive(*program, nodes, coordinates, partners, count, moved_with, vector, out, threads); });
}
}
