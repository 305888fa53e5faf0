// The border to Python: what both sides must agree on, and what must not cross it.

#pragma once

#include <cstdint>

// As gp_rangeformer/kernels/native/interface.py has them.
constexpr int COLUMNS = 32;  // of a packed panel
constexpr int BATCH = 96;    // rows that a stretch of a panel serves

// What the exported functions return: 0, or 1 without enough memory. Exceptions may not leave a parallel region either:
// all memory is taken before one.
template <typename Call> int guarded(Call call) noexcept {
    try {
        call();
        return 0;
    } catch (...) {  // std::bad_alloc, or std::length_error where more is asked for than there are addresses
        return 1;
    }
}
