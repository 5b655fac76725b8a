// Deformable and window attention as operators of OpenVINO, on the kernels that eager PyTorch uses.
//
// Built by engines/kernels/openvino_operators.py. All tensors are float32: a network that computes in bfloat16 converts
// around these operators. Work is shared out among the threads of the inference request's own arena.
#include <algorithm>
#include <memory>
#include <vector>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>
#include <openvino/op/op.hpp>

#include "attention_cpu.h"

namespace {

constexpr int64_t kWindow = 4;
constexpr int64_t kLeastQueries = 64;  // of one part: fewer are not worth another thread

// Call `run(first, last)` on parts of [0, count) that are as equal as can be, each at least `least` long.
template <typename Run>
void in_parts(int64_t count, int64_t least, const Run& run) {
    const int64_t threads = tbb::this_task_arena::max_concurrency();
    const int64_t parts = std::clamp<int64_t>(count / least, 1, threads);
    if (parts == 1) return run(int64_t{0}, count);
    tbb::parallel_for(int64_t{0}, parts, [&](int64_t part) { run(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace

namespace xpose {

// Inputs as in engines/kernels/operator.py: value_BSMD, reference_BQLR, offsets_BQMLP2, logits_BQMLP.
class MsDeformAttn : public ov::op::Op {
public:
    OPENVINO_OP("MsDeformAttn", "xpose");
    MsDeformAttn() = default;
    MsDeformAttn(const ov::OutputVector& inputs, const std::vector<int64_t>& sizes) : Op(inputs), sizes_L2_(sizes) {
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override {
        const ov::PartialShape& value = get_input_partial_shape(0);
        const ov::PartialShape& offsets = get_input_partial_shape(2);
        set_output_type(0, ov::element::f32, ov::PartialShape{value[0], offsets[1], value[2] * value[3]});
    }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<MsDeformAttn>(inputs, sizes_L2_);
    }
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("sizes", sizes_L2_);
        return true;
    }
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape value = inputs[0].get_shape(), offsets = inputs[2].get_shape();
        const std::vector<int32_t> sizes_L2(sizes_L2_.begin(), sizes_L2_.end());
        XposeDeformShape shape = {};
        shape.batch = 1, shape.tokens = value[1], shape.heads = value[2], shape.depth = value[3];
        shape.levels = offsets[3], shape.points = offsets[4], shape.threads = 1, shape.sizes_L2 = sizes_L2.data();
        shape.reference_size = inputs[1].get_shape()[3];
        outputs[0].set_shape({value[0], offsets[1], value[2] * value[3]});
        for (size_t image = 0; image < value[0]; ++image) run_image(shape, image, offsets[1], inputs, outputs[0]);
        return true;
    }

private:
    static void run_image(const XposeDeformShape& shape, int64_t image, int64_t queries, const ov::TensorVector& inputs,
                          ov::Tensor& out) {
        const int64_t channels = shape.heads * shape.depth, samples = shape.heads * shape.levels * shape.points;
        const int64_t references = inputs[1].get_shape()[0] == 1 ? 0 : image;
        in_parts(queries, kLeastQueries, [&](int64_t first, int64_t last) {
            XposeDeformShape part = shape;
            part.queries = last - first;
            const int64_t at = image * queries + first;
            xpose_forward_float32(
                &part, inputs[0].data<const float>() + image * shape.tokens * channels,
                inputs[1].data<const float>() + (references * queries + first) * shape.levels * shape.reference_size,
                inputs[2].data<const float>() + at * samples * 2, inputs[3].data<const float>() + at * samples,
                out.data<float>() + at * channels);
        });
    }
    std::vector<int64_t> sizes_L2_;  // height and width of each level
};

// Inputs as in engines/kernels/cpu.py: qkv_BHWC, bias_MTT.
class WindowAttention : public ov::op::Op {
public:
    OPENVINO_OP("WindowAttention", "xpose");
    WindowAttention() = default;
    WindowAttention(const ov::OutputVector& inputs, int64_t shift) : Op(inputs), shift_(shift) {
        constructor_validate_and_infer_types();
    }
    void validate_and_infer_types() override {
        ov::PartialShape out = get_input_partial_shape(0);
        out[3] = out[3].get_length() / 3;
        set_output_type(0, ov::element::f32, out);
    }
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<WindowAttention>(inputs, shift_);
    }
    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("shift", shift_);
        return true;
    }
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape qkv = inputs[0].get_shape();
        XposeWindowShape shape = {};
        shape.batch = qkv[0], shape.height = qkv[1], shape.width = qkv[2], shape.heads = inputs[1].get_shape()[0];
        shape.depth = qkv[3] / 3 / shape.heads, shape.shift = shift_, shape.threads = 1;
        outputs[0].set_shape({qkv[0], qkv[1], qkv[2], qkv[3] / 3});
        in_parts(shape.batch * (shape.height / kWindow), 1, [&](int64_t first, int64_t last) {
            XposeWindowShape part = shape;
            part.first_row = first, part.last_row = last;
            xpose_window_attention(&part, inputs[0].data<const float>(), inputs[1].data<const float>(),
                                   outputs[0].data<float>());
        });
        return true;
    }

private:
    int64_t shift_ = 0;  // tokens that the windows are shifted right and down by
};

}  // namespace xpose

namespace {

template <typename Operator>
void add(std::vector<ov::Extension::Ptr>& extensions) {
    extensions.push_back(std::make_shared<ov::OpExtension<Operator>>());
    extensions.push_back(std::make_shared<ov::frontend::onnx::OpExtension<Operator>>(
        Operator::get_type_info_static().name, "xpose"));
}

std::vector<ov::Extension::Ptr> all_extensions() {
    std::vector<ov::Extension::Ptr> extensions;
    add<xpose::MsDeformAttn>(extensions);
    add<xpose::WindowAttention>(extensions);
    return extensions;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(all_extensions());
