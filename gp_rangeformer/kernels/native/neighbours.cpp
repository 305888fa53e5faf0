// Every point given a few earlier ones: which those are, and the row of an inverse root that they leave.
//
// What a kernel matrix K and a low-rank V V' leave, S = K - V V' + D, is seen a small block at a time: entries of K are
// made for the points of the block, whose numbers are gathered first. Rows depend on nothing but their own points: they
// have the same bits by any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "border.h"
#include "program.h"
#include "registers.h"
#include "threads.h"

namespace {

constexpr int GROUP = 16;         // entries of a row that are compared at once with the least of the kept
constexpr int64_t SHARE = 32;     // rows that a thread takes at a time: later ones have more points before them
constexpr int PIVOTS = 4;         // rows of a factor that are subtracted together
// A pivot is at least its point's noise. Below half of that, or so many units of the rounding of K's entries, it is none.
constexpr double HALF = 0.5, ROUNDING = 4;

template <typename T> struct Vectors {
    static constexpr int lanes = registers::BYTES / sizeof(T);
    static constexpr int rows = registers::COUNT >= 32 ? 4 : 2, columns = 4;  // of sums held in registers
    typedef T type __attribute__((vector_size(registers::BYTES), aligned(sizeof(T))));
};

// The largest of the numbers offered so far, with their places.
template <typename T> class Largest {
  public:
    explicit Largest(int count) : count_(count), room_(2 * count + WIDTH), values_(room_), places_(room_), order_(room_) {}

    void clear() {
        held_ = 0;
        least_ = -std::numeric_limits<T>::infinity();
    }

    void offer(const T *found, int count, int32_t first) {
        if (held_ + count > room_) keep();
        int j = 0;
        for (; j + GROUP <= count; j += GROUP) {
            bool any = false;
            for (int l = 0; l < GROUP; ++l) any |= found[j + l] > least_;
            if (any)
                for (int l = 0; l < GROUP; ++l) add(found[j + l], first + j + l);
        }
        for (; j < count; ++j) add(found[j], first + j);
        if (held_ >= 2 * count_) keep();
    }

    // Ascending places, then -1.
    void write(int32_t *out) {
        keep();
        std::sort(places_.begin(), places_.begin() + held_);
        std::copy(places_.begin(), places_.begin() + held_, out);
        std::fill(out + held_, out + count_, -1);
    }

  private:
    int count_, room_, held_ = 0;
    T least_ = 0;
    std::vector<T> values_;
    std::vector<int32_t> places_, order_;

    void add(T value, int32_t place) {
        if (!(value > least_)) return;
        values_[held_] = value, places_[held_] = place;
        ++held_;
    }

    void keep() {
        if (held_ <= count_) return;
        std::iota(order_.begin(), order_.begin() + held_, 0);
        const auto larger = [&](int32_t a, int32_t b) {
            return values_[a] > values_[b] || (values_[a] == values_[b] && places_[a] < places_[b]);
        };
        std::nth_element(order_.begin(), order_.begin() + count_ - 1, order_.begin() + held_, larger);
        least_ = values_[order_[count_ - 1]];
        // In their own order, so that no number is overwritten before it has moved.
        std::sort(order_.begin(), order_.begin() + count_);
        for (int a = 0; a < count_; ++a) values_[a] = values_[order_[a]], places_[a] = places_[order_[a]];
        held_ = count_;
    }
};

// Of the points from `first` on: among those before it, or, where it is 0, before themselves.
template <typename T>
void nearest(const Program &program, int64_t first, int count, int32_t *out, int threads) {
    std::vector<Row<T>> works(threads, Row<T>(program));
    std::vector<Largest<T>> kept(threads, Largest<T>(count));
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, SHARE)
        for (int64_t i = first; i < program.n; ++i) {
            Largest<T> &largest = kept[thread];
            largest.clear();
            const int64_t stop = first > 0 ? first : i;
            for (int64_t start = 0; start < stop; start += WIDTH) {
                const int width = int(std::min<int64_t>(WIDTH, stop - start));
                largest.offer(works[thread].values(i, start, width), width, int32_t(start));
            }
            largest.write(out + (i - first) * count);
        }
    }
}

