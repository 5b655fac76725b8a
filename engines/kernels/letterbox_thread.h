// One thread of the letterbox kernel: one pixel of the network's input, all three channels. Compiles for the host too.
//
// The same steps as engines/preprocess.py: area averaging to shrink, bilinear to enlarge, rounded to 8 bits, bars of a
// fixed colour, then (value / 255 - mean) / deviation. Macros that the compilation sets:
//   XPOSE_HALF            1 for float16 output, 0 for float32
//   XPOSE_HEIGHT, XPOSE_WIDTH            size of the input, in pixels
//   XPOSE_MEAN, XPOSE_DEVIATION, XPOSE_BAR           {red, green, blue}; the bar's in grey levels
//   XPOSE_NV12            1 for a luma plane and a plane of interleaved chroma at half the size, 0 for RGB
//   XPOSE_LUMA_BLACK, XPOSE_LUMA_GAIN, XPOSE_RED_V, XPOSE_GREEN_U, XPOSE_GREEN_V, XPOSE_BLUE_U      only for NV12
#pragma once

#include "deform_attn.h"

#if !XPOSE_HALF
typedef float XposePixel;
#elif defined(__CUDACC__)
#include <cuda_fp16.h>
typedef __half XposePixel;
#else
typedef _Float16 XposePixel;
#endif

// The image in pixels, the bytes from one row to the next in every plane, and the image's place in the input.
struct XposeImage {
    const unsigned char *pixels, *chroma;  // chroma: only for NV12
    int width, height, row_bytes, left, top, content_width, content_height;
};

struct XposeColour {
    float red, green, blue;
};

XPOSE_INLINE float xpose_clamp(float value) { return value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : value; }

XPOSE_INLINE XposeColour xpose_colour(const XposeImage& image, int x, int y) {
#if XPOSE_NV12
    const unsigned char* chroma = image.chroma + (long long)(y / 2) * image.row_bytes + x / 2 * 2;
    const float luma = ((float)image.pixels[(long long)y * image.row_bytes + x] - XPOSE_LUMA_BLACK) * XPOSE_LUMA_GAIN;
    const float u = (float)chroma[0] - 128.0f, v = (float)chroma[1] - 128.0f;
    return {xpose_clamp(luma + XPOSE_RED_V * v), xpose_clamp(luma - XPOSE_GREEN_U * u - XPOSE_GREEN_V * v),
            xpose_clamp(luma + XPOSE_BLUE_U * u)};
#else
    const unsigned char* pixel = image.pixels + (long long)y * image.row_bytes + 3 * x;
    return {(float)pixel[0], (float)pixel[1], (float)pixel[2]};
#endif
}

// Along one axis: the source pixels from which one pixel of the content is computed, and their weights.
struct XposeTaps {
    int first, last;  // both inclusive, inside the image
    bool area;
    float begin, end;  // area averaging: the interval that is covered; bilinear: weights of first and last
};

XPOSE_INLINE XposeTaps xpose_taps(int index, int source, int content, bool area) {
    const float scale = (float)source / (float)content;
    XposeTaps taps;
    taps.area = area;
    if (area) {
        taps.begin = (float)index * scale;
        taps.end = (float)(index + 1) * scale;
        taps.first = (int)taps.begin;
        const int last = (int)ceilf(taps.end) - 1;
        taps.last = last < source ? last : source - 1;
    } else {
        const float centre = ((float)index + 0.5f) * scale - 0.5f;
        const int low = (int)floorf(centre);
        taps.end = centre - (float)low;
        taps.begin = 1.0f - taps.end;
        taps.first = low < 0 ? 0 : low;
        taps.last = low + 1 < source ? low + 1 : source - 1;
        if (taps.first == taps.last) taps.begin = 1.0f;
    }
    return taps;
}

XPOSE_INLINE float xpose_tap_weight(const XposeTaps& taps, int i) {
    if (!taps.area) return i == taps.first ? taps.begin : taps.end;
    const float begin = taps.begin > (float)i ? taps.begin : (float)i;
    const float end = taps.end < (float)(i + 1) ? taps.end : (float)(i + 1);
    return end - begin;
}

XPOSE_INLINE void xpose_letterbox_thread(int thread, const XposeImage& image, XposePixel* out) {
    const int x = thread % XPOSE_WIDTH - image.left, y = thread / XPOSE_WIDTH - image.top;
    const float mean[3] = XPOSE_MEAN, deviation[3] = XPOSE_DEVIATION, bar[3] = XPOSE_BAR;
    float level[3] = {bar[0], bar[1], bar[2]};
    if (x >= 0 && x < image.content_width && y >= 0 && y < image.content_height) {
        const bool area = image.content_width < image.width || image.content_height < image.height;
        const XposeTaps columns = xpose_taps(x, image.width, image.content_width, area);
        const XposeTaps rows = xpose_taps(y, image.height, image.content_height, area);
        float red = 0.0f, green = 0.0f, blue = 0.0f, total = 0.0f;
        for (int row = rows.first; row <= rows.last; ++row)
            for (int column = columns.first; column <= columns.last; ++column) {
                const float weight = xpose_tap_weight(rows, row) * xpose_tap_weight(columns, column);
                const XposeColour colour = xpose_colour(image, column, row);
                red += weight * colour.red, green += weight * colour.green, blue += weight * colour.blue;
                total += weight;
            }
        level[0] = floorf(red / total + 0.5f);
        level[1] = floorf(green / total + 0.5f);
        level[2] = floorf(blue / total + 0.5f);
    }
    for (int channel = 0; channel < 3; ++channel)
        out[channel * XPOSE_HEIGHT * XPOSE_WIDTH + thread] =
            (XposePixel)((level[channel] / 255.0f - mean[channel]) / deviation[channel]);
}
