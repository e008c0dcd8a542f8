// Upscales frames with a bundle's model.onnx on the CPU, through ONNX Runtime's C++ API: no Python, no GPU.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <memory>

#include "frames.h"

namespace {

class Session {
 public:
  explicit Session(const Bundle& bundle)
      : env_(ORT_LOGGING_LEVEL_ERROR, "upscale"), scale_(bundle.scale), channels_last_(bundle.channels_last) {
    Ort::SessionOptions options;
    options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
    // From memory, not from a path: paths are wide strings on Windows.
    const std::string model = read_file(bundle.onnx_path());
    session_ = Ort::Session(env_, model.data(), model.size(), options);
    input_ = tensor_name(Ort::GetApi().SessionGetInputName);
    output_ = tensor_name(Ort::GetApi().SessionGetOutputName);
  }

  void run(int width, int height, const std::vector<std::uint8_t>& in, std::vector<std::uint8_t>& out) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto from = shape(width, height), to = shape(width * scale_, height * scale_);
    // ONNX Runtime reads and writes the caller's memory; it takes no const pointer, but does not write to inputs.
    const Ort::Value input = Ort::Value::CreateTensor<std::uint8_t>(memory, const_cast<std::uint8_t*>(in.data()),
                                                                    in.size(), from.data(), from.size());
    Ort::Value output = Ort::Value::CreateTensor<std::uint8_t>(memory, out.data(), out.size(), to.data(), to.size());
    const char *const input_name = input_.c_str(), *const output_name = output_.c_str();
    session_.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, &output_name, &output, 1);
  }

 private:
  std::array<std::int64_t, 4> shape(int width, int height) const {
    if (channels_last_) return {1, height, width, 3};
    return {1, 3, height, width};
  }

  // Through the C API: the C++ name getters changed in ONNX Runtime 1.13.
  template <typename Getter>
  std::string tensor_name(Getter get) {
    Ort::AllocatorWithDefaultOptions allocator;
    char* name = nullptr;
    Ort::ThrowOnError(get(session_, 0, allocator, &name));
    std::string copy = name;
    allocator.Free(name);
    return copy;
  }

  Ort::Env env_;
  Ort::Session session_{nullptr};
  std::string input_, output_;
  int scale_;
  bool channels_last_;
};

}  // namespace

int main(int argc, char** argv) {
  return run_as_program(argc, argv, [](const Bundle& bundle) -> Network {
    auto session = std::make_shared<Session>(bundle);
    return [session](int width, int height, const auto& in, auto& out) { session->run(width, height, in, out); };
  });
}
