// Whole kernel matrices of a batch: one program, whose coordinates and parameters every element has of its own.
//
// Many small matrices cost one call, and are shared out among the threads by rows, whichever element those are of.
// Gradients are taken of symmetric weights: half of the pairs tell all.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "border.h"
#include "program.h"
#include "threads.h"

namespace {

// `first`: element 0. The coordinates and their gradients of the next element follow those of one element.
struct Batch {
    const Program &first;
    int64_t count;
    const double *parameters;     // count x nodes: scale, constant or alpha
    const double *largest;        // count x nodes: squared distances where profiles are held
    double *parameter_gradients;  // count x nodes, or null
};

// One element after the other, in the memory of one thread.
template <typename T> class Element {
  public:
    explicit Element(const Program &first)
        : nodes_(first.nodes, first.nodes + first.node_count),
          program_{first.node_count, nodes_.data(), first.children, first.n}, row(program_) {}
    Element(const Element &) = delete;

    void become(const Batch &batch, int64_t number) {
        for (int which = 0; which < program_.node_count; ++which) {
            const Node &first = batch.first.nodes[which];
            const int64_t own = number * program_.node_count + which, size = int64_t(first.dimensions) * program_.n;
            nodes_[which].parameter = batch.parameters[own];
            nodes_[which].largest = batch.largest[own];
            if (first.operation != STATIONARY) continue;
            nodes_[which].coordinates = static_cast<const T *>(first.coordinates) + number * size;
            nodes_[which].gradient = first.gradient + number * size;
        }
    }

    // The gradients of all coordinates, n numbers each.
    void gradients(std::vector<double *> &found) const {
        found.clear();
        for (const Node &node : nodes_)
            for (int c = 0; node.operation == STATIONARY && c < node.dimensions; ++c)
                found.push_back(node.gradient + c * program_.n);
    }

  private:
    std::vector<Node> nodes_;
    Program program_;

  public:
    Row<T> row;
};

template <typename T> using Elements = std::vector<std::unique_ptr<Element<T>>>;

template <typename T> Elements<T> elements(const Batch &batch, int threads) {
    Elements<T> made;
    for (int thread = 0; thread < threads; ++thread) made.push_back(std::make_unique<Element<T>>(batch.first));
    return made;
}

template <typename T> void value(const Batch &batch, T *out, int threads) {
    const int64_t n = batch.first.n;
    const Elements<T> works = elements<T>(batch, threads);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last, current = -1;
        own_share(batch.count * n, first, last);
        Element<T> &work = *works[omp_get_thread_num()];
        for (int64_t line = first; line < last; ++line) {
            if (line / n != current) work.become(batch, current = line / n);
            for (int64_t start = 0; start < n; start += WIDTH) {
                const int count = int(std::min<int64_t>(WIDTH, n - start));
                const T *found = work.row.values(line % n, start, count);
                std::copy(found, found + count, out + line * n + start);
            }
        }
    }
}

// What one thread adds up of an element.
template <typename T> struct Sums {
    std::vector<T> others;  // coordinates x n
    std::vector<double> own, scalars;
    std::vector<double *> gradients;
    T weights[WIDTH];

    Sums(int coordinates, const Program &program)
        : others(size_t(coordinates) * program.n), own(coordinates), scalars(program.node_count) {
        gradients.reserve(coordinates);
    }

    void clear() {
        std::fill(others.begin(), others.end(), T(0));
        std::fill(scalars.begin(), scalars.end(), 0.0);
    }

    // The pairs of `rows` with the points up to each of them.
    void add(Element<T> &work, const T *weight, int64_t n, int64_t first, int64_t last) {
        const int coordinates = int(own.size());
        for (int64_t i = first; i < last; ++i)
            for (int64_t start = 0; start <= i; start += WIDTH) {
                const int count = int(std::min<int64_t>(WIDTH, i + 1 - start));
                const T *row = weight + i * n + start;
                for (int j = 0; j < count; ++j) weights[j] = T(2) * row[j];
                if (start + count == i + 1) weights[count - 1] = row[count - 1];
                std::fill(own.begin(), own.end(), 0.0);
                work.row.pull(i, start, count, weights, own.data(), others.data() + start, n, scalars.data());
                for (int c = 0; c < coordinates; ++c) gradients[c][i] += own[c];
            }
    }
};

template <typename T> void pull(const Batch &batch, const T *weight, int threads) {
    const Program &program = batch.first;
    const int64_t n = program.n;
    const int coordinates = Row<T>(program).coordinates(), nodes = program.node_count;
    const Elements<T> works = elements<T>(batch, threads);
    std::vector<Sums<T>> sums;
    sums.reserve(threads);
    for (int thread = 0; thread < threads; ++thread) sums.emplace_back(coordinates, program);
    // Each element is one thread's, or every thread's: the same bits every time.
    const bool shared = batch.count < threads;
#pragma omp parallel num_threads(threads)
    {
        const int number = omp_get_thread_num(), all = omp_get_num_threads();
        Element<T> &work = *works[number];
        Sums<T> &mine = sums[number];
        int64_t begin = 0, end = batch.count, first = 0, last = n;
        if (shared) {
            // Rows of a triangle, in parts of equal area.
            first = int64_t(double(n) * std::sqrt(double(number) / all));
            last = number + 1 == all ? n : int64_t(double(n) * std::sqrt(double(number + 1) / all));
        } else {
            own_share(batch.count, begin, end);
        }
        for (int64_t element = begin; element < end; ++element) {
            work.become(batch, element);
            work.gradients(mine.gradients);
            mine.clear();
            mine.add(work, weight + element * n * n, n, first, last);
            int64_t from = 0, to = n;
            if (shared) {
#pragma omp barrier
                own_share(n, from, to);
            }
            const int some = shared ? 0 : number, none = shared ? all : number + 1;
            for (int thread = some; thread < none; ++thread)
                for (int c = 0; c < coordinates; ++c) {
                    const T *part = &sums[thread].others[size_t(c) * n];
                    double *gradient = mine.gradients[c];
                    for (int64_t j = from; j < to; ++j) gradient[j] += part[j];
                }
            if (!shared || number == 0)
                for (int thread = some; thread < none; ++thread)
                    for (int which = 0; which < nodes; ++which)
                        batch.parameter_gradients[element * nodes + which] += sums[thread].scalars[which];
            if (shared) {
#pragma omp barrier
            }
        }
    }
}

}  // namespace

extern "C" {

int value_batch_float(const Program *first, int64_t count, const double *parameters, const double *largest, float *out,
                      int threads) {
    return guarded([&] { value(Batch{*first, count, parameters, largest, nullptr}, out, threads); });
}

int value_batch_double(const Program *first, int64_t count, const double *parameters, const double *largest,
                       double *out, int threads) {
    return guarded([&] { value(Batch{*first, count, parameters, largest, nullptr}, out, threads); });
}

int pull_batch_float(const Program *first, int64_t count, const double *parameters, const double *largest,
                     const float *weight, double *parameter_gradients, int threads) {
    return guarded([&] { pull(Batch{*first, count, parameters, largest, parameter_gradients}, weight, threads); });
}

int pull_batch_double(const Program *first, int64_t count, const double *parameters, const double *largest,
                      const double *weight, double *parameter_gradients, int threads) {
    return guarded([&] { pull(Batch{*first, count, parameters, largest, parameter_gradients}, weight, threads); });
}
}
