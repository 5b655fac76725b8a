// For the CPU kernels: vectors as wide as those of the processor, and an exponential that vectorises.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

// Sums use explicit vectors of the processor's own width. Without them the compiler vectorises across points with
// gathers. It splits wider vectors through memory.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));

inline Lanes load(const float* at) {
    Lanes lanes;
    memcpy(&lanes, at, sizeof lanes);
    return lanes;
}
inline void store(float* at, const Lanes& lanes) { memcpy(at, &lanes, sizeof lanes); }

// exp(x) for x <= 0 to 1e-7 relative, in a form that vectorises: 2^n * 2^f with |f| <= 1/2.
inline float exp_negative(float x) {
    const float scaled = (x < -87.0f ? -87.0f : x) * 1.44269504f;
    const float whole = __builtin_floorf(scaled + 0.5f);
    const float f = scaled - whole;  // Taylor series of 2^f, ln(2)^k / k!
    const float power = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
                        f * (0.00133335581f + f * 0.000154035304f)))));
    const int32_t exponent = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &exponent, sizeof scale);
    return power * scale;
}

}  // namespace
