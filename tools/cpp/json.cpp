#include "json.h"

#include <cctype>
#include <cstdlib>
#include <stdexcept>

// Recursive descent over the grammar of RFC 8259.
class JsonParser {
 public:
  explicit JsonParser(const std::string& text) : text_(text) {}

  Json document() {
    Json result = value(0);
    skip_space();
    if (at_ != text_.size()) fail("something follows the document");
    return result;
  }

 private:
  static constexpr int kDeepest = 64;  // a hostile file must not exhaust the stack

  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error("no JSON at byte " + std::to_string(at_) + ": " + why);
  }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  char peek() {
    skip_space();
    if (at_ == text_.size()) fail("it ends too early");
    return text_[at_];
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) fail(std::string("expected ") + wanted);
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    Json result;
    switch (peek()) {
      case '{': result.value_ = object(depth); break;
      case '[': result.value_ = array(depth); break;
      case '"': result.value_ = string(); break;
      case 't': word("true"), result.value_ = true; break;
      case 'f': word("false"), result.value_ = false; break;
      case 'n': word("null"); break;
      default: result.value_ = number();
    }
    return result;
  }

  Json::Object object(int depth) {
    Json::Object members;
    expect('{');
    if (take('}')) return members;
    do {
      if (peek() != '"') fail("expected a key");
      std::string key = string();
      expect(':');
      members.emplace_back(std::move(key), value(depth + 1));
    } while (take(','));
    expect('}');
    return members;
  }

  Json::Array array(int depth) {
    Json::Array items;
    expect('[');
    if (take(']')) return items;
    do items.push_back(value(depth + 1));
    while (take(','));
    expect(']');
    return items;
  }

  void word(const std::string& wanted) {
    if (text_.compare(at_, wanted.size(), wanted) != 0) fail("expected " + wanted);
    at_ += wanted.size();
  }

  double number() {
    char* end = nullptr;
    const double result = std::strtod(text_.c_str() + at_, &end);
    if (end == text_.c_str() + at_) fail("expected a value");
    at_ = static_cast<std::size_t>(end - text_.c_str());
    return result;
  }

  std::string string() {
    std::string result;
    for (++at_;; ++at_) {
      if (at_ >= text_.size()) fail("a string does not end");
      if (text_[at_] == '"') break;
      if (text_[at_] != '\\') {
        result += text_[at_];
        continue;
      }
      if (++at_ >= text_.size()) fail("a string does not end");
      escape(result);
    }
    ++at_;
    return result;
  }

  void escape(std::string& result) {
    static const std::string kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const auto index = kNames.find(text_[at_]);
    if (index != std::string::npos) {
      result += kMeanings[index];
    } else if (text_[at_] == 'u') {
      append_utf8(result, code_point());
    } else {
      fail("unknown escape");
    }
  }

  unsigned hex4() {
    if (at_ + 4 >= text_.size()) fail("a string does not end");
    const std::string digits = text_.substr(at_ + 1, 4);
    if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail("expected four hex digits");
    at_ += 4;
    return static_cast<unsigned>(std::stoul(digits, nullptr, 16));
  }

  unsigned code_point() {
    const unsigned high = hex4();
    // Beyond U+FFFF, JSON writes UTF-16 surrogate pairs.
    if (high < 0xD800 || high > 0xDBFF || text_.compare(at_ + 1, 2, "\\u") != 0) return high;
    at_ += 2;
    return 0x10000 + ((high - 0xD800) << 10) + (hex4() - 0xDC00);
  }

  static void append_utf8(std::string& out, unsigned code) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | (code >> 6)), tail(0);
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | (code >> 12)), tail(6), tail(0);
    } else {
      out += static_cast<char>(0xF0 | (code >> 18)), tail(12), tail(6), tail(0);
    }
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

Json Json::parse(const std::string& text) { return JsonParser(text).document(); }

const Json& Json::operator[](const std::string& key) const {
  static const Json kNull;
  if (const auto* members = std::get_if<Object>(&value_)) {
    for (const auto& [name, value] : *members) {
      if (name == key) return value;
    }
  }
  return kNull;
}

std::string Json::text(const std::string& otherwise) const {
  const auto* found = std::get_if<std::string>(&value_);
  return found ? *found : otherwise;
}

double Json::number(double otherwise) const {
  const auto* found = std::get_if<double>(&value_);
  return found ? *found : otherwise;
}
