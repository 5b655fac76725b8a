// The arithmetic of one sampling point, shared by the CPU kernel, the CUDA kernel and the tests' host build.
//
// Everything here runs in float32, whatever the type of the values. No location is turned into an integer before it is
// known to lie near the level, so any finite or infinite location is safe; one that is not a number reads as outside.
#pragma once

#if defined(__CUDACC__)
#define XPOSE_INLINE __host__ __device__ __forceinline__
#define XPOSE_FLOOR floorf
#else
#include <math.h>
#define XPOSE_INLINE static inline
#define XPOSE_FLOOR __builtin_floorf
#endif

struct XposePoint {
    float x, y;  // in cells of the level; cell (row, column) spans [column, column + 1) x [row, row + 1)
};

// 2-d reference: offset in cells. `ref` is (x, y) as fractions of the level.
XPOSE_INLINE XposePoint xpose_point_2d(const float* ref, float offset_x, float offset_y, int height, int width) {
    return {ref[0] * (float)width + offset_x, ref[1] * (float)height + offset_y};
}

// 4-d reference: offset in half boxes, shared out over the points. `ref` is (cx, cy, w, h) as fractions of the level.
XPOSE_INLINE XposePoint xpose_point_4d(const float* ref, float offset_x, float offset_y, int height, int width,
                                       float inverse_points) {
    const float x = ref[0] + offset_x * inverse_points * ref[2] * 0.5f;
    const float y = ref[1] + offset_y * inverse_points * ref[3] * 0.5f;
    return {x * (float)width, y * (float)height};
}

// The two cells along one axis between whose centres a coordinate lies.
struct XposeAxis {
    int low, high;                   // clamped into the level, so that they may always be read
    float weight_low, weight_high;   // bilinear; 0 for a cell outside
    float inside_low, inside_high;   // 1 for a cell inside, 0 for one outside
};

XPOSE_INLINE XposeAxis xpose_axis(float cells, int size) {
    const float centred = cells - 0.5f;
    const bool near_level = centred > -1.0f && centred < (float)size;
    const float safe = near_level ? centred : -1.0f;
    const float floored = XPOSE_FLOOR(safe);
    const float fraction = safe - floored;
    const int low = (int)floored, high = low + 1;
    const bool low_inside = near_level && low >= 0, high_inside = near_level && high < size;
    XposeAxis axis;
    axis.low = low < 0 ? 0 : low;
    axis.high = high < size ? high : size - 1;
    axis.inside_low = low_inside ? 1.0f : 0.0f;
    axis.inside_high = high_inside ? 1.0f : 0.0f;
    axis.weight_low = low_inside ? 1.0f - fraction : 0.0f;
    axis.weight_high = high_inside ? fraction : 0.0f;
    return axis;
}
