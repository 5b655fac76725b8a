// Deformable attention for CPUs: one pass forward, one pass backward.
//
// engines/kernels/cpu.py compiles this file with the machine's own compiler. For each (query, head), the first step
// turns the points into a list of row addresses and weights; it vectorises over the points. The second step sums the
// rows; it vectorises over the channels. Shape suffixes as in reference.py: B, S, M, D, Q, L, P; R is 2 or 4.
#include <vector>

#include "attention_cpu.h"
#include "deform_attn.h"
#include "lanes.h"

namespace {

constexpr int kMaxSamples = 64;   // L * P; cpu.py checks it

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

struct Bfloat16 {
    uint16_t bits;
};

inline Lanes load(const Bfloat16* at) {
    Halves halves;
    memcpy(&halves, at, sizeof halves);
    return (Lanes)(__builtin_convertvector(halves, Words) << 16);
}
inline void store(Bfloat16* at, const Lanes& lanes) {  // rounds to nearest even; the input is a finite sum, never NaN
    const Words bits = (Words)lanes;
    const Halves halves = __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Halves);
    memcpy(at, &halves, sizeof halves);
}

using Shape = XposeDeformShape;

// Loops over points run in whole blocks of a length that the compiler knows. Results past the last point are not used.
constexpr int kBlock = 16;
#define XPOSE_BLOCKS(i, samples)                                   \
    for (int block = 0; block < (samples); block += kBlock)        \
        _Pragma("omp simd") for (int i = block; i < block + kBlock; ++i)

inline void softmax(const float* logits, int samples, float* weights) {
    float top = logits[0];
    for (int i = 1; i < samples; ++i) top = logits[i] > top ? logits[i] : top;
    float padded[kMaxSamples] = {};
    memcpy(padded, logits, sizeof(float) * samples);
    XPOSE_BLOCKS(i, samples) weights[i] = exp_negative(padded[i] - top);
    float sum = 0.0f;
    for (int i = 0; i < samples; ++i) sum += weights[i];
    const float inverse = 1.0f / sum;
    XPOSE_BLOCKS(i, samples) weights[i] *= inverse;
}

// The level of each point, the same for every query: its first token, its width and its height.
struct Levels {
    int32_t token[kMaxSamples], width[kMaxSamples], height[kMaxSamples];
};

Levels levels_of(const Shape& shape) {
    Levels levels = {};
    int token = 0, i = 0;
    for (int level = 0; level < shape.levels; ++level) {
        const int height = shape.sizes_L2[2 * level], width = shape.sizes_L2[2 * level + 1];
        for (int point = 0; point < shape.points; ++point, ++i)
            levels.token[i] = token, levels.width[i] = width, levels.height[i] = height;
        token += height * width;
    }
    return levels;
}

// The points of one (query, head): the four tokens around each point, and the bilinear weights along both axes.
struct Samples {
    int32_t token[4][kMaxSamples];  // top left, top right, bottom left, bottom right
    float left[kMaxSamples], right[kMaxSamples], top[kMaxSamples], bottom[kMaxSamples];
    float inside_left[kMaxSamples], inside_right[kMaxSamples], inside_top[kMaxSamples], inside_bottom[kMaxSamples];
};

inline void locate(const Shape& shape, const Levels& levels, const float* reference_LR, const float* offsets_LP2,
                   Samples& samples) {
    float x_cells[kMaxSamples] = {}, y_cells[kMaxSamples] = {};
    for (int level = 0, i = 0; level < shape.levels; ++level) {
        const float* reference = reference_LR + level * shape.reference_size;
        const XposeFrame x = xpose_frame(reference, shape.reference_size, 0, levels.width[i], shape.points);
        const XposeFrame y = xpose_frame(reference, shape.reference_size, 1, levels.height[i], shape.points);
        for (int point = 0; point < shape.points; ++point, ++i) {
            x_cells[i] = x.base + x.scale * offsets_LP2[2 * i];
            y_cells[i] = y.base + y.scale * offsets_LP2[2 * i + 1];
        }
    }
    XPOSE_BLOCKS(i, shape.levels * shape.points) {
        const XposeAxis x = xpose_axis(x_cells[i], levels.width[i]), y = xpose_axis(y_cells[i], levels.height[i]);
        const int top = levels.token[i] + y.low * levels.width[i], bottom = levels.token[i] + y.high * levels.width[i];
        samples.token[0][i] = top + x.low, samples.token[1][i] = top + x.high;
        samples.token[2][i] = bottom + x.low, samples.token[3][i] = bottom + x.high;
        samples.left[i] = x.weight_low, samples.right[i] = x.weight_high;
        samples.top[i] = y.weight_low, samples.bottom[i] = y.weight_high;
        samples.inside_left[i] = x.inside_low, samples.inside_right[i] = x.inside_high;
        samples.inside_top[i] = y.inside_low, samples.inside_bottom[i] = y.inside_high;
    }
}

