// The CUDA kernel's threads, run one after the other on the host. Built by test_cuda_source.py.
#include "deform_attn_thread.h"

extern "C" long long xpose_threads() { return kThreads; }

extern "C" void xpose_run(const void* value, const float* reference, const float* offsets, const float* logits,
                          void* out) {
    for (long long thread = 0; thread < kThreads; ++thread)
        xpose_deform_attn_thread(thread, (const XposeValue*)value, reference, offsets, logits, (XposeValue*)out);
}

extern "C" void xpose_run_one(long long thread, const void* value, const float* reference, const float* offsets,
                              const float* logits, void* out) {
    xpose_deform_attn_thread(thread, (const XposeValue*)value, reference, offsets, logits, (XposeValue*)out);
}
