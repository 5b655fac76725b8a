// Deformable attention in one launch: softmax, locations, bilinear gathers and the weighted sum. The arithmetic is in
// deform_attn_thread.h. The lanes of a group exchange samples by warp shuffles.
//
// Grid: x covers queries * heads * kLanes threads of one image, y is the image. Arguments: the four inputs, then the
// numbers, then the output, as TensorRT passes them. Levels that do not exist have size 0.
#include "deform_attn_thread.h"

struct XposeShuffle {
    const XposeLane& own;

    __device__ __forceinline__ unsigned word(int slot, int word, int owner) const {
        return __shfl_sync(0xffffffffu, own.sample[slot][word], owner, kLanes);
    }
};

extern "C" __global__ void __launch_bounds__(XPOSE_BLOCK, XPOSE_BLOCKS_PER_PROCESSOR)
    xpose_deform_attn(const unsigned char* __restrict__ value, const float* __restrict__ reference,
                      const float* __restrict__ offsets, const float* __restrict__ logits, int queries, int tokens,
                      int height_0, int width_0, int height_1, int width_1, int height_2, int width_2, int height_3,
                      int width_3, int height_4, int width_4, unsigned char* __restrict__ out) {
    const int heights[kMaxLevels] = {height_0, height_1, height_2, height_3, height_4};
    const int widths[kMaxLevels] = {width_0, width_1, width_2, width_3, width_4};
    XposeShape shape;
    shape.queries = queries;
    shape.tokens = tokens;
#pragma unroll
    for (int level = 0; level < XPOSE_LEVELS; ++level) {
        shape.height[level] = heights[level];
        shape.width[level] = widths[level];
    }
    const int thread = blockIdx.x * XPOSE_BLOCK + threadIdx.x;
    const int groups = queries * XPOSE_HEADS;
    const int index = thread % kLanes;
    const bool writes = thread / kLanes < groups;
    // Threads past the end repeat the last group, because every lane of a warp must take part in the shuffles.
    const int in_image = writes ? thread / kLanes : groups - 1;
    const long long group = (long long)blockIdx.y * groups + in_image;

    XposeLane lane;
    xpose_read(lane, index, group, logits);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
        lane.top = fmaxf(lane.top, __shfl_xor_sync(0xffffffffu, lane.top, step, kLanes));
    xpose_weigh(lane, index, group, shape, reference, offsets);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
        lane.total += __shfl_xor_sync(0xffffffffu, lane.total, step, kLanes);
    const XposeShuffle exchange = {lane};
    const int head = in_image % XPOSE_HEADS;
    const unsigned char* channels =
        value + (long long)blockIdx.y * tokens * kRowBytes + head * (XPOSE_DEPTH * kValueBytes) + index * 16;
    const XposeChunk result = xpose_gather(exchange, shape, channels, lane.total);
    if (writes) reinterpret_cast<XposeChunk*>(out)[group * kLanes + index] = result;
}