// The coordinates of all points, those of one point next to each other.
template <typename T> class Points {
  public:
    explicit Points(const Program &program) : width(Row<T>(program).coordinates()), numbers(size_t(program.n) * width) {
        int coordinate = 0;
        for (int number = 0; number < program.node_count; ++number) {
            const Node &node = program.nodes[number];
            if (node.operation != STATIONARY) continue;
            for (int c = 0; c < node.dimensions; ++c, ++coordinate) {
                const T *from = static_cast<const T *>(node.coordinates) + c * program.n;
                for (int64_t i = 0; i < program.n; ++i) numbers[size_t(i) * width + coordinate] = from[i];
            }
        }
    }

    int width;
    std::vector<T> numbers;
};

// The kernel matrix of a few points.
template <typename T> class Few {
  public:
    Few(const Program &program, const Points<T> &points, int most)
        : points_(points), most_(most), nodes_(program.nodes, program.nodes + program.node_count),
          coordinates_(size_t(points.width) * most), program_{program.node_count, nodes_.data(), program.children, most},
          row_(program_), others_(coordinates_.size()), weights_(most), own_(points.width) {
        size_t coordinate = 0;
        for (Node &node : nodes_) {
            if (node.operation != STATIONARY) continue;
            node.coordinates = coordinates_.data() + coordinate * most;
            coordinate += node.dimensions;
        }
    }
    Few(const Few &) = delete;  // its row points into it

    void gather(const int32_t *places, int count) {
        for (int a = 0; a < count; ++a) {
            const T *from = &points_.numbers[size_t(places[a]) * points_.width];
            for (int c = 0; c < points_.width; ++c) coordinates_[size_t(c) * most_ + a] = from[c];
        }
    }

    // From the diagonal on: K_ab for b = a ... count - 1.
    const T *values(int a, int count) { return row_.values(a, a, count - a); }

    // Adds d row' K row over these points to the gradients: for the coordinates of all points, those of one next to each
    // other, and for the parameters of every node.
    void pull(const int32_t *places, int count, const T *row, double *gradients, double *scalars) {
        gather(places, count);
        std::fill(others_.begin(), others_.end(), T(0));
        for (int a = 0; a < count; ++a) {
            for (int b = a; b < count; ++b) weights_[b - a] = (b == a ? T(1) : T(2)) * row[a] * row[b];
            std::fill(own_.begin(), own_.end(), 0.0);
            row_.pull(a, a, count - a, weights_.data(), own_.data(), others_.data() + a, most_, scalars);
            double *to = gradients + size_t(places[a]) * points_.width;
            for (int c = 0; c < points_.width; ++c) to[c] += own_[c];
        }
        for (int a = 0; a < count; ++a) {
            double *to = gradients + size_t(places[a]) * points_.width;
            for (int c = 0; c < points_.width; ++c) to[c] += others_[size_t(c) * most_ + a];
        }
    }

  private:
    const Points<T> &points_;
    int64_t most_;
    std::vector<Node> nodes_;
    std::vector<T> coordinates_;
    Program program_;
    Row<T> row_;
    std::vector<T> others_, weights_;
    std::vector<double> own_;
};

// V: m rows of r numbers; the diagonal of D.
template <typename T> struct Remainder {
    const T *explained;
    int r;
    const T *noise;
};

