// Deformable attention on the GPU: what one lane does. The same code compiles for the host, where the tests run it.
//
// A group of kLanes neighbouring threads (lanes) computes one query of one head. Each lane writes 16 bytes of the
// output. The work has three steps, with an exchange between the lanes after each of the first two:
//   1. xpose_read     A lane reads the logits of its own samples.          Exchange: the largest logit of the group.
//   2. xpose_weigh    A lane turns its own samples into weights and cells. Exchange: the sum of the weights.
//   3. xpose_gather   A lane adds up all samples of the group for its own channels. It asks the owner for each sample.
// On the GPU the exchanges are warp shuffles (deform_attn.cu). On the host they are reads from an array of lanes
// (tests/engines/kernels/deform_attn_host.cpp).
//
// engines/kernels/cuda.py sets these macros:
//   XPOSE_VALUE      type of values and output: 32 for float32, 16 for float16, 17 for bfloat16
//   XPOSE_HEADS, XPOSE_DEPTH, XPOSE_LEVELS, XPOSE_POINTS
//   XPOSE_REFERENCE  numbers of one reference: 2 or 4
// References, offsets, logits, locations, weights and sums over samples are float32. For float16 values, the four
// corners of one sample are blended in float16, two channels per instruction.
#pragma once

#include "deform_attn.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include <math.h>
#include <string.h>
#endif

#define XPOSE_FLOAT16 (XPOSE_VALUE == 16)
#define XPOSE_BFLOAT16 (XPOSE_VALUE == 17)

constexpr int kValueBytes = XPOSE_VALUE == 32 ? 4 : 2;
constexpr int kWordValues = 4 / kValueBytes;    // values in 4 bytes
constexpr int kLaneValues = 16 / kValueBytes;   // channels of one lane: one load of 16 bytes
constexpr int kLanes = XPOSE_DEPTH / kLaneValues;
constexpr int kSamples = XPOSE_LEVELS * XPOSE_POINTS;
constexpr int kRowBytes = XPOSE_HEADS * XPOSE_DEPTH * kValueBytes;  // one token, all heads
constexpr int kMaxLevels = 5;

// How many samples a lane owns: the smallest divisor of kSamples with which kLanes owners are enough.
XPOSE_INLINE constexpr int xpose_own(int samples, int lanes) {
    int own = (samples + lanes - 1) / lanes;
    while (samples % own != 0) ++own;
    return own;
}
constexpr int kOwn = xpose_own(kSamples, kLanes);
constexpr int kOwners = kSamples / kOwn;

// What the owner of a sample passes to the other lanes: the first cell, then weights.
constexpr int kSampleWords = XPOSE_FLOAT16 ? 4 : 5;

static_assert(XPOSE_VALUE == 32 || XPOSE_FLOAT16 || XPOSE_BFLOAT16, "values are float32, float16 or bfloat16");
static_assert(XPOSE_DEPTH % kLaneValues == 0, "the channels of a head must be a multiple of 16 bytes");
static_assert(kLanes <= 32 && (kLanes & (kLanes - 1)) == 0, "a head must have a power of two of 16 bytes, at most 512");
static_assert(XPOSE_REFERENCE == 2 || XPOSE_REFERENCE == 4, "a reference has 2 or 4 numbers");
static_assert(XPOSE_LEVELS <= kMaxLevels, "at most 5 levels");

// Arguments of the launch.
struct XposeShape {
    int queries, tokens;
    int height[XPOSE_LEVELS], width[XPOSE_LEVELS];
};

// The state of one lane between the steps.
struct XposeLane {
    float logit[kOwn];
    float top;                             // largest logit: of the lane after step 1, of the group in step 2
    float total;                           // sum of the weights: of the lane after step 2, of the group in step 3
    unsigned sample[kOwn][kSampleWords];   // see xpose_pack
};

struct alignas(16) XposeChunk {
    unsigned word[4];
};

XPOSE_INLINE unsigned xpose_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

