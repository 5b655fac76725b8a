// Deformable attention for CPUs: one pass forward, one pass backward.
//
// Built by engines/kernels/cpu.py with the machine's own compiler. Each (query, head) first turns its points into a
// list of row addresses and weights, which vectorises over the points, then sums the rows, which vectorises over the
// channels. Shape suffixes as in reference.py: B, S, M, D, Q, L, P; R is 2 or 4.
#include <stdint.h>
#include <string.h>

#include "deform_attn.h"

namespace {

constexpr int kMaxSamples = 64;   // L * P; cpu.py checks it
constexpr int kMaxDepth = 256;    // D; cpu.py checks it

struct Bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(Bfloat16 value) {
    const uint32_t bits = (uint32_t)value.bits << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
inline void store(float* at, float value) { *at = value; }
inline void store(Bfloat16* at, float value) {  // to nearest even; a sum of finite values, so no NaN to preserve
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    at->bits = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// exp(x) for x <= 0 to 1e-7 relative, in a form that vectorises: 2^n * 2^f with |f| <= 1/2.
inline float exp_negative(float x) {
    const float scaled = (x < -87.0f ? -87.0f : x) * 1.44269504f;
    const float whole = __builtin_floorf(scaled + 0.5f);
    const float f = scaled - whole;  // Taylor series of 2^f, ln(2)^k / k!
    const float power = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
                        f * (0.00133335581f + f * 0.000154035304f)))));
    const int32_t exponent = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &exponent, sizeof scale);
    return power * scale;
}

struct Shape {
    int64_t batch, queries, tokens;
    int32_t heads, depth, levels, points, reference_size, threads;
    const int32_t* sizes_L2;
};

inline void softmax(const float* logits, int samples, float* weights) {
    float top = logits[0];
    for (int i = 1; i < samples; ++i) top = logits[i] > top ? logits[i] : top;
    for (int i = 0; i < samples; ++i) weights[i] = exp_negative(logits[i] - top);
    float sum = 0.0f;
    for (int i = 0; i < samples; ++i) sum += weights[i];
    const float inverse = 1.0f / sum;
    for (int i = 0; i < samples; ++i) weights[i] *= inverse;
}

// The points of one (query, head) along both axes, and the first token of each point's level.
struct Samples {
    XposeAxis x[kMaxSamples], y[kMaxSamples];
    int32_t first[kMaxSamples], width[kMaxSamples];
};

inline void locate(const Shape& shape, const float* reference_LR, const float* offsets_LP2, Samples& samples) {
    const float inverse_points = 1.0f / (float)shape.points;
    int first = 0;
    for (int level = 0, i = 0; level < shape.levels; ++level) {
        const int height = shape.sizes_L2[2 * level], width = shape.sizes_L2[2 * level + 1];
        const float* ref = reference_LR + level * shape.reference_size;
        for (int point = 0; point < shape.points; ++point, ++i) {
            const float dx = offsets_LP2[2 * i], dy = offsets_LP2[2 * i + 1];
            const XposePoint at = shape.reference_size == 2 ? xpose_point_2d(ref, dx, dy, height, width)
                                                            : xpose_point_4d(ref, dx, dy, height, width, inverse_points);
            samples.x[i] = xpose_axis(at.x, width);
            samples.y[i] = xpose_axis(at.y, height);
            samples.first[i] = first;
            samples.width[i] = width;
        }
        first += height * width;
    }
}

struct Row {
    int32_t token;
    float weight;
};

inline void corners(const Samples& samples, int i, Row* rows) {
    const XposeAxis &x = samples.x[i], &y = samples.y[i];
    const int top = samples.first[i] + y.low * samples.width[i], bottom = samples.first[i] + y.high * samples.width[i];
    rows[0] = {top + x.low, y.weight_low * x.weight_low};
    rows[1] = {top + x.high, y.weight_low * x.weight_high};
    rows[2] = {bottom + x.low, y.weight_high * x.weight_low};
    rows[3] = {bottom + x.high, y.weight_high * x.weight_high};
}

template <typename T, int kDepth>
void forward(const Shape& shape, const T* value, const float* reference, const float* offsets, const float* logits,
             T* out) {
    const int depth = kDepth ? kDepth : shape.depth, samples_LP = shape.levels * shape.points;
    const int64_t stride = (int64_t)shape.heads * depth, total = shape.batch * shape.queries;
#pragma omp parallel for schedule(dynamic, 16) num_threads(shape.threads)
    for (int64_t query = 0; query < total; ++query) {
        const T* value_SMD = value + query / shape.queries * shape.tokens * stride;
        const float* reference_LR = reference + query * shape.levels * shape.reference_size;
        float weights[kMaxSamples];
        Samples samples;
        Row rows[4 * kMaxSamples];
        for (int head = 0; head < shape.heads; ++head) {
            const int64_t first = (query * shape.heads + head) * samples_LP;
            softmax(logits + first, samples_LP, weights);
            locate(shape, reference_LR, offsets + 2 * first, samples);
            for (int i = 0; i < samples_LP; ++i) {
                corners(samples, i, rows + 4 * i);
                for (int c = 0; c < 4; ++c) rows[4 * i + c].weight *= weights[i];
            }
            float sum[kDepth ? kDepth : kMaxDepth] = {};
            for (int r = 0; r < 4 * samples_LP; ++r) {
                const T* row = value_SMD + rows[r].token * stride + head * depth;
                const float weight = rows[r].weight;
                for (int d = 0; d < depth; ++d) sum[d] += weight * load(row[d]);
            }
            T* at = out + query * stride + head * depth;
            for (int d = 0; d < depth; ++d) store(at + d, sum[d]);
        }
    }
}

