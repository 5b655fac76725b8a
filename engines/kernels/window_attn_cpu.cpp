// Swin's attention inside windows of 4 x 4 tokens for CPUs: forward only.
//
// engines/kernels/cpu.py compiles this file with the machine's own compiler. The tokens of a window are addressed where
// they are in the map, so no tensor is rolled, split or transposed. The scores of one query and head vectorise over the
// keys. Shape suffixes as in engines/xpose/swin.py: B, H, W, T, M; D channels of a head.
#include "attention_cpu.h"
#include "lanes.h"

namespace {

constexpr int kWindow = 4;  // cpu.py checks it
constexpr int kTokens = kWindow * kWindow;
constexpr float kOtherRegion = -100.0f;  // OTHER_REGION in swin.py

using WindowShape = XposeWindowShape;

// The places of a window's tokens in the map, and the region of each. Only tokens of the same region attend to each
// other: the roll brings tokens of distant regions into one window.
struct Window {
    int64_t token[kTokens];
    int32_t region[kTokens];
};

inline int region_along(int64_t place, int64_t length, int shift) {
    return (place >= length - kWindow) + (place >= length - shift);
}

inline Window window_at(const WindowShape& shape, int64_t image, int64_t top, int64_t left) {
    Window window;
    for (int t = 0; t < kTokens; ++t) {
        const int64_t row = top + t / kWindow, column = left + t % kWindow;
        const int64_t from_row = (row + shape.shift) % shape.height, from_column = (column + shape.shift) % shape.width;
        window.token[t] = (image * shape.height + from_row) * shape.width + from_column;
        window.region[t] = 3 * region_along(row, shape.height, shape.shift) +
                           region_along(column, shape.width, shape.shift);
    }
    return window;
}

// One head of one window. `qkv` and `out` point at the channels of this head in the first token of the map.
template <int kDepth>
void attend(const Window& window, int64_t channels, const float* qkv, const float* bias_TT, float* out) {
    const float scale = 1.0f / __builtin_sqrtf((float)kDepth);
    float key_DT[kDepth][kTokens], value_TD[kTokens][kDepth];
    for (int t = 0; t < kTokens; ++t) {
        const float* token = qkv + window.token[t] * 3 * channels;
        for (int d = 0; d < kDepth; ++d) key_DT[d][t] = token[channels + d];
        memcpy(value_TD[t], token + 2 * channels, sizeof value_TD[t]);
    }
    for (int t = 0; t < kTokens; ++t) {
        const float* query = qkv + window.token[t] * 3 * channels;
        float score[kTokens], sum_D[kDepth] = {}, top, sum = 0.0f;
        Lanes lanes[kTokens / kLanes] = {};
        for (int d = 0; d < kDepth; ++d)
            for (int v = 0; v < kTokens / kLanes; ++v) lanes[v] += query[d] * load(&key_DT[d][v * kLanes]);
        for (int v = 0; v < kTokens / kLanes; ++v) store(&score[v * kLanes], lanes[v]);
#pragma omp simd
        for (int s = 0; s < kTokens; ++s) {
            const float other = window.region[s] == window.region[t] ? 0.0f : kOtherRegion;
            score[s] = score[s] * scale + bias_TT[t * kTokens + s] + other;
        }
        top = score[0];
#pragma omp simd reduction(max : top)
        for (int s = 0; s < kTokens; ++s) top = score[s] > top ? score[s] : top;
#pragma omp simd reduction(+ : sum)
        for (int s = 0; s < kTokens; ++s) {
            score[s] = exp_negative(score[s] - top);
            sum += score[s];
        }
        for (int s = 0; s < kTokens; ++s)
#pragma omp simd
            for (int d = 0; d < kDepth; ++d) sum_D[d] += score[s] * value_TD[s][d];
        float* row = out + window.token[t] * channels;
#pragma omp simd
        for (int d = 0; d < kDepth; ++d) row[d] = sum_D[d] / sum;
    }
}

template <int kDepth>
void windows(const WindowShape& shape, const float* qkv, const float* bias_MTT, float* out) {
    const int64_t down = shape.height / kWindow, across = shape.width / kWindow, channels = shape.heads * kDepth;
#pragma omp parallel for schedule(static) num_threads(shape.threads)
    for (int64_t row = shape.first_row; row < shape.last_row; ++row)
        for (int64_t column = 0; column < across; ++column) {
            const Window window = window_at(shape, row / down, row % down * kWindow, column * kWindow);
            for (int head = 0; head < shape.heads; ++head)
                attend<kDepth>(window, channels, qkv + head * kDepth, bias_MTT + head * kTokens * kTokens,
                               out + head * kDepth);
        }
}

}  // namespace

// `shape->depth` is 12 or 24; cpu.py checks it.
extern "C" void xpose_window_attention(const WindowShape* shape, const float* qkv, const float* bias, float* out) {
    const auto run = shape->depth == 12 ? windows<12> : windows<24>;
    run(*shape, qkv, bias, out);
}
