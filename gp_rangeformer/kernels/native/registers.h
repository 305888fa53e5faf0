// The vector registers of the processor that this is compiled for.

#pragma once

namespace registers {

#if defined(__AVX512F__)
constexpr int BYTES = 64, COUNT = 32;
#elif defined(__AVX__)
constexpr int BYTES = 32, COUNT = 16;
#elif defined(__aarch64__)
constexpr int BYTES = 16, COUNT = 32;
#else
constexpr int BYTES = 16, COUNT = 16;
#endif

}  // namespace registers
