// The arithmetic of one sampling point. The CPU kernel uses all of it, the CUDA kernel the location (xpose_frame).
//
// Everything here runs in float32, whatever the type of the values. A location is clamped to the neighbourhood of its
// level before it becomes an integer, so any location is safe. NaN counts as outside.
#pragma once

#if defined(__CUDACC__)
#define XPOSE_INLINE __host__ __device__ __forceinline__
#define XPOSE_FLOOR floorf
#else
#include <math.h>
#define XPOSE_INLINE static inline
#define XPOSE_FLOOR __builtin_floorf
#endif

// Along one axis of one level, a point lies at base + scale * offset, in cells; cell i spans [i, i + 1).
struct XposeFrame {
    float base, scale;
};

// `reference` is (x, y), with offsets in cells, or (cx, cy, w, h), with offsets in units of half the box divided by the
// number of points. It is in fractions of the level, which has `size` cells along `axis` (0 for x, 1 for y).
XPOSE_INLINE XposeFrame xpose_frame(const float* reference, int reference_size, int axis, int size, int points) {
    const float cells = (float)size;
    const float scale = reference_size == 2 ? 1.0f : reference[2 + axis] * cells * (0.5f / (float)points);
    return {reference[axis] * cells, scale};
}

// The two cells along one axis whose centres are on either side of a coordinate.
struct XposeAxis {
    int low, high;                   // clamped into the level, so that they may always be read
    float weight_low, weight_high;   // bilinear; 0 for a cell outside
    float inside_low, inside_high;   // 1 for a cell inside, 0 for one outside
};

XPOSE_INLINE XposeAxis xpose_axis(float cells, int size) {
    const float centred = cells - 0.5f;
    const float above = centred > -2.0f ? centred : -2.0f;  // a comparison with NaN is false
    const float near_level = above < (float)size ? above : (float)size;
    const float floored = XPOSE_FLOOR(near_level);
    const float fraction = near_level - floored;
    const int low = (int)floored, high = low + 1, last = size - 1;
    const int low_from_0 = low > 0 ? low : 0, high_from_0 = high > 0 ? high : 0;
    XposeAxis axis;
    axis.low = low_from_0 < last ? low_from_0 : last;
    axis.high = high_from_0 < last ? high_from_0 : last;
    axis.inside_low = axis.low == low ? 1.0f : 0.0f;
    axis.inside_high = axis.high == high ? 1.0f : 0.0f;
    axis.weight_low = axis.inside_low * (1.0f - fraction);
    axis.weight_high = axis.inside_high * fraction;
    return axis;
}