// One (query, head). There are two sums per lane, so that an addition does not wait for the one before it.
template <typename T, int kVectors>
void forward_head(const Shape& shape, const Levels& levels, const T* value_SD, const float* reference_LR,
                  const float* offsets_LP2, const float* logits_LP, T* out_D) {
    const int samples_LP = shape.levels * shape.points;
    const int64_t stride = (int64_t)shape.heads * kVectors * kLanes;
    float weights[kMaxSamples], corner[4][kMaxSamples];
    Samples samples;
    softmax(logits_LP, samples_LP, weights);
    locate(shape, levels, reference_LR, offsets_LP2, samples);
    XPOSE_BLOCKS(i, samples_LP) {
        const float top = weights[i] * samples.top[i], bottom = weights[i] * samples.bottom[i];
        corner[0][i] = top * samples.left[i], corner[1][i] = top * samples.right[i];
        corner[2][i] = bottom * samples.left[i], corner[3][i] = bottom * samples.right[i];
    }
    Lanes sum[2][kVectors] = {};
    for (int i = 0; i < samples_LP; ++i)
        for (int c = 0; c < 4; ++c) {
            const T* row = value_SD + samples.token[c][i] * stride;
            for (int v = 0; v < kVectors; ++v) sum[c & 1][v] += corner[c][i] * load(row + v * kLanes);
        }
    for (int v = 0; v < kVectors; ++v) store(out_D + v * kLanes, sum[0][v] + sum[1][v]);
}

// Computes one head after another for a run of queries. Neighbouring queries sample the same rows of the same head, so
// these rows stay in the cache.
template <typename T, int kVectors>
void forward(const Shape& shape, const T* value, const float* reference, const float* offsets, const float* logits,
             T* out) {
    const int depth = kVectors * kLanes, samples_LP = shape.levels * shape.points;
    const int64_t stride = (int64_t)shape.heads * depth, total = shape.batch * shape.queries;
    const int64_t shared = total / (4 * shape.threads), run = shared < 1 ? 1 : shared < 64 ? shared : 64;
    const Levels levels = levels_of(shape);
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int64_t begin = 0; begin < total; begin += run) {
        const int64_t end = begin + run < total ? begin + run : total;
        for (int head = 0; head < shape.heads; ++head)
            for (int64_t query = begin; query < end; ++query) {
                const int64_t first = (query * shape.heads + head) * samples_LP;
                const T* value_SD = value + query / shape.queries * shape.tokens * stride + head * depth;
                const float* reference_LR = reference + query * shape.levels * shape.reference_size;
                forward_head<T, kVectors>(shape, levels, value_SD, reference_LR, offsets + 2 * first, logits + first,
                                          out + query * stride + head * depth);
            }
    }
}

struct Inputs {
    const float *grad_out, *value, *reference, *offsets, *logits;
};
struct Gradients {
    float *value, *reference, *offsets, *logits;
};

inline float total_of(const Lanes& lanes) {
    float at[kLanes], total = 0.0f;
    store(at, lanes);
#pragma omp simd reduction(+ : total)
    for (int lane = 0; lane < kLanes; ++lane) total += at[lane];
    return total;
}

// One (query, head). `grad_offsets_LP2` receives the gradient with respect to the locations, in cells, which
// backward_locations converts.
template <int kVectors>
void backward_query(const Shape& shape, const Levels& levels, const float* grad_D, const float* value_SD,
                    const float* reference_LR, const float* offsets_LP2, const float* logits_LP, float* grad_value_SD,
                    float* grad_offsets_LP2, float* grad_logits_LP) {
    const int samples_LP = shape.levels * shape.points;
    constexpr int64_t stride = kVectors * kLanes;
    float weights[kMaxSamples], grad_weights[kMaxSamples], mean = 0.0f;
    Samples samples;
    softmax(logits_LP, samples_LP, weights);
    locate(shape, levels, reference_LR, offsets_LP2, samples);
    Lanes grad[kVectors];
    for (int v = 0; v < kVectors; ++v) grad[v] = load(grad_D + v * kLanes);
    for (int i = 0; i < samples_LP; ++i) {
        const float x[2] = {samples.left[i], samples.right[i]}, y[2] = {samples.top[i], samples.bottom[i]};
        float dots[4];
        for (int c = 0; c < 4; ++c) {
            const float* row = value_SD + samples.token[c][i] * stride;
            float* grad_row = grad_value_SD + samples.token[c][i] * stride;
            const float weight = y[c >> 1] * x[c & 1] * weights[i];
            Lanes dot = {};
            for (int v = 0; v < kVectors; ++v) {
                dot += grad[v] * load(row + v * kLanes);
                store(grad_row + v * kLanes, load(grad_row + v * kLanes) + weight * grad[v]);
            }
            dots[c] = total_of(dot);
        }
        const float left = y[0] * dots[0] + y[1] * dots[2], right = y[0] * dots[1] + y[1] * dots[3];
        const float top = x[0] * dots[0] + x[1] * dots[1], bottom = x[0] * dots[2] + x[1] * dots[3];
        grad_weights[i] = x[0] * left + x[1] * right;
        mean += weights[i] * grad_weights[i];
        grad_offsets_LP2[2 * i] = weights[i] * (samples.inside_right[i] * right - samples.inside_left[i] * left);
        grad_offsets_LP2[2 * i + 1] = weights[i] * (samples.inside_bottom[i] * bottom - samples.inside_top[i] * top);
    }
    for (int i = 0; i < samples_LP; ++i) grad_logits_LP[i] = weights[i] * (grad_weights[i] - mean);
}