XPOSE_INLINE float xpose_float(unsigned bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// ---- Arithmetic on the two halves of a word. The lower half is the first channel.

#if XPOSE_FLOAT16 && defined(__CUDACC__)

XPOSE_INLINE __half2 xpose_half2(unsigned bits) { return *reinterpret_cast<const __half2*>(&bits); }
XPOSE_INLINE unsigned xpose_half2_bits(__half2 pair) { return *reinterpret_cast<const unsigned*>(&pair); }

XPOSE_INLINE float xpose_lower(unsigned word) { return __low2float(xpose_half2(word)); }
XPOSE_INLINE float xpose_upper(unsigned word) { return __high2float(xpose_half2(word)); }
XPOSE_INLINE unsigned xpose_pair(float lower, float upper) {
    return xpose_half2_bits(__floats2half2_rn(lower, upper));
}

// The four corners of one sample, blended: `top` holds the weights of a and b, `bottom` those of c and d.
XPOSE_INLINE unsigned xpose_blend(unsigned top, unsigned bottom, unsigned a, unsigned b, unsigned c, unsigned d) {
    const __half2 above = xpose_half2(top), below = xpose_half2(bottom);
    __half2 sum = __hmul2(__low2half2(above), xpose_half2(a));
    sum = __hfma2(__high2half2(above), xpose_half2(b), sum);
    sum = __hfma2(__low2half2(below), xpose_half2(c), sum);
    return xpose_half2_bits(__hfma2(__high2half2(below), xpose_half2(d), sum));
}

#elif XPOSE_FLOAT16

XPOSE_INLINE _Float16 xpose_half(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
XPOSE_INLINE unsigned short xpose_half_bits(_Float16 value) {
    unsigned short bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
XPOSE_INLINE float xpose_lower(unsigned word) { return (float)xpose_half((unsigned short)word); }
XPOSE_INLINE float xpose_upper(unsigned word) { return (float)xpose_half((unsigned short)(word >> 16)); }
XPOSE_INLINE unsigned xpose_pair(float lower, float upper) {
    return xpose_half_bits((_Float16)lower) | (unsigned)xpose_half_bits((_Float16)upper) << 16;
}

// One rounding per step, like the GPU's fused multiply-add. In double, a product and a sum of halves are exact.
XPOSE_INLINE _Float16 xpose_blend_one(unsigned top, unsigned bottom, float a, float b, float c, float d) {
    _Float16 sum = (_Float16)((double)xpose_lower(top) * a);
    sum = (_Float16)((double)xpose_upper(top) * b + (double)sum);
    sum = (_Float16)((double)xpose_lower(bottom) * c + (double)sum);
    return (_Float16)((double)xpose_upper(bottom) * d + (double)sum);
}
XPOSE_INLINE unsigned xpose_blend(unsigned top, unsigned bottom, unsigned a, unsigned b, unsigned c, unsigned d) {
    const _Float16 lower =
        xpose_blend_one(top, bottom, xpose_lower(a), xpose_lower(b), xpose_lower(c), xpose_lower(d));
    const _Float16 upper =
        xpose_blend_one(top, bottom, xpose_upper(a), xpose_upper(b), xpose_upper(c), xpose_upper(d));
    return xpose_half_bits(lower) | (unsigned)xpose_half_bits(upper) << 16;
}

#elif XPOSE_BFLOAT16

// A bfloat16 is the upper half of a float32.
XPOSE_INLINE float xpose_lower(unsigned word) { return xpose_float(word << 16); }
XPOSE_INLINE float xpose_upper(unsigned word) { return xpose_float(word & 0xffff0000u); }

XPOSE_INLINE unsigned xpose_bfloat16_bits(float value) {
    const unsigned bits = xpose_bits(value);
    if (value != value) return 0x7fc0u;                          // NaN
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;           // to nearest, ties to even
}
XPOSE_INLINE unsigned xpose_pair(float lower, float upper) {
    return xpose_bfloat16_bits(lower) | xpose_bfloat16_bits(upper) << 16;
}

#endif

// ---- Step 1

// Read `kCount` consecutive floats with the widest loads that the alignment allows. `row` is the length of the rows,
// which begin at multiples of 16 bytes or of their own length; the address is a multiple of `kCount` floats in its row.
template <int kCount, int kRow>
XPOSE_INLINE void xpose_load(const float* from, float* to) {
    constexpr int kWide = kCount % 4 == 0 && kRow % 4 == 0 ? 4 : kCount % 2 == 0 && kRow % 2 == 0 ? 2 : 1;
    struct alignas(4 * kWide) Wide {
        float value[kWide];
    };
#pragma unroll
    for (int i = 0; i < kCount / kWide; ++i) {
        const Wide wide = reinterpret_cast<const Wide*>(from)[i];
#pragma unroll
        for (int j = 0; j < kWide; ++j) to[i * kWide + j] = wide.value[j];
    }
}

// `group` counts queries and heads: (image * queries + query) * heads + head.
XPOSE_INLINE void xpose_read(XposeLane& lane, int index, long long group, const float* logits) {
    lane.top = -3.402823466e38f;
    lane.total = 0.0f;
    if (index >= kOwners) return;
    xpose_load<kOwn, kSamples>(logits + group * kSamples + index * kOwn, lane.logit);
#pragma unroll
    for (int slot = 0; slot < kOwn; ++slot) lane.top = lane.logit[slot] > lane.top ? lane.logit[slot] : lane.top;
}

// ---- Step 2

// Two neighbouring cells along one axis of a level, both inside the level, and their bilinear weights. A level of one
// cell along the axis has no second cell, so the second weight is 0.
struct XposePair {
    int first;
    float weight_first, weight_second;
};

// A cell's weight falls off linearly from 1 at its centre to 0 at its neighbours' centres, so a location outside the
// level gets the right weights too. NaN counts as outside.
XPOSE_INLINE XposePair xpose_axis_pair(float cells, int size) {
    const float near_level = fminf(fmaxf(cells - 0.5f, -2.0f), (float)size);  // fmaxf of NaN and a number is the number
    const float first = fminf(fmaxf(floorf(near_level), 0.0f), (float)(size > 1 ? size - 2 : 0));
    const float distance = near_level - first;
    XposePair pair;
    pair.first = (int)first;
    pair.weight_first = fmaxf(1.0f - fabsf(distance), 0.0f);
    pair.weight_second = size > 1 ? fmaxf(1.0f - fabsf(distance - 1.0f), 0.0f) : 0.0f;
    return pair;
}

// Words of a sample: its first token in the image; then, for float16, the sample's weight and the
// corners' weights as two pairs of halves; else the four corners' weights, multiplied by the sample's, as floats.
XPOSE_INLINE void xpose_pack(unsigned* words, unsigned token, float weight, const XposePair& x, const XposePair& y) {
    words[0] = token;
#if XPOSE_FLOAT16
    words[1] = xpose_bits(weight);
    words[2] = xpose_pair(y.weight_first * x.weight_first, y.weight_first * x.weight_second);
    words[3] = xpose_pair(y.weight_second * x.weight_first, y.weight_second * x.weight_second);
#else
    const float top = weight * y.weight_first, bottom = weight * y.weight_second;
    words[1] = xpose_bits(top * x.weight_first);
    words[2] = xpose_bits(top * x.weight_second);
    words[3] = xpose_bits(bottom * x.weight_first);
    words[4] = xpose_bits(bottom * x.weight_second);
#endif
}

XPOSE_INLINE void xpose_weigh(XposeLane& lane, int index, long long group, const XposeShape& shape,
                              const float* reference, const float* offsets) {
    if (index >= kOwners) return;
    const long long query = group / XPOSE_HEADS;  // over (image, query)
    float offset[2 * kOwn];
    xpose_load<2 * kOwn, 2 * kSamples>(offsets + (group * kSamples + index * kOwn) * 2, offset);
#pragma unroll
    for (int slot = 0; slot < kOwn; ++slot) {
        const int level = (index * kOwn + slot) / XPOSE_POINTS;
        int height = shape.height[0], width = shape.width[0], start = 0, begin = 0;
#pragma unroll
        for (int other = 1; other < XPOSE_LEVELS; ++other) {  // select: indexing would put sizes into local memory
            begin += shape.height[other - 1] * shape.width[other - 1];
            height = level >= other ? shape.height[other] : height;
            width = level >= other ? shape.width[other] : width;
            start = level >= other ? begin : start;
        }
        float at[XPOSE_REFERENCE];
        xpose_load<XPOSE_REFERENCE, XPOSE_REFERENCE>(
            reference + (query * XPOSE_LEVELS + level) * XPOSE_REFERENCE, at);
        const XposeFrame frame_x = xpose_frame(at, XPOSE_REFERENCE, 0, width, XPOSE_POINTS);
        const XposeFrame frame_y = xpose_frame(at, XPOSE_REFERENCE, 1, height, XPOSE_POINTS);
        XposePair x = xpose_axis_pair(frame_x.base + frame_x.scale * offset[2 * slot], width);
        const XposePair y = xpose_axis_pair(frame_y.base + frame_y.scale * offset[2 * slot + 1], height);
        const float weight = expf(lane.logit[slot] - lane.top);
        lane.total += weight;
        int token = start + y.first * width + x.first;
        if (width == 1 && token > 0) {  // the cell becomes the second one, so that no read passes the last token
            --token;
            x.weight_second = x.weight_first;
            x.weight_first = 0.0f;
        }
        xpose_pack(lane.sample[slot], (unsigned)token, weight, x, y);
    }
}

// ---- Step 3

// Add one sample, given its words and the 16 bytes of its four corners, to the sums of the lane.
XPOSE_INLINE void xpose_add(float* sum, const unsigned* words, const XposeChunk& a, const XposeChunk& b,
                            const XposeChunk& c, const XposeChunk& d) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if XPOSE_FLOAT16
        const float weight = xpose_float(words[1]);
        const unsigned blended = xpose_blend(words[2], words[3], a.word[i], b.word[i], c.word[i], d.word[i]);
        sum[2 * i] += weight * xpose_lower(blended);
        sum[2 * i + 1] += weight * xpose_upper(blended);
#else
        const unsigned corner[4] = {a.word[i], b.word[i], c.word[i], d.word[i]};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float weight = xpose_float(words[1 + j]);
#if XPOSE_BFLOAT16
            sum[2 * i] += weight * xpose_lower(corner[j]);
            sum[2 * i + 1] += weight * xpose_upper(corner[j]);
#else
            sum[i] += weight * xpose_float(corner[j]);
#endif
        }
#endif
    }
}

