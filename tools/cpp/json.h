// A reader for the JSON of manifest.json, so that the examples need no library for it.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  // Parses a document; throws std::runtime_error with the position of what is not JSON.
  static Json parse(const std::string& text);

  // The value under `key`; null where this is no object or has no such key, so that look-ups can be chained.
  const Json& operator[](const std::string& key) const;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  // The value as text or number; `otherwise` where it is of another type.
  std::string text(const std::string& otherwise = "") const;
  double number(double otherwise) const;

 private:
  friend class JsonParser;
  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_ = nullptr;
};
