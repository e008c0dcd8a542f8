// What an application has to know about a bundle, from its manifest.json.
#pragma once

#include <stdexcept>
#include <string>

// An error with the exit code of the process: 1 failed, 2 usage, 4 something is missing on this machine.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, int exit_code = 1) : std::runtime_error(message), exit_code(exit_code) {}
  const int exit_code;
};

struct Bundle {
  std::string folder;
  int scale = 0;              // output pixels per input pixel along each axis
  bool channels_last = true;  // images are [N, H, W, 3], else [N, 3, H, W]
  std::string engine;         // what built engine.plan and for which GPU; empty when the bundle has none
  std::string rebuild;        // NVIDIA's command that builds engine.plan again, to be run in the folder

  std::string onnx_path() const { return folder + "/model.onnx"; }
  std::string plan_path() const { return folder + "/engine.plan"; }
};

// Reads DIR/manifest.json; throws Failure unless it is a bundle with uint8 images in and out.
Bundle read_bundle(const std::string& folder);

// A whole file; throws Failure when it cannot be read.
std::string read_file(const std::string& path);