// `exchange.word(slot, word, owner)` gives a word of the sample that the lane `owner` holds at `slot`. `value` points
// at the channels of this lane in the image's first token. Every sample reads its first token, the next one, and the
// two below them. A level of one row has none below, so the first two are read twice. There must be at least three
// tokens, because the first level may have only one column.
template <class Exchange>
XPOSE_INLINE XposeChunk xpose_gather(const Exchange& exchange, const XposeShape& shape, const unsigned char* value,
                                     float total) {
    float sum[kLaneValues] = {};
#pragma unroll
    for (int level = 0; level < XPOSE_LEVELS; ++level) {
        const unsigned below = shape.height[level] > 1 ? (unsigned)(shape.width[level] * kRowBytes) : 0u;
#pragma unroll
        for (int point = 0; point < XPOSE_POINTS; ++point) {
            const int sample = level * XPOSE_POINTS + point;
            unsigned words[kSampleWords];
#pragma unroll
            for (int word = 0; word < kSampleWords; ++word)
                words[word] = exchange.word(sample % kOwn, word, sample / kOwn);
            const unsigned char* first = value + (unsigned long long)words[0] * kRowBytes;
            const XposeChunk a = *reinterpret_cast<const XposeChunk*>(first);
            const XposeChunk b = *reinterpret_cast<const XposeChunk*>(first + kRowBytes);
            const XposeChunk c = *reinterpret_cast<const XposeChunk*>(first + below);
            const XposeChunk d = *reinterpret_cast<const XposeChunk*>(first + below + kRowBytes);
            xpose_add(sum, words, a, b, c, d);
        }
    }
    const float inverse = 1.0f / total;
    XposeChunk result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if XPOSE_FLOAT16 || XPOSE_BFLOAT16
        result.word[i] = xpose_pair(sum[2 * i] * inverse, sum[2 * i + 1] * inverse);
#else
        result.word[i] = xpose_bits(sum[i] * inverse);
#endif
    }
    return result;
}
