// Upscales frames with a bundle's engine.plan, through the C++ API that TensorRT 10, 11 and TensorRT for RTX share.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <iostream>
#include <memory>

#include "frames.h"

namespace {

// Only the headers of TensorRT for RTX define this. It compiles kernels where it runs, and replays graphs by itself.
#ifdef TRT_MAJOR_RTX
constexpr bool records_graphs_itself = true;
#else
constexpr bool records_graphs_itself = false;
#endif

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string advice =
      status == cudaErrorMemoryAllocation ? "; use smaller frames" : "; check the GPU with nvidia-smi";
  throw Failure(std::string("cannot ") + what + ": " + cudaGetErrorString(status) + advice);
}

// Keeps what TensorRT says when something fails, for our own message; its warnings go to stderr at once.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) last_error = message;
    if (severity == Severity::kWARNING) std::cerr << "TensorRT: " << message << "\n";
  }
  std::string last_error = "TensorRT gave no reason";
};

struct Stream {
  Stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "create a CUDA stream"); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

// Device memory with a page-locked twin on the host: copies from pageable memory would not be asynchronous.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { release(); }

  void reserve(std::size_t bytes) {
    if (bytes <= size_) return;
    release();
    check(cudaMalloc(&device, bytes), "allocate GPU memory");
    check(cudaMallocHost(&host, bytes), "allocate page-locked memory");
    size_ = bytes;
  }

  void* device = nullptr;
  void* host = nullptr;

 private:
  void release() {
    cudaFree(device);
    cudaFreeHost(host);
    device = host = nullptr;
    size_ = 0;
  }
  std::size_t size_ = 0;
};

// What one run queues on a stream, recorded once and launched as a whole from then on.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  ~Graph() { reset(); }

  // Leaves this empty where the work cannot be recorded: it then runs kernel by kernel as before.
  template <typename Work>
  void record(cudaStream_t stream, Work queue_work) {
    reset();
    // Thread-local: other threads of an application may go on allocating meanwhile.
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
      const bool queued = queue_work();
      cudaGraph_t graph = nullptr;
      if (cudaStreamEndCapture(stream, &graph) == cudaSuccess && queued) {
        if (cudaGraphInstantiateWithFlags(&executable_, graph, 0) != cudaSuccess) executable_ = nullptr;
      }
      if (graph) cudaGraphDestroy(graph);
    }
    cudaGetLastError();  // a failure here is none of the next call's
  }

  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream), "launch the CUDA graph"); }
  explicit operator bool() const { return executable_ != nullptr; }

  void reset() {
    if (executable_) cudaGraphExecDestroy(executable_);
    executable_ = nullptr;
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

std::string to_text(const nvinfer1::Dims& dims) {
  std::string text;
  for (int i = 0; i < dims.nbDims; ++i) text += (i ? "x" : "") + std::to_string(dims.d[i]);
  return text;
}

class Engine {
 public:
  explicit Engine(const Bundle& bundle) : channels_last_(bundle.channels_last) {
    const std::string plan = read_file(bundle.plan_path());
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (!runtime_) throw Failure("TensorRT does not start: " + logger_.last_error, 4);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) {
      // A plan runs on the version, and mostly on the kind of GPU, that it was built with.
      throw Failure("TensorRT " + std::to_string(getInferLibVersion()) + " cannot load " + bundle.plan_path() +
                    ", built by " + bundle.engine + ": " + logger_.last_error + "; build it again here, in " +
                    bundle.folder + ": " + bundle.rebuild);
    }
    context_.reset(create_context());
    if (!context_) throw Failure("TensorRT could not create an execution context: " + logger_.last_error);
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? input_ : output_) = name;
    }
  }

  void run(int width, int height, const std::vector<std::uint8_t>& in, std::vector<std::uint8_t>& out) {
    const bool resized = width != width_ || height != height_;
    if (resized) bind(width, height, in.size(), out.size());
    std::memcpy(input_buffer_.host, in.data(), in.size());
    check(cudaMemcpyAsync(input_buffer_.device, input_buffer_.host, in.size(), cudaMemcpyHostToDevice, stream_.handle),
          "copy a frame to the GPU");
    if (graph_) {
      graph_.launch(stream_.handle);
    } else {
      require(context_->enqueueV3(stream_.handle));
    }
    check(
        cudaMemcpyAsync(output_buffer_.host, output_buffer_.device, out.size(), cudaMemcpyDeviceToHost, stream_.handle),
        "copy a frame from the GPU");
    check(cudaStreamSynchronize(stream_.handle), "run the engine");
    std::memcpy(out.data(), output_buffer_.host, out.size());
    // Not before the first run of a size: that one does work on the host that a graph must not contain.
    if (resized && !records_graphs_itself) {
      graph_.record(stream_.handle, [this] { return context_->enqueueV3(stream_.handle); });
    }
  }

 private:
