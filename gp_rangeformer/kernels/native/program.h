// A kernel expression as a list of nodes, children before parents, run on a row of pairs (one i, some j) at a time.
//
// A row of a few hundred numbers per node stays in the level-1 cache, so what a node costs besides its arithmetic is
// nothing, and any tree of sums, products and scales runs without being compiled for itself.

#pragma once

#include <cstdint>
#include <vector>

#include "profiles.h"

enum Operation : int32_t { STATIONARY, CONSTANT, SCALE, SUM, PRODUCT };

// As gp_rangeformer/kernels/native/interface.py lays it out.
struct Node {
    int32_t operation, kind;
    int32_t first_child, child_count;  // in the list of children
    int32_t dimensions;
    double parameter;         // scale, constant or alpha
    double largest;           // squared distance where the profile is held
    const void *coordinates;  // dimensions x n, of the matrix's type
    double *gradient;         // dimensions x n, of the coordinates
    double *parameter_gradient;  // null where there is no parameter
};

struct Program {
    int32_t node_count;
    const Node *nodes;
    const int32_t *children;
    int64_t n;
};

constexpr int WIDTH = 256;  // pairs in a row

// A coordinate of a node, and n numbers that move with it; null for the coordinate itself.
template <typename T> struct Moved {
    int node, coordinate;
    const T *with;
};

