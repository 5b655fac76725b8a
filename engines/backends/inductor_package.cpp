// A compiled package as a class that Python may call from several threads at once.
//
// PyTorch's own binding holds Python's lock while a package runs, and with it every other stage; methods of a class
// that is registered with PyTorch are called without it. Built by engines/backends/inductor.py.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

namespace {

class Package : public torch::CustomClassHolder {
   public:
    // `runs`: most calls of `run` at a time; more of them wait.
    Package(const std::string& path, int64_t runs)
        : loader_(path, "model", /*run_single_threaded=*/false, /*num_runners=*/runs) {}

    std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) { return loader_.run(inputs); }

   private:
    torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

TORCH_LIBRARY(xpose_inductor, library) {
    library.class_<Package>("Package").def(torch::init<std::string, int64_t>()).def("run", &Package::run);
}