#ifdef TRT_MAJOR_RTX
  // Eager: by default the first frames run on fallback kernels while better ones compile, and a graph recorded
  // meanwhile would replay the fallback for good.
  nvinfer1::IExecutionContext* create_context() {
    config_.reset(engine_->createRuntimeConfig());
    require(config_ != nullptr);
    config_->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    require(config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE));
    return engine_->createExecutionContext(config_.get());
  }
#else
  nvinfer1::IExecutionContext* create_context() { return engine_->createExecutionContext(); }
#endif

  // A graph replays the shapes and addresses it was recorded with, so a change of size ends it.
  void bind(int width, int height, std::size_t in_bytes, std::size_t out_bytes) {
    graph_.reset();
    width_ = height_ = 0;
    set_shape(width, height);
    input_buffer_.reserve(in_bytes);
    output_buffer_.reserve(out_bytes);
    require(context_->setTensorAddress(input_.c_str(), input_buffer_.device));
    require(context_->setTensorAddress(output_.c_str(), output_buffer_.device));
    width_ = width;
    height_ = height;
  }

  void set_shape(int width, int height) {
    const nvinfer1::Dims4 shape =
        channels_last_ ? nvinfer1::Dims4{1, height, width, 3} : nvinfer1::Dims4{1, 3, height, width};
    const auto least = engine_->getProfileShape(input_.c_str(), 0, nvinfer1::OptProfileSelector::kMIN);
    const auto most = engine_->getProfileShape(input_.c_str(), 0, nvinfer1::OptProfileSelector::kMAX);
    for (int i = 0; i < 4; ++i) {
      if (shape.d[i] < least.d[i] || shape.d[i] > most.d[i]) {
        throw Failure("the engine takes no frame of " + to_text(shape) + ": it was built for " + to_text(least) +
                      " to " + to_text(most));
      }
    }
    require(context_->setInputShape(input_.c_str(), shape));
  }

  void require(bool worked) const {
    if (!worked) throw Failure("TensorRT failed: " + logger_.last_error);
  }

  // Destroyed from the last to the first: the context goes before its configuration and its engine, and the logger
  // outlives all.
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef TRT_MAJOR_RTX
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
#endif
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Stream stream_;
  Buffer input_buffer_, output_buffer_;
  Graph graph_;
  int width_ = 0, height_ = 0;  // what the context is bound to
  std::string input_, output_;
  bool channels_last_;
};

}  // namespace

int main(int argc, char** argv) {
  return run_as_program(argc, argv, [](const Bundle& bundle) -> Network {
    if (bundle.engine.empty())
      throw Failure(bundle.folder + " holds no engine.plan: make one with: odm-deploy build");
    int gpus = 0;
    const cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status != cudaSuccess || gpus == 0) {
      throw Failure(std::string("no NVIDIA GPU that the driver can use: ") + cudaGetErrorString(status) +
                        "; upscale_onnxruntime runs the bundle on the CPU",
                    4);
    }
    auto engine = std::make_shared<Engine>(bundle);
    return [engine](int width, int height, const auto& in, auto& out) { engine->run(width, height, in, out); };
  });
}
