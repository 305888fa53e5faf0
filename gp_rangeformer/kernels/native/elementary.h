// Exponential and logarithm without branches, for loops that the compiler turns into vector instructions.
//
// Both are Taylor series on a reduced argument, long enough that what they drop is below a rounding. NaN stays NaN.

#pragma once

#include <cstdint>
#include <cstring>

namespace elementary {

template <typename T> struct Format;

template <> struct Format<float> {
    using Bits = int32_t;
    using Unsigned = uint32_t;  // for shifts to the left: out of range they are undefined of signed integers
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr int exp_terms = 7, log_terms = 5;
};

template <> struct Format<double> {
    using Bits = int64_t;
    using Unsigned = uint64_t;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr int exp_terms = 13, log_terms = 11;
};

template <typename To, typename From> inline To reinterpret(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

constexpr double inverse_factorial(int k) { return k < 2 ? 1.0 : inverse_factorial(k - 1) / k; }

// The terms x^(k - first) / k! for k = first ... last, in one multiplication and addition each.
template <typename T, int first, int last> inline T exponential_series(T x) {
    constexpr T coefficient = T(inverse_factorial(first));
    if constexpr (first == last)
        return coefficient;
    else
        return exponential_series<T, first + 1, last>(x) * x + coefficient;
}

// exp(x) for x between -80 (float; -700 in double) and 0, to about one unit in the last place.
template <typename T> inline T exp(T x) {
    using F = Format<T>;
    using Bits = typename F::Unsigned;
    const T shifted = x * T(1.44269504088896340736) + F::round;
    const T power = shifted - F::round;
    const T rest = (x - power * F::ln2_high) - power * F::ln2_low;  // at most ln(2) / 2
    const T series = exponential_series<T, 0, F::exp_terms>(rest);
    // The lowest bits of `shifted` are the integer `power`.
    const Bits exponent = reinterpret<Bits>(shifted) << F::mantissa, one = Bits(F::bias) << F::mantissa;
    return series * reinterpret<T>(exponent + one);
}

// log(1 + u) for finite u >= 0, to about two units in the last place.
template <typename T> inline T log1p(T u) {
    using F = Format<T>;
    using Bits = typename F::Bits;
    const T w = T(1) + u;
    const T lost = (u - (w - T(1))) / w;  // what rounding w dropped
    // w = 2^power m with m between sqrt(1/2) and sqrt(2).
    const Bits half = reinterpret<Bits>(T(0.70710678118654752440));
    const Bits shift = Bits(reinterpret<Bits>(w) - half) >> F::mantissa;
    const T power = T(shift);
    using Unsigned = typename F::Unsigned;
    const T m = reinterpret<T>(reinterpret<Unsigned>(w) - (Unsigned(shift) << F::mantissa));
    const T s = (m - T(1)) / (m + T(1)), square = s * s;  // log m = 2 artanh s
    T series = T(1) / T(2 * F::log_terms + 1);
    for (int k = F::log_terms - 1; k >= 0; --k) series = series * square + T(1) / T(2 * k + 1);
    return power * F::ln2_high + (T(2) * s * series + (power * F::ln2_low + lost));
}

}  // namespace elementary