// One thread computes all queries of one (image, head) on a copy of the channels of that head. So no two threads write
// to the same memory, and the rows of neighbouring tokens are adjacent. In the full tensors these rows are far apart
// and compete for a few sets of the cache.
template <int kVectors>
void backward(const Shape& shape, const Inputs& in, const Gradients& grads) {
    constexpr int depth = kVectors * kLanes;
    const int samples_LP = shape.levels * shape.points;
    const int64_t stride = (int64_t)shape.heads * depth;
    const Levels levels = levels_of(shape);
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape.threads)
    for (int64_t job = 0; job < shape.batch * shape.heads; ++job) {
        const int64_t image = job / shape.heads, head = job % shape.heads;
        const int64_t value_at = image * shape.tokens * stride + head * depth;
        std::vector<float> value_SD(shape.tokens * depth), grad_value_SD(shape.tokens * depth);
        for (int64_t token = 0; token < shape.tokens; ++token)
            memcpy(&value_SD[token * depth], in.value + value_at + token * stride, sizeof(float) * depth);
        for (int64_t query = image * shape.queries; query < (image + 1) * shape.queries; ++query) {
            const int64_t first = (query * shape.heads + head) * samples_LP;
            backward_query<kVectors>(shape, levels, in.grad_out + query * stride + head * depth, value_SD.data(),
                                     in.reference + query * shape.levels * shape.reference_size, in.offsets + 2 * first,
                                     in.logits + first, grad_value_SD.data(), grads.offsets + 2 * first,
                                     grads.logits + first);
        }
        for (int64_t token = 0; token < shape.tokens; ++token)
            memcpy(grads.value + value_at + token * stride, &grad_value_SD[token * depth], sizeof(float) * depth);
    }
}

// Converts gradients with respect to locations, in cells, to gradients with respect to references and offsets.
void backward_locations(const Shape& shape, const Inputs& in, const Gradients& grads) {
    const int size = shape.reference_size, samples_LP = shape.levels * shape.points;
#pragma omp parallel for schedule(static) num_threads(shape.threads)
    for (int64_t at = 0; at < shape.batch * shape.queries * shape.levels; ++at) {
        const int level = (int)(at % shape.levels);
        const int64_t query = at / shape.levels;
        const float* reference = in.reference + at * size;
        float* grad_reference = grads.reference + at * size;
        for (int axis = 0; axis < 2; ++axis) {
            const int cells = shape.sizes_L2[2 * level + 1 - axis];
            const float scale = xpose_frame(reference, size, axis, cells, shape.points).scale;
            const float share = 0.5f * (float)cells / (float)shape.points;
            for (int head = 0; head < shape.heads; ++head) {
                const int64_t first = (query * shape.heads + head) * samples_LP + level * shape.points;
                for (int64_t i = 2 * first + axis; i < 2 * (first + shape.points); i += 2) {
                    const float grad = grads.offsets[i];
                    grad_reference[axis] += grad * (float)cells;
                    if (size == 4) grad_reference[2 + axis] += grad * in.offsets[i] * share;
                    grads.offsets[i] = grad * scale;
                }
            }
        }
    }
}

template <typename T>
void forward_any(const Shape& shape, const T* value, const float* reference, const float* offsets, const float* logits,
                 T* out) {
    const auto run = shape.depth == 16   ? forward<T, 16 / kLanes>
                     : shape.depth == 32 ? forward<T, 32 / kLanes>
                                         : forward<T, 64 / kLanes>;
    run(shape, value, reference, offsets, logits, out);
}

}  // namespace

// `shape->depth` is 16, 32 or 64; cpu.py checks it.
extern "C" void xpose_forward_float32(const Shape* shape, const float* value, const float* reference,
                                      const float* offsets, const float* logits, float* out) {
    forward_any(*shape, value, reference, offsets, logits, out);
}

extern "C" void xpose_forward_bfloat16(const Shape* shape, const Bfloat16* value, const float* reference,
                                       const float* offsets, const float* logits, Bfloat16* out) {
    forward_any(*shape, value, reference, offsets, logits, out);
}

// The caller sets the gradient with respect to the reference to zero, because this function adds to it.
extern "C" void xpose_backward_float32(const Shape* shape, const float* grad_out, const float* value,
                                       const float* reference, const float* offsets, const float* logits,
                                       float* grad_value, float* grad_reference, float* grad_offsets,
                                       float* grad_logits) {
    const Inputs in = {grad_out, value, reference, offsets, logits};
    const Gradients grads = {grad_value, grad_reference, grad_offsets, grad_logits};
    const auto run = shape->depth == 16   ? backward<16 / kLanes>
                     : shape->depth == 32 ? backward<32 / kLanes>
                                          : backward<64 / kLanes>;
    run(*shape, in, grads);
    backward_locations(*shape, in, grads);
}
