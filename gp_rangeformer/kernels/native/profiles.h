// Stationary kernels k(q) of the squared scaled distance q and their derivatives, a row of pairs at a time.

#pragma once

#include <cmath>

#include "elementary.h"

namespace profiles {

enum Kind { RBF, MATERN12, MATERN32, MATERN52, RATIONAL_QUADRATIC };

// What one pair contributes: k, dk/dq and dk/dalpha.
template <typename T> struct Jet {
    T value, slope, shape;
};

template <typename T, Kind kind> inline Jet<T> jet(T q, T alpha) {
    if constexpr (kind == RBF) {
        const T value = elementary::exp(T(-0.5) * q);
        return {value, T(-0.5) * value, 0};
    } else if constexpr (kind == MATERN12) {
        const T r = std::sqrt(q), value = elementary::exp(-r);
        return {value, T(-0.5) * value / r, 0};
    } else if constexpr (kind == MATERN32) {
        const T a = std::sqrt(T(3) * q), decay = elementary::exp(-a);
        return {(T(1) + a) * decay, T(-1.5) * decay, 0};
    } else if constexpr (kind == MATERN52) {
        const T a = std::sqrt(T(5) * q), decay = elementary::exp(-a);
        return {(T(1) + a + a * a * T(1.0 / 3)) * decay, T(-5.0 / 6) * (T(1) + a) * decay, 0};
    } else {
        const T u = q / (T(2) * alpha), logarithm = elementary::log1p(u), inverse = T(1) / (T(1) + u);
        const T value = elementary::exp(-alpha * logarithm);
        return {value, T(-0.5) * value * inverse, value * (u * inverse - logarithm)};
    }
}

// q within the limits of the profiles: zero makes slopes infinite, and beyond `largest` nothing is left but underflow.
template <typename T> inline T clamp(T q, T largest) {
    const T above = q < T(1e-36) ? T(1e-36) : q;  // written so that NaN stays
    return above > largest ? largest : above;
}

template <typename T, Kind kind> void values(int count, const T *__restrict q, T alpha, T largest, T *__restrict value) {
#pragma omp simd
    for (int j = 0; j < count; ++j) value[j] = jet<T, kind>(clamp(q[j], largest), alpha).value;
}

template <typename T, Kind kind>
void jets(int count, const T *__restrict q, T alpha, T largest, T *__restrict value, T *__restrict slope,
          T *__restrict shape) {
#pragma omp simd
    for (int j = 0; j < count; ++j) {
        const Jet<T> found = jet<T, kind>(clamp(q[j], largest), alpha);
        value[j] = found.value;
        slope[j] = q[j] > largest ? T(0) : found.slope;  // or it is a factor of differences that nothing holds
        if constexpr (kind == RATIONAL_QUADRATIC) shape[j] = found.shape;
    }
}

}  // namespace profiles
