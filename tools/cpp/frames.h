// Frames in and out as PPM (P6, 8 bits), the format every tool converts to and from, and pipes of it:
//   ffmpeg -i in.mp4 -f image2pipe -c:v ppm - | upscale_tensorrt bundle - - | ffmpeg -f image2pipe -c:v ppm -i -
//   out.mp4
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "bundle.h"

struct Image {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // height rows of width pixels of 3 bytes

  Image() = default;
  Image(int w, int h)
      : width(w), height(h), rgb(std::size_t{3} * static_cast<std::size_t>(w) * static_cast<std::size_t>(h)) {}
};

// Takes and gives image bytes in the bundle's own layout, of a width and height before upscaling.
using Network =
    std::function<void(int width, int height, const std::vector<std::uint8_t>& in, std::vector<std::uint8_t>& out)>;

// Reads the next frame; false at the end of the stream. Throws Failure on anything but a PPM.
bool read_frame(std::istream& in, Image& frame);
void write_frame(std::ostream& out, const Image& frame);

// One frame through a network: planes are taken apart and put together where the bundle wants [N, 3, H, W].
Image upscale(const Bundle& bundle, const Network& network, const Image& frame);

// The programs' common main: upscales frames from `in` to `out` ("-" is stdin, stdout) and says how long they took.
void upscale_stream(const Bundle& bundle, const Network& network, const std::string& in, const std::string& out);

// Runs `body` as a process: one line per error, the exit codes of odm-deploy.
int run_as_program(int argc, char** argv, const std::function<Network(const Bundle&)>& open);
