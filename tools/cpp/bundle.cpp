#include "bundle.h"

#include <fstream>
#include <iterator>

#include "json.h"

namespace {
constexpr int kManifestVersion = 1;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && content.empty()) throw Failure("cannot read " + path);
  return content;
}

Bundle read_bundle(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  Json manifest;
  try {
    manifest = Json::parse(read_file(path));
  } catch (const Failure&) {
    throw Failure(folder + " is not a bundle: it has no readable manifest.json; make one with: odm-deploy export");
  } catch (const std::runtime_error& error) {
    throw Failure(path + " is damaged: " + error.what());
  }
  if (manifest["format"].text() != "odm-deploy bundle" || manifest["version"].number(0) != kManifestVersion) {
    throw Failure(path + " is of another format or version than this program reads");
  }
  const Json& onnx = manifest["onnx"];
  if (onnx["io"].text() != "uint8") {
    throw Failure(folder + " takes " + onnx["io"].text("no known") +
                  " images: export it with --io uint8 --layout nhwc, then bytes go in and out");
  }
  Bundle bundle;
  bundle.folder = folder;
  bundle.scale = static_cast<int>(manifest["network"]["scale"].number(0));
  bundle.channels_last = onnx["layout"].text() == "nhwc";
  if (bundle.scale < 1) throw Failure(path + " is damaged: it names no scale");
  const Json& engine = manifest["engine"];
  if (!engine.is_null()) {
    bundle.engine = engine["flavour"].text() + " " + engine["version"].text();
    if (!engine["gpu"].is_null()) bundle.engine += " on " + engine["gpu"].text();
    bundle.rebuild = engine["trtexec"].text();
  }
  return bundle;
}