template <typename T> class Row {
  public:
    explicit Row(const Program &program) : program_(program), numbers_(size_t(4) * program.node_count * WIDTH) {}

    // K_ij for j = start ... start + count - 1. Valid until the next call.
    const T *values(int64_t i, int64_t start, int count) {
        for (int number = 0; number < program_.node_count; ++number) forward<false>(number, i, start, count);
        return value(program_.node_count - 1);
    }

    // Adds d sum_j weight_j K_ij to the gradients: for the coordinates of i to `own` (a number for every coordinate of
    // every node in turn), for those of the j to `others` (a row of length `stride` each), for parameters to `scalars`.
    void pull(int64_t i, int64_t start, int count, const T *weight, double *own, T *others, int64_t stride,
              double *scalars) {
        const int last = program_.node_count - 1;
        // What the root is composed to is nobody's factor.
        const int needed = program_.nodes[last].operation == STATIONARY ? last : last - 1;
        for (int number = 0; number <= needed; ++number) forward<true>(number, i, start, count);
        int coordinate = coordinates();
        for (int number = last; number >= 0; --number) {
            const Node &node = program_.nodes[number];
            const T *arriving = number == last ? weight : adjoint(number);
            if (node.operation == STATIONARY) {
                coordinate -= node.dimensions;
                pull_stationary(number, i, start, count, arriving, own + coordinate, others + coordinate * stride,
                                stride, scalars[number]);
            } else {
                pull_composite(number, count, arriving, scalars[number]);
            }
        }
    }

    // Adds sum_j weight_j dK_ij / dq_ij (z_ic - z_jc) (w_i - w_j) to `sums`, one for every pair of a coordinate c and
    // what moves with it, q being the squared distance of its node; and sum_j weight_j dK_ij / dp, for the parameter p
    // of every node, to `scalars`.
    void derive(int64_t i, int64_t start, int count, const T *weight, const std::vector<Moved<T>> &moved, double *sums,
                double *scalars) {
        for (int number = 0; number < program_.node_count; ++number) forward<true>(number, i, start, count);
        const int last = program_.node_count - 1;
        for (int number = last; number >= 0; --number) {
            const Node &node = program_.nodes[number];
            const T *arriving = number == last ? weight : adjoint(number);
            if (node.operation != STATIONARY) {
                pull_composite(number, count, arriving, scalars[number]);
                continue;
            }
            T *__restrict slopes = slope(number);
            if (node.kind == profiles::RATIONAL_QUADRATIC) scalars[number] += dot(count, arriving, shape(number));
            for (int j = 0; j < count; ++j) slopes[j] *= arriving[j];
            for (size_t which = 0; which < moved.size(); ++which)
                if (moved[which].node == number) sums[which] += moved_sum(node, moved[which], i, start, count, slopes);
        }
    }

    // Coordinates of all nodes together.
    int coordinates() const {
        int total = 0;
        for (int number = 0; number < program_.node_count; ++number)
            if (program_.nodes[number].operation == STATIONARY) total += program_.nodes[number].dimensions;
        return total;
    }

  private:
    const Program &program_;
    std::vector<T> numbers_;  // for every node: value, slope, derivative for its parameter, weight that arrives

    T *row(int which, int number) { return numbers_.data() + (size_t(which) * program_.node_count + number) * WIDTH; }
    T *value(int number) { return row(0, number); }
    T *slope(int number) { return row(1, number); }
    T *shape(int number) { return row(2, number); }
    T *adjoint(int number) { return row(3, number); }
    int child(const Node &node, int which) const { return program_.children[node.first_child + which]; }
    const T *coordinate(const Node &node, int which) const {
        return static_cast<const T *>(node.coordinates) + which * program_.n;
    }

    template <bool with_slopes> void forward(int number, int64_t i, int64_t start, int count) {
        const Node &node = program_.nodes[number];
        T *__restrict out = value(number);
        const T parameter = T(node.parameter);
        switch (node.operation) {
        case STATIONARY:
            // The row of the weight that will arrive holds the distances until then.
            squared_distances(node, i, start, count, adjoint(number));
            stationary<with_slopes>(node, number, count);
            break;
        case CONSTANT:
            for (int j = 0; j < count; ++j) out[j] = parameter;
            break;
        case SCALE: {
            const T *__restrict of = value(child(node, 0));
            for (int j = 0; j < count; ++j) out[j] = parameter * of[j];
            break;
        }
        default:
            for (int j = 0; j < count; ++j) out[j] = value(child(node, 0))[j];
            for (int which = 1; which < node.child_count; ++which) {
                const T *__restrict of = value(child(node, which));
                if (node.operation == SUM)
                    for (int j = 0; j < count; ++j) out[j] += of[j];
                else
                    for (int j = 0; j < count; ++j) out[j] *= of[j];
            }
        }
    }

    // From differences of coordinates, not from norms and a product: nothing cancels between close points.
    void squared_distances(const Node &node, int64_t i, int64_t start, int count, T *__restrict q) const {
        for (int j = 0; j < count; ++j) q[j] = 0;
        int c = 0;
        for (; c + 4 <= node.dimensions; c += 4) {
            const T *__restrict z0 = coordinate(node, c), *__restrict z1 = coordinate(node, c + 1);
            const T *__restrict z2 = coordinate(node, c + 2), *__restrict z3 = coordinate(node, c + 3);
            const T own0 = z0[i], own1 = z1[i], own2 = z2[i], own3 = z3[i];
            for (int j = 0; j < count; ++j) {
                const T d0 = own0 - z0[start + j], d1 = own1 - z1[start + j];
                const T d2 = own2 - z2[start + j], d3 = own3 - z3[start + j];
                q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
            }
        }
        for (; c < node.dimensions; ++c) {
            const T *__restrict z = coordinate(node, c);
            const T own = z[i];
            for (int j = 0; j < count; ++j) q[j] += (own - z[start + j]) * (own - z[start + j]);
        }
    }

    template <bool with_slopes> void stationary(const Node &node, int number, int count) {
        using namespace profiles;
        switch (node.kind) {
        case RBF: return run<RBF, with_slopes>(node, number, count);
        case MATERN12: return run<MATERN12, with_slopes>(node, number, count);
        case MATERN32: return run<MATERN32, with_slopes>(node, number, count);
        case MATERN52: return run<MATERN52, with_slopes>(node, number, count);
        default: return run<RATIONAL_QUADRATIC, with_slopes>(node, number, count);
        }
    }

    template <profiles::Kind kind, bool with_slopes> void run(const Node &node, int number, int count) {
        const T alpha = T(node.parameter), largest = T(node.largest);
        T *q = adjoint(number);
        if constexpr (with_slopes)
            profiles::jets<T, kind>(count, q, alpha, largest, value(number), slope(number), shape(number));
        else
            profiles::values<T, kind>(count, q, alpha, largest, value(number));
    }

    // q_ij = |z_i - z_j|^2: dk/dz_i = 2 dk/dq (z_i - z_j), and for z_j the opposite.
    void pull_stationary(int number, int64_t i, int64_t start, int count, const T *__restrict weight, double *own,
                         T *others, int64_t stride, double &scalar) {
        const Node &node = program_.nodes[number];
        T *__restrict slopes = slope(number);
        if (node.kind == profiles::RATIONAL_QUADRATIC) scalar += dot(count, weight, shape(number));
        for (int j = 0; j < count; ++j) slopes[j] *= T(2) * weight[j];
        int c = 0;
        for (; c + 4 <= node.dimensions; c += 4) {
            const T *__restrict z0 = coordinate(node, c) + start, *__restrict z1 = coordinate(node, c + 1) + start;
            const T *__restrict z2 = coordinate(node, c + 2) + start, *__restrict z3 = coordinate(node, c + 3) + start;
            T *__restrict other0 = others + c * stride, *__restrict other1 = other0 + stride;
            T *__restrict other2 = other1 + stride, *__restrict other3 = other2 + stride;
            const T mine0 = coordinate(node, c)[i], mine1 = coordinate(node, c + 1)[i];
            const T mine2 = coordinate(node, c + 2)[i], mine3 = coordinate(node, c + 3)[i];
            T sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
            for (int j = 0; j < count; ++j) {
                const T pulled0 = slopes[j] * (mine0 - z0[j]), pulled1 = slopes[j] * (mine1 - z1[j]);
                const T pulled2 = slopes[j] * (mine2 - z2[j]), pulled3 = slopes[j] * (mine3 - z3[j]);
                sum0 += pulled0, sum1 += pulled1, sum2 += pulled2, sum3 += pulled3;
                other0[j] -= pulled0, other1[j] -= pulled1, other2[j] -= pulled2, other3[j] -= pulled3;
            }
            own[c] += sum0, own[c + 1] += sum1, own[c + 2] += sum2, own[c + 3] += sum3;
        }
        for (; c < node.dimensions; ++c) {
            const T *__restrict z = coordinate(node, c) + start;
            T *__restrict other = others + c * stride;
            const T mine = coordinate(node, c)[i];
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < count; ++j) {
                const T pulled = slopes[j] * (mine - z[j]);
                sum += pulled;
                other[j] -= pulled;
            }
            own[c] += sum;
        }
    }

    void pull_composite(int number, int count, const T *__restrict weight, double &scalar) {
        const Node &node = program_.nodes[number];
        if (node.operation == CONSTANT) {
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < count; ++j) sum += weight[j];
            scalar += sum;
            return;
        }
        if (node.operation == SCALE) scalar += dot(count, weight, value(child(node, 0)));
        const T factor = node.operation == SCALE ? T(node.parameter) : T(1);
        for (int which = 0; which < node.child_count; ++which) {
            T *__restrict pulled = adjoint(child(node, which));
            for (int j = 0; j < count; ++j) pulled[j] = factor * weight[j];
            if (node.operation != PRODUCT) continue;
            // Not the product divided by the child's value, which may have underflowed to zero.
            for (int sibling = 0; sibling < node.child_count; ++sibling) {
                if (sibling == which) continue;
                const T *__restrict of = value(child(node, sibling));
                for (int j = 0; j < count; ++j) pulled[j] *= of[j];
            }
        }
    }

    double moved_sum(const Node &node, const Moved<T> &moved, int64_t i, int64_t start, int count,
                     const T *__restrict slopes) const {
        const T *__restrict z = coordinate(node, moved.coordinate);
        const T own = z[i];
        z += start;
        T sum = 0;
        if (moved.with == nullptr) {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < count; ++j) sum += slopes[j] * ((own - z[j]) * (own - z[j]));
            return sum;
        }
        const T *__restrict w = moved.with + start;
        const T mine = moved.with[i];
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < count; ++j) sum += slopes[j] * ((own - z[j]) * (mine - w[j]));
        return sum;
    }

    static double dot(int count, const T *__restrict one, const T *__restrict other) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < count; ++j) sum += one[j] * other[j];
        return sum;
    }
};
