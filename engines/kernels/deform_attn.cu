// Deformable attention in one launch: softmax, locations, bilinear gathers and the weighted sum. The arithmetic, and
// the macros that give the shape, are in deform_attn_thread.h.
#include "deform_attn_thread.h"

extern "C" __global__ void __launch_bounds__(XPOSE_BLOCK)
    xpose_deform_attn(const XposeValue* __restrict__ value, const float* __restrict__ reference,
                      const float* __restrict__ offsets, const float* __restrict__ logits,
                      XposeValue* __restrict__ out) {
    const long long thread = (long long)blockIdx.x * XPOSE_BLOCK + threadIdx.x;
    if (thread < kThreads) xpose_deform_attn_thread(thread, value, reference, offsets, logits, out);
}