struct Gradients {
    float *value, *reference, *offsets, *logits;
};

// All queries of one (image, head), which alone touch that head's channels of grad_value: no two threads meet.
template <int kDepth>
void backward_head(const Shape& shape, int64_t image, int head, const float* grad_out, const float* value,
                   const float* reference, const float* offsets, const float* logits, const Gradients& grads) {
    const int depth = kDepth ? kDepth : shape.depth, samples_LP = shape.levels * shape.points;
    const int64_t stride = (int64_t)shape.heads * depth;
    const float* value_SMD = value + image * shape.tokens * stride + head * depth;
    float* grad_value_SMD = grads.value + image * shape.tokens * stride + head * depth;
    float weights[kMaxSamples], grad_weights[kMaxSamples];
    Samples samples;
    for (int64_t query = image * shape.queries; query < (image + 1) * shape.queries; ++query) {
        const int64_t first = (query * shape.heads + head) * samples_LP;
        const float* grad = grad_out + query * stride + head * depth;
        softmax(logits + first, samples_LP, weights);
        locate(shape, reference + query * shape.levels * shape.reference_size, offsets + 2 * first, samples);
        float mean = 0.0f;
        for (int i = 0; i < samples_LP; ++i) {
            Row rows[4];
            corners(samples, i, rows);
            float dots[4];
            for (int c = 0; c < 4; ++c) {
                const float* row = value_SMD + rows[c].token * stride;
                float* grad_row = grad_value_SMD + rows[c].token * stride;
                const float weight = rows[c].weight * weights[i];
                float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
                for (int d = 0; d < depth; ++d) {
                    dot += grad[d] * row[d];
                    grad_row[d] += weight * grad[d];
                }
                dots[c] = dot;
            }
            const XposeAxis &x = samples.x[i], &y = samples.y[i];
            const float left = y.weight_low * dots[0] + y.weight_high * dots[2];
            const float right = y.weight_low * dots[1] + y.weight_high * dots[3];
            const float above = x.weight_low * dots[0] + x.weight_high * dots[1];
            const float below = x.weight_low * dots[2] + x.weight_high * dots[3];
            grad_weights[i] = x.weight_low * left + x.weight_high * right;
            mean += weights[i] * grad_weights[i];
            grads.offsets[2 * (first + i)] = weights[i] * (x.inside_high * right - x.inside_low * left);
            grads.offsets[2 * (first + i) + 1] = weights[i] * (y.inside_high * below - y.inside_low * above);
        }
        for (int i = 0; i < samples_LP; ++i) grads.logits[first + i] = weights[i] * (grad_weights[i] - mean);
    }
}

// Turn the gradients by location, in cells, into those by reference and by offset.
void backward_locations(const Shape& shape, const float* reference, const float* offsets, const Gradients& grads) {
    const int64_t total = shape.batch * shape.queries * shape.levels;
    const int size = shape.reference_size, samples_LP = shape.levels * shape.points;
#pragma omp parallel for schedule(static) num_threads(shape.threads)
    for (int64_t at = 0; at < total; ++at) {
        const int level = (int)(at % shape.levels);
        const int64_t query = at / shape.levels;
        const float extent[2] = {(float)shape.sizes_L2[2 * level + 1], (float)shape.sizes_L2[2 * level]};
        const float* ref = reference + at * size;
        float* grad_ref = grads.reference + at * size;
        for (int head = 0; head < shape.heads; ++head) {
            const int64_t first = (query * shape.heads + head) * samples_LP + level * shape.points;
            for (int64_t i = 2 * first; i < 2 * (first + shape.points); ++i) {
                const int axis = (int)(i & 1);
                const float grad = grads.offsets[i];
                grad_ref[axis] += grad * extent[axis];
                if (size == 2) continue;  // offsets are in cells already
                const float share = 0.5f * extent[axis] / (float)shape.points;
                grad_ref[2 + axis] += grad * offsets[i] * share;
                grads.offsets[i] = grad * ref[2 + axis] * share;
            }
        }
    }
}

}  // namespace

extern "C" void xpose_forward_float32(const Shape* shape, const float* value, const float* reference,
                                      const float* offsets, const float* logits, float* out) {
    (shape->depth == 32 ? forward<float, 32> : forward<float, 0>)(*shape, value, reference, offsets, logits, out);
}

extern "C" void xpose_forward_bfloat16(const Shape* shape, const Bfloat16* value, const float* reference,
                                       const float* offsets, const float* logits, Bfloat16* out) {
    (shape->depth == 32 ? forward<Bfloat16, 32> : forward<Bfloat16, 0>)(*shape, value, reference, offsets, logits, out);
}

// grad_value and grad_reference must come zeroed: they are added to.
extern "C" void xpose_backward_float32(const Shape* shape, const float* grad_out, const float* value,
                                       const float* reference, const float* offsets, const float* logits,
                                       float* grad_value, float* grad_reference, float* grad_offsets,
                                       float* grad_logits) {
    const Gradients grads = {grad_value, grad_reference, grad_offsets, grad_logits};
    const auto head = shape->depth == 32 ? backward_head<32> : backward_head<0>;
#pragma omp parallel for schedule(dynamic, 1) num_threads(shape->threads)
    for (int64_t job = 0; job < shape->batch * shape->heads; ++job)
        head(*shape, job / shape->heads, (int)(job % shape->heads), grad_out, value, reference, offsets, logits, grads);
    backward_locations(*shape, reference, offsets, grads);
}
