#include "frames.h"

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

namespace {

constexpr int kLargestSide = 1 << 16;

// The next whitespace-separated number of a PPM header; comments run from # to the end of the line.
int header_number(std::istream& in) {
  while (in >> std::ws && in.peek() == '#') {
    while (in && in.get() != '\n') {
    }
  }
  int number = 0;
  if (!(in >> number) || number < 1 || number > kLargestSide)
    throw Failure("the input is no PPM image of a usable size");
  return number;
}

std::vector<std::uint8_t> to_planes(const std::vector<std::uint8_t>& pixels) {
  const std::size_t count = pixels.size() / 3;
  std::vector<std::uint8_t> planes(pixels.size());
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t c = 0; c < 3; ++c) planes[c * count + i] = pixels[3 * i + c];
  }
  return planes;
}

std::vector<std::uint8_t> to_pixels(const std::vector<std::uint8_t>& planes) {
  const std::size_t count = planes.size() / 3;
  std::vector<std::uint8_t> pixels(planes.size());
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t c = 0; c < 3; ++c) pixels[3 * i + c] = planes[c * count + i];
  }
  return pixels;
}

void pump(const Bundle& bundle, const Network& network, std::istream& in, std::ostream& out) {
  Image frame;
  int frames = 0;
  double first_ms = 0, rest_ms = 0;
  while (read_frame(in, frame)) {
    const auto start = std::chrono::steady_clock::now();
    const Image large = upscale(bundle, network, frame);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    (frames++ == 0 ? first_ms : rest_ms) += took.count();
    write_frame(out, large);
  }
  if (frames == 0) throw Failure("the input holds no frame");
  std::fprintf(stderr, "%d frame%s, the first in %.1f ms", frames, frames == 1 ? "" : "s", first_ms);
  if (frames > 1) std::fprintf(stderr, ", the others in %.1f ms each", rest_ms / (frames - 1));
  std::fprintf(stderr, "\n");
}

}  // namespace

bool read_frame(std::istream& in, Image& frame) {
  if (in.peek() == std::istream::traits_type::eof()) return false;
  if (in.get() != 'P' || in.get() != '6') throw Failure("the input is no binary PPM image (P6)");
  const int width = header_number(in), height = header_number(in);
  if (header_number(in) != 255) throw Failure("the input has not 8 bits a channel");
  in.get();  // the single whitespace in front of the pixels
  frame = Image(width, height);
  in.read(reinterpret_cast<char*>(frame.rgb.data()), static_cast<std::streamsize>(frame.rgb.size()));
  if (!in) throw Failure("a frame is cut short");
  return true;
}

void write_frame(std::ostream& out, const Image& frame) {
  out << "P6\n" << frame.width << " " << frame.height << "\n255\n";
  out.write(reinterpret_cast<const char*>(frame.rgb.data()), static_cast<std::streamsize>(frame.rgb.size()));
  if (!out.flush()) throw Failure("cannot write a frame: the disk is full, or nobody reads the pipe");
}

Image upscale(const Bundle& bundle, const Network& network, const Image& frame) {
  Image large(frame.width * bundle.scale, frame.height * bundle.scale);
  if (bundle.channels_last) {
    network(frame.width, frame.height, frame.rgb, large.rgb);
  } else {
    std::vector<std::uint8_t> planes(large.rgb.size());
    network(frame.width, frame.height, to_planes(frame.rgb), planes);
    large.rgb = to_pixels(planes);
  }
  return large;
}

void upscale_stream(const Bundle& bundle, const Network& network, const std::string& in, const std::string& out) {
  std::ifstream file;
  if (in != "-") {
    file.open(in, std::ios::binary);
    if (!file) throw Failure("cannot read " + in);
  }
  std::istream& source = in == "-" ? std::cin : file;
  if (out == "-") {
    pump(bundle, network, source, std::cout);
    return;
  }
  if (std::filesystem::exists(out) && !std::filesystem::is_regular_file(out)) {
    throw Failure("cannot write " + out + ": it is no regular file; use - for stdout");
  }
  // Under another name until it is whole: a crash must not leave half an image that looks like one.
  const std::string partial = out + ".part";
  try {
    std::ofstream sink(partial, std::ios::binary);
    if (!sink) throw Failure("cannot write " + out);
    pump(bundle, network, source, sink);
    sink.close();
    std::filesystem::rename(partial, out);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

int run_as_program(int argc, char** argv, const std::function<Network(const Bundle&)>& open) {
  try {
    if (argc != 4)
      throw Failure(std::string("usage: ") + argv[0] + " BUNDLE IN.ppm OUT.ppm   (- is stdin or stdout)", 2);
    std::ios::sync_with_stdio(false);
    const Bundle bundle = read_bundle(argv[1]);
    upscale_stream(bundle, open(bundle), argv[2], argv[3]);
    return 0;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.what());
    return failure.exit_code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
