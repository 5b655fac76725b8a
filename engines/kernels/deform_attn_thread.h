// One thread of the CUDA kernel: 16 bytes of one query's output for one head. Compiles for the host too, which is how
// it is tested where there is no GPU.
//
// The shape is known when this is compiled (engines/kernels/cuda.py), through these macros:
//   XPOSE_HALF       1 for float16 values and output, 0 for float32
//   XPOSE_BATCH, XPOSE_QUERIES, XPOSE_TOKENS, XPOSE_HEADS, XPOSE_DEPTH, XPOSE_POINTS, XPOSE_REFERENCE
//   XPOSE_LEVELS     how many levels
//   XPOSE_SIZES      {height, width, height, width, ...} of the levels
// Reference, offsets, logits, locations, weights and sums are float32 throughout.
#pragma once

#include "deform_attn.h"

#if !XPOSE_HALF
typedef float XposeValue;
#elif defined(__CUDACC__)
#include <cuda_fp16.h>
typedef __half XposeValue;
#else
typedef _Float16 XposeValue;
#endif

constexpr int kLanes = 16 / (int)sizeof(XposeValue);  // channels of one thread: one load of 16 bytes
constexpr int kChunks = XPOSE_DEPTH / kLanes;         // threads of one (query, head)
constexpr int kSamples = XPOSE_LEVELS * XPOSE_POINTS;
constexpr int kChannels = XPOSE_HEADS * XPOSE_DEPTH;
constexpr int kSizes[] = XPOSE_SIZES;
constexpr long long kThreads = (long long)XPOSE_BATCH * XPOSE_QUERIES * XPOSE_HEADS * kChunks;

static_assert(XPOSE_DEPTH % kLanes == 0, "the channels of a head must be a multiple of 16 bytes");
static_assert(XPOSE_REFERENCE == 2 || XPOSE_REFERENCE == 4, "a reference has 2 or 4 numbers");
static_assert(sizeof(kSizes) == 2 * XPOSE_LEVELS * sizeof(int), "two sizes per level");

struct alignas(16) XposeLanes {
    XposeValue lane[kLanes];
};
struct alignas(8) XposeOffset {
    float x, y;
};

// Add one corner's 16 bytes of one token, weighted, to the sums.
XPOSE_INLINE void xpose_add(float* sum, const XposeValue* value, int token, float weight) {
    const XposeLanes lanes = *reinterpret_cast<const XposeLanes*>(value + (long long)token * kChannels);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] += weight * (float)lanes.lane[lane];
}

// Add one point's four corners. `value` points at the first token of the level.
XPOSE_INLINE void xpose_sample(float* sum, const XposeValue* value, XposeAxis x, XposeAxis y, int width, float weight) {
    const float top = weight * y.weight_low, bottom = weight * y.weight_high;
    const int row_top = y.low * width, row_bottom = y.high * width;
    xpose_add(sum, value, row_top + x.low, top * x.weight_low);
    xpose_add(sum, value, row_top + x.high, top * x.weight_high);
    xpose_add(sum, value, row_bottom + x.low, bottom * x.weight_low);
    xpose_add(sum, value, row_bottom + x.high, bottom * x.weight_high);
}

// Threads are numbered with the chunk of channels fastest, then the head, the query and the image, so that neighbours
// share offsets and logits and write side by side. Softmax: the largest logit first, then weights and sum in one pass.
XPOSE_INLINE void xpose_deform_attn_thread(long long thread, const XposeValue* value, const float* reference,
                                           const float* offsets, const float* logits, XposeValue* out) {
    const int chunk = (int)(thread % kChunks);
    const long long query_head = thread / kChunks;  // over (image, query, head)
    const int head = (int)(query_head % XPOSE_HEADS);
    const long long query = query_head / XPOSE_HEADS;  // over (image, query)
    const long long image = query / XPOSE_QUERIES;
    value += image * XPOSE_TOKENS * kChannels + head * XPOSE_DEPTH + chunk * kLanes;
    reference += query * (XPOSE_LEVELS * XPOSE_REFERENCE);
    logits += query_head * kSamples;
    const XposeOffset* offset = reinterpret_cast<const XposeOffset*>(offsets) + query_head * kSamples;

    float top = logits[0];
#pragma unroll
    for (int i = 1; i < kSamples; ++i) top = logits[i] > top ? logits[i] : top;
    float sum[kLanes] = {}, total = 0.0f;
    int first = 0;
#pragma unroll
    for (int level = 0; level < XPOSE_LEVELS; ++level) {
        const int height = kSizes[2 * level], width = kSizes[2 * level + 1];
        const float* at = reference + level * XPOSE_REFERENCE;
        const XposeFrame frame_x = xpose_frame(at, XPOSE_REFERENCE, 0, width, XPOSE_POINTS);
        const XposeFrame frame_y = xpose_frame(at, XPOSE_REFERENCE, 1, height, XPOSE_POINTS);
        const XposeValue* level_value = value + (long long)first * kChannels;
#pragma unroll
        for (int point = 0; point < XPOSE_POINTS; ++point) {
            const int i = level * XPOSE_POINTS + point;
            const XposeOffset by = offset[i];
            const float weight = expf(logits[i] - top);
            total += weight;
            xpose_sample(sum, level_value, xpose_axis(frame_x.base + frame_x.scale * by.x, width),
                         xpose_axis(frame_y.base + frame_y.scale * by.y, height), width, weight);
        }
        first += height * width;
    }
    const float inverse = 1.0f / total;
    XposeLanes result;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) result.lane[lane] = (XposeValue)(sum[lane] * inverse);
    reinterpret_cast<XposeLanes*>(out)[thread] = result;
}
