// The letterbox kernel's threads, run one after the other on the host. Built by test_letterbox.py.
#include <math.h>

#include "letterbox_thread.h"

extern "C" void xpose_run(const unsigned char* pixels, const unsigned char* chroma, void* out, int width, int height,
                          int row_bytes, int left, int top, int content_width, int content_height) {
    const XposeImage image = {pixels, chroma, width, height, row_bytes, left, top, content_width, content_height};
    for (int thread = 0; thread < XPOSE_HEIGHT * XPOSE_WIDTH; ++thread)
        xpose_letterbox_thread(thread, image, (XposePixel*)out);
}
