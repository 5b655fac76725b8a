// Source image to network input in one launch: letterbox, 8-bit rounding, normalisation, planar output. The arithmetic,
// and the macros that give the input's size, are in letterbox_thread.h.
#include "letterbox_thread.h"

extern "C" __global__ void __launch_bounds__(XPOSE_BLOCK)
    xpose_letterbox(const unsigned char* __restrict__ pixels, const unsigned char* __restrict__ chroma,
                    XposePixel* __restrict__ out, int width, int height, int row_bytes, int left, int top,
                    int content_width, int content_height) {
    const int thread = blockIdx.x * XPOSE_BLOCK + threadIdx.x;
    const XposeImage image = {pixels, chroma, width, height, row_bytes, left, top, content_width, content_height};
    if (thread < XPOSE_HEIGHT * XPOSE_WIDTH) xpose_letterbox_thread(thread, image, out);
}
