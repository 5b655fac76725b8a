// What the CPU kernels of deformable and of window attention offer. Shape suffixes as in reference.py and swin.py.
#pragma once

#include <stdint.h>

struct XposeDeformShape {
    int64_t batch, queries, tokens;
    int32_t heads, depth, levels, points, reference_size, threads;
    const int32_t* sizes_L2;  // height and width of each level, in cells
};

// Windows of 4 x 4 tokens. Only the rows of windows from `first_row` to before `last_row` are computed, counted over all
// images of the batch.
struct XposeWindowShape {
    int64_t batch, height, width, first_row, last_row;
    int32_t heads, depth, shift, threads;
};

extern "C" {
// `depth` is 16, 32 or 64.
void xpose_forward_float32(const XposeDeformShape* shape, const float* value, const float* reference,
                           const float* offsets, const float* logits, float* out);

// `depth` is 12 or 24. qkv_BHW3MD, bias_MTT, out_BHWMD.
void xpose_window_attention(const XposeWindowShape* shape, const float* qkv, const float* bias, float* out);
}
