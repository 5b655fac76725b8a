// The lanes of the CUDA kernel, run on the host one after the other, step by step. Built by host.py.
#include "deform_attn_thread.h"

namespace {

// Stands in for the warp shuffles of deform_attn.cu.
struct Group {
    XposeLane lanes[kLanes];

    unsigned word(int slot, int word, int owner) const { return lanes[owner].sample[slot][word]; }

    // The same order of operations as a butterfly of shuffles, so that every lane gets the same bits.
    template <class Combine>
    void reduce(float XposeLane::*field, Combine combine) {
        for (int step = kLanes / 2; step > 0; step /= 2) {
            float before[kLanes];
            for (int lane = 0; lane < kLanes; ++lane) before[lane] = lanes[lane].*field;
            for (int lane = 0; lane < kLanes; ++lane) lanes[lane].*field = combine(before[lane], before[lane ^ step]);
        }
    }
};

void weigh(Group& group, long long number, const XposeShape& shape, const float* reference, const float* offsets,
           const float* logits) {
    for (int lane = 0; lane < kLanes; ++lane) xpose_read(group.lanes[lane], lane, number, logits);
    group.reduce(&XposeLane::top, [](float a, float b) { return a > b ? a : b; });
    for (int lane = 0; lane < kLanes; ++lane)
        xpose_weigh(group.lanes[lane], lane, number, shape, reference, offsets);
    group.reduce(&XposeLane::total, [](float a, float b) { return a + b; });
}

}  // namespace

// Compute the lanes `first_lane` .. `last_lane` - 1 of all images; lanes count as the kernel's threads do, without the
// threads past the end of an image. `numbers` are the kernel's int arguments.
extern "C" void xpose_run(const unsigned char* value, const float* reference, const float* offsets,
                          const float* logits, const int* numbers, unsigned char* out, long long first_lane,
                          long long last_lane) {
    XposeShape shape;
    shape.queries = numbers[0];
    shape.tokens = numbers[1];
    for (int level = 0; level < XPOSE_LEVELS; ++level) {
        shape.height[level] = numbers[2 + 2 * level];
        shape.width[level] = numbers[3 + 2 * level];
    }
    const long long groups_of_image = (long long)shape.queries * XPOSE_HEADS;
    Group group;
    for (long long lane = first_lane; lane < last_lane; ++lane) {
        const long long number = lane / kLanes, image = number / groups_of_image;
        if (lane == first_lane || lane % kLanes == 0) weigh(group, number, shape, reference, offsets, logits);
        const int index = (int)(lane % kLanes), head = (int)(number % XPOSE_HEADS);
        const unsigned char* channels =
            value + image * shape.tokens * kRowBytes + head * (XPOSE_DEPTH * kValueBytes) + index * 16;
        const XposeChunk chunk = xpose_gather(group, shape, channels, group.lanes[index].total);
        memcpy(out + lane * 16, &chunk, 16);
    }
}

extern "C" int xpose_lanes() { return kLanes; }