// The block of S on some points, its factor U (block = U' U), and U^-1 of the last point. What a thread works in.
template <typename T> class Block {
  public:
    Block(const Program &program, const Points<T> &points, const Remainder<T> &remainder, int most)
        : remainder_(remainder), few_(program, points, most), width_((remainder.r + lanes - 1) / lanes * lanes),
          stride_(most), explained_(size_t(most + Vectors<T>::columns) * width_), numbers_(size_t(most) * most),
          solved_(most) {}

    // The last of the `count` places is the point itself. Its variance given the others is returned; row: the numbers
    // that make it independent of the others, with variance one.
    double condition(const int32_t *places, int count, T *row) {
        fill(places, count);
        if (remainder_.r > 0) subtract(count);
        factorise(places, count);
        for (int a = count - 1; a >= 0; --a) {
            const double *__restrict own = at(a);
            double sum = a == count - 1 ? 1 : 0;
            for (int b = a + 1; b < count; ++b) sum -= own[b] * solved_[b];
            solved_[a] = sum / own[a];
            row[a] = T(solved_[a]);
        }
        const double root = at(count - 1)[count - 1];
        return root * root;
    }

  private:
    static constexpr int lanes = Vectors<T>::lanes;
    const Remainder<T> &remainder_;
    Few<T> few_;
    int width_, stride_;
    std::vector<T> explained_;
    std::vector<double> numbers_, solved_;
    double prior_ = 0;  // the kernel's variance

    double *at(int a) { return numbers_.data() + size_t(a) * stride_; }

    void fill(const int32_t *places, int count) {
        few_.gather(places, count);
        for (int a = 0; a < count; ++a) {
            const T *from = remainder_.explained + int64_t(places[a]) * remainder_.r;
            std::copy(from, from + remainder_.r, explained_.begin() + size_t(a) * width_);
            const T *entries = few_.values(a, count);
            double *__restrict own = at(a);
            for (int b = a; b < count; ++b) own[b] = entries[b - a];
            if (a == 0) prior_ = entries[0];
            own[a] += remainder_.noise[places[a]];
        }
    }

    // V V', a few rows and columns at once.
    void subtract(int count) {
        using Vector = typename Vectors<T>::type;
        constexpr int ROWS = Vectors<T>::rows, COLUMNS_NOW = Vectors<T>::columns;
        for (int a = 0; a < count; a += ROWS)
            for (int b = a; b < count; b += COLUMNS_NOW) {
                Vector sums[ROWS][COLUMNS_NOW] = {};
                const T *one = &explained_[size_t(a) * width_], *other = &explained_[size_t(b) * width_];
                for (int q = 0; q < width_; q += lanes) {
                    Vector others[COLUMNS_NOW];
                    for (int w = 0; w < COLUMNS_NOW; ++w)
                        others[w] = *reinterpret_cast<const Vector *>(other + size_t(w) * width_ + q);
                    for (int u = 0; u < ROWS; ++u) {
                        const Vector own = *reinterpret_cast<const Vector *>(one + size_t(u) * width_ + q);
                        for (int w = 0; w < COLUMNS_NOW; ++w) sums[u][w] += own * others[w];
                    }
                }
                for (int u = 0; u < std::min(ROWS, count - a); ++u)
                    for (int w = 0; w < std::min(COLUMNS_NOW, count - b); ++w) {
                        double total = 0;
                        for (int lane = 0; lane < lanes; ++lane) total += sums[u][w][lane];
                        if (b + w >= a + u) at(a + u)[b + w] -= total;
                    }
            }
    }

    // S = U' U in the upper triangle, in float64.
    void factorise(const int32_t *places, int count) {
        for (int a = 0; a < count; a += PIVOTS) {
            const int last = std::min(a + PIVOTS, count);
            for (int j = a; j < last; ++j) {
                double *__restrict own = at(j);
                const double noise = remainder_.noise[places[j]];
                if (j == count - 1) {
                    // No variance is below its noise but by rounding.
                    own[j] = std::sqrt(std::max(own[j], noise));
                } else if (own[j] > std::max(HALF * noise, ROUNDING * std::numeric_limits<T>::epsilon() * prior_)) {
                    own[j] = std::sqrt(own[j]);
                    for (int b = j + 1; b < count; ++b) own[b] /= own[j];
                } else {  // the others say all of it that is not rounding: it is given no more
                    own[j] = 1;
                    std::fill(own + j + 1, own + count, 0.0);
                }
                for (int other = j + 1; other < last; ++other) subtract_row(at(other), own, own[other], other, count);
            }
            if (last - a < PIVOTS) continue;
            const double *__restrict r0 = at(a), *__restrict r1 = at(a + 1);
            const double *__restrict r2 = at(a + 2), *__restrict r3 = at(a + 3);
            for (int other = last; other < count; ++other) {
                const double f0 = r0[other], f1 = r1[other], f2 = r2[other], f3 = r3[other];
                double *__restrict row = at(other);
                for (int b = other; b < count; ++b)
                    row[b] -= (f0 * r0[b] + f1 * r1[b]) + (f2 * r2[b] + f3 * r3[b]);
            }
        }
    }

    static void subtract_row(double *__restrict row, const double *__restrict other, double factor, int from, int to) {
        for (int b = from; b < to; ++b) row[b] -= factor * other[b];
    }
};

// Of the points from `first` on. neighbours: a row of k places before the point's own, -1 after the last. rows: k + 1
// numbers each, the point's own last.
template <typename T>
void condition(const Program &program, int64_t first, const int32_t *neighbours, int k, const Remainder<T> &remainder, T *rows,
               double *variances, int threads) {
    const Points<T> points(program);
    std::vector<std::unique_ptr<Block<T>>> blocks;
    std::vector<std::vector<int32_t>> places(threads, std::vector<int32_t>(k + 1));
    std::vector<std::vector<T>> found(threads, std::vector<T>(k + 1));
    for (int thread = 0; thread < threads; ++thread)
        blocks.push_back(std::make_unique<Block<T>>(program, points, remainder, k + 1));
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        std::vector<int32_t> &own = places[thread];
        std::vector<T> &row = found[thread];
#pragma omp for schedule(dynamic, SHARE)
        for (int64_t i = first; i < program.n; ++i) {
            const int32_t *near = neighbours + (i - first) * k;
            int count = 0;
            while (count < k && near[count] >= 0) own[count] = near[count], ++count;
            own[count] = int32_t(i);
            variances[i - first] = blocks[thread]->condition(own.data(), count + 1, row.data());
            T *out = rows + (i - first) * (k + 1);
            std::copy(row.begin(), row.begin() + count, out);
            std::fill(out + count, out + k, T(0));
            out[k] = row[count];
        }
    }
}

// Adds d sum_i g_i K g_i' to the program's gradients, for rows g_i as `condition` returns them.
template <typename T>
void pull_conditions(const Program &program, const int32_t *neighbours, int k, const T *rows, int threads) {
    const Points<T> points(program);
    const size_t numbers = size_t(program.n) * points.width;
    std::vector<std::unique_ptr<Few<T>>> few;
    std::vector<std::vector<double>> parts(threads, std::vector<double>(numbers));
    std::vector<std::vector<double>> scalars(threads, std::vector<double>(program.node_count));
    std::vector<std::vector<int32_t>> places(threads, std::vector<int32_t>(k + 1));
    std::vector<std::vector<T>> found(threads, std::vector<T>(k + 1));
    for (int thread = 0; thread < threads; ++thread) few.push_back(std::make_unique<Few<T>>(program, points, k + 1));
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        std::vector<int32_t> &own = places[thread];
        std::vector<T> &row = found[thread];
        // Always the same share, so that the sums have the same bits.
        int64_t first, last;
        own_share(program.n, first, last);
        for (int64_t i = first; i < last; ++i) {
            const int32_t *near = neighbours + i * k;
            int count = 0;
            while (count < k && near[count] >= 0) own[count] = near[count], row[count] = rows[i * (k + 1) + count], ++count;
            own[count] = int32_t(i), row[count] = rows[i * (k + 1) + k];
            few[thread]->pull(own.data(), count + 1, row.data(), parts[thread].data(), scalars[thread].data());
        }
    }
    int coordinate = 0;
    for (int number = 0; number < program.node_count; ++number) {
        const Node &node = program.nodes[number];
        if (node.parameter_gradient != nullptr)
            for (int thread = 0; thread < threads; ++thread) *node.parameter_gradient += scalars[thread][number];
        if (node.operation != STATIONARY) continue;
        for (int c = 0; c < node.dimensions; ++c, ++coordinate)
            for (int thread = 0; thread < threads; ++thread)
                for (int64_t i = 0; i < program.n; ++i)
                    node.gradient[c * program.n + i] += parts[thread][size_t(i) * points.width + coordinate];
    }
}

}  // namespace

extern "C" {

int pull_conditions_float(const Program *program, const int32_t *neighbours, int k, const float *rows, int threads) {
    return guarded([&] { pull_conditions(*program, neighbours, k, rows, threads); });
}

int pull_conditions_double(const Program *program, const int32_t *neighbours, int k, const double *rows, int threads) {
    return guarded([&] { pull_conditions(*program, neighbours, k, rows, threads); });
}

int nearest_float(const Program *program, int64_t first, int count, int32_t *out, int threads) {
    return guarded([&] { nearest<float>(*program, first, count, out, threads); });
}

int nearest_double(const Program *program, int64_t first, int count, int32_t *out, int threads) {
    return guarded([&] { nearest<double>(*program, first, count, out, threads); });
}

int condition_float(const Program *program, int64_t first, const int32_t *neighbours, int k, const float *explained, int r,
                    const float *noise, float *rows, double *variances, int threads) {
    const Remainder<float> remainder{explained, r, noise};
    return guarded([&] { condition(*program, first, neighbours, k, remainder, rows, variances, threads); });
}

int condition_double(const Program *program, int64_t first, const int32_t *neighbours, int k, const double *explained, int r,
                     const double *noise, double *rows, double *variances, int threads) {
    const Remainder<double> remainder{explained, r, noise};
    return guarded([&] { condition(*program, first, neighbours, k, remainder, rows, variances, threads); });
}
}
